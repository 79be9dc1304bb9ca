"""One connection to the broker, after both HELLOs: questions find their answers.

Publishes, acks and requests are numbered here and matched with what comes back. A session is
never mended: when it ends, everything that waits on it fails with `ConnectionLost`, and those who
can begin again do so on the next one (`reconnect`).
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Awaitable, Callable
from types import UnionType
from typing import Any, Final, Protocol

from ciphermq import limits
from ciphermq.errors import (
    CipherMQError,
    ClockWrong,
    ConnectionLost,
    Refused,
    RemoteProtocolError,
    WaitTimeout,
    refusal,
)
from ciphermq.net.dialler import dial
from ciphermq.net.link import Link
from ciphermq.net.options import LinkOptions
from ciphermq.telemetry import get_logger
from ciphermq.version import SOFTWARE
from ciphermq.wire.cmq2 import frames
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    Cancelled,
    Close,
    ConfirmFrame,
    ConfirmKind,
    Credit,
    DeliverFrame,
    Error,
    Frame,
    Hello,
    Ok,
    PublishFrame,
    Reconnect,
    Request,
    Return,
)

_log = get_logger("client")

_RESULTS: Final[dict[type[Request], type | UnionType]] = {
    frames.Consume: int,
    frames.Fetch: int,
    frames.Delete: int,
    frames.Purge: int,
    frames.Redrive: int,
    frames.Peek: list,
    frames.List: list,
    frames.Status: dict,
    frames.Trace: dict | None,
    frames.KeyGet: bytes,
    frames.CrlGet: bytes,
}
"""What a request's OK holds; of the others it says nothing. A broker can put any value there, and
``bytes()`` of a number, say, is as many zeros."""


class Sink(Protocol):
    """Where the deliveries of one consumer go."""

    def started(self, consumer: int) -> None:
        """The broker has given it this number. Deliveries may come in the same moment."""

    def deliver(self, frame: DeliverFrame) -> None: ...
    def cancelled(self, error: Refused) -> None:
        """The broker has ended the consumer."""


class Owner(Protocol):
    """Who is told what happens on a session."""

    def confirmed(self, session: Session, number: int) -> None: ...
    def returned(self, session: Session, seq: int, error: Refused) -> None: ...
    def writable(self, session: Session) -> None: ...
    def replace(self, session: Session) -> None:
        """The connection is to be replaced by a new one, new one first."""

    def ending(self, session: Session) -> None:
        """The broker closes: what is done can still be acked, nothing else goes any more."""

    def ended(self, session: Session, error: CipherMQError) -> None:
        """Once, at the end. Requests that waited have failed already."""


class Session:
    """A connection that is up. Made by `open_session`; of the event loop's thread."""

    def __init__(self, owner: Owner, request_timeout: float) -> None:
        self._owner = owner
        self._timeout = request_timeout
        self._loop = asyncio.get_running_loop()
        self._link: Link | None = None
        self._error: CipherMQError | None = None
        self._requests: dict[int, asyncio.Future[Any]] = {}
        self._kinds: dict[int, type[Request]] = {}
        self._last_request = 0
        self._sinks: dict[int, Sink] = {}
        self._consuming: dict[int, Sink] = {}
        self._fetching = asyncio.Lock()
        self._fetched: list[DeliverFrame] = []
        self._to_fetch = 0
        self._acks_sent = 0
        self._acks_confirmed = 0
        self._nacks: set[asyncio.Future[Any]] = set()
        self._settled = asyncio.Event()
        self.skew_ms = 0
        """How far the broker's clock is ahead of this machine's."""
        self.replacing = False
        """The broker has asked for a replacement."""
        self.useful = False
        """The broker has answered or delivered something on it."""
        self.opened_at = self._loop.time()

    # --- state --------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        """Whether it can be used; False from the moment the broker closes it."""
        return self._link is not None and self._error is None and self._link.open

    @property
    def peer(self) -> str:
        """The broker's ``host:port``."""
        return self._link.peer if self._link is not None else "nobody"

    @property
    def hello(self) -> Hello:
        """What the broker said of itself."""
        if self._link is None or self._link.hello is None:
            raise ConnectionLost("the broker has not said HELLO")
        return self._link.hello

    @property
    def writable(self) -> bool:
        """Whether more batches should be written now."""
        return self._link is not None and self._link.writable

    def start(self, link: Link) -> None:
        """The HELLOs have been exchanged. Raises what the session has ended of already, for its
        end may come right behind the broker's HELLO."""
        self._link = link
        if self._error is not None:
            link.close()
            raise self._error
        self.skew_ms = self.hello.now_ms - now_ms() if self.hello.now_ms else 0

    def check_clock(self) -> None:
        """`ClockWrong` when this machine and the broker can't both have the right time."""
        if abs(self.skew_ms) > limits.CLOCK_SKEW * 1000:
            ahead = "behind" if self.skew_ms > 0 else "ahead of"
            raise ClockWrong(
                f"this machine's clock is {abs(self.skew_ms) / 1000:.0f} s {ahead} the broker's "
                f"({self.peer}); {limits.CLOCK_SKEW} s are allowed, or good messages would be "
                "taken for old or forged ones: set the clock that is wrong"
            )

    # --- requests -----------------------------------------------------------------------------

    async def ask(self, kind: type[Request], **members: Any) -> Any:
        """The result of a request. Raises the broker's refusal, `ConnectionLost`, or
        `WaitTimeout` when no answer comes in time."""
        return await self._answer(self._request(kind, members), kind)

    def _request(self, kind: type[Request], members: dict[str, Any]) -> int:
        if not self.alive or self._link is None:
            raise self._error or ConnectionLost("the connection is closing")
        self._last_request += 1
        number = self._last_request
        self._link.send(kind(request=number, **members))
        self._requests[number] = self._loop.create_future()
        self._kinds[number] = kind
        return number

    async def _answer(self, number: int, kind: type[Request]) -> Any:
        try:
            async with asyncio.timeout(self._timeout):
                return await self._requests[number]
        except TimeoutError:
            raise WaitTimeout(
                f"the broker ({self.peer}) did not answer {kind.__name__.upper()} within "
                f"{self._timeout:g} s"
            ) from None
        finally:
            self._requests.pop(number, None)
            self._kinds.pop(number, None)

    async def consume(self, queue: str, name: str, credit: int, sink: Sink) -> None:
        """Begin to consume. Deliveries go to `sink`, even those that come before the caller runs
        again."""
        members = {"queue": queue, "name": name, "credit": credit}
        number = self._request(frames.Consume, members)
        self._consuming[number] = sink
        try:
            await self._answer(number, frames.Consume)
        finally:
            self._consuming.pop(number, None)

    async def cancel(self, consumer: int, *, release: bool) -> None:
        """End a consumer. With `release` what it holds goes back to the queue."""
        if release:
            self._sinks.pop(consumer, None)
        try:
            await self.ask(frames.Cancel, consumer=consumer, release=release)
        finally:
            self._sinks.pop(consumer, None)

    async def fetch(self, queue: str, messages: int) -> list[DeliverFrame]:
        """Up to about so many messages of the queue, at once."""
        # One at a time: deliveries of two fetches could not be told apart.
        async with self._fetching:
            self._fetched, self._to_fetch = [], messages
            try:
                await self.ask(frames.Fetch, queue=queue, messages=messages)
                return self._fetched
            finally:
                self._fetched, self._to_fetch = [], 0

    # --- what isn't answered one by one ---------------------------------------------------------

    def publish(self, seq: int, sealed: bytes, *, restart: bool) -> None:
        """Send a batch. `Owner.confirmed` or `Owner.returned` tells what became of it."""
        if self._link is not None:
            self._link.send(PublishFrame(seq, restart, sealed))

    def credit(self, consumer: int, messages: int) -> None:
        """Let the broker send so many messages more."""
        if self.alive and self._link is not None:
            self._link.send(Credit(consumer=consumer, messages=messages))

    def ack(self, tag: int, bitmap: bytes) -> None:
        """Settle messages of a delivery; too late is no error, they come again."""
        if self._error is None and self._link is not None:
            self._acks_sent += 1
            self._link.send(AckFrame(self._acks_sent, tag, bitmap))

    def nack(self, tag: int, bitmap: bytes, *, requeue: bool, reason: str, detail: str) -> None:
        """Give messages of a delivery back, or have them dead-lettered."""
        if not self.alive:
            return
        members = {
            "tag": tag,
            "bitmap": bitmap,
            "requeue": requeue,
            "reason": reason,
            "detail": detail,
        }
        number = self._request(frames.Nack, members)
        answer = self._requests[number]
        self._nacks.add(answer)
        answer.add_done_callback(self._nacked)

    def _nacked(self, answer: asyncio.Future[Any]) -> None:
        self._nacks.discard(answer)
        if not answer.cancelled() and (error := answer.exception()) is not None:
            _log.debug("a nack was not taken", error=str(error))
        self._settled.set()

    @property
    def settled(self) -> bool:
        """Whether every ack and nack has been confirmed."""
        return self._acks_confirmed >= self._acks_sent and not self._nacks

    async def wait_settled(self, limit: float) -> None:
        """Wait until `settled`; `WaitTimeout` after `limit` seconds, `ConnectionLost` when the
        broker can't say any more."""
        try:
            async with asyncio.timeout(limit):
                while not self.settled:
                    if self._error is not None:
                        raise _lost(self._error)
                    self._settled.clear()
                    await self._settled.wait()
        except TimeoutError:
            raise WaitTimeout(
                f"the broker ({self.peer}) did not confirm {self._acks_sent - self._acks_confirmed}"
                f" acks and {len(self._nacks)} nacks within {limit:g} s"
            ) from None

    # --- frames -----------------------------------------------------------------------------------

    def on_frame(self, frame: Frame) -> None:
        """A frame came from the broker."""
        self.useful = self.useful or not isinstance(frame, Hello | Error | Close)
        match frame:
            case DeliverFrame():
                self._delivered(frame)
            case ConfirmFrame() | Return():
                self._confirmed(frame)
            case Ok():
                self._answered(frame)
            case Error():
                self._refused(frame.request, refusal(frame.code, frame.message))
            case Cancelled():
                sink = self._sinks.pop(frame.consumer, None)
                if sink is not None:
                    sink.cancelled(refusal(frame.code, frame.message))
            case Reconnect():
                self.replacing = True
                self._owner.replace(self)
            case Close():
                self._closing(frame)
            case _:
                pass  # HELLO, which `dial` has seen already

    def _delivered(self, frame: DeliverFrame) -> None:
        try:
            if not frame.consumer:
                self._take_fetched(frame)
            elif (sink := self._sinks.get(frame.consumer)) is not None:
                sink.deliver(frame)
        except RemoteProtocolError as error:
            # More than was asked for: it would have this machine hold all that it likes.
            self._broke_protocol(error)

    def _take_fetched(self, frame: DeliverFrame) -> None:
        if len(self._fetched) < self._to_fetch:
            self._fetched.append(frame)
        elif self._to_fetch:
            raise RemoteProtocolError(
                f"the broker ({self.peer}) gave more than the {self._to_fetch} messages that were "
                "to be fetched"
            )

    def _confirmed(self, frame: ConfirmFrame | Return) -> None:
        if isinstance(frame, ConfirmFrame) and frame.kind is ConfirmKind.ACK:
            self._acks_confirmed = frame.number
            self._settled.set()
            return
        try:
            if isinstance(frame, Return):
                self._owner.returned(self, frame.seq, refusal(frame.code, frame.message))
            else:
                self._owner.confirmed(self, frame.number)
        except RemoteProtocolError as error:
            # An answer to what was never asked, or a second one.
            self._broke_protocol(error)

    def _broke_protocol(self, error: RemoteProtocolError) -> None:
        """Tell the broker, and end."""
        if self._link is not None:
            self._link.fail(error)
        self._end(error)

    def _answered(self, frame: Ok) -> None:
        kind = self._kinds.pop(frame.request, None)
        if kind in _RESULTS and not isinstance(frame.result, _RESULTS[kind]):
            what = f"an answer to {kind.__name__.upper()} that is a {type(frame.result).__name__}"
            self._broke_protocol(RemoteProtocolError(f"the broker ({self.peer}) gave {what}"))
            return
        sink = self._consuming.pop(frame.request, None)
        if sink is not None:
            # Now, not when the waiting task runs: the first deliveries may be right behind.
            self._sinks[frame.result] = sink
            sink.started(frame.result)
        answer = self._requests.pop(frame.request, None)
        if answer is not None and not answer.done():
            answer.set_result(frame.result)

    def _refused(self, request: int, error: Refused) -> None:
        self._kinds.pop(request, None)
        answer = self._requests.pop(request, None)
        if answer is not None and not answer.done():
            answer.set_exception(error)

    # --- the end --------------------------------------------------------------------------------

    def close(self, reason: str = "") -> None:
        """End in order: what was sent still arrives, nothing more is awaited."""
        if self._link is not None:
            self._link.close(reason)
        self._end(ConnectionLost("the client has closed this connection"))

    async def wait_closed(self) -> None:
        """Wait until the socket is closed, which takes a moment after `close`."""
        if self._link is not None:
            await self._link.wait_closed()

    def _closing(self, frame: Close) -> None:
        if self._error is None:
            self._owner.ending(self)
        why = frame.reason or "no reason given"
        error: CipherMQError = ConnectionLost(f"the broker ({self.peer}) closed: {why}")
        if frame.code:
            error = refusal(frame.code, frame.reason)
        if self._link is not None:
            self._link.close()
        self._end(error)

    def on_lost(self, error: CipherMQError | None) -> None:
        """The connection is gone."""
        self._end(error or ConnectionLost("the connection is closed"))

    def _end(self, error: CipherMQError) -> None:
        if self._error is not None:
            return
        self._error = error
        self._sinks.clear()
        requests, self._requests = self._requests, {}
        for answer in requests.values():
            if not answer.done():
                answer.set_exception(_lost(error))
                answer.exception()  # seen: nobody may be waiting any more
        self._settled.set()
        self._owner.ended(self, error)

    def on_writable(self) -> None:
        """More batches can be written."""
        self._owner.writable(self)


def _lost(error: CipherMQError) -> CipherMQError:
    """What a request is told whose connection ended before its answer came."""
    if isinstance(error, ConnectionLost):
        return error
    return ConnectionLost(f"the connection ended before the answer came: {error}")


async def open_session(
    url: str,
    context: Callable[[], Awaitable[ssl.SSLContext]],
    owner: Owner,
    *,
    server_name: str | None,
    options: LinkOptions,
    request_timeout: float,
) -> Session:
    """A session with the broker at `url`; raises as `ciphermq.net.dialler.dial` does."""
    session = Session(owner, request_timeout)
    link = await dial(
        url,
        await context(),
        hello=Hello(software=SOFTWARE, now_ms=now_ms()),
        on_frame=session.on_frame,
        on_lost=session.on_lost,
        on_writable=session.on_writable,
        server_name=server_name,
        options=options,
    )
    session.start(link)
    return session


def now_ms() -> int:
    """This machine's clock, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
