"""The documentation is true: links lead somewhere, commands exist, generated pages are current."""

from __future__ import annotations

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

ROOT = Path(__file__).resolve().parent.parent
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def anchors(page: Path) -> set[str]:
    """The fragments GitHub gives a page's headings."""
    text = FENCE.sub("", page.read_text())
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", head.lower()).replace(" ", "-") for head in heads}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        if not file.exists() or (fragment and fragment not in anchors(file)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_is_python(page: Path) -> None:
    for language, block in FENCE.findall(page.read_text()):
        if language == "python":
            compile(block, name_of(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


def test_every_page_is_in_the_index() -> None:
    linked = set(re.findall(r"\]\(([^)#\s]+\.md)", (ROOT / "docs" / "README.md").read_text()))
    pages = {str(page.relative_to(ROOT / "docs")) for page in PAGES if "docs" in page.parts}
    assert (
        pages - linked - {"README.md"} - {p for p in pages if p.startswith("decisions/0")} == set()
    )
    decisions = set(
        re.findall(r"\]\((0[^)#\s]+\.md)", (ROOT / "docs/decisions/README.md").read_text())
    )
    assert {p.removeprefix("decisions/") for p in pages if p.startswith("decisions/0")} == decisions


# --- commands -----------------------------------------------------------------------------------


@cache
def command_line() -> Any:
    from ciphermq.cli.main import app

    return typer.main.get_command(app)


def commands_in(page: Path) -> Iterator[list[str]]:
    """Every `ciphermq …` in a console block, as words."""
    for language, block in FENCE.findall(page.read_text()):
        if language not in {"console", "sh", "ini"}:
            continue
        for line in block.replace("\\\n", " ").splitlines():
            for part in re.split(r"\s[|>&]+\s?|;", line):
                if match := re.search(r"(?:^|[\s$=/])ciphermq (.*)", part):
                    yield shlex.split(match[1], comments=True)


def why_impossible(words: list[str]) -> str | None:
    """What of these words the command line does not know."""
    command = command_line()
    rest = list(words)
    while rest and hasattr(command, "commands") and not rest[0].startswith("-"):
        word = rest.pop(0)
        if word not in command.commands:
            return f"no command {word!r}"
        command = command.commands[word]
    if "list" in getattr(command, "commands", ()):
        command = command.commands["list"]  # what such a group does without a word
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)}
    known |= {"--help", "--version"}
    for word in rest:
        option = word.partition("=")[0]
        if re.match(r"--?[a-zA-Z]", option) and option not in known:
            return f"no option {option!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_exist(page: Path) -> None:
    wrong = {
        " ".join(words): reason for words in commands_in(page) if (reason := why_impossible(words))
    }
    assert wrong == {}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:`|^\$? ?)make ([a-z]+)", page.read_text(), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tests_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page.read_text())
    assert [
        f"{file}::{name}"
        for file, name in named
        if not (ROOT / file).is_file()
        or not re.search(rf"^(async )?def {name}\(", (ROOT / file).read_text(), re.MULTILINE)
    ] == []


@pytest.mark.parametrize(
    "name",
    [
        "cli.md",
        "settings.md",
        "errors.md",
        "limits.md",
        "proxy-control.md",
        "proxy-config.md",
        "proxy-command.md",
        "proxy-metrics.md",
    ],
)
def test_generated_pages_are_current(name: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (ROOT / "docs" / "reference" / name).read_text() == generate.PAGES[name](), (
        "the code has moved on: run `make docs`"
    )
