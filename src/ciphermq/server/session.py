"""One client's connection: every frame to the room that handles it, and the order of the end."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, cast

import msgspec

from ciphermq import limits
from ciphermq.errors import (
    AccessRefused,
    CipherMQError,
)
from ciphermq.net.link import Link
from ciphermq.server.consuming import Consuming
from ciphermq.server.flow import Brake
from ciphermq.server.outcomes import as_refusal, failure, follow
from ciphermq.server.publishing import Publishing
from ciphermq.server.requests import HANDLERS
from ciphermq.server.services import Services
from ciphermq.telemetry import get_logger
from ciphermq.version import SOFTWARE
from ciphermq.wire.cmq2.frames import (
    Close,
    Consume,
    Error,
    Frame,
    FrameType,
    Hello,
    Nack,
    Ok,
    Reconnect,
    Request,
)

_MAX_MESSAGE: Final = 4096
_MAX_SOFTWARE: Final = 100
_TOO_MANY_REQUESTS: Final = "its requests"

_log = get_logger("server")


class Session:
    """A client past its TLS handshake, until its connection is lost.

    Publishes, acks and credit are handled as they come. A request may have to wait for the disk,
    so each is a task; who needs one done before the other waits for its answer.
    """

    def __init__(self, services: Services, link: Link, client: str) -> None:
        self.client = client
        self.link = link
        self._services = services
        self._software = ""
        self._since_ms = services.now_ms()
        self._brake = Brake(link.pause_reading, link.resume_reading)
        self._requests: set[asyncio.Task[None]] = set()
        self._nacks = 0
        self._room = asyncio.Event()
        self._ending = False
        self.publishing = Publishing(
            services, link, client, self._brake, self._finish, self._broken
        )
        self.consuming = Consuming(services, link, client, self._finish, self._broken)
        self._handlers: dict[FrameType, Callable[[Any], None]] = {
            FrameType.PUBLISH: self.publishing.take,
            FrameType.ACK: self.consuming.ack,
            FrameType.CREDIT: self.consuming.credit,
            FrameType.NACK: self._nack,
            FrameType.HELLO: self._greet,
            FrameType.CLOSE: self._close,
        }
        self._workers: dict[FrameType, Callable[[Any], Awaitable[Any]]] = {
            FrameType.CONSUME: self.consuming.consume,
            FrameType.CANCEL: self.consuming.cancel,
            FrameType.FETCH: self.consuming.fetch,
            **{kind: partial(handler, services, client) for kind, handler in HANDLERS.items()},
        }
        services.sessions.add(self)
        link.attach(self._take, self._lost, self._writable)

    @property
    def idle(self) -> bool:
        """Whether the broker owes this client no answer."""
        waiting = self.publishing.waiting or self.consuming.waiting or self._nacks
        return not (waiting or self._requests)

    def describe(self) -> dict[str, Any]:
        """The connection's row in a listing."""
        return {
            "client": self.client,
            "peer": self.link.peer,
            "software": self._software,
            "since_ms": self._since_ms,
            "consumers": len(self.consuming.consumers),
            "batches_held": self.consuming.held,
            "publishes_unconfirmed": self.publishing.waiting,
        }

    # --- frames -----------------------------------------------------------------------------

    def _take(self, frame: Frame) -> None:
        handler = self._handlers.get(frame.TYPE)
        try:
            if handler is not None:
                handler(frame)
            elif frame.TYPE in self._workers:
                self._start(cast("Request", frame))
        except Exception as error:  # noqa: BLE001  (a frame of one client must not end the others)
            self._broken(error)

    def _greet(self, frame: Hello) -> None:
        services = self._services
        now_ms = services.now_ms()
        self._software = frame.software[:_MAX_SOFTWARE]
        self.link.send(
            Hello(
                software=SOFTWARE,
                now_ms=now_ms,
                heartbeat_ms=int(self.link.options.heartbeat * 1000),
                max_publish_window=services.max_publish_window,
                guarantees=msgspec.structs.asdict(services.engine.guarantees),
                crl_number=services.keys.crl_number,
                client=self.client,
            )
        )
        fields = {"client": self.client, "peer": self.link.peer, "software": self._software}
        _log.info("connected", **fields)
        off_ms = frame.now_ms - now_ms
        if frame.now_ms and abs(off_ms) > limits.CLOCK_SKEW * 1000:
            _log.warning(
                "a client's clock is wrong, or this one is", seconds=off_ms // 1000, **fields
            )

    def _nack(self, frame: Nack) -> None:
        self._nacks += 1
        follow(self.consuming.nack(frame), partial(self._nacked, frame.request))

    def _nacked(self, request: int, outcome: asyncio.Future[None]) -> None:
        self._nacks -= 1
        error = failure(outcome)
        if error is None:
            self.link.send(Ok(request=request))
        else:
            self._answer_failure(request, error)
        self._finish()

    def _start(self, frame: Request) -> None:
        """Work on a request beside everything else; too many of them stop the reading."""
        task = asyncio.get_running_loop().create_task(self._work(frame))
        self._requests.add(task)
        task.add_done_callback(self._worked)
        if len(self._requests) >= limits.MAX_REQUESTS_IN_WORK:
            self._brake.hold(_TOO_MANY_REQUESTS)

    async def _work(self, frame: Request) -> None:
        try:
            while self.link.behind:
                await self._room.wait()
            result = await self._workers[frame.TYPE](frame)
            self.link.send(Ok(request=frame.request, result=result))
            if isinstance(frame, Consume):
                self.consuming.announced(result, frame)
        except Exception as error:  # noqa: BLE001  (whatever it is, the client waits for an answer)
            self._answer_failure(frame.request, error)

    def _writable(self) -> None:
        """The client has taken what waited for it."""
        self._make_room()
        self.consuming.resume()

    def _make_room(self) -> None:
        """Have the requests that wait look again whether they may be answered."""
        self._room.set()
        self._room.clear()

    def _worked(self, task: asyncio.Task[None]) -> None:
        self._requests.discard(task)
        if len(self._requests) <= limits.MAX_REQUESTS_IN_WORK // 2:
            self._brake.release(_TOO_MANY_REQUESTS)
        self._finish()

    # --- failures ---------------------------------------------------------------------------

    def _answer_failure(self, request: int, error: BaseException) -> None:
        refused = as_refusal(error, self.client)
        if isinstance(refused, AccessRefused):
            _log.warning("access refused", client=self.client, reason=str(refused))
        message = str(refused)[:_MAX_MESSAGE]
        self.link.send(Error(request=request, code=refused.code, message=message))

    def _broken(self, error: BaseException) -> None:
        """This connection can't go on."""
        self.link.fail(as_refusal(error, self.client))

    # --- the end ----------------------------------------------------------------------------

    def drain(self, reason: str) -> None:
        """The server is stopping: take no more publishes, deliver no more, let the rest end."""
        self.publishing.stopping = self.consuming.stopping = True
        if self.link.open:
            self.link.send(Reconnect(reason=reason))

    def shut_out(self, error: CipherMQError) -> None:
        """Its certificate counts no more: tell it so, and end. What it says from here on is not
        heard, not even what is under way."""
        self.link.attach(lambda _: None, self._lost)
        self.consuming.end()
        self.link.fail(error)

    def _close(self, frame: Close) -> None:
        """The client sends no more: return what it holds, answer what is owed, then close."""
        self._ending = True
        self.consuming.end()
        self._finish()

    def _finish(self) -> None:
        if self._ending and self.idle:
            self.link.close()

    def _lost(self, reason: CipherMQError | None) -> None:
        services = self._services
        services.sessions.discard(self)
        services.flow.forget(self._brake)
        self._make_room()
        self.consuming.end()
        fields = {"client": self.client, "peer": self.link.peer}
        if reason is None:
            _log.info("disconnected", **fields)
        else:
            _log.warning("connection lost", reason=str(reason), **fields)
