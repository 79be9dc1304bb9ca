# Everything a developer types. `make help` lists it.
#
# Two stamps in the virtual environment say what is installed there, so that nothing is done twice:
#   .run  the project and what it needs to run      .dev  what tests and linters need besides
# Both come from the locked files under requirements/, every package checked against its hash.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
LOCK   := $(VENV)/lock/bin/pip-compile --quiet --strip-extras --generate-hashes --no-emit-index-url \
          --no-emit-trusted-host --no-emit-find-links --no-emit-options --no-header

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.PHONY: help demo test services lint format bench docs lock clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(VENV)/.run ## 100,000 messages through a broker that is killed on the way
	@$(BIN)/ciphermq demo $(ARGS)

test: $(VENV)/.dev services ## the whole suite, kills and all (ARGS='-k journal' for a part)
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

services: ## what tests start for themselves: PostgreSQL, RabbitMQ, HAProxy, SoftHSM
	@tests/services

lint: $(VENV)/.dev ## style, types, the arrows between the rooms
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest --quiet tests/test_tidy.py

format: $(VENV)/.dev ## lay the code out, mend what can be mended
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: $(VENV)/.run ## measure; JSON on standard output (ARGS=queue for one of them)
	@$(BIN)/python -m bench $(ARGS)

docs: $(VENV)/.dev ## write the generated pages anew, then check every page
	@$(BIN)/python docs/generate.py
	@$(BIN)/python -m pytest --quiet tests/test_docs.py

lock: pyproject.toml | $(BIN)/python ## choose versions anew and lock them
	@test -x $(VENV)/lock/bin/pip-compile || { $(PYTHON) -m venv $(VENV)/lock; $(VENV)/lock/bin/pip install --quiet pip-tools; }
	@$(LOCK) --upgrade --only-build-deps --build-deps-for editable --output-file requirements/build.txt pyproject.toml
	@$(LOCK) --upgrade --constraint requirements/build.txt --output-file requirements/run.txt pyproject.toml
	@$(LOCK) --upgrade --extra dev --constraint requirements/build.txt --constraint requirements/run.txt --output-file requirements/dev.txt pyproject.toml

clean: ## remove all that make made
	@rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A system Python may lack the part that makes virtual environments; Debian has it in a package.
$(BIN)/python:
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$(PYTHON)" = python3 ] && [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing python3-venv"; \
	    apt-get update -qq && apt-get install -qq --yes --no-install-recommends python3 python3-venv >/dev/null; \
	  else \
	    echo "$(PYTHON) is missing or can't make virtual environments. Install it (on Debian:" >&2; \
	    echo "apt install python3-venv) or name another: make PYTHON=/path/to/python3" >&2; exit 1; \
	  fi; \
	fi
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; v >= (3, 11) or sys.exit(f"CipherMQ needs Python 3.11 or newer; $(PYTHON) is {v[0]}.{v[1]}. Name another: make PYTHON=/path/to/python3")'
	@echo "Making $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.run: requirements/build.txt requirements/run.txt pyproject.toml | $(BIN)/python
	@echo "Installing what CipherMQ needs to run"
	@$(PIP) install --require-hashes -r requirements/build.txt -r requirements/run.txt
	@$(PIP) install --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.run
	@echo "Installing what its tests need"
	@$(PIP) install --require-hashes -r requirements/dev.txt
	@touch $@
