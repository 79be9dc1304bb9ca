"""The command line of a move."""

from __future__ import annotations

from pathlib import Path

import pytest

from ciphermq.errors import UsageError
from ciphermq.proxy.move.arguments import SOURCE_VARIABLE, address, login, read
from ciphermq.proxy.move.main import WRONG_USAGE, main


def test_a_move_says_where_to_or_back() -> None:
    assert read(["v", "--to", "green"]).to == "green"
    assert read(["v", "--back"]).back
    for words in (["v"], ["v", "--to", "green", "--back"]):
        with pytest.raises(UsageError, match="either --to FARM or --back"):
            read(words)


@pytest.mark.parametrize("words", [[], ["v", "w", "--to", "f"], ["v", "--t", "f"], ["v", "--too"]])
def test_wrong_words_are_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main("nowhere", words) == WRONG_USAGE
    assert "--help explains" in capsys.readouterr().err


def test_a_password_is_never_in_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, "from the environment")
    with pytest.raises(UsageError, match="password must not be in the URL") as caught:
        login("http://me:hush@h:1", None, None, SOURCE_VARIABLE)
    assert "hush" not in str(caught.value)


def test_passwords_come_from_files_and_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, "from the environment")
    assert login("http://m%40e@h:1/", None, None, SOURCE_VARIABLE) == (
        "http://h:1",
        "m@e",
        "from the environment",
    )
    file = tmp_path / "password"
    file.write_text("from a file\nsomething else\n")
    found = login("https://[::1]/prefix/", "me", file, SOURCE_VARIABLE)
    assert found == ("https://[::1]/prefix", "me", "from a file")
    monkeypatch.delenv(SOURCE_VARIABLE)
    with pytest.raises(UsageError, match=f"--source-password-file FILE or set {SOURCE_VARIABLE}"):
        login("http://me@h:1", None, None, SOURCE_VARIABLE)
    with pytest.raises(UsageError, match="the password can't be read"):
        login("http://me@h:1", None, tmp_path / "missing", SOURCE_VARIABLE)


@pytest.mark.parametrize("url", ["h:15672", "ftp://me@h", "http://", "http://h:15672"])
def test_an_url_that_is_none_is_told(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOURCE_VARIABLE, "pw")
    with pytest.raises(UsageError, match=r"http\[s\]://USER@HOST:PORT|say as whom"):
        login(url, None, None, SOURCE_VARIABLE)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("h:1", ("h", 1, False)),
        ("h", ("h", 5672, False)),
        ("amqps://h", ("h", 5671, True)),
        ("amqp://[::1]:7", ("::1", 7, False)),
    ],
)
def test_addresses(text: str, found: tuple[str, int, bool]) -> None:
    assert address(text) == found


@pytest.mark.parametrize("text", ["", "http://h", "h:99999", "h:x", "amqp://me:pw@h", "h:0"])
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError, match="AMQP address is HOST:PORT"):
        address(text)
