"""Bytes from anywhere, given to the proxy's AMQP: to its machines, and to its sessions from both
sides. `HYPOTHESIS_PROFILE=thorough` looks much longer.
"""

from __future__ import annotations

import asyncio
import contextlib

from hypothesis import given, settings
from hypothesis import strategies as st

from ciphermq.errors import AmqpFault, NotAmqp
from ciphermq.proxy.end import Kept
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.frames import FrameReader, Scanner
from ciphermq.wire.amqp.handshake import Handshake, Role, State
from support.sessions import (
    HEADER,
    OPEN,
    OPEN_OK,
    START_OK,
    TUNE_OK,
    Rig,
    frame,
    method,
)

BRIEF = Timeouts(
    **dict.fromkeys(("header", "start_ok", "tune_ok", "open", "start", "tune", "open_ok"), 0.3),
    close_ok=0.1,
)
CODES = {501, 502, 503, 504, 505, 540}

client_said = HEADER + START_OK + TUNE_OK + OPEN + method(10, b"\0", channel=1, of=20)
broker_said = closing.start("PLAIN") + closing.TUNE + OPEN_OK + frame(3, 1, b"x" * 50)
cuts = st.lists(st.integers(1, 64), max_size=20)
frames = st.builds(frame, st.integers(0, 9), st.integers(0, 2), st.binary(max_size=60))
methods = st.builds(
    lambda number, body, of: method(number, body, of=of),
    st.integers(0, 80),
    st.binary(max_size=20),
    st.sampled_from([10, 10, 10, 20, 60]),
)
anything = st.lists(
    st.binary(max_size=80) | frames | methods | st.just(closing.HEARTBEAT_FRAME), max_size=8
).map(b"".join)


@st.composite
def damaged(draw: st.DrawFn, good: bytes) -> bytes:
    """Good for a while, then a byte changed, or something else, or nothing more."""
    data = bytearray(good[: draw(st.integers(0, len(good)))])
    if data and draw(st.booleans()):
        data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
    return bytes(data) + draw(anything)


def pieces(data: bytes, sizes: list[int]) -> list[bytes]:
    made, at = [], 0
    for size in sizes:
        made.append(data[at : at + size])
        at += size
    return [*made, data[at:]]


@given(data=st.data(), role=st.sampled_from(Role), sizes=cuts)
def test_the_handshake_raises_nothing_but_faults(
    data: st.DataObject, role: Role, sizes: list[int]
) -> None:
    said = data.draw(damaged(client_said if role is Role.BROKER else broker_said))
    handshake = Handshake(role)
    fault = None
    try:
        for piece in pieces(said, sizes):
            handshake.receive(piece)
            while handshake.next_step() is not None:
                pass
    except AmqpFault as caught:
        fault = caught
    if isinstance(fault, NotAmqp):
        assert handshake.state is State.HEADER
    elif fault is not None:
        assert fault.reply in CODES
        assert str(fault).count(" - ") == 1


def read(parts: list[bytes]) -> tuple[int, bool]:
    """How many whole frames there are, and whether all of it is frames."""
    reader, count = FrameReader(), 0
    try:
        for part in parts:
            reader.feed(part)
            while reader.next() is not None:
                count += 1
    except AmqpFault:
        return count, False
    return count, True


def scanned(parts: list[bytes]) -> tuple[int, bool]:
    """The same, by the scanner."""
    scanner = Scanner()
    try:
        for part in parts:
            scanner.scan(part, len(part))
    except AmqpFault:
        return scanner.frames, False
    return scanner.frames, True


@given(said=anything, sizes=cuts)
def test_scanner_and_reader_agree_on_everything(said: bytes, sizes: list[int]) -> None:
    frames, sound = read(pieces(said, sizes))
    assert scanned(pieces(said, sizes))[1] == sound
    if sound:
        assert scanned(pieces(said, sizes)) == (frames, True)


@settings(max_examples=25)
@given(data=st.data())
def test_hostile_clients_and_brokers_disturb_nobody(data: st.DataObject) -> None:
    """Twenty sessions at a time, each with a client and a broker that say whatever they like; one
    more beside them works all the time, and in the end nothing is left of the others."""
    lies = [
        (data.draw(damaged(client_said)), data.draw(damaged(broker_said)), data.draw(st.booleans()))
        for _ in range(20)
    ]

    async def run() -> None:
        async with Rig(timeouts=BRIEF) as rig:
            good_client, good_broker = await rig.opened()
            (good,) = rig.sessions.values()
            rig.gate.backends = ()
            hostile = await rig.broker()

            async def lie_as_a_broker() -> None:
                while True:
                    peer = await hostile.connections.get()
                    peer.send(lies[peer.writer.get_extra_info("peername")[1] % len(lies)][1])

            liar = asyncio.ensure_future(lie_as_a_broker())
            clients = []
            for said, _, resets in lies:
                client = await rig.client()
                client.send(said)
                clients.append((client, resets))
            ping = frame(3, 1, b"still here")
            for _ in range(3):
                good_client.send(ping)
                assert await good_broker.exactly(len(ping)) == ping
                good_broker.send(ping)
                assert await good_client.exactly(len(ping)) == ping
            for client, resets in clients:
                with contextlib.suppress(OSError):
                    client.reset() if resets else client.close()
            await rig.until(lambda: set(rig.sessions) == {good.id})
            assert Kept.total == 0
            assert len(rig.gate.endings) == len(lies)
            liar.cancel()

    asyncio.run(run())
