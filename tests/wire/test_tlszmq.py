"""TLS over ZeroMQ without a socket: headers, parts, both machines on a network that misbehaves."""

from __future__ import annotations

import random
import struct
from collections import deque
from itertools import count
from pathlib import Path

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
    WaitTimeout,
)
from ciphermq.pki.names import client_id_of
from ciphermq.wire.tlszmq import parts as codec
from ciphermq.wire.tlszmq.dealer import DealerMachine, Times
from ciphermq.wire.tlszmq.header import BARE, HEAD_SIZE, Buffer, Head, Kind, parse, spell_envelope
from ciphermq.wire.tlszmq.parts import ALPN, PartsReader
from ciphermq.wire.tlszmq.router import Bounds, Peer, RouterMachine
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
        ([b"x" * 256, b"", b"y"], "a routing id of 256 bytes"),
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


@given(st.data(), st.lists(st.integers(0, 70_000), min_size=1, max_size=40))
def test_a_large_message_in_any_cut(data: st.DataObject, lengths: list[int]) -> None:
    sent = [bytes([at % 251]) * length for at, length in enumerate(lengths)]
    replaced = codec.Replaced(b"r" * 16, 7)
    stream = codec.replaces(replaced) + b"".join(codec.large(sent)) + codec.small([[b"end"]])
    reader = PartsReader(memoryview(bytearray(5000)), limits.MAX_ZMQ_MESSAGE)
    found, at = [], 0
    while at < len(stream):
        room = reader.room()
        assert len(room)
        size = min(len(room), len(stream) - at, data.draw(st.sampled_from([1, 7, 4999, 40_000])))
        room[:size] = stream[at : at + size]
        found += reader.filled(size)
        at += size
    assert found == [sent, [b"end"]]
    assert reader.replaced == replaced


def test_what_is_announced_is_not_held_before_it_comes() -> None:
    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before, readers = resident(), []
    for number in range(12):
        reader = PartsReader(memoryview(bytearray(100)), limits.MAX_ZMQ_MESSAGE)
        size = 60 * limits.MIB
        if number % 2:
            block = struct.pack(">IB", size, codec.SMALL)
        else:
            block = struct.pack(">IBHI", size + 6, codec.LARGE, 1, size)
        reader.room()[: len(block)] = block
        assert reader.filled(len(block)) == []
        assert reader.mid_block
        readers.append(reader)
    assert resident() - before < 120 * limits.MIB


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
            bare=kind is Kind.BARE,
            on_end=lambda *end: self.ends.append(end),
            times=self.times,
        )
        self.prefix = [b"id"] if kind is Kind.DATA else [b"id", b""]  # as a REQ socket does
        self.to_router: deque[list[bytes]] = deque()
        self.to_dealer: deque[list[bytes]] = deque()
        self.sent = 0

    def collect(self) -> None:
        for frames in self.dealer.outgoing(self.now):
            self.to_router.append(self.prefix + list(map(bytes, frames)))
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

    def tick(self) -> None:
        """Both look at their clocks, and say what they have to say then."""
        self.router.tick(self.now)
        for frames in self.dealer.tick(self.now):
            self.to_router.append(self.prefix + list(map(bytes, frames)))
        self.settle()

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
            net.tick()
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


@pytest.mark.parametrize("lost", ["request", "answer"])
def test_a_message_that_is_lost_with_none_behind_it_is_missed(
    certificates: Certificates, lost: str
) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.received()
    if lost == "request":
        net.dealer.send([b"two"])
        net.collect()
        net.to_router.clear()
    else:
        net.router.send(peer, [b"two"])
        net.collect()
        net.to_dealer.clear()
    net.tick()
    net.now += limits.ZMQ_KEEPALIVE + 1
    net.tick()
    with pytest.raises(ConnectionLost, match=r"has sent \d messages of which \d have come"):
        net.dealer.raise_error()


def test_the_last_message_of_a_session_that_is_replaced_is_missed(
    certificates: Certificates,
) -> None:
    net = Network(certificates, tls_records=3)
    net.dealer.send([b"0"])
    net.settle()
    lost = False
    errors, found = [], []
    for number in range(1, 12):
        net.dealer.send([b"%d" % number])
        net.collect()
        current, following = net.dealer._current, net.dealer._next
        if current is not None and following is not None and not lost:
            for each in net.to_router:
                head = parse(each).head
                if head.token == current.session.token and head.kind is Kind.DATA:
                    net.to_router.remove(each)
                    lost = True
                    break
        net.turn()
        found += [int(parts[0]) for parts in net.received()]
        try:
            net.dealer.raise_error()
        except ConnectionLost as error:
            errors.append(str(error))
    net.settle()
    found += [int(parts[0]) for parts in net.received()]
    assert lost
    assert len(errors) == 1
    assert "lost or reordered some" in errors[0]
    assert any("lost or reordered some" in str(error) for _, error in net.ends)
    assert found == sorted(set(found))


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
    speaker.replaces(victim._current.session)  # type: ignore[union-attr]
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
        codec.replaces(codec.Replaced(b"r" * 16, 1)),
    ],
    ids=["no part", "many parts", "many messages", "large without parts", "replaces late"],
)
def test_no_program_is_shown_what_is_no_message(certificates: Certificates, block: Buffer) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    assert net.received() == [[b"first"]]
    hostile(net, block)
    assert net.received() == []
    assert "broke the protocol" in str(net.ends[0][1])


def test_empty_messages_can_not_fill_the_memory(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    assert net.received() == [[b"first"]]
    full = codec.small([[b""]] * codec.SMALL_MOST)
    hostile(net, *[full] * (limits.ZMQ_PACKET_MESSAGES // codec.SMALL_MOST))
    assert len(net.received()) == limits.ZMQ_PACKET_MESSAGES
    hostile(net, *[full] * 80)
    assert net.received() == []
    assert "messages at once are too many" in str(net.ends[0][1])


def test_as_many_empty_messages_as_can_wait_are_sent(certificates: Certificates) -> None:
    net = Network(certificates)
    sent = 0
    while not net.dealer.full:
        net.dealer.send([b""])
        sent += 1
    net.settle()
    assert len(net.received()) == sent


def test_more_messages_wait_than_a_block_may_have(certificates: Certificates) -> None:
    net = Network(certificates)
    for number in range(codec.SMALL_MOST + 3):
        net.dealer.send([b"%d" % number])
    found = []
    for _ in range(8):
        net.settle()
        found += net.received()
    assert found == [[b"%d" % number] for number in range(codec.SMALL_MOST + 3)]


def test_a_session_that_has_said_something_takes_no_other_s_place(
    certificates: Certificates,
) -> None:
    net = Network(certificates)
    net.dealer.send([b"first"])
    net.settle()
    token = net.dealer._current.session.token  # type: ignore[union-attr]
    first = net.router.inbox.popleft()[0]
    net.dealer._current = None
    net.dealer.send([b"second"])
    net.settle()
    second = net.router.inbox.popleft()[0]
    hostile(net, codec.replaces(codec.Replaced(token, 1)))
    assert first.alive
    assert not second.alive
    assert "has said something before" in str(net.ends[0][1])
    with pytest.raises(ConnectionLost, match="can't be sent anything"):
        net.router.send(second, [b"x"])
    net.router.send(first, [b"y"])
    net.settle()
    assert list(net.dealer.inbox) == [[b"y"]]


# --- sessions that take over, end, and begin with other certificates ----------------------------


def begin_next(net: Network) -> None:
    """Have the dealer's session replaced, once, as far as the next one's handshake."""
    net.dealer._times = Times(tls_records=1)
    net.collect()
    net.dealer._times = Times()
    assert net.dealer._next is not None
    while (following := net.dealer._next) is not None and not following.session.established:
        assert net.turn()


@pytest.mark.parametrize("window_opens", [True, False])
def test_what_a_server_has_begun_to_send_goes_on_in_the_next_session(
    certificates: Certificates, window_opens: bool
) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    ((peer, _),) = net.router.inbox
    sent = [[b"first"], [b"x" * 20_000_000], [b"third"], [b"y" * 40_000]]
    for parts in sent:
        net.router.send(peer, parts)
    net.settle()  # until the window is closed
    begin_next(net)
    if window_opens:
        net.dealer.take()
    for _ in range(20):
        net.settle()
        net.dealer.take()
    assert list(net.dealer.inbox) == sent
    assert net.router.sessions == 1
    net.dealer.raise_error()
    assert net.ends == []


def test_what_waits_goes_as_soon_as_the_next_session_is_free(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    net.dealer.send([bytes(20_000_000)])
    net.settle()
    begin_next(net)
    net.dealer.send([b"after"])
    for _ in range(20):
        net.router.take()
        for _, frames in net.router.outgoing():
            net.dealer.receive([bytes(frame) for frame in frames[1:]], net.now)
        for frames in net.dealer.outgoing(net.now):
            net.router.receive([b"id", *map(bytes, frames)], net.now)
        current = net.dealer._current
        assert current is not None
        # Nothing may come that would have it looked at again.
        assert current.mid_message or not net.dealer.waiting.messages
    assert [len(parts[0]) for parts in net.received()] == [5, 20_000_000, 5]


def test_a_next_session_that_is_refused_is_tried_again_in_time(
    certificates: Certificates, tmp_path: Path
) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    net.dealer.renew(Certificates(tmp_path).client("alice", protocols=(ALPN,)))
    net.dealer._times = Times(tls_records=1)
    for number in range(10):
        net.dealer.send([b"%d" % number])
        net.settle()
    assert net.dealer.sessions == 2
    net.now += limits.RECONNECT_MOST
    net.settle()
    assert net.dealer.sessions == 3
    assert len(net.received()) == 11  # the first one goes on meanwhile


def test_a_session_fails_while_a_message_is_half_encrypted(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.dealer.send([bytes(20_000_000)])
    net.settle()
    net.router.take()  # the window opens by what comes with the alert
    session = peer.speaker.session  # type: ignore[union-attr]
    head, body = Head(Kind.DATA, session.token, session._out, session._taken), b"\x17\3\3\0\x20"
    net.dealer.receive([b"", head.encode() + body + bytes(32)], net.now)
    with pytest.raises(TlsFailed):
        net.dealer.raise_error()
    net.dealer.send([b"again"])
    net.now += limits.RECONNECT_MOST
    net.settle()
    assert net.received()[-1] == [b"again"]


def test_a_request_that_failed_is_not_sent_with_the_next(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST, handshake=10)
    net.dealer.send([b"lost"])
    list(net.dealer.outgoing(net.now))
    net.now += 11
    list(net.dealer.tick(net.now))
    with pytest.raises(WaitTimeout):
        net.dealer.raise_error()
    net.now += 10
    net.dealer.send([b"asked again"])
    for _ in range(10):
        for frames in list(net.dealer.outgoing(net.now)):
            net.router.receive([b"id", b"", *map(bytes, frames)], net.now)
        for _, frames in list(net.router.outgoing()):
            net.dealer.receive([bytes(each) for each in frames[1:]], net.now)
    assert net.received() == [[b"asked again"]]


@pytest.mark.parametrize("dropped", [False, True], ids=["the server has it", "it was dropped"])
def test_what_was_quiet_for_long_is_replaced_before_anything_is_sent(
    certificates: Certificates, dropped: bool
) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.received()
    net.tick()
    if not dropped:
        net.router.send(peer, [b"answer"])
        net.collect()
    kept, net.to_dealer = net.to_dealer, deque()
    net.now += limits.ZMQ_IDLE + 1
    if dropped:
        net.router.tick(net.now)
        assert not peer.alive
    net.dealer.send([b"later"])
    net.collect()
    net.to_dealer = kept + net.to_dealer
    net.settle()
    net.dealer.raise_error()
    assert net.received() == [[b"later"]]
    assert net.dealer.sessions == 2
    assert net.router.sessions == 1
    assert list(net.dealer.inbox) == ([] if dropped else [[b"answer"]])
    assert peer.alive is not dropped
    net.now += limits.ZMQ_RETIRE + 1
    net.tick()
    net.dealer.raise_error()


def test_a_router_ends_a_session_in_order(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"hello"])
    net.settle()
    ((peer, _),) = net.router.inbox
    assert net.router.peers == [peer]
    net.router.send(peer, [bytes(20_000_000)])
    net.collect()
    net.router.end(peer, "it was revoked")
    net.router.end(peer, "it was revoked")
    assert (net.router.peers, net.router.sessions, peer.alive) == ([], 0, False)
    ((who, why),) = net.ends
    assert who is peer
    assert str(why) == str(peer.error) == "it was revoked"
    with pytest.raises(ConnectionLost, match="it was revoked"):
        net.router.send(peer, [b"x"])
    net.settle()
    with pytest.raises(ConnectionLost, match="ended this session"):
        net.dealer.raise_error()


def test_contexts_are_checked_when_they_are_renewed(certificates: Certificates) -> None:
    net = Network(certificates)
    with pytest.raises(UsageError, match="give it a client_context"):
        net.dealer.renew(certificates.server(protocols=(ALPN,)))
    with pytest.raises(UsageError, match="give it a server_context"):
        net.router.renew(certificates.client("alice", protocols=(ALPN,)))
    net.dealer.send([b"hello"])
    net.settle()
    assert net.received() == [[b"hello"]]


def test_what_a_server_had_not_taken_when_it_began_anew_is_told(
    certificates: Certificates,
) -> None:
    net = Network(certificates)
    net.dealer.send([b"one"])
    net.settle()
    net.router = Network(certificates).router  # with all that it had not given to anybody
    net.now += limits.ZMQ_IDLE
    net.dealer.send([b"two"])
    net.settle()
    assert net.received() == [[b"two"]]
    net.dealer.raise_error()
    net.now += limits.ZMQ_RETIRE + 1
    net.tick()
    with pytest.raises(ConnectionLost, match="what it was sent last may be lost"):
        net.dealer.raise_error()
    net.dealer.send([b"three"])
    net.settle()
    assert net.received() == [[b"three"]]
    assert net.dealer.sessions == 2


def test_a_large_message_that_a_server_forgot_half_of_is_told(certificates: Certificates) -> None:
    net = Network(certificates)
    net.dealer.send([b"large", bytes(3 * limits.ZMQ_WINDOW)])
    net.settle()
    net.router = Network(certificates).router
    net.now += limits.ZMQ_IDLE
    net.dealer.send([b"after it"])
    for _ in range(5):
        net.settle()
        net.now += limits.ZMQ_KEEPALIVE + 1
        net.tick()
    with pytest.raises(ConnectionLost, match=r"has dropped this session|has been silent"):
        net.dealer.raise_error()
    net.settle()
    assert net.received() == [[b"after it"]]


def test_a_req_that_has_waited_long_enough_may_ask_again(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST)
    answers: list[list[bytes]] = []

    def ask(question: bytes, *, lose: str = "") -> None:
        net.dealer.send([question])
        for _ in range(6):
            net.collect()
            if lose == "request" and net.dealer.established:
                net.to_router.clear()
            net.turn()
            while net.router.inbox:
                peer, parts = net.router.inbox.popleft()
                if lose != "answer":
                    net.router.send(peer, parts)
            net.router.take()
        answers.extend(net.dealer.inbox)
        net.dealer.inbox.clear()

    ask(b"one")
    for lose in ("request", "answer"):
        ask(b"two", lose=lose)
        assert answers == [[b"one"]]
        with pytest.raises(UsageError, match="receive its answer before"):
            net.dealer.send([b"three"])
        net.dealer.timed_out()
        ask(b"three")
        assert answers == [[b"one"], [b"three"]]
        answers.pop()


def test_an_answer_that_comes_too_late_is_not_the_next_one_s(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.router.inbox.clear()
    net.dealer.timed_out()
    net.router.send(peer, [b"late answer to one"])
    net.settle()
    net.dealer.send([b"two"])
    net.settle()
    assert not net.dealer.inbox
    ((peer, _),) = net.router.inbox
    net.router.send(peer, [b"answer to two"])
    net.settle()
    assert list(net.dealer.inbox) == [[b"answer to two"]]


def test_a_req_that_leaves_gives_its_session_back(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    assert list(net.dealer.close()) == []  # it is not its turn
    net.router.send(peer, [b"answer"])
    net.settle()
    for frames in net.dealer.close():
        net.router.receive([b"id", b"", *map(bytes, frames)], net.now)
    assert net.router.sessions == 0
    assert net.ends == [(peer, None)]


def test_who_works_long_on_an_answer_can_still_give_it(certificates: Certificates) -> None:
    net = Network(certificates, Kind.REQUEST)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.now += 3 * limits.ZMQ_IDLE
    net.tick()
    net.router.send(peer, [b"at last"])
    net.settle()
    assert list(net.dealer.inbox) == [[b"at last"]]
    net.now += limits.ZMQ_IDLE + 1
    net.tick()
    assert net.router.sessions == 0


def test_a_client_with_all_its_sessions_can_replace_one(certificates: Certificates) -> None:
    net = Network(certificates, tls_records=10)
    net.router._bounds = Bounds(per_client=1)
    for number in range(100):
        net.dealer.send([b"%d" % number])
        net.settle()
        net.dealer.raise_error()
    assert net.received() == [[b"%d" % number] for number in range(100)]
    assert net.dealer.sessions > 5
    assert net.router.sessions == 1


def test_a_session_that_the_server_refuses_takes_nobody_s_place(certificates: Certificates) -> None:
    net = Network(certificates, tls_records=10)
    net.dealer.send([b"first"])
    net.settle()
    net.router._bounds = Bounds(per_client=0)
    for number in range(10):
        net.dealer.send([b"%d" % number])
        net.settle()
        net.dealer.raise_error()
    assert net.dealer.sessions > 1
    assert len(net.received()) == 11
    ((peer, error),) = net.ends
    assert peer is None
    assert "sessions already" in str(error)


@pytest.mark.parametrize("size", [0, limits.MAX_ZMQ_BARE + 1])
def test_the_bare_protocol_says_what_it_can_not_say(certificates: Certificates, size: int) -> None:
    net = Network(certificates, Kind.BARE)
    with pytest.raises(UsageError, match=f"has 1 to {limits.MAX_ZMQ_BARE} bytes, not {size}"):
        net.dealer.send([bytes(size)])


def test_the_largest_bare_message_fits_into_a_frame(certificates: Certificates) -> None:
    net = Network(certificates, Kind.BARE)
    net.dealer.send([bytes(limits.MAX_ZMQ_BARE)])
    largest = 0
    for _ in range(6):
        net.collect()
        largest = max([largest, *(len(frame) for frames in net.to_router for frame in frames)])
        net.turn()
    assert limits.MAX_ZMQ_BARE < largest <= limits.MAX_ZMQ_FRAME
    assert [len(part) for part in net.router.inbox[0][1]] == [limits.MAX_ZMQ_BARE]


def test_a_bare_server_that_began_anew_is_noticed(certificates: Certificates) -> None:
    net = Network(certificates, Kind.BARE)
    net.dealer.send([b"one"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.router.send(peer, [b"answer"])
    net.settle()
    assert net.dealer.inbox.popleft() == [b"answer"]
    net.router = Network(certificates, Kind.BARE).router
    net.dealer.send([b"two"])
    net.settle()
    with pytest.raises(ConnectionLost, match="has no such session any more"):
        net.dealer.raise_error()
    net.dealer.send([b"three"])
    net.settle()
    assert net.received() == [[b"three"]]


def test_a_client_s_half_sent_messages_have_a_bound(certificates: Certificates) -> None:
    net = Network(certificates)
    net.router._bounds = Bounds(large=50 * limits.MIB)
    found: list[list[bytes]] = []
    for _ in range(2):  # one after the other they may be as large as they like
        net.dealer.send([bytes(40 * limits.MIB)])
        while net.dealer.pending:
            net.settle()
            found += net.received()
    assert [len(parts[0]) for parts in found] == [40 * limits.MIB] * 2
    begun = b"".join(map(bytes, codec.large([bytes(30 * limits.MIB)])))[:100_000]
    for token in (b"a" * 16, b"b" * 16):
        assert not net.ends
        net.dealer = DealerMachine(
            certificates.client("alice", protocols=(ALPN,)),
            Kind.DATA,
            server_name="localhost",
            new_token=lambda token=token: token,  # type: ignore[misc]
        )
        net.dealer.open()
        net.settle()
        hostile(net, begun)
    ((peer, error),) = net.ends
    assert peer is not None
    assert not peer.alive
    assert "alice may have 52428800 bytes of large messages under way, not 62914560" in str(error)
    assert net.router._large == {"alice": 30 * limits.MIB}


@pytest.mark.parametrize("at_once", [True, False])
def test_a_req_that_does_not_wait_for_its_answer_is_ended(
    certificates: Certificates, at_once: bool
) -> None:
    """Whoever answers each message of it would be told that he has answered already."""
    net = Network(certificates, Kind.REQUEST)
    net.dealer.send([b"first"])
    net.settle()
    ((peer, _),) = net.router.inbox
    net.router.send(peer, [b"answer"])
    net.settle()
    net.received()
    session = net.dealer._current.session  # type: ignore[union-attr]
    for blocks in [[b"one", b"two"]] if at_once else [[b"one"], [b"two"]]:
        for block in blocks:
            session.write(codec.small([[block]]))
        message = session.message()
        assert message is not None
        net.router.receive([b"id", b"", *map(bytes, message)], net.now)
    assert not peer.alive
    assert "is a REQ, and did not wait" in str(net.ends[-1][1])
    assert len(net.received()) <= 1
