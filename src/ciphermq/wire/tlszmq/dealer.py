"""The client's end: one peer, always with a session that works, made anew when it must be.

Its first session begins with the first message. A session that fails is told to the application
once, as an error with the reason, and the next one begins. One whose keys have encrypted enough is
replaced while it works: the next is opened beside it, says which one it replaces, and takes over
between two messages; the old one is closed by the server, who has moved its answers over too.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from ciphermq import limits
from ciphermq.errors import (
    CipherMQError,
    ConnectionLost,
    ProtocolNotOffered,
    RemoteProtocolError,
    TlsFailed,
    TransportError,
    UsageError,
    WaitTimeout,
)
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import TlsPump
from ciphermq.wire.tlszmq.header import DELIMITER, Buffer, Kind, parse
from ciphermq.wire.tlszmq.parts import ALPN, Parts
from ciphermq.wire.tlszmq.session import Session, check_context
from ciphermq.wire.tlszmq.speaker import Speaker, Waiting, check_bare


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    """Times in seconds, and what else the tests make small."""

    handshake: float = limits.HANDSHAKE_TIMEOUT
    keepalive: float = limits.ZMQ_KEEPALIVE
    idle: float = limits.ZMQ_IDLE
    retire: float = limits.ZMQ_RETIRE
    tls_records: int = limits.TLS_RECORDS_BEFORE_RECONNECT
    """Records in one direction after which a session is replaced."""


class DealerMachine:
    """A DEALER's or REQ's end. `now` is any clock that only goes forward, in seconds."""

    def __init__(
        self,
        context: ssl.SSLContext,
        kind: Kind,
        *,
        server_name: str,
        new_token: Callable[[], bytes],
        where: str = "the other end",
        times: Times | None = None,
    ) -> None:
        """`kind`: DATA for a DEALER, REQUEST or BARE for a REQ. `UsageError` when `context` is not
        a client's, or `server_name` no name."""
        check_context(context, server_name)
        self.inbox: deque[Parts] = deque()
        """Messages that have come."""
        self.waiting = Waiting()
        self.dropped = 0
        """ZeroMQ messages that were none of ours, or of no session of ours."""
        self.sessions = 0
        """Begun so far."""
        self.where = where
        self._context = context
        self._kind = kind
        self._server_name = server_name
        self._new_token = new_token
        self._times = times or Times()
        self._live: dict[bytes, Speaker] = {}
        self._current: Speaker | None = None
        self._next: Speaker | None = None
        self._retired: dict[bytes, float] = {}
        self._asked = 0.0
        self._not_before = 0.0
        self._delay = 0.0
        self._wanted = False
        self._holds = False
        """Whether messages wait for the next session."""
        self._expecting = False
        self._impatient = False
        self.error: CipherMQError | None = None
        """What ended a session, until `raise_error`."""
        self._harmless = False
        """Whether that can't have cost the application anything."""
        self._last_words: list[list[Buffer]] = []
        self._scratch = memoryview(bytearray(limits.NETWORK_BUFFER))

    # --- for the application ------------------------------------------------------------------

    @property
    def established(self) -> bool:
        """Whether there is a session that works."""
        return self._current is not None and self._current.session.established

    @property
    def pending(self) -> bool:
        """Whether something waits to be sent."""
        current = self._current
        return bool(self.waiting.messages) or (current is not None and current.mid_message)

    @property
    def idle(self) -> bool:
        """Whether `outgoing` would have nothing to do: asked for every message, before it is."""
        current = self._current
        return (
            current is not None
            and not self.waiting.messages
            and not current.busy
            and self._next is None
            and not self._last_words
            and len(self._live) == 1
        )

    @property
    def hint(self) -> str:
        """What else to say to whoever has waited in vain: nothing, while there is a session."""
        return "" if self.established else ", nor a TLS handshake: is a TlsRouter there?"

    @property
    def full(self) -> bool:
        """Whether `send` should wait."""
        return self.waiting.size >= limits.MAX_ZMQ_WAITING

    @property
    def peer_certificate(self) -> bytes:
        """The server's, DER; empty while there is no session."""
        return self._current.session.pump.peer_certificate if self._current else b""

    @property
    def tls_version(self) -> str:
        """``TLSv1.3`` or ``TLSv1.2``; empty while there is no session."""
        return self._current.session.pump.version if self._current else ""

    def send(self, parts: Sequence[Buffer]) -> None:
        """Have a message sent. A REQ's must be answered before the next."""
        if self._kind is Kind.DATA:
            self.waiting.put(parts)
            return
        if self._kind is Kind.BARE:
            check_bare(parts)
        if self._expecting or self.inbox:
            if not self._impatient:
                raise UsageError("a REQ socket has to receive its answer before it sends again")
            self._give_request_up()
        self._impatient = False
        self.waiting.put(parts)
        self._expecting = True

    def timed_out(self) -> None:
        """The application has stopped waiting for a message. A REQ's may send its next request
        then, instead of waiting on."""
        self._impatient = True

    def _give_request_up(self) -> None:
        """Its session ends with it: the answer, if it comes at all, is not the next one's."""
        if self._expecting and self._current is not None:
            self._forget(self._current)
        self._expecting = False
        self.waiting.take()
        self.inbox.clear()

    def renew(self, context: ssl.SSLContext) -> None:
        """Sessions begun from now on are `context`'s; `UsageError` when it is not a client's."""
        check_context(context, self._server_name)
        self._context = context

    def open(self) -> None:
        """See that there is a session, though nothing is to be sent."""
        self._wanted = True

    def raise_error(self) -> None:
        """Raise what has ended a session since the last call, once."""
        if self.error is not None:
            error, self.error = self.error, None
            self._harmless = False
            if self._kind is not Kind.DATA:
                # Its request has failed: sent after all, its answer would be taken for the next's.
                self._expecting = False
                self.waiting.take()
            raise error

    def raise_at_end(self) -> None:
        """The same where the application ends by itself: a server that has left in order, and had
        taken all, is no error then."""
        if not self._harmless:
            self.raise_error()

    def take(self) -> None:
        """The application has had all of `inbox`."""
        for speaker in self._live.values():
            speaker.session.take()

    def close(self) -> Iterator[list[Buffer]]:
        """Messages that say good-bye. A REQ says it when it is its turn; a bare one never, since
        the published example knows none."""
        if self._kind is Kind.BARE or self._expecting:
            return
        for speaker in self._live.values():
            if speaker.session.established:
                yield from speaker.farewell()

    # --- for the socket -----------------------------------------------------------------------

    def receive(self, frames: Sequence[Buffer], now: float) -> None:
        """Take in a ZeroMQ message."""
        try:
            _, head, body = parse(frames)
        except RemoteProtocolError:
            self.dropped += 1
            return
        speaker = self._live.get(head.token)
        if speaker is None or (head.kind is Kind.BARE) is not (self._kind is Kind.BARE):
            self.dropped += 1
            return
        session = speaker.session
        try:
            if head.kind is Kind.RESET:
                raise session.reset(body)
            known = session.established
            if head.kind is Kind.BARE and known and self._asked_in_vain(body):
                raise session.fail(ConnectionLost(f"{self._who} has no such session any more"))
            found = speaker.receive(head, body, now)
            if not known and session.established:
                self._check_protocol(session)
            self.inbox += found
        except TransportError as error:
            self._ended(speaker, error, now)
            return
        if self._expecting and self.inbox:
            self._expecting = False
        if session.pump.ended:
            self._ended(speaker, ConnectionLost(f"{self._who} ended this session"), now)

    def tick(self, now: float) -> Iterator[list[Buffer]]:
        """Look at the clocks; what is to be sent because of them."""
        if not self.inbox:
            self.take()
        current = self._current
        if current is not None and not current.session.established:
            self._look_at_handshake(current, now)
        if self._next is not None and not self._next.session.confirmed:
            self._look_at_handshake(self._next, now)
        for token in [token for token, until in self._retired.items() if now > until]:
            self._let_go(self._live[token])
        current = self._current
        if current is not None and current.session.established and self._kind is Kind.DATA:
            current.session.tell_soon()
            yield from self._look_at_silence(current, now)

    def outgoing(self, now: float) -> Iterator[list[Buffer]]:
        """ZeroMQ messages to send now."""
        if self._last_words:
            words, self._last_words = self._last_words, []
            yield from words
        current = self._current
        stale = current is not None and self._stale(current, now) and bool(self.waiting.messages)
        if current is not None and stale and current.session.strict:
            self._forget(current)
            current = None
        if current is None:
            if not (self.waiting.messages or self._wanted) or now < self._not_before:
                return
            if self.error is not None:  # the application hears of it before it goes on
                return
            current = self._current = self._begin(now)
        elif (
            (stale or current.session.records >= self._times.tls_records)
            and self._next is None
            and now >= self._not_before
        ):
            self._holds = stale
            self._replace(current, now)
            current = self._current = self._current or self._begin(now)
        if self._next is not None:
            yield from self._next.outgoing(more=False)
            if self._next.session.confirmed and not current.mid_message:
                self._turn_over(current, self._next, now)
                current, self._next = self._next, None
        for speaker in list(self._live.values()):
            yield from speaker.outgoing(more=speaker is current and self._may_begin)
        following = self._next
        if following is not None and following.session.confirmed and not current.mid_message:
            # What the next one waited for has gone.
            yield from self.outgoing(now)

    # --- sessions -----------------------------------------------------------------------------

    @property
    def _who(self) -> str:
        return f"the server at {self.where}"

    @property
    def _may_begin(self) -> bool:
        """Whether the current session may take a new message: not while the next waits for it, or
        is to show whether the server still has this one."""
        return self._next is None or not (self._holds or self._next.session.confirmed)

    def _asked_in_vain(self, body: Sequence[Buffer]) -> bool:
        """Whether a bare request, which has gone, was answered by nothing: no message is empty."""
        return self._expecting and not self.waiting.messages and not any(map(len, body))

    def _begin(self, now: float) -> Speaker:
        token = b"" if self._kind is Kind.BARE else self._new_token()
        session = Session(
            TlsPump(self._context, server_name=self._server_name),
            self._kind,
            token,
            role=Role.CLIENT,
            where=self.where,
            # A REQ socket adds the delimiter by itself.
            before=(DELIMITER,) if self._kind is Kind.DATA else (),
            now=now,
        )
        session.shake()
        self.sessions += 1
        speaker = Speaker(session, self.waiting, self._scratch)
        self._live[token] = speaker
        return speaker

    def _check_protocol(self, session: Session) -> None:
        if self._kind is not Kind.BARE and session.pump.protocol != ALPN:
            raise session.fail(
                ProtocolNotOffered(f"{self._who} doesn't speak {ALPN}: is it a TlsRouter?")
            )

    def _replace(self, current: Speaker, now: float) -> None:
        """Its keys have encrypted enough."""
        if self._kind is Kind.DATA:
            self._next = self._begin(now)
        elif not self._expecting or self.waiting.messages:  # between two requests
            self._forget(current)

    def _turn_over(self, old: Speaker, new: Speaker, now: float) -> None:
        new.replaces(old.session)
        self._retired[old.session.token] = now + self._times.retire
        self._current = new

    def _stale(self, speaker: Speaker, now: float) -> bool:
        """Whether the server may have dropped it, since nobody has looked after it meanwhile.
        Then it is replaced before anything else is sent."""
        session = speaker.session
        return (
            session.established
            and not (session.strict and self._expecting and not self.waiting.messages)
            and now - session.heard > self._times.idle / 2
        )

    def _let_go(self, speaker: Speaker) -> None:
        """A session that was replaced long ago. Its server closes it: unless he had dropped it
        before, perhaps without what was on its way to him."""
        self._forget(speaker)
        if speaker.session.untaken:
            self.error = ConnectionLost(
                f"{self._who} had dropped a session; what it was sent last may be lost"
            )

    def _ended(self, speaker: Speaker, error: TransportError, now: float) -> None:
        """A session has failed."""
        mattered = speaker is self._current
        # A gap at the end of a session that was replaced is a gap all the same.
        told = mattered or (speaker.session.token in self._retired and speaker.session.error)
        # The alert that says why; a REQ can't say it. Nothing else can be encrypted any more.
        if self._kind is Kind.DATA and (alert := speaker.session.alert()) is not None:
            self._last_words.append(alert)
        self._forget(speaker)
        if speaker is self._next:
            # Nobody is told, so nobody but the clock slows its successors down.
            self._next = None
            self._back_off(now, was_good=False)
        if mattered:
            was_good = speaker.session.established and not isinstance(error, TlsFailed)
            self._back_off(now, was_good)
            self._current, self._next = self._next, None
        if told:
            self.error = error
            unsent = self.waiting.messages or speaker.mid_message or speaker.session.untaken
            self._harmless = speaker.session.error is None and not unsent

    def _back_off(self, now: float, was_good: bool) -> None:
        self._delay = min(max(2 * self._delay, limits.RECONNECT_FIRST), limits.RECONNECT_MOST)
        if was_good:
            self._delay = 0.0
        self._not_before = now + self._delay

    def _forget(self, speaker: Speaker) -> None:
        token = speaker.session.token
        self._live.pop(token, None)
        self._retired.pop(token, None)
        if speaker is self._current:
            self._current = None

    def _look_at_handshake(self, speaker: Speaker, now: float) -> None:
        if now - speaker.session.began <= self._times.handshake:
            return
        if speaker is self._next:
            self._next = None
        self._forget(speaker)
        self._back_off(now, was_good=False)
        if self._kind is not Kind.DATA:
            # A REQ can't send again by itself: its application must.
            self.error = WaitTimeout(
                f"{self._who} did not finish the handshake within {self._times.handshake:g} s"
            )

    def _look_at_silence(self, speaker: Speaker, now: float) -> Iterator[list[Buffer]]:
        session, interval = speaker.session, self._times.keepalive
        silent = now - session.heard
        asked = self._asked > session.heard and now - self._asked > interval
        if silent > 3 * interval and asked:
            error = ConnectionLost(f"{self._who} has been silent for {silent:.0f} s")
            self._ended(speaker, error, now)
        elif silent > interval and now - self._asked > interval:
            self._asked = now
            yield session.ask()
