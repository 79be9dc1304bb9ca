"""The rules of style that a machine can check. Each failure names the place and the rule."""

from __future__ import annotations

import ast
import re
import subprocess
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from ciphermq import errors, limits

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "ciphermq"
MOST_LINES = 500


@cache
def tree() -> tuple[Path, ...]:
    """Every file under version control, or about to be."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file())


def modules() -> list[Path]:
    return [path for path in tree() if path.suffix == ".py" and path.is_relative_to(PACKAGE)]


def place(path: Path, line: int | None = None) -> str:
    name = str(path.relative_to(ROOT))
    return name if line is None else f"{name}:{line}"


def lines_with(pattern: str, paths: list[Path]) -> list[str]:
    """Where `pattern` occurs."""
    found = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        found += [
            f"{place(path, number)}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if re.search(pattern, line)
        ]
    return found


def test_a_module_is_one_idea() -> None:
    long = {place(path): len(path.read_text().splitlines()) for path in modules()}
    for lists in ("errors", "limits"):  # no code: one entry after another, all in one place
        del long[f"src/ciphermq/{lists}.py"]
    assert {name: count for name, count in long.items() if count > MOST_LINES} == {}


def test_every_module_says_what_it_is() -> None:
    silent = [
        place(path) for path in modules() if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert silent == []


def test_public_functions_and_classes_say_what_they_do() -> None:
    silent = [
        f"{place(path, node.lineno)}: {node.name}"
        for path in modules()
        if path.name != "frames.py"  # its classes are explained in one grammar, on its top
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
    ]
    assert silent == []


def test_nothing_is_left_unfinished() -> None:
    # Spelt so that this line does not find itself.
    words = r"Not[I]mplementedError|\b(TOD[O]|FIXM[E]|XX[X])\b|no cove[r]|mark\.(ski[p]|xfai[l])\b"
    assert lines_with(words, [path for path in tree() if path.suffix == ".py"]) == []


def test_no_download_address_is_in_the_tree() -> None:
    # Each in two parts, so that not even this file has one.
    options = ("index" + "-url", "find" + "-links", "trusted" + "-host")
    assert lines_with(rf"--(extra-)?({'|'.join(options)})\b", list(tree())) == []
    locked = [path for path in tree() if path.parent.name == "requirements"]
    assert locked
    assert lines_with(r"\w+://", locked) == []


def test_every_locked_package_has_a_hash() -> None:
    for path in tree():
        if path.parent.name != "requirements":
            continue
        for block in re.split(r"\n(?=\S)", path.read_text().strip()):
            assert re.match(r"[a-z0-9-]+==\S+ \\\n +--hash=sha256:[0-9a-f]{64}", block), block[:80]


def test_no_machine_of_ours_is_named() -> None:
    # A path of somebody's machine helps nobody else, and says more than it should.
    assert lines_with(r"(?<![\w.])/(root|home/\w+|Users/\w+)/|/tmp/\w", list(tree())) == []


def test_the_error_tree_is_drawn_as_it_is() -> None:
    drawing = (errors.__doc__ or "").split("::", 1)[1].split("\n\nA message says")[0]
    drawn: list[tuple[int, str]] = []
    for line in drawing.splitlines():
        if match := re.match(r"(?P<branches>[\s│├└─]*)(?P<name>\w+)", line):
            drawn.append((len(match["branches"]) // 4, match["name"]))

    def walk(cls: type[errors.CipherMQError], depth: int) -> Iterator[tuple[int, str]]:
        yield depth, cls.__name__
        for sub in cls.__subclasses__():
            if sub.__module__ == errors.__name__:
                yield from walk(sub, depth + 1)

    assert drawn[0][1] == "CipherMQError"
    assert [(depth, name) for depth, name in drawn] == [
        (depth + 1, name) for depth, name in walk(errors.CipherMQError, 0)
    ]


def test_every_error_has_a_code_of_its_own_and_says_what_it_is() -> None:
    seen: dict[str, str] = {}
    for name, cls in vars(errors).items():
        if isinstance(cls, type) and issubclass(cls, errors.CipherMQError):
            assert cls.__doc__, name
            assert "code" in vars(cls), f"{name} has its parent's code"
            assert cls.code not in seen, f"{name} and {seen[cls.code]} share the code {cls.code!r}"
            seen[cls.code] = name


def test_every_error_a_caller_may_catch_is_in_the_tree() -> None:
    elsewhere = [
        f"{place(path, node.lineno)}: {node.name}"
        for path in modules()
        if path != PACKAGE / "errors.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
        and any(ast.unparse(base).rpartition(".")[2] in vars(errors) for base in node.bases)
    ]
    assert elsewhere == []


def test_every_limit_has_its_reason() -> None:
    body = ast.parse((PACKAGE / "limits.py").read_text()).body
    bare = {
        ast.unparse(node.target)
        for node, after in zip(body, [*body[1:], None], strict=True)
        if isinstance(node, ast.AnnAssign) and not isinstance(after, ast.Expr)
    }
    assert bare == {"KIB", "MIB", "DAY"}


def test_limits_are_positive_numbers() -> None:
    for name, value in vars(limits).items():
        if name.isupper():
            assert isinstance(value, int | float), name
            assert value > 0, name


def test_every_limit_is_used() -> None:
    """A limit nobody checks is a promise nobody keeps."""
    text = "".join(path.read_text() for path in modules() if path != PACKAGE / "limits.py")
    own = (PACKAGE / "limits.py").read_text()
    unused = [
        name
        for name in vars(limits)
        if name.isupper()
        and not re.search(rf"\blimits\.{name}\b", text)
        and len(re.findall(rf"\b{name}\b", own)) < 2
    ]
    assert unused == []


@pytest.mark.parametrize(
    "name", ["README.md", "CHANGELOG.md", "SECURITY.md", "LICENSE", "Makefile"]
)
def test_the_usual_files_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 200


def test_comments_do_not_shout_or_narrate() -> None:
    found = []
    for path in modules():
        with tokenize.open(path) as source:
            for token in tokenize.generate_tokens(source.readline):
                if token.type == tokenize.COMMENT and re.match(
                    r"#\s*(HACK|NOTE|WARNING)\b", token.string
                ):
                    found.append(f"{place(path, token.start[0])}: {token.string}")
    assert found == []


def test_spelling_is_british() -> None:
    american = (
        r"\b(authoriz|serializ|initializ|normaliz|recogniz|behavior|colors?\b|canceled|neighbor"
        r"|favorite|honor|labeled|optimiz|organiz|summariz|synchroniz|utiliz)"
    )
    prose = [path for path in tree() if path.suffix == ".md" and path.name != "cli.md"]
    assert lines_with(american, prose) == []
    found = []
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text())):
            prose_in_code = isinstance(node, ast.Constant) and isinstance(node.value, str)
            if prose_in_code and " " in node.value and re.search(american, node.value):
                found.append(f"{place(path, node.lineno)}: {node.value.strip()[:80]}")
    assert found == []
