"""How a run ends: one line, the right status, nothing unforeseen on the screen."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import typer

from ciphermq import errors
from ciphermq.cli import errors as cli_errors
from ciphermq.cli.errors import ending, exit_status
from ciphermq.cli.main import app, run


def ended_by(error: BaseException, *, as_json: bool = False) -> int:
    with ending(as_json) as end:
        raise error
    return end.status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.UsageError("x"), 2),
        (errors.ConfigError("x"), 2),
        (errors.PassphraseError("x"), 2),
        (errors.CertificateError("x"), 5),
        (errors.QueueFull("x"), 3),
        (errors.TlsFailed("x"), 4),
        (errors.WaitTimeout("x"), 4),
        (errors.FrameTooLarge("x"), 4),
        (errors.KeyRecordForged("x"), 5),
        (errors.BadSignature("x"), 5),
        (errors.BatchTooLarge("x"), 2),
        (errors.ClockWrong("x"), 5),
        (errors.InboxError("x"), 6),
        (errors.JournalDamaged("x"), 6),
        (errors.CatalogError("x"), 6),
        (errors.StoreError("x"), 6),
        (errors.Unfinished("x"), 1),
        (KeyboardInterrupt(), 130),
        (typer.Abort(), 130),
        (typer.Exit(7), 7),
        (FileNotFoundError(2, "No such file", "a.txt"), 1),
    ],
)
def test_each_kind_of_trouble_has_its_status(error: BaseException, status: int) -> None:
    assert ended_by(error) == status


def test_every_error_of_ours_has_a_status() -> None:
    def walk(cls: type[errors.CipherMQError]) -> list[type[errors.CipherMQError]]:
        return [cls] + [found for sub in cls.__subclasses__() for found in walk(sub)]

    for cls in walk(errors.CipherMQError):
        assert 1 <= exit_status(cls.__new__(cls)) <= 6


def test_an_error_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    ended_by(errors.QueueFull("the queue\n  is full"))
    assert capsys.readouterr() == ("", "ciphermq: the queue is full\n")


@pytest.mark.parametrize("as_json", [False, True])
def test_an_error_that_quotes_a_stranger_can_not_steer_the_terminal(
    as_json: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    cli_errors.show_error("no \x1b[2J\x9b2J\nqueue", "x", as_json=as_json)
    assert capsys.readouterr().err.removesuffix("\n").isprintable()


def test_an_error_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    ended_by(errors.QueueFull("é\n"), as_json=True)
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err) == {"error": "queue-full", "message": "é\n"}


def test_a_missing_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    ended_by(FileNotFoundError(2, "No such file or directory", "a.txt"))
    assert capsys.readouterr().err == "ciphermq: a.txt: No such file or directory\n"


def test_a_defect_is_one_line_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CIPHERMQ_DEBUG", raising=False)
    assert ended_by(ZeroDivisionError("oops")) == 1
    assert capsys.readouterr().err.startswith("ciphermq: ZeroDivisionError: oops (this is a defect")
    monkeypatch.setenv("CIPHERMQ_DEBUG", "1")
    with pytest.raises(ZeroDivisionError):
        ended_by(ZeroDivisionError("oops"))


def test_wrong_usage_says_where_help_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command"]) == cli_errors.USAGE
    assert capsys.readouterr().err == (
        "ciphermq: No such command 'no-such-command'; see `ciphermq --help`\n"
    )


def test_wrong_usage_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["no-such-command", "--json"]) == cli_errors.USAGE
    assert json.loads(capsys.readouterr().err)["error"] == "usage"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ciphermq 2.")


def test_a_reader_that_leaves_early_is_no_accident() -> None:
    shell = f"{sys.executable} -m ciphermq --help | head -1; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", shell], capture_output=True, text=True, env=os.environ, timeout=60
    )
    assert ended.returncode in (0, cli_errors.OTHER)
    assert ended.stderr == ""


def test_help_needs_nothing_heavy() -> None:
    """What `--help` imports decides how fast it and completion answer."""
    program = (
        "import sys\n"
        "from ciphermq.cli.main import run\n"
        "run(['--help'])\n"
        "heavy = {'cryptography', 'asyncio', 'uvloop', 'sqlite3', 'pydantic', 'structlog',"
        " 'ciphermq.client', 'ciphermq.server'}\n"
        "sys.exit(' '.join(heavy & set(sys.modules)) or 0)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
    )
    assert ended.stderr == ""
    assert "Usage" in ended.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["queues", "list"], True),
        (["exchanges", "declare"], True),
        (["bind"], True),
        (["dead", "redrive"], True),
        (["status"], True),
        (["trace"], True),
        (["send"], False),
        (["receive"], False),
        (["keys", "trust"], False),
    ],
)
def test_who_administers_is_told_of_its_default(words: list[str], told: bool) -> None:
    command = typer.main.get_command(app)
    for word in words:
        command = getattr(command, "commands", {})[word]
    (identity,) = [each for each in command.params if each.name == "identity"]
    said = getattr(identity, "help", "")
    assert ("`admin`" in said) is told
    assert "the only one there is" in said


def test_every_command_and_option_has_help() -> None:
    def walk(command: typer.core.TyperCommand, path: str) -> None:
        assert command.help, path
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert getattr(parameter, "help", None), f"{path} {parameter.name}"
        for name, sub in getattr(command, "commands", {}).items():
            walk(sub, f"{path} {name}")

    walk(typer.main.get_command(app), "ciphermq")
