"""Keeping auto-delete queues while their consumers come again.

Such a queue goes, with all that is in it, when its last consumer goes: which is what happens when
a vhost's clients are sent away. So a consumer of the move's own stays with it until its messages
are moved. It must take none itself, or they would be out of order: its channel may have one
unacknowledged message at a time, and that one is of the move's own, in a queue of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable

import pamqp.commands as spec
import pamqp.frame
import pamqp.header

from ciphermq.errors import CipherMQError
from ciphermq.proxy.move.broker import Broker
from ciphermq.proxy.move.link import Link, Message


class Guard:
    """Stays with queues from `watch` until `close`."""

    def __init__(self) -> None:
        self._links: list[Link] = []

    async def watch(self, broker: Broker, vhost: str, queues: Iterable[str]) -> None:
        """Be a consumer of each of these queues that has none who wants to be the only one."""
        for queue in queues:
            link = await broker.link(vhost)
            # A queue may go at just this moment, or be somebody's alone: then nobody can keep it.
            with contextlib.suppress(CipherMQError):
                await _sit(link, queue)
            self._links.append(link)

    async def close(self) -> None:
        """Leave; queues that have no other consumer by then are deleted by their broker."""
        links, self._links = self._links, []
        await asyncio.gather(*(link.close() for link in links))


async def _sit(link: Link, queue: str) -> None:
    taken = asyncio.get_running_loop().create_future()

    def take(message: Message) -> None:
        if not taken.done():
            taken.set_result(message)

    def give_up(_: Exception) -> None:
        if not taken.done():
            taken.set_result(None)

    link.on_message, link.on_failure = take, give_up
    await link.call(spec.Basic.Qos(prefetch_count=1, global_=True), spec.Basic.QosOk)
    declared = await link.call(spec.Queue.Declare(exclusive=True), spec.Queue.DeclareOk)
    own = declared.queue or ""
    header = pamqp.header.ContentHeader(body_size=0, properties=spec.Basic.Properties())
    frame = pamqp.frame.marshal(header, 1)
    link.publish(b"", own.encode(), Message(0, b"", b"", b"", frame))
    await link.call(spec.Basic.Consume(queue=own), spec.Basic.ConsumeOk)
    await taken
    if link.failure is not None:
        raise link.failure
    await link.call(spec.Basic.Consume(queue=queue), spec.Basic.ConsumeOk)
