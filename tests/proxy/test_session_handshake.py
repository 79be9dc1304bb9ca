"""From a client's first byte to OpenOk, with scripted peers on both sides."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import ConnectFailed, ConnectionLost, HostUnknown, WaitTimeout
from ciphermq.proxy.gate import Admission, Credentials, Refusal
from ciphermq.proxy.ingress import Begun
from ciphermq.proxy.model import Backend
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.frames import Frame
from support.sessions import (
    CAPABLE,
    HEADER,
    OPEN,
    OPEN_OK,
    START_OK,
    TUNE_OK,
    Rig,
    frame,
    method,
    open_,
    start_ok,
    text,
    tune_ok,
)

ALL = HEADER + START_OK + TUNE_OK + OPEN
SOON = 0.2
"""Seconds of a time-out that a test waits for, and nothing else can run into."""
SECOND = 1.0
"""The same, where something else must be quicker."""

Script = Callable[[Rig], Coroutine[None, None, None]]


def reply(close: Frame) -> tuple[int, str]:
    assert close.method == (10, 50), close
    return properties.read_close(close.payload)


async def closed_with(rig: Rig, *said: bytes) -> tuple[int, str]:
    """What a client that says this is closed with."""
    client = await rig.client()
    client.send(*said)
    while (got := await client.frame()).method != (10, 50):
        pass
    client.send(closing.CLOSE_OK)
    assert await client.end() == b""
    await rig.over()
    return reply(got)


def nobody_there() -> Backend:
    """A backend whose port refuses."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    return Backend(name="refuses", datacenter="", host="127.0.0.1", port=port)


# --- the ordinary path --------------------------------------------------------------------------


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 80), max_size=8))
def test_any_cut_of_the_clients_handshake_gives_the_same(sizes: list[int]) -> None:
    """Header and StartOk in one write, all in one, byte by byte; and what is pipelined behind
    Open gets to the broker after its OpenOk."""

    async def run() -> None:
        behind = method(10, b"\0", channel=1, of=20)
        data = ALL + behind
        async with Rig() as rig:
            broker = await rig.broker()
            client = await rig.client()
            at = 0
            for size in [*sizes, len(data)]:
                client.send(data[at : at + size])
                await client.settle()
                await asyncio.sleep(0)
                at += size
            peer = await broker.accept()
            got = await peer.open()
            assert (await peer.frame()).raw == behind
            for number in (10, 30, 41):
                await client.method(number)
            assert properties.read_start_ok(got.payload).response.startswith(b"\0user")

    asyncio.run(run())


async def test_no_client_speaks_in_the_proxys_name() -> None:
    """What a broker may believe because the proxy says it is the proxy's alone."""
    lies = ("amqpprox_client", "amqpprox_host", "amqpprox_auth", "amqpprox_certificate")
    table = b"".join(text(name.encode(), b"a lie") for name in lies)
    async with Rig() as rig:
        broker = await rig.broker()
        client = await rig.client()
        name = text(b"connection_name", b"n" * 5000)
        client.send(HEADER, start_ok(name + table), TUNE_OK, OPEN)
        peer = await broker.accept()
        got = properties.read_start_ok((await peer.open()).payload)
        assert list(got.fields) == [b"connection_name", b"amqpprox_client", b"amqpprox_host"]
        assert b"a lie" not in got.properties
        assert got.properties.startswith(name)
        (session,) = rig.sessions.values()
        assert session.connection_name == "n" * 1024


async def test_long_handshakes_have_only_so_much_room_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(limits, "PROXY_BEGUN", 50_000)
    unfinished = HEADER + start_ok(text(b"long", bytes(60_000)))[:30_000]
    async with Rig() as rig:
        broker = await rig.broker()
        first = await rig.client()
        first.send(unfinished)
        await rig.until(lambda: Begun.total == len(unfinished))
        second = await rig.client()
        second.send(unfinished)
        answer = await second.frame()
        if answer.method == (10, 10):
            answer = await second.frame()
        assert answer.method == (10, 50)
        assert properties.read_close(answer.payload)[0] == 506
        second.close()
        client = await rig.client()  # an ordinary one is let in nevertheless
        client.send(HEADER, START_OK, TUNE_OK, OPEN)
        await (await broker.accept()).open()
        for number in (10, 30, 41):
            await client.method(number)
        first.close()
        await rig.until(lambda: len(rig.sessions) == 1)
        assert Begun.total == 0


async def test_what_the_client_said_goes_on_as_it_was() -> None:
    """Its properties byte by byte with two more behind them; TuneOk and Open unchanged."""
    async with Rig() as rig:
        broker = await rig.broker()
        client = await rig.client()
        client.send(ALL)
        peer = await broker.accept()
        assert await peer.exactly(8) == HEADER
        peer.send(closing.start("PLAIN", "AMQPLAIN"))
        got = properties.read_start_ok((await peer.method(11)).payload)
        sent = properties.read_start_ok(START_OK[7:-1])
        own, port = client.writer.get_extra_info("sockname")
        egress = peer.writer.get_extra_info("peername")[1]
        added = text(b"amqpprox_client", f"{own}:{port}".encode()) + text(
            b"amqpprox_host", f"(:{rig.port}) {socket.gethostname()}:{egress}".encode()
        )
        assert got.properties == sent.properties + added
        assert got[1:4] == sent[1:4]
        peer.send(closing.TUNE)
        assert (await peer.frame()).raw == TUNE_OK
        assert (await peer.frame()).raw == OPEN
        peer.send(OPEN_OK)
        start = await client.method(10)
        assert start.raw == closing.start("PLAIN")
        assert (await client.method(30)).raw == closing.TUNE
        assert (await client.method(41)).raw == OPEN_OK
        (session,) = rig.sessions.values()
        shown = session.describe()
        assert shown["ingressRemote"] == f"{own}:{port}"
        assert shown["egressLocal"] == f"127.0.0.1:{egress}"
        assert shown["egressRemote"] == f"127.0.0.1:{broker.port}"
        assert (shown["inFrames"], shown["outFrames"]) == (4, 3)
        assert shown["inBytes"] == len(ALL)
        assert shown["outBytes"] == len(start.raw) + len(closing.TUNE) + len(OPEN_OK)
        assert shown["state"] == "open"


async def test_the_gate_may_replace_credentials_and_name() -> None:
    async with Rig() as rig:
        broker = await rig.broker()
        rig.gate.admission = Admission(
            mechanism="AMQPLAIN",
            credentials=Credentials(b"other"),
            auth_reason="because",
            client_name="host.example",
        )
        client = await rig.client()
        client.send(ALL)
        got = properties.read_start_ok((await (await broker.accept()).open()).payload)
        assert (got.mechanism, got.response) == ("AMQPLAIN", b"other")
        assert properties.text_field(got.fields, b"amqpprox_auth") == "because"
        name = properties.text_field(got.fields, b"amqpprox_client")
        assert name.startswith("host.example:")


async def test_what_the_gate_is_told_of_a_client() -> None:
    async with Rig() as rig:
        rig.gate.refusal = Refusal(530, "NOT_ALLOWED - vhost 'x' is not mapped")
        said = start_ok(text(b"connection_name", b"my app"))
        code, sentence = await closed_with(rig, HEADER, said, TUNE_OK, open_(b"x"))
        assert (code, sentence) == (530, "NOT_ALLOWED - vhost 'x' is not mapped")
        (opening,) = rig.gate.openings
        assert (opening.vhost, opening.connection_name) == ("x", "my app")
        assert (opening.client, opening.listen_port) == ("127.0.0.1", rig.port)
        assert opening.mechanism == "PLAIN"
        assert opening.credentials == b"\0user\0a very secret password"
        assert "secret" not in repr(opening)
        assert "secret" not in f"{opening.credentials} {opening.credentials!r}"
        assert rig.gate.endings == ["failed"]


async def test_external_without_the_gates_word_never_reaches_a_broker() -> None:
    """To the broker the certificate would be the proxy's: the client would be the proxy."""
    async with Rig() as rig:
        broker = await rig.broker()
        said = start_ok(mechanism=b"EXTERNAL", response=b"")
        code, sentence = await closed_with(rig, HEADER, said, TUNE_OK, OPEN)
        assert code == 403
        assert "EXTERNAL" in sentence
        assert broker.connections.empty()
        assert rig.gate.endings == ["denied"]


async def test_the_client_is_only_named_in_the_refusals_own_words() -> None:
    async with Rig() as rig:
        rig.gate.refusal = Refusal(506, "RESOURCE_ERROR - too many connections", "limited")
        assert await closed_with(rig, ALL) == (506, "RESOURCE_ERROR - too many connections")
        assert rig.gate.endings == ["limited"]


# --- clients that do it wrong -------------------------------------------------------------------


@pytest.mark.parametrize(
    "said", [b"AMQP\x03\x01\x00\x00", b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01"]
)
async def test_what_is_not_amqp_gets_our_header(said: bytes) -> None:
    async with Rig() as rig:
        client = await rig.client()
        client.send(said)
        assert await client.end() == HEADER
        client.close()
        await rig.over()
        assert rig.gate.endings == ["failed"]


@pytest.mark.parametrize(
    ("said", "code", "sentence"),
    [
        (HEADER + OPEN, 503, "COMMAND_INVALID - OPEN instead of StartOk"),
        (HEADER + frame(3, 0, b"x"), 505, "UNEXPECTED_FRAME - a content frame instead of StartOk"),
        (HEADER + b"\1\0\0\xff\0\0\0\0\0\0\0", 501, "FRAME_ERROR - a frame of 4278190080 bytes"),
        (HEADER + START_OK[:-1] + b"\0", 501, "FRAME_ERROR - a frame ends with byte 0 instead"),
        (HEADER + start_ok(b"\5short"), 502, "SYNTAX_ERROR - "),
        (HEADER + START_OK + method(31, b"\0"), 502, "SYNTAX_ERROR - TuneOk has 12 bytes"),
        (HEADER + START_OK + TUNE_OK + open_(b"\xff"), 502, "SYNTAX_ERROR - the virtual host"),
    ],
)
async def test_a_broken_handshake_is_closed_with_a_code(
    said: bytes, code: int, sentence: str
) -> None:
    async with Rig() as rig:
        broker = await rig.broker()
        got = await closed_with(rig, said)
        assert got[0] == code
        assert got[1].startswith(sentence)
        assert broker.connections.empty()
        assert rig.gate.endings == ["failed"]


@pytest.mark.parametrize(
    "said", [b"", HEADER[:3], HEADER, HEADER + START_OK[:20], HEADER + START_OK]
)
async def test_a_client_may_leave_at_any_point(said: bytes) -> None:
    async with Rig() as rig:
        client = await rig.client()
        client.send(said)
        await client.settle()
        client.close()
        await rig.until(lambda: rig.gate.endings == ["client"])
        assert not rig.sessions


async def test_a_client_may_close_in_its_handshake() -> None:
    async with Rig() as rig:
        client = await rig.client()
        client.send(HEADER, START_OK, closing.close(200, "changed my mind"))
        await client.method(10)
        await client.method(30)
        await client.method(51)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


# --- brokers that do it wrong -------------------------------------------------------------------


async def test_the_brokers_refusal_is_passed_on_as_it_is() -> None:
    """530 for an unknown vhost, 403 for a wrong password: the client sees what the broker said."""
    refusal = closing.close(530, "NOT_ALLOWED - vhost nope not found")
    async with Rig() as rig:
        broker = await rig.broker()
        client = await rig.client()
        client.send(ALL)
        peer = await broker.accept()
        assert await peer.exactly(8) == HEADER
        peer.send(closing.start("PLAIN"))
        await peer.method(11)
        peer.send(closing.TUNE)
        await peer.method(31)
        await peer.method(40)
        peer.send(refusal)
        await peer.method(51)
        await client.method(10)
        await client.method(30)
        assert (await client.frame()).raw == refusal
        client.send(closing.CLOSE_OK)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]
        assert rig.gate.failures == []


async def test_an_old_clients_wrong_login_ends_as_it_would_at_the_broker() -> None:
    """A client that can't be told gets the bare end, and no other broker is asked."""
    async with Rig() as rig:
        broker, other = await rig.broker(), await rig.broker(name="other")
        client = await rig.client()
        client.send(HEADER, start_ok(), TUNE_OK, OPEN)
        peer = await broker.accept()
        await peer.exactly(8)
        peer.send(closing.start("PLAIN"))
        await peer.method(11)
        peer.close()
        await client.method(10)
        await client.method(30)
        assert await client.end() == b""
        client.close()
        await rig.over()
        assert other.connections.empty()
        assert rig.gate.endings == ["denied"]


async def fail_at_once(rig: Rig) -> None:
    rig.add(nobody_there())


async def fail_to_resolve(rig: Rig) -> None:
    rig.add(Backend(name="nowhere", datacenter="", host="nowhere.invalid", port=1, dns=True))


async def end_before_start(rig: Rig) -> None:
    broker = await rig.broker(name="ends")
    (await broker.accept()).close()


async def reset_after_start_ok(rig: Rig) -> None:
    peer = await (await rig.broker(name="resets")).accept()
    peer.send(closing.start("PLAIN"))
    await peer.exactly(8)
    await peer.method(11)
    peer.reset()


async def close_because_it_stops(rig: Rig) -> None:
    peer = await (await rig.broker(name="stops")).accept()
    await peer.exactly(8)
    peer.send(closing.start("PLAIN"))
    await peer.method(11)
    peer.send(closing.close(320, "CONNECTION_FORCED - broker forced connection closure"))


async def speak_nonsense(rig: Rig) -> None:
    (await (await rig.broker(name="web")).accept()).send(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def speak_another_version(rig: Rig) -> None:
    (await (await rig.broker(name="old")).accept()).send(b"AMQP\0\0\x09\x02")


async def ask_for_more(rig: Rig) -> None:
    peer = await (await rig.broker(name="asks")).accept()
    peer.send(closing.start("PLAIN"))
    await peer.exactly(8)
    await peer.method(11)
    peer.send(method(20, b"\0\0\0\0"))


async def say_nothing(rig: Rig) -> None:
    await (await rig.broker(name="silent")).accept()


async def stall_after_start(rig: Rig) -> None:
    (await (await rig.broker(name="stalls")).accept()).send(closing.start("PLAIN"))


async def stall_after_tune(rig: Rig) -> None:
    peer = await (await rig.broker(name="stalls late")).accept()
    peer.send(closing.start("PLAIN"), closing.TUNE)


FAILING = [
    fail_at_once,
    fail_to_resolve,
    end_before_start,
    reset_after_start_ok,
    close_because_it_stops,
    speak_nonsense,
    speak_another_version,
    ask_for_more,
    say_nothing,
    stall_after_start,
    stall_after_tune,
]


BRIEF = {
    say_nothing: Timeouts(start=SECOND),
    stall_after_start: Timeouts(tune=SECOND),
    stall_after_tune: Timeouts(open_ok=SECOND),
}
"""The good broker has no longer than this either, so it is not too short."""


@pytest.mark.parametrize("failing", FAILING)
async def test_a_broker_that_fails_is_passed_over(failing: Script) -> None:
    """Whatever it does, the next one has the client, who notices nothing."""
    async with Rig(timeouts=BRIEF.get(failing)) as rig:
        script = asyncio.ensure_future(failing(rig))
        await rig.until(lambda: len(rig.gate.backends) == 1)
        good = await rig.broker(name="good")
        client = await rig.client()
        client.send(ALL)
        await script
        peer = await good.accept()
        got = await peer.open()
        assert properties.read_start_ok(got.payload).mechanism == "PLAIN"
        for number in (10, 30, 41):
            await client.method(number)
        ((name, _),) = rig.gate.failures
        assert name == rig.gate.backends[0].name
        (session,) = rig.sessions.values()
        assert session.backend is not None
        assert session.backend.name == "good"
        assert rig.gate.alive[-1] == "good"


@pytest.mark.parametrize(
    ("failing", "kind"),
    [
        (fail_at_once, ConnectFailed),
        (fail_to_resolve, HostUnknown),
        (end_before_start, ConnectionLost),
        (say_nothing, WaitTimeout),
    ],
)
async def test_without_another_broker_the_client_is_told(failing: Script, kind: type) -> None:
    async with Rig(timeouts=BRIEF.get(failing)) as rig:
        script = asyncio.ensure_future(failing(rig))
        await rig.until(lambda: len(rig.gate.backends) == 1)
        code, sentence = await closed_with(rig, ALL)
        await script
        assert code == 320
        assert sentence == ("CONNECTION_FORCED - no broker for vhost '/' can be reached, 1 tried")
        ((_, error),) = rig.gate.failures
        assert type(error) is kind
        assert rig.gate.endings == ["failed"]


# --- time-outs of the client's phases -----------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "phase", "waited_for"),
    [
        (HEADER, "start_ok", "StartOk"),
        (HEADER + START_OK[:30], "start_ok", "StartOk"),
        (HEADER + START_OK, "tune_ok", "TuneOk"),
        (HEADER + START_OK + TUNE_OK, "open", "Open"),
        (HEADER + START_OK + TUNE_OK + OPEN[:5], "open", "Open"),
    ],
)
async def test_a_client_that_stalls_is_closed(said: bytes, phase: str, waited_for: str) -> None:
    async with Rig(timeouts=Timeouts(**{phase: SOON})) as rig:
        code, sentence = await closed_with(rig, said)
        assert code == 320
        assert sentence == f"CONNECTION_FORCED - waited too long for {waited_for}"


@pytest.mark.parametrize("said", [b"", HEADER[:7]])
async def test_a_silent_client_is_let_go_without_a_word(said: bytes) -> None:
    async with Rig(timeouts=Timeouts(header=SOON, close_ok=SOON)) as rig:
        client = await rig.client()
        client.send(said)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["failed"]


async def test_a_client_that_never_answers_our_close_is_cut_off() -> None:
    async with Rig(timeouts=Timeouts(start_ok=SOON, close_ok=SOON)) as rig:
        client = await rig.client()
        client.send(HEADER)
        await rig.until(lambda: rig.gate.endings == ["failed"])
        await client.method(10)
        await client.method(50)
        assert await client.end() == b""


# --- a paused vhost -----------------------------------------------------------------------------


async def test_a_held_client_gets_heartbeats_and_then_its_broker() -> None:
    async with Rig() as rig:
        broker = await rig.broker()
        rig.gate.released.clear()
        client = await rig.client()
        client.send(HEADER, START_OK, tune_ok(1), OPEN)
        await client.method(10)
        await client.method(30)
        await rig.until(lambda: any(one.waits for one in rig.sessions.values()))
        assert await client.exactly(8) == closing.HEARTBEAT_FRAME
        client.send(closing.HEARTBEAT_FRAME)
        (session,) = rig.sessions.values()
        assert session.paused
        assert broker.connections.empty()
        rig.gate.released.set()
        await (await broker.accept()).open()
        await client.method(41)
        assert not session.paused


async def test_a_held_client_may_leave_or_close() -> None:
    async with Rig() as rig:
        rig.gate.released.clear()
        leaving, closes = await rig.client(), await rig.client()
        leaving.send(ALL)
        closes.send(ALL)
        await rig.until(lambda: sum(one.waits for one in rig.sessions.values()) == 2)
        leaving.close()
        closes.send(closing.close(200, "bye"))
        for number in (10, 30, 51):
            await closes.method(number)
        await rig.over()
        assert sorted(rig.gate.endings) == ["client", "graceful"]


async def test_a_client_is_not_held_for_ever() -> None:
    async with Rig(timeouts=Timeouts(paused_hold=SOON)) as rig:
        rig.gate.released.clear()
        code, sentence = await closed_with(rig, ALL)
        assert code == 320
        assert sentence == "CONNECTION_FORCED - waited too long for the paused virtual host"


async def test_a_held_client_that_floods_is_not_read_on() -> None:
    """What it pipelines is bounded; the rest waits in its socket."""
    async with Rig() as rig:
        broker = await rig.broker()
        rig.gate.released.clear()
        client = await rig.client()
        flood = frame(3, 1, bytes(100_000)) * 100
        client.send(ALL, flood)
        await rig.until(lambda: any(one.received.bytes > 300_000 for one in rig.sessions.values()))
        (session,) = rig.sessions.values()
        for _ in range(20):
            await asyncio.sleep(0.005)
        assert session.received.bytes < 1_000_000
        rig.gate.released.set()
        peer = await broker.accept()
        await peer.open()
        assert await peer.exactly(len(flood)) == flood


async def test_an_ended_session_of_an_operator_tells_the_held_client() -> None:
    async with Rig() as rig:
        rig.gate.released.clear()
        client = await rig.client()
        client.send(ALL)
        await rig.until(lambda: any(one.waits for one in rig.sessions.values()))
        (session,) = rig.sessions.values()
        session.disconnect_graceful()
        await client.method(10)
        await client.method(30)
        assert reply(await client.frame()) == (200, "OK")
        client.send(closing.CLOSE_OK)
        await rig.over()
        assert rig.gate.endings == ["graceful"]


# --- secrets ------------------------------------------------------------------------------------


async def test_no_log_line_shows_a_password(caplog: pytest.LogCaptureFixture) -> None:
    """At the most talkative level, when all goes well, and when everything fails."""
    caplog.set_level(logging.DEBUG)
    async with Rig(timeouts=Timeouts(start=SOON)) as rig:
        rig.gate.refusal = None
        script = asyncio.ensure_future(say_nothing(rig))
        await rig.until(lambda: len(rig.gate.backends) == 1)
        await closed_with(rig, ALL)
        await script
        rig.gate.refusal = ConnectFailed("the gate itself fails")
        code, _ = await closed_with(rig, ALL)
        assert code == 541
        await closed_with(rig, HEADER, start_ok(CAPABLE)[:-1] + b"\0")
    assert "a very secret password" not in caplog.text
    assert "session failed" in caplog.text
