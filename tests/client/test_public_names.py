"""What ``import ciphermq`` gives, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import ciphermq
import ciphermq.client


def test_every_public_name_is_there() -> None:
    for module in (ciphermq, ciphermq.client, ciphermq.sync):
        for name in module.__all__:
            assert getattr(module, name) is not None
    assert set(ciphermq.__all__) <= set(dir(ciphermq))


def test_an_unknown_name_is_an_attribute_error() -> None:
    for module in (ciphermq, ciphermq.client):
        assert not hasattr(module, "nonsense")


def test_importing_it_imports_nothing_heavy() -> None:
    heavy = "{'asyncio', 'cryptography', 'sqlite3', 'uvloop', 'ssl', 'msgspec'}"
    code = f"import sys, ciphermq, ciphermq.client; print(sorted({heavy} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
