"""librabbitmq's command line tools (Debian's amqp-tools), unchanged."""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

from support.roads import Road, Roads


@pytest.fixture(autouse=True)
def installed() -> None:
    if shutil.which("amqp-publish") is None:
        why = "amqp-tools are not installed (on Debian: apt install amqp-tools)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)


def command(road: Road, name: str, *words: str) -> list[str]:
    """How one of the tools is called."""
    tls = ["--ssl", "--cacert", road.authority] if road.authority else []
    return [f"amqp-{name}", "--url", road.url, *tls, *words]


def tool(road: Road, name: str, *words: str, given: bytes = b"") -> tuple[int, bytes, str]:
    """Exit code, output and error of one of the tools."""
    call = command(road, name, *words)
    ended = subprocess.run(call, input=given, capture_output=True, timeout=60, check=False)
    return ended.returncode, ended.stdout, ended.stderr.decode()


def converse(road: Road) -> list[tuple[int, bytes, str]]:
    queue = "tools"
    large = os.urandom(1) * 20_000_000
    said = [
        tool(road, "declare-queue", "-q", queue, "-d"),
        tool(road, "publish", "-r", queue, "-p", "-b", ""),
        tool(road, "publish", "-r", queue, "-C", "text/plain", "-H", "a: b", given=b"tiny"),
        tool(road, "get", "-q", queue),
        tool(road, "consume", "-q", queue, "-c", "1", "cat"),
        tool(road, "publish", "-r", queue, given=large),
    ]
    code, body, error = tool(road, "get", "-q", queue)
    assert body == large
    return [
        *said,
        (code, b"", error),
        tool(road, "get", "-q", queue),
        tool(road, "get", "-q", "missing"),
        tool(road, "delete-queue", "-q", queue),
    ]


def test_a_conversation_is_the_same(roads: Roads) -> None:
    direct = converse(roads.direct)
    assert [code for code, _, _ in direct] == [0, 0, 0, 0, 0, 0, 0, 2, 1, 0]
    assert direct[4][1] == b"tiny"
    assert converse(roads.proxied) == direct


@pytest.mark.parametrize(
    "wrong",
    [{"password": "wrong"}, {"vhost": "no such vhost"}],
    ids=["password", "vhost"],
)
def test_a_refusal_is_the_same(roads: Roads, wrong: dict[str, str]) -> None:
    elsewhere = roads.otherwise(**wrong)
    direct = tool(elsewhere.direct, "get", "-q", "any")
    assert direct[0] != 0
    assert tool(elsewhere.proxied, "get", "-q", "any") == direct
