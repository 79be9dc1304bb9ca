"""Batches in: checked by their readable header, given to the engine, answered in order.

After a refusal every later publish is refused too, until one says that the sender has taken
notice and starts anew: otherwise the batches behind the refused one would overtake it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

from ciphermq import limits
from ciphermq.catalog.face import OnexPublication, Publication
from ciphermq.engines.face import Publish, Published
from ciphermq.errors import (
    AccessRefused,
    AfterRefusal,
    BadRequest,
    BatchError,
    Refused,
    ResourceLimit,
    Unavailable,
)
from ciphermq.model import onex
from ciphermq.model.envelope import Header, read_header
from ciphermq.net.link import Link
from ciphermq.server.access import Verb
from ciphermq.server.confirms import Confirms
from ciphermq.server.flow import Brake
from ciphermq.server.outcomes import failure, follow
from ciphermq.server.services import Services
from ciphermq.telemetry.traffic import BatchPublished, MessagePublished
from ciphermq.wire.cmq2.frames import ConfirmKind, PublishFrame, Return, Sealed

_SKEW_MS: Final = limits.CLOCK_SKEW * 1000
_MAX_AGE_MS: Final = limits.MAX_MESSAGE_AGE * 1000


class Publishing:
    """One connection's publishes."""

    def __init__(
        self,
        services: Services,
        link: Link,
        client: str,
        brake: Brake,
        on_idle: Callable[[], None],
        on_broken: Callable[[BaseException], None],
    ) -> None:
        """`on_broken`: the engine ended a publish with something that is no refusal."""
        self._services = services
        self._link = link
        self._client = client
        self._brake = brake
        self._on_broken = on_broken
        self._confirms = Confirms(link, ConfirmKind.PUBLISH, on_idle)
        self._refused = 0
        """The publish since which all are refused; 0: none."""
        self.stopping = False
        """Set when the server stops: no more publishes are taken."""

    @property
    def waiting(self) -> int:
        """Publishes that wait for their answer."""
        return len(self._confirms)

    def take(self, frame: PublishFrame) -> None:
        """One PUBLISH; `ResourceLimit` when the client ignores its window."""
        seq, services = frame.seq, self._services
        services.counters.add("publishes")
        if len(self._confirms) >= services.max_publish_window:
            raise ResourceLimit(
                f"publish {seq} came while {services.max_publish_window} were unconfirmed, which "
                "is all that this broker allows"
            )
        self._confirms.open(seq)
        if frame.restart:
            self._refused = 0
        try:
            header = self._check(frame.sealed)
            outcome = services.engine.publish(Publish(self._client, header, frame.sealed))
        except Refused as error:
            self._return(seq, error)
            return
        follow(outcome, partial(self._settle, seq, header, frame.sealed))
        services.flow.check(self._brake)

    def _check(self, sealed: Sealed) -> Header:
        """The batch's header, if this client may publish the batch now."""
        if self._refused:
            raise AfterRefusal(f"publish {self._refused} was refused, and this one came after it")
        if self.stopping:
            raise Unavailable("the broker is stopping")
        check = self._check_onex if onex.is_onex(sealed) else self._check_batch
        header = check(sealed)
        if header.exchange:
            exchange = self._services.exchange(header.exchange)
            self._services.access.require(self._client, Verb.PUBLISH, exchange)
        return header

    def _check_onex(self, sealed: Sealed) -> Header:
        """A message of 1.x, which says by members of its own where it goes; without, to the queue
        of its receiver's name."""
        services = self._services
        if not services.one_x:
            raise BadRequest("this broker takes no messages of CipherMQ 1.x ([one_x] enabled)")
        try:
            message = onex.parse(sealed)
        except BatchError as error:
            raise BadRequest(f"this is no message of CipherMQ 1.x: {error}") from error
        key = message.routing_key
        return onex.header(
            message,
            client=self._client,
            exchange=message.exchange or "",
            routing_key=key or message.receiver if not message.exchange else key or "",
            now_ms=services.now_ms(),
        )

    def _check_batch(self, sealed: Sealed) -> Header:
        try:
            header = read_header(sealed)
        except BatchError as error:
            raise BadRequest(f"this is no sealed batch: {error}") from error
        if header.sender != self._client:
            raise AccessRefused(
                f"{self._client!r} may not publish a batch whose sender is {header.sender!r}"
            )
        self._check_times(header)
        return header

    def _check_times(self, header: Header) -> None:
        now_ms = self._services.now_ms()
        ahead_ms = header.created_ms - now_ms
        if ahead_ms > _SKEW_MS:
            raise BadRequest(
                f"this batch was made {ahead_ms / 1000:.0f} s from now by the broker's clock: one "
                f"of the two clocks is wrong; {limits.CLOCK_SKEW} s are allowed"
            )
        if -ahead_ms > _MAX_AGE_MS:
            raise BadRequest(
                f"this batch was made {-ahead_ms / 1000 / limits.DAY:.0f} days ago by the broker's "
                f"clock: no receiver takes one older than {limits.MAX_MESSAGE_AGE // limits.DAY} "
                "days; or one of the two clocks is wrong"
            )
        if 0 < header.expires_ms <= now_ms:
            raise BadRequest(
                f"this batch expired {(now_ms - header.expires_ms) / 1000:.0f} s ago by the "
                "broker's clock, before it was published"
            )

    def _settle(
        self, seq: int, header: Header, sealed: Sealed, outcome: asyncio.Future[Published]
    ) -> None:
        """The engine has stored the batch, or refused it, or broken."""
        error = failure(outcome)
        if error is None:
            self._stored(seq, header, sealed, duplicate=outcome.result().duplicate)
        elif isinstance(error, Refused) and not outcome.cancelled():
            self._return(seq, error)
        else:
            self._on_broken(error)

    def _stored(self, seq: int, header: Header, sealed: Sealed, *, duplicate: bool) -> None:
        services = self._services
        services.counters.add("publishes_confirmed")
        self._confirms.settle(seq)
        if onex.is_onex(sealed):
            message_id, _ = onex.stored_id(sealed)
            note_message(services, self._client, header, message_id, again=duplicate)
        elif not duplicate:
            services.traffic.note(
                BatchPublished,
                header.batch_id.hex(),
                self._client,
                header.exchange,
                header.routing_key,
                header.count,
            )
            services.catalog.note_published(
                Publication(
                    header.batch_id,
                    self._client,
                    header.exchange,
                    header.routing_key,
                    header.count,
                    len(sealed),
                    services.now_ms(),
                )
            )

    def _return(self, seq: int, error: Refused) -> None:
        if not self._refused:
            self._refused = seq
        self._services.counters.add("publishes_returned")
        self._link.send(Return(seq=seq, code=error.code, message=str(error)))
        self._confirms.settle(seq, confirmed=False)


def note_message(
    services: Services, client: str, header: Header, message_id: str, *, again: bool
) -> None:
    """A message of 1.x was stored; or `again`, before this. Then a broker that was killed may have
    had no time to note it."""
    if not again:
        services.traffic.note(
            MessagePublished, message_id, client, header.exchange, header.routing_key
        )
    services.catalog.note_message(
        OnexPublication(
            message_id, client, header.exchange, header.routing_key, services.now_ms(), again
        )
    )
