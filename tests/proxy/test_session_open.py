"""An open session: bytes both ways, and every way it may end."""

from __future__ import annotations

import asyncio
import hashlib
import os
import socket

import pytest

from ciphermq import limits
from ciphermq.proxy.end import PACED, Kept
from ciphermq.proxy.gate import Admission
from ciphermq.proxy.session import Session
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.frames import Frame
from support.sessions import Peer, Rig, frame, method

SOON = 0.2
"""Seconds of a time-out that a test waits for."""
PUBLISH = method(40, b"\0\0\0\5queue\0", channel=1, of=60) + frame(2, 1, bytes(14))


def reply(close: Frame) -> tuple[int, str]:
    assert close.method == (10, 50), close
    return properties.read_close(close.payload)


def only(rig: Rig) -> Session:
    (session,) = rig.sessions.values()
    return session


async def swallow(peer: Peer, size: int) -> str:
    """The hash of that many bytes."""
    digest = hashlib.sha256()
    async with asyncio.timeout(60):
        while size:
            data = await peer.reader.read(min(size, 1 << 20))
            assert data, "the stream ended too soon"
            digest.update(data)
            size -= len(data)
    return digest.hexdigest()


# --- bytes both ways ----------------------------------------------------------------------------


async def test_large_and_tiny_frames_go_both_ways_at_the_same_time() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        large = frame(3, 1, os.urandom(131_064)) * 80
        tiny = (PUBLISH + frame(3, 1, b"x" * 100)) * 30_000
        digests = hashlib.sha256(large).hexdigest(), hashlib.sha256(tiny).hexdigest()
        client.send(large)
        broker.send(tiny)
        got = await asyncio.gather(swallow(broker, len(large)), swallow(client, len(tiny)))
        assert tuple(got) == digests
        received, sent = only(rig).received, only(rig).sent
        assert received.frames == 4 + 80
        assert sent.frames == 3 + 90_000
        assert sent.bytes == sum(map(len, (closing.start("PLAIN"), closing.TUNE, tiny))) + 13
        assert only(rig).spilled == 0


async def test_heartbeats_and_blocked_pass_untouched() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        for one in (closing.HEARTBEAT_FRAME, method(60, b"\6reason"), method(61)):
            broker.send(one)
            assert await client.exactly(len(one)) == one
            client.send(one)
            assert await broker.exactly(len(one)) == one


async def test_a_close_by_the_client_goes_to_the_broker_and_its_answer_back() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        client.send(closing.close(200, "bye"))
        assert reply(await broker.frame()) == (200, "bye")
        broker.send(closing.CLOSE_OK)
        broker.close()
        await client.method(51)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


async def test_a_close_by_the_broker_goes_to_the_client() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        broker.send(closing.close(320, "CONNECTION_FORCED - stopping"))
        assert reply(await client.frame()) == (320, "CONNECTION_FORCED - stopping")
        client.send(closing.CLOSE_OK)
        await broker.method(51)
        client.close()
        assert await broker.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


@pytest.mark.parametrize("by", ["client", "broker"])
async def test_a_missing_close_ok_is_not_waited_for_for_ever(by: str) -> None:
    async with Rig(timeouts=Timeouts(close_ok=SOON)) as rig:
        client, broker = await rig.opened()
        (client if by == "client" else broker).send(closing.close(200, "bye"))
        assert closing.close(200, "bye") in await (broker if by == "client" else client).end()
        await rig.over()
        assert rig.gate.endings == ["graceful"]


# --- one side is lost ---------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_that_snaps_ends_its_brokers_connection(how: str) -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        said = PUBLISH + frame(3, 1, b"the last words")
        client.send(said)
        assert await broker.exactly(len(said)) == said
        client.close() if how == "close" else client.reset()
        assert await broker.end() == b""
        await rig.over()
        assert rig.gate.endings == ["client"]


@pytest.mark.parametrize("how", ["close", "reset"])
async def test_a_client_is_told_when_its_broker_is_lost(how: str) -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        delivered = frame(3, 1, b"delivered")
        broker.send(delivered)
        assert await client.exactly(len(delivered)) == delivered
        broker.close() if how == "close" else broker.reset()
        code, sentence = reply(await client.frame())
        assert code == 320
        assert sentence.startswith("CONNECTION_FORCED - the broker ended the connection")
        client.send(frame(3, 1, b"sent before it knew"), closing.CLOSE_OK)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["broker"]


async def test_a_broker_that_dies_within_a_frame_leaves_a_bare_end() -> None:
    """Within a frame no Close can be said: the client would take it for the frame's bytes."""
    async with Rig() as rig:
        client, broker = await rig.opened()
        begun = frame(3, 1, bytes(1000))[:500]
        broker.send(begun)
        await rig.until(lambda: only(rig).sent.bytes > 500)
        broker.close()
        assert await client.end() == begun
        await rig.over()
        assert rig.gate.endings == ["broker"]


async def test_a_client_that_ignores_the_brokers_loss_is_cut_off() -> None:
    async with Rig(timeouts=Timeouts(close_ok=SOON)) as rig:
        client, broker = await rig.opened()
        broker.close()
        await client.method(50)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["broker"]


# --- hostile peers ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (b"\3\0\1\0\2\0\1", "FRAME_ERROR - a frame of 131073 bytes: at most 131072 were agreed on"),
        (frame(3, 1, b"x")[:-1] + b"\0", "FRAME_ERROR - a frame ends with byte 0 instead of 206"),
        (b"nonsense...", "FRAME_ERROR - 110 is no frame type of AMQP 0.9.1"),
    ],
)
async def test_a_client_that_sends_no_frames_is_closed_with_501(said: bytes, sentence: str) -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        good = PUBLISH + frame(3, 1, b"good")
        client.send(good + said + bytes(20))
        assert await broker.exactly(len(good)) == good
        assert await broker.end() == b""
        assert reply(await client.frame()) == (501, sentence)
        client.send(closing.CLOSE_OK)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["client"]


async def test_a_broker_that_sends_no_frames_loses_its_client_to_a_541() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        good = frame(3, 1, b"good")
        broker.send(good + b"HTTP/1.1 500 Oops\r\n")
        assert (await client.frame()).raw == good
        code, sentence = reply(await client.frame())
        assert code == 541
        assert sentence.startswith("INTERNAL_ERROR - the broker sent what is no frame: FRAME_ERROR")
        assert await broker.end() == b""
        client.send(closing.CLOSE_OK)
        await rig.over()
        assert rig.gate.endings == ["broker"]


async def test_a_wrong_end_of_a_frame_that_has_begun_leaves_a_bare_end() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        wrong = frame(3, 1, bytes(1000))[:-1] + b"\0"
        broker.send(wrong[:500])
        await rig.until(lambda: only(rig).sent.bytes > 500)
        broker.send(wrong[500:])
        assert await client.end() == wrong[:500]
        await rig.over()


async def test_both_hostile_at_the_same_time() -> None:
    async with Rig(timeouts=Timeouts(close_ok=SOON)) as rig:
        client, broker = await rig.opened()
        client.send(b"x" * 100_000)
        broker.send(b"y" * 100_000)
        await asyncio.gather(client.end(), broker.end())
        client.close()
        await rig.over()
        assert len(rig.gate.endings) == 1


@pytest.mark.parametrize("slow", ["client", "broker"])
async def test_a_slow_reader_costs_one_buffer(slow: str) -> None:
    """What it doesn't take stays in the other side's socket, and in the other side."""
    async with Rig() as rig:
        client, broker = await rig.opened()
        reads, writes = (client, broker) if slow == "client" else (broker, client)
        reads.reader._transport.pause_reading()  # type: ignore[attr-defined]
        flood = frame(3, 1, bytes(100_000)) * 400
        writes.send(flood)
        await rig.until(lambda: only(rig).spilled > 0)
        before = -1
        while before != (before := only(rig).received.bytes + only(rig).sent.bytes):
            await asyncio.sleep(0.05)
        assert 0 < only(rig).spilled <= limits.PROXY_BUFFER
        assert Kept.total == only(rig).spilled
        assert before < len(flood)
        reads.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await swallow(reads, len(flood)) == hashlib.sha256(flood).hexdigest()
        assert only(rig).spilled == Kept.total == 0


async def test_many_slow_readers_get_less_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a worker's budget each keeps a small read at most."""
    monkeypatch.setattr(limits, "PROXY_KEPT", 0)
    async with Rig() as rig:
        client, broker = await rig.opened()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        flood = frame(3, 1, bytes(100_000)) * 400
        broker.send(flood)
        await rig.until(lambda: only(rig).spilled > 0)
        assert only(rig).spilled <= limits.PROXY_SMALL_BUFFER
        client.reader._transport.resume_reading()  # type: ignore[attr-defined]
        assert await swallow(client, len(flood)) == hashlib.sha256(flood).hexdigest()


async def test_a_lost_client_gives_back_what_was_kept_for_it() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        client.reader._transport.pause_reading()  # type: ignore[attr-defined]
        broker.send(frame(3, 1, bytes(100_000)) * 400)
        await rig.until(lambda: only(rig).spilled > 0)
        client.reset()
        await rig.over()
        assert Kept.total == 0


async def test_half_open_peers_are_found_by_the_kernel() -> None:
    """Keepalive asks a silent machine, and unacknowledged data ends a connection."""
    async with Rig(timeouts=Timeouts(stall=40)) as rig:
        await rig.opened()
        session = only(rig)
        assert session._road is not None
        for end in (session._road.client, session._road.broker):
            option = end.sock.getsockopt
            assert option(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert option(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 40
            assert option(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL) == 10
            assert option(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 40_000
            assert option(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1


# --- what an operator does ----------------------------------------------------------------------


async def test_a_graceful_disconnect_comes_between_two_frames() -> None:
    """What the client was sending still reaches the broker, which is closed only then."""
    async with Rig() as rig:
        client, broker = await rig.opened()
        large = frame(3, 1, os.urandom(100_000))
        broker.send(large[:60_000])
        assert await client.exactly(60_000) == large[:60_000]
        only(rig).disconnect_graceful()
        only(rig).disconnect_graceful()  # twice is once
        assert only(rig).describe()["disconnected"]
        broker.send(large[60_000:], frame(3, 1, b"not whole yet")[:12])
        assert await client.exactly(40_008) == large[60_000:]
        assert reply(await client.frame()) == (200, "OK")
        last = PUBLISH + frame(3, 1, b"published before it saw the Close")
        client.send(last[:30])
        await client.settle()
        client.send(last[30:], closing.CLOSE_OK)
        assert await broker.exactly(len(last)) == last
        assert reply(await broker.frame()) == (200, "OK")
        broker.send(closing.CLOSE_OK)
        assert await client.end() == b""
        assert await broker.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


@pytest.mark.parametrize("cut", range(1, 13))
async def test_a_close_ok_in_two_pieces_is_still_not_passed_on(cut: int) -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        said = PUBLISH + frame(3, 1, b"body") + closing.CLOSE_OK
        only(rig).disconnect_graceful(320, "CONNECTION_FORCED - the proxy stops")
        assert reply(await client.frame()) == (320, "CONNECTION_FORCED - the proxy stops")
        client.send(said[:-cut])
        await client.settle()
        await asyncio.sleep(0)
        client.send(said[-cut:])
        assert await broker.exactly(len(said) - 12) == said[:-12]
        assert reply(await broker.frame()) == (200, "OK")
        broker.send(closing.CLOSE_OK)
        await rig.over()
        assert rig.gate.endings == ["graceful"]


@pytest.mark.parametrize("begun", [1, 8, 20])
async def test_a_disconnect_within_the_clients_frame_lets_it_end(begun: int) -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        said = method(40, b"\0\0\0\5queue\0", channel=1, of=60)
        client.send(said[:begun])
        assert await broker.exactly(begun) == said[:begun]
        only(rig).disconnect_graceful()
        assert reply(await client.frame()) == (200, "OK")
        client.send(said[begun:], closing.CLOSE_OK)
        assert await broker.exactly(len(said) - begun) == said[begun:]
        assert reply(await broker.frame()) == (200, "OK")
        broker.close()
        await rig.over()
        assert rig.gate.endings == ["graceful"]


async def test_a_close_of_the_clients_that_crosses_ours_is_answered() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).disconnect_graceful()
        client.send(closing.close(200, "me too"))
        await client.method(50)
        await client.method(51)
        assert reply(await broker.frame()) == (200, "OK")
        broker.send(closing.CLOSE_OK)
        await rig.over()
        assert rig.gate.endings == ["graceful"]


@pytest.mark.parametrize("silent", ["client", "broker"])
async def test_a_graceful_disconnect_does_not_wait_for_ever(silent: str) -> None:
    async with Rig(timeouts=Timeouts(close_ok=1.0)) as rig:
        client, broker = await rig.opened()
        only(rig).disconnect_graceful()
        await client.method(50)
        if silent == "broker":
            client.send(closing.CLOSE_OK)
            await broker.method(50)
        assert await client.end() == b""
        assert await broker.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


async def test_a_broker_lost_during_a_graceful_disconnect() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).disconnect_graceful()
        await client.method(50)
        broker.reset()
        client.send(PUBLISH * 100, closing.CLOSE_OK)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


async def test_leaving_the_backend_closes_the_client_with_320() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).disconnect_backend()
        assert await broker.end() == b""
        assert reply(await client.frame())[0] == 320
        client.send(closing.CLOSE_OK)
        assert await client.end() == b""
        await rig.over()
        assert rig.gate.endings == ["graceful"]


async def test_a_forced_disconnect_ends_both_at_once() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).force_disconnect()
        assert not rig.sessions
        assert await client.end() == b""
        assert await broker.end() == b""
        assert rig.gate.endings == ["graceful"]


async def test_a_paused_session_passes_nothing_until_it_goes_on() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).pause()
        assert only(rig).paused
        client.send(PUBLISH)
        broker.send(PUBLISH)
        before = only(rig).received, only(rig).sent
        for _ in range(20):
            await asyncio.sleep(0.002)
        assert (only(rig).received, only(rig).sent) == before
        only(rig).unpause()
        assert await client.exactly(len(PUBLISH)) == PUBLISH
        assert await broker.exactly(len(PUBLISH)) == PUBLISH
        assert not only(rig).paused


async def test_a_paused_session_can_be_disconnected() -> None:
    async with Rig() as rig:
        client, broker = await rig.opened()
        only(rig).pause()
        only(rig).disconnect_graceful()
        assert reply(await client.frame()) == (200, "OK")
        client.send(closing.CLOSE_OK)
        await broker.method(50)
        broker.close()
        await rig.over()
        assert rig.gate.endings == ["graceful"]


# --- data rates ---------------------------------------------------------------------------------


async def test_a_paced_client_is_slowed_and_loses_nothing() -> None:
    async with Rig() as rig:
        rig.gate.admission = Admission(data_rate=200_000)
        client, broker = await rig.opened()
        said = frame(3, 1, os.urandom(100_000)) * 3
        client.send(said)
        road = only(rig)._road
        assert road is not None
        await rig.until(lambda: bool(road.client._held & PACED))
        assert await broker.exactly(len(said)) == said
        back = frame(3, 1, bytes(100_000)) * 10  # the other way isn't paced
        broker.send(back)
        assert await client.exactly(len(back)) == back


async def test_a_client_over_the_alarms_rate_is_told_about_and_not_slowed() -> None:
    async with Rig() as rig:
        rig.gate.admission = Admission(data_rate_alarm=1000)
        client, broker = await rig.opened()
        client.send(frame(3, 1, bytes(500)))
        await broker.frame()
        assert rig.gate.alarms == 0
        client.send(frame(3, 1, bytes(50_000)))
        await broker.frame()
        assert rig.gate.alarms >= 1
