"""TLS over ZeroMQ without a socket: headers, parts, both machines on a network that misbehaves."""

from __future__ import annotations

import random
import struct
from collections import deque
from itertools import count

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq import limits
from ciphermq.errors import (
    CipherMQError,
    ConnectionLost,
    FrameTooLarge,
    MalformedFrame,
    RemoteProtocolError,
    TlsFailed,
    UnknownFrame,
    UsageError,
)
from ciphermq.pki.names import client_id_of
from ciphermq.wire.tlszmq import parts as codec
from ciphermq.wire.tlszmq.dealer import DealerMachine, Times
from ciphermq.wire.tlszmq.header import BARE, HEAD_SIZE, Buffer, Head, Kind, parse, spell_envelope
from ciphermq.wire.tlszmq.parts import ALPN, PartsReader
from ciphermq.wire.tlszmq.router import Peer, RouterMachine
from ciphermq.wire.tlszmq.speaker import Waiting
from support.certificates import Certificates


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


# --- headers ------------------------------------------------------------------------------------


def test_a_header_byte_for_byte() -> None:
    head = Head(Kind.REQUEST, bytes(range(16)), 0x0102030405060708, 9)
    data = head.encode()
    assert data.hex() == "c302000102030405060708090a0b0c0d0e0f01020304050607080000000000000009"
    assert len(data) == HEAD_SIZE == 34
    found = parse([b"hop", b"id", b"", data + b"tls", b"more"])
    assert found.envelope == (b"hop", b"id")
    assert found.head == head
    assert b"".join(found.body) == b"tlsmore"


def test_a_message_without_a_header_is_bare() -> None:
    assert parse([b"id", b"", b"\x16\x03\x01"]) == ((b"id",), BARE, [b"\x16\x03\x01"])


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        ([], "no empty frame"),
        ([b"id", b"data"], "no empty frame"),
        ([b"id", b""], "nothing behind"),
        ([b"x"] * (limits.MAX_HOPS + 1) + [b"", b"y"], "more than 16 hops"),
        ([b"", b"a", b"b"], "more than one frame"),
        ([b"", b"\xc3\x09" + bytes(32)], "unknown kind 9"),
        ([b"", b"\xc3\x00" + bytes(32)], "unknown kind 0"),
    ],
)
def test_what_is_none_of_ours(frames: list[bytes], says: str) -> None:
    with pytest.raises(RemoteProtocolError, match=says):
        parse(frames)


@given(st.lists(st.binary(max_size=80), max_size=20))
def test_parse_raises_nothing_else(frames: list[bytes]) -> None:
    try:
        found = parse(frames)
    except RemoteProtocolError:
        return
    assert len(found.envelope) <= limits.MAX_HOPS


def test_envelopes_are_spelt_for_people() -> None:
    assert spell_envelope((b"device", b"\0\x80k")) == "device/00806b"


# --- parts --------------------------------------------------------------------------------------

messages = st.lists(
    st.lists(
        st.one_of(st.binary(max_size=40), st.integers(0, 90_000).map(bytes)),
        min_size=1,
        max_size=4,
    ),
    max_size=8,
)


@given(messages, st.integers(1, 70_000), st.integers(16, 4096))
def test_parts_come_out_as_they_went_in(sent: list[list[bytes]], cut: int, room: int) -> None:
    waiting = Waiting()
    for parts in sent:
        waiting.put(parts)
    data = b"".join(waiting.pieces()) if sent else b""
    assert not waiting.messages
    reader = PartsReader(memoryview(bytearray(room)), limits.MAX_ZMQ_MESSAGE)
    found = []
    at = 0
    while at < len(data):
        target = reader.room()
        piece = data[at : at + min(cut, len(target))]
        target[: len(piece)] = piece
        found += reader.filled(len(piece))
        at += len(piece)
    assert found == sent
    assert not reader.mid_block


def feed(data: bytes) -> list[list[bytes]]:
    reader = PartsReader(memoryview(bytearray(4000)), 4000)
    reader.room()[: len(data)] = data
    return reader.filled(len(data))


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (struct.pack(">IB", 4001, codec.SMALL), FrameTooLarge),
        (struct.pack(">IB", 1, 9) + b"x", UnknownFrame),
        (struct.pack(">IB", 3, codec.REPLACES) + b"xxx", UnknownFrame),
        (struct.pack(">IB", 1, codec.SMALL) + b"\xc1", MalformedFrame),
        (struct.pack(">IB", 2, codec.SMALL) + b"\x91\x01", MalformedFrame),
        (struct.pack(">IB", 1, codec.LARGE) + b"\0", MalformedFrame),
        (struct.pack(">IB", 2, codec.LARGE) + b"\0\1", MalformedFrame),
        (struct.pack(">IBHI", 6, codec.LARGE, 1, 9), MalformedFrame),
        (struct.pack(">IBHI", 7, codec.LARGE, 1, 0) + b"x", MalformedFrame),
    ],
)
def test_blocks_that_are_wrong(block: bytes, error: type[CipherMQError]) -> None:
    with pytest.raises(error):
        feed(block)


@given(st.binary(max_size=200))
def test_the_reader_raises_nothing_else(data: bytes) -> None:
    try:
        feed(data)
    except (FrameTooLarge, MalformedFrame, UnknownFrame):
        return


def test_a_message_may_not_be_larger_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_ZMQ_MESSAGE", 50_000)
    with pytest.raises(UsageError, match="at most 50000 bytes, not"):
        Waiting().put([bytes(50_001)])
    with pytest.raises(UsageError, match="1 to 4096 parts"):
        Waiting().put([bytes(20)] * 4097)


# --- both machines ------------------------------------------------------------------------------


class Network:
    """A dealer and a router, and messages between them that a test may spoil; time is a number."""

    def __init__(self, certificates: Certificates, kind: Kind = Kind.DATA, **times: float) -> None:
        numbers = count(1)
        self.now = 1000.0
        self.times = Times(**times)
        self.ends: list[tuple[Peer | None, CipherMQError | None]] = []
        self.dealer = DealerMachine(
            certificates.client("alice", protocols=(ALPN,)),
            kind,
            server_name="localhost",
            new_token=lambda: next(numbers).to_bytes(16, "big"),
            times=self.times,
        )
        self.router = RouterMachine(
            certificates.server(protocols=(ALPN,)),
            identify=client_id_of,
            on_end=lambda *end: self.ends.append(end),
            times=self.times,
        )
        self.to_router: deque[list[bytes]] = deque()
        self.to_dealer: deque[list[bytes]] = deque()
        self.sent = 0

    def collect(self) -> None:
        for frames in self.dealer.outgoing(self.now):
            self.to_router.append([b"id", *map(bytes, frames)])
            self.sent += 1
        for _, frames in self.router.outgoing():
            assert bytes(frames[0]) == b"id"
            self.to_dealer.append([bytes(frame) for frame in frames[1:]])
            self.sent += 1

    def turn(self) -> bool:
        """One round; whether anything moved."""
        self.collect()
        moved = bool(self.to_router or self.to_dealer)
        while self.to_router:
            self.router.receive(self.to_router.popleft(), self.now)
        while self.to_dealer:
            self.dealer.receive(self.to_dealer.popleft(), self.now)
        return moved

    def settle(self) -> None:
        while self.turn():
            pass

    def received(self) -> list[list[bytes]]:
        found = [parts for _, parts in self.router.inbox]
        self.router.inbox.clear()
        self.router.take()
        return found


def test_a_window_bounds_what_is_under_way(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    assert net.received() == [[b"first"]]
    size = 1_000_000
    for _ in range(30):
        net.dealer.send([bytes(size)])
    net.settle()
    under_way = sum(len(parts[0]) for _, parts in net.router.inbox)
    assert under_way <= limits.ZMQ_WINDOW + limits.ZMQ_PACKET
    found = []
    for _ in range(30):
        found += net.received()
        net.settle()
    assert [len(parts[0]) for parts in found] == [size] * 30


def test_every_fault_of_the_network_is_noticed(certificates: Certificates) -> None:
    chance = random.Random(5)
    for fault in ("lose", "swap", "repeat", "flip"):
        net = Network(certificates)
        errors, found, sent = 0, [], 0
        while sent < 60:
            for _ in range(3):
                net.dealer.send([b"%d" % sent])
                net.collect()
                sent += 1
            queue = net.to_router
            if len(queue) > 1 and chance.random() < 0.4:
                at = chance.randrange(len(queue) - 1)
                if fault == "lose":
                    del queue[at]
                elif fault == "swap":
                    queue[at], queue[at + 1] = queue[at + 1], queue[at]
                elif fault == "repeat":
                    queue.insert(at, queue[at])
                else:
                    spoilt = bytearray(queue[at][-1])
                    spoilt[-1] ^= 1
                    queue[at][-1] = bytes(spoilt)
            net.settle()
            found += [int(parts[0]) for parts in net.received()]
            try:
                net.dealer.raise_error()
            except ConnectionLost:
                errors += 1
            except CipherMQError:
                errors += 1
            net.now += 10
        assert found == sorted(set(found)), fault  # none twice, none out of order
        if fault == "repeat":
            assert (errors, found) == (0, list(range(sent)))
        else:
            assert errors > 0, fault
            assert 0 < len(found) < sent, fault
        assert net.router.sessions <= 2


def test_who_ignores_the_window_is_cut_off(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    session = net.dealer._current.session  # type: ignore[union-attr]
    sent = 0
    while net.router.sessions:
        session.write(codec.small([[bytes(60_000)]]))
        message = session.message()
        assert message is not None
        net.router.receive([b"id", *map(bytes, message)], net.now)
        sent += 60_000
        assert sent < 3 * limits.ZMQ_WINDOW
    assert "more than its window allows" in str(net.ends[0][1])


def test_an_end_in_order_is_told_once(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    net.to_dealer.extend([[bytes(each) for each in frames[1:]] for frames in net.router.close()])
    net.settle()
    with pytest.raises(ConnectionLost, match="ended this session"):
        net.dealer.raise_error()
    net.dealer.raise_error()
    assert net.dealer.sessions == 1  # the next begins only when something is to be sent


def test_a_session_that_fails_is_not_begun_again_before_it_was_told(
    certificates: Certificates, tmp_path_factory: pytest.TempPathFactory
) -> None:
    net = Network(certificates)
    strangers = Certificates(tmp_path_factory.mktemp("strangers"))
    net.dealer._context = strangers.client("mallory", protocols=(ALPN,))
    net.dealer.open()
    net.settle()
    for _ in range(5):
        net.now += 10
        net.settle()
    assert net.dealer.sessions == 1
    with pytest.raises(TlsFailed):
        net.dealer.raise_error()
    net.settle()
    assert net.dealer.sessions == 2


def test_an_unknown_session_is_reset_at_once(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    fresh = Network(certificates)
    net.router = fresh.router
    net.dealer.send([b"two"])
    net.settle()
    with pytest.raises(ConnectionLost, match="dropped this session: unknown here"):
        net.dealer.raise_error()
    net.dealer.send([b"three"])
    net.settle()
    assert net.received() == [[b"three"]]


def test_a_reason_of_a_reset_is_not_believed_blindly(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    token = net.dealer._current.session.token  # type: ignore[union-attr]
    reset = [b"", Head(Kind.RESET, token).encode() + b"\x1b[31m\xff" + b"x" * 5000]
    net.dealer.receive(reset, net.now)
    with pytest.raises(ConnectionLost) as caught:
        net.dealer.raise_error()
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_silence_is_asked_about_and_then_an_end(certificates: Certificates) -> None:
    net = Network(certificates, keepalive=10, idle=1000)
    net.dealer.send([b"one"])
    net.settle()
    net.now += 11
    net.to_router.extend([[b"id", *map(bytes, each)] for each in net.dealer.tick(net.now)])
    assert len(net.to_router) == 1
    net.settle()
    net.now += 5
    assert list(net.dealer.tick(net.now)) == []
    for _ in range(5):
        net.now += 11
        list(net.dealer.tick(net.now))  # asked, and never answered
    with pytest.raises(ConnectionLost, match="silent for"):
        net.dealer.raise_error()


def test_handshakes_and_idle_sessions_end(certificates: Certificates) -> None:
    net = Network(certificates, handshake=10, idle=100)
    net.dealer.send([b"one"])
    net.collect()
    net.router.receive(net.to_router.popleft(), net.now)
    net.now += 11
    net.router.tick(net.now)
    assert net.router.sessions == 0
    assert "within 10 s" in str(net.ends[0][1])
    list(net.dealer.tick(net.now))
    net.now += 10
    net.router._now.clear()
    net.settle()
    assert net.received() == [[b"one"]]
    net.now += 101
    net.router.tick(net.now)
    assert net.router.sessions == 0
    assert "nothing came for 101 s" in str(net.ends[-1][1])


def test_another_client_can_not_take_a_session_over(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    mallory = DealerMachine(
        certificates.client("mallory", protocols=(ALPN,)),
        Kind.DATA,
        server_name="localhost",
        new_token=lambda: b"m" * 16,
    )
    victim, net.dealer = net.dealer, mallory
    mallory.open()
    net.settle()
    speaker = mallory._current
    assert speaker is not None
    speaker.replaces(victim._current.session.token)  # type: ignore[union-attr]
    mallory.send([b"mine now?"])
    net.settle()
    assert peer.alive
    assert peer.client == "alice"
    assert net.router.inbox[-1][0].client == "mallory"
    net.router.send(peer, [b"for alice"])
    net.dealer = victim
    net.settle()
    assert list(victim.inbox) == [[b"for alice"]]


def test_a_req_is_owed_one_answer_and_no_more(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST)
    net.dealer.send([b"question", bytes(500_000)])
    for _ in range(10):  # a REQ's socket is in the middle of nothing: frames carry no delimiter
        for frames in list(net.dealer.outgoing(net.now)):
            net.router.receive([b"id", b"", *map(bytes, frames)], net.now)
        answers = [[bytes(each) for each in frames[1:]] for _, frames in net.router.outgoing()]
        assert len(answers) <= 1
        for frames in answers:
            net.dealer.receive(frames, net.now)
    ((peer, parts),) = net.router.inbox
    assert [len(part) for part in parts] == [8, 500_000]
    net.router.send(peer, [b"answer"])
    ((_, frames),) = net.router.outgoing()
    net.dealer.receive([bytes(each) for each in frames[1:]], net.now)
    assert list(net.dealer.inbox) == [[b"answer"]]
    assert list(net.router.outgoing()) == []


# --- a client that is let in, and means harm ----------------------------------------------------


def hostile(net: Network, *blocks: Buffer) -> None:
    """What alice's own session carries, whatever her program makes of it."""
    session = net.dealer._current.session  # type: ignore[union-attr]
    for block in blocks:
        session.write(block)
    message = session.message()
    assert message is not None
    net.router.receive([b"id", *map(bytes, message)], net.now)


@pytest.mark.parametrize(
    "block",
    [
        codec.small([[]]),
        codec.small([[b""] * (limits.MAX_PARTS + 1)]),
        b"\0\0\0\6\1\xdd\0\1\0\1\x90",
        b"\0\0\0\2\2\0\0",
        codec.replaces(b"r" * 16) * 2,
    ],
    ids=["no part", "many parts", "many messages", "large without parts", "replaces twice"],
)
def test_no_program_is_shown_what_is_no_message(certificates: Certificates, block: Buffer) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    assert net.received() == [[b"first"]]
    hostile(net, block)
    assert net.received() == []
    assert "broke the protocol" in str(net.ends[0][1])


def test_more_messages_wait_than_a_block_may_have(certificates: Certificates) -> None:
    net = Network(certificates)
    for number in range(codec.SMALL_MOST + 3):
        net.dealer.send([b"%d" % number])
    found = []
    for _ in range(8):
        net.settle()
        found += net.received()
    assert found == [[b"%d" % number] for number in range(codec.SMALL_MOST + 3)]


def test_who_was_replaced_late_can_be_sent_nothing(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    token = net.dealer._current.session.token  # type: ignore[union-attr]
    first = net.router.inbox.popleft()[0]
    net.dealer._current = None
    net.dealer.send([b"second"])
    net.settle()
    second = net.router.inbox.popleft()[0]
    hostile(net, codec.replaces(token))
    assert first.alive
    assert not second.alive
    with pytest.raises(ConnectionLost, match="can't be sent anything"):
        net.router.send(second, [b"x"])
    net.router.send(first, [b"y"])
    net.settle()
    assert list(net.dealer.inbox) == [[b"y"]]
