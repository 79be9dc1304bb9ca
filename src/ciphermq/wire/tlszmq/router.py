"""The server's end: many peers, a session for each routing envelope and token.

Whoever can reach the socket can begin sessions, so those that are not authenticated yet are few and
short: the oldest makes way for the newest. A session that fails is forgotten at once; the others
never notice. What comes for a session that is not (any more) is answered by RESET, one short
message for one, so that its client begins the next.
"""

from __future__ import annotations

import ssl
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ciphermq import limits
from ciphermq.errors import (
    CertificateError,
    CipherMQError,
    ConnectionLost,
    ProtocolNotOffered,
    RemoteProtocolError,
    ResourceLimit,
    TransportError,
    UsageError,
    WaitTimeout,
)
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.dealer import Times
from ciphermq.wire.tlszmq.header import (
    DELIMITER,
    Buffer,
    Envelope,
    Head,
    Kind,
    Packet,
    parse,
    spell_envelope,
)
from ciphermq.wire.tlszmq.parts import ALPN, Parts, Replaced
from ciphermq.wire.tlszmq.session import Session, check_context, reset_message
from ciphermq.wire.tlszmq.speaker import Speaker, Waiting, check_bare

_HANDSHAKE_RECORD = 0x16
_CLIENT_HELLO = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """How many sessions there may be."""

    sessions: int = limits.MAX_ZMQ_SESSIONS
    handshakes: int = limits.MAX_HANDSHAKES
    """Of these, not authenticated yet."""
    per_client: int = limits.MAX_CONNECTIONS_PER_CLIENT
    large: int = limits.MAX_ZMQ_LARGE
    """Bytes of a client's large messages, in all its sessions, that have begun and not ended."""


class Peer:
    """One client's end, for as long as it lasts; a replaced session does not end it."""

    __slots__ = ("certificate", "client", "envelope", "error", "speaker", "token")

    def __init__(self, client: str | None, certificate: bytes, envelope: Envelope) -> None:
        self.client = client
        """Client id of its certificate; None without one."""
        self.certificate = certificate
        """DER; empty without one."""
        self.envelope = envelope
        """The ZeroMQ way to it: a frame for each hop."""
        self.speaker: Speaker | None = None
        self.error: CipherMQError | None = None
        """Why it has ended; None while it has not, or when it ended in order."""

    @property
    def alive(self) -> bool:
        """Whether messages can be sent to it."""
        return self.speaker is not None

    @property
    def full(self) -> bool:
        """Whether so much waits for it that a sender should wait."""
        return self.speaker is not None and self.speaker.waiting.size >= limits.MAX_ZMQ_WAITING

    def __repr__(self) -> str:
        return f"<Peer {self.client or 'without a name'}{'' if self.alive else ', ended'}>"


class _Entry:
    """A session, and whose it is once that is known."""

    __slots__ = ("announced", "key", "peer", "speaker")

    def __init__(self, key: tuple[Envelope, bytes], speaker: Speaker) -> None:
        self.key = key
        self.speaker = speaker
        self.peer: Peer | None = None
        self.announced = 0
        """Bytes of the large message that comes in."""


OnEnd = Callable[[Peer | None, CipherMQError | None], None]


class RouterMachine:
    """A ROUTER's end. `now` is any clock that only goes forward, in seconds."""

    def __init__(
        self,
        context: ssl.SSLContext,
        *,
        identify: Callable[[bytes], str],
        bare: bool = False,
        on_end: OnEnd | None = None,
        times: Times | None = None,
        bounds: Bounds | None = None,
    ) -> None:
        """`identify` makes a client id of a certificate (DER), or raises; `bare` lets clients of
        the bare protocol in; `on_end` is told of every session that ends and is not replaced: whose
        it was, and why (None: in order). It must return at once, raise nothing, and leave the
        router alone, which is at work. `UsageError` when `context` is not a server's."""
        check_context(context)
        self.inbox: deque[tuple[Peer, Parts]] = deque()
        """Messages that have come."""
        self.dropped = 0
        """ZeroMQ messages that were none of ours."""
        self.refused = 0
        """Sessions that failed before their client was known."""
        self._context = context
        self._identify = identify
        self._bare = bare
        self._on_end = on_end
        self._times = times or Times()
        self._bounds = bounds or Bounds()
        self._entries: dict[tuple[Envelope, bytes], _Entry] = {}
        self._handshakes: dict[tuple[Envelope, bytes], _Entry] = {}
        self._per_client: Counter[str] = Counter()
        self._large: Counter[str | None] = Counter()
        self._dirty: dict[_Entry, None] = {}
        self._untaken: dict[_Entry, None] = {}
        self._now: deque[list[Buffer]] = deque()
        self._scratch = memoryview(bytearray(limits.NETWORK_BUFFER))

    # --- for the application ------------------------------------------------------------------

    @property
    def sessions(self) -> int:
        """How many there are, with those in their handshake."""
        return len(self._entries)

    @property
    def peers(self) -> list[Peer]:
        """Those whose handshake is over and who have not ended."""
        found = [entry.peer for entry in self._entries.values()]
        return [peer for peer in found if peer is not None and peer.alive]

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        return bool(self._now) or any(
            entry.speaker.waiting.messages or entry.speaker.mid_message or entry.speaker.stuck
            for entry in self._dirty
        )

    @property
    def stuck(self) -> bool:
        """Whether the socket had no room for something: see `put_back`."""
        return any(entry.speaker.stuck for entry in self._dirty)

    def send(self, peer: Peer, parts: Sequence[Buffer]) -> int:
        """Have a message sent; the bytes that wait for `peer` then.

        Raises `ConnectionLost` when it has ended."""
        speaker = peer.speaker
        if speaker is None:
            raise ConnectionLost(f"{peer!r} can't be sent anything: {peer.error or 'it has left'}")
        session = speaker.session
        if session.strict:
            if not session.owes or speaker.waiting.messages:
                raise UsageError(f"{peer!r} is a REQ: it gets one message for each of its own")
            if session.kind is Kind.BARE:
                check_bare(parts)
        waiting = speaker.waiting
        waiting.put(parts)
        self._dirty[self._entries[peer.envelope, session.token]] = None
        return waiting.size

    def renew(self, context: ssl.SSLContext) -> None:
        """Sessions begun from now on are `context`'s; `UsageError` when it is not a server's."""
        check_context(context)
        self._context = context

    def end(self, peer: Peer, reason: str) -> None:
        """End `peer`'s session in order, `on_end` and `peer.error` say why; what still waits for it
        is not sent. Nothing happens when it has ended already."""
        entry = self._entry_of(peer)
        if entry is None:
            return
        self._now += entry.speaker.farewell()
        self._leave(entry, ConnectionLost(reason))

    def take(self) -> None:
        """The application has had all of `inbox`."""
        for entry in self._untaken:
            session = entry.speaker.session
            session.take()
            if session.due:
                self._dirty[entry] = None
        self._untaken.clear()

    def close(self) -> Iterator[list[Buffer]]:
        """Messages that say good-bye; a REQ hears none."""
        if not self.inbox:
            self.take()
        for entry in list(self._entries.values()):
            if not entry.speaker.session.strict and entry.peer is not None:
                yield from entry.speaker.farewell()
            self._drop(entry)

    # --- for the socket -----------------------------------------------------------------------

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take in a ZeroMQ message."""
        try:
            packet = parse(frames)
        except RemoteProtocolError:
            self.dropped += 1
            return
        entry = self._entry(packet, now)
        if entry is None:
            return
        try:
            found = self._take_in(entry, packet, now)
        except (TransportError, ResourceLimit, CertificateError) as error:
            self._failed(entry, packet.head, error)
            return
        session = entry.speaker.session
        peer = entry.peer
        if peer is not None and found:
            self.inbox.extend([(peer, parts) for parts in found])
        self._untaken[entry] = None
        if session.due:
            self._dirty[entry] = None
        if session.pump.ended and session.kind is not Kind.BARE:
            self._leave(entry, None)
        elif session.strict and not found and session.owes:
            self._now.append(session.answer())

    def _take_in(self, entry: _Entry, packet: Packet, now: float) -> list[Parts]:
        """The messages that are whole with `packet`. What it raises ends the session."""
        speaker, session = entry.speaker, entry.speaker.session
        if packet.head.kind is Kind.RESET:
            raise session.reset(packet.body)
        found = speaker.receive(packet.head, packet.body, now)
        if session.strict and found and (len(found) > 1 or session.owes > 1):
            # The application answers each, and could answer but one.
            raise session.fail(
                ConnectionLost(f"the client at {session.where} is a REQ, and did not wait")
            )
        if entry.peer is None and session.established:
            self._welcome(entry)
        if (replaced := speaker.take_replaced()) is not None:
            self._turn_over(entry, replaced)
        if entry.announced != speaker.announced and entry.peer is not None:
            self._count_large(entry, entry.peer.client, speaker.announced)
        return found

    def outgoing(self) -> Iterator[tuple[Peer | None, list[Buffer]]]:
        """ZeroMQ messages to send now. One that can't be sent now is given back: `put_back`."""
        while self._now:
            yield None, self._now.popleft()
        dirty, self._dirty = self._dirty, {}
        for entry in dirty:
            speaker = entry.speaker
            stuck, speaker.stuck = speaker.stuck, []
            for at, message in enumerate(stuck, 1):
                yield entry.peer, message
                if speaker.stuck:  # none may overtake it
                    speaker.stuck += stuck[at:]
                    break
            if not speaker.stuck:
                for message in speaker.outgoing():
                    yield entry.peer, message
                    if speaker.stuck or entry.key not in self._entries:
                        break
            if (speaker.stuck or not speaker.session.room) and entry.key in self._entries:
                self._dirty[entry] = None

    def put_back(self, peer: Peer | None, message: list[Buffer]) -> None:
        """The socket has no room for it at the moment."""
        if peer is not None and peer.speaker is not None:
            peer.speaker.stuck.append(message)

    def unreachable(self, peer: Peer | None) -> None:
        """There is no way to that peer (any more)."""
        if peer is not None and (entry := self._entry_of(peer)) is not None:
            self._leave(entry, ConnectionLost(f"ZeroMQ has no way to {peer!r} any more"))

    def tick(self, now: float) -> None:
        """Look at the clocks."""
        if not self.inbox:
            self.take()
        for entry in list(self._entries.values()):
            session = entry.speaker.session
            if not session.established and now - session.began > self._times.handshake:
                self.refused += 1
                self._leave(
                    entry,
                    WaitTimeout(
                        f"the client at {session.where} did not finish the handshake within "
                        f"{self._times.handshake:g} s"
                    ),
                )
            elif now - session.heard > self._times.idle * (limits.ZMQ_OWED if session.owes else 1):
                silent = now - session.heard
                self._leave(entry, ConnectionLost(f"nothing came for {silent:.0f} s"))
            elif session.records >= 2 * self._times.tls_records:
                self._leave(entry, ConnectionLost("it has used its TLS keys up"))
            elif not session.strict:
                # Whoever has nothing more to send for now would be told with the next message: he
                # could not tell a quiet server from one that lost it.
                session.tell_soon()
                if session.due:
                    self._dirty[entry] = None

    # --- sessions -----------------------------------------------------------------------------

    def _entry(self, packet: Packet, now: float) -> _Entry | None:
        """The session of a message, begun if it may begin one."""
        envelope, head, body = packet
        key = (envelope, head.token)
        entry = self._entries.get(key)
        if head.kind is Kind.BARE:
            if not self._bare:
                self.dropped += 1
                return None
            if entry is not None and not (_is_client_hello(body[0]) and entry.peer is not None):
                return entry
            if entry is not None:  # its client has begun anew, under the same identity
                self._leave(entry, None)
            if not _is_client_hello(body[0]):
                self._now.append(reset_message(envelope, head, ""))
                return None
            return self._begin(key, head, now)
        if entry is not None:
            return entry
        if head.kind in (Kind.DATA, Kind.REQUEST) and head.number == 0:
            return self._begin(key, head, now)
        if head.kind not in (Kind.TAKEN, Kind.RESET):
            self._now.append(reset_message(envelope, head, "unknown here, or ended"))
        return None

    def _begin(self, key: tuple[Envelope, bytes], head: Head, now: float) -> _Entry | None:
        envelope = key[0]
        if len(self._entries) - len(self._handshakes) >= self._bounds.sessions:
            self.refused += 1
            reason = f"all {self._bounds.sessions} sessions are taken"
            self._now.append(reset_message(envelope, head, reason))
            return None
        if len(self._handshakes) >= self._bounds.handshakes:
            # A flood of new identities must not shut out who comes after it.
            self._drop(next(iter(self._handshakes.values())))
            self.refused += 1
        session = Session(
            TlsPump(self._context),
            head.kind,
            head.token,
            role=Role.SERVER,
            where=spell_envelope(envelope),
            before=(*envelope, DELIMITER),
            now=now,
        )
        entry = _Entry(key, Speaker(session, Waiting(), self._scratch))
        self._entries[key] = self._handshakes[key] = entry
        return entry

    def _welcome(self, entry: _Entry) -> None:
        """Its handshake is over: who is it?"""
        session = entry.speaker.session
        pump = session.pump
        if session.kind is not Kind.BARE and pump.protocol != ALPN:
            raise session.fail(
                ProtocolNotOffered(f"the client at {session.where} doesn't offer {ALPN}")
            )
        certificate = pump.peer_certificate
        client = self._identify(certificate) if certificate else None
        if client is not None:
            over = self._per_client[client] - self._bounds.per_client
            if over > 0 or (over == 0 and not self._may_replace(client, entry.key[0])):
                raise ResourceLimit(f"{client} has {self._bounds.per_client} sessions already")
            self._per_client[client] += 1
        self._handshakes.pop(entry.key, None)
        entry.peer = Peer(client, certificate, entry.key[0])
        entry.peer.speaker = entry.speaker
        if not session.strict:  # a client that replaces a session waits for a word
            session.greet()

    def _count_large(self, entry: _Entry, client: str | None, size: int) -> None:
        """So much memory the message needs that is on its way now."""
        self._large[client] += size - entry.announced
        entry.announced = size
        if not self._large[client]:
            del self._large[client]
        elif size and self._large[client] > self._bounds.large:
            who = client or "clients without a certificate"
            raise ResourceLimit(
                f"{who} may have {self._bounds.large} bytes of large messages under way, not "
                f"{self._large[client]}"
            )

    def _may_replace(self, client: str, envelope: Envelope) -> bool:
        """Whether a new session of `client` may be there to replace one of its."""
        return any(
            key[0] == envelope and entry.peer is not None and entry.peer.client == client
            for key, entry in self._entries.items()
        )

    def _turn_over(self, entry: _Entry, replaced: Replaced) -> None:
        """A session takes another's place. Only its own client's: who says so has his certificate,
        and comes the same way. It says so once, before anything else. `ConnectionLost` when the
        end of the other was lost on the way."""
        new = entry.peer
        old = self._entries.get((entry.key[0], replaced.token))
        if old is None or old is entry or old.peer is None or new is None:
            return
        if old.peer.certificate != new.certificate or not new.certificate:
            return
        try:
            old.speaker.session.check_number(replaced.sent)
        except ConnectionLost as error:
            self._leave(old, error)
            raise
        peer = entry.peer = old.peer
        entry.speaker.waiting.put_first(old.speaker.waiting, old.speaker.unfinished())
        peer.speaker = entry.speaker
        # Nobody was shown the new one: it ends with the old session.
        old.peer, new.speaker = new, None
        # What ended in the old session goes before anything in the new one.
        entry.speaker.stuck[:0] = old.speaker.farewell()
        self._dirty[entry] = None
        self._drop(old)

    def _entry_of(self, peer: Peer) -> _Entry | None:
        if peer.speaker is None:
            return None
        return self._entries.get((peer.envelope, peer.speaker.session.token))

    def _failed(self, entry: _Entry, head: Head, error: CipherMQError) -> None:
        """A session has failed: its client is told by TLS, or else by RESET."""
        session = entry.speaker.session
        if (alert := session.alert()) is not None:
            self._now.append(alert)
        elif head.kind is not Kind.RESET:
            self._now.append(reset_message(entry.key[0], head, str(error)))
        if entry.peer is None:
            self.refused += 1
        self._leave(entry, error)

    def _leave(self, entry: _Entry, error: CipherMQError | None) -> None:
        peer = entry.peer
        self._drop(entry)
        if peer is not None:
            peer.error = error
        if self._on_end is not None:
            self._on_end(peer, error)

    def _drop(self, entry: _Entry) -> None:
        self._entries.pop(entry.key, None)
        self._handshakes.pop(entry.key, None)
        self._dirty.pop(entry, None)
        self._untaken.pop(entry, None)
        peer = entry.peer
        if peer is None:
            return
        if peer.speaker is entry.speaker:
            peer.speaker = None
        if entry.announced:
            self._count_large(entry, peer.client, 0)
        if peer.client is not None:
            self._per_client[peer.client] -= 1
            if not self._per_client[peer.client]:
                del self._per_client[peer.client]


def _is_client_hello(data: Buffer) -> bool:
    return len(data) > 5 and data[0] == _HANDSHAKE_RECORD and data[5] == _CLIENT_HELLO
