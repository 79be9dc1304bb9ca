"""Moving all messages of a vhost: several queues at a time, until a look at all finds none."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field

from ciphermq import limits
from ciphermq.errors import MoveError
from ciphermq.proxy.move.broker import Broker
from ciphermq.proxy.move.definitions import is_movable, may_shrink
from ciphermq.proxy.move.drain import Drain, Drained, Queue
from ciphermq.proxy.move.link import Link
from ciphermq.proxy.move.management import Json
from ciphermq.proxy.move.progress import Progress

_SHOW_EVERY = 0.25
_SWEEPS = 10
_LATE = 10.0


@dataclass
class _Work:
    """What is to do, and what came of it."""

    vhost: str
    source: Broker
    target: Broker
    todo: deque[Json]
    done: list[tuple[Json, Drained]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)

    @property
    def moved(self) -> int:
        return sum(drained.moved for _, drained in self.done)

    @property
    def note(self) -> str:
        """Why it may be slow at the moment."""
        blocked = [link.blocked for link in self.links if link.blocked is not None]
        return f"{self.target} takes nothing: {blocked[0]}" if blocked else ""


async def drain_vhost(vhost: str, source: Broker, target: Broker, progress: Progress) -> int:
    """Move everything that can be; how many messages that were.

    Nobody else may be connected to the vhost. What appears at the source meanwhile (a message that
    expired into another queue) is moved, too. Raises MoveError, TransportError; MoveError also
    when the target has fewer messages afterwards than were put there.
    """
    moved = 0
    for _ in range(_SWEEPS):
        queues = [each for each in await source.api.queues(vhost) if is_movable(each)]
        counts = await source.counts(vhost, [each["name"] for each in queues])
        full = [each for each in queues if counts[each["name"]]]
        if not full:
            return moved
        # The fullest first: it takes longest, and the others find room beside it.
        full.sort(key=lambda queue: -counts[queue["name"]])
        moved += await _move(
            _Work(vhost, source, target, deque(full)), sum(counts.values()), progress
        )
    raise MoveError(
        f"Vhost {vhost!r} at {source} keeps getting messages, {_SWEEPS} times by now: something "
        "publishes there that does not come through the proxy (a shovel, a federation link, a "
        "client of a broker's own protocol port)"
    )


async def _move(work: _Work, total: int, progress: Progress) -> int:
    progress.begin(total)
    workers = min(limits.MOVE_QUEUES_AT_ONCE, len(work.todo))
    shown = asyncio.create_task(_show(work, progress))
    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(workers):
                group.create_task(_worker(work))
    except BaseExceptionGroup as errors:
        raise _first(errors) from None
    finally:
        shown.cancel()
        progress.moved(work.moved, "")
        progress.end()
    await _verify(work)
    return work.moved


def _first(error: BaseException) -> BaseException:
    """The first of a group: when one queue fails, the others are only told to stop."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _show(work: _Work, progress: Progress) -> None:
    while True:
        await asyncio.sleep(_SHOW_EVERY)
        progress.moved(work.moved, work.note)


async def _worker(work: _Work) -> None:
    """Move one queue after another over two connections of its own."""
    target = await work.target.link(work.vhost)
    work.links.append(target)
    try:
        source = await work.source.link(work.vhost, frame_max=target.frame_max)
        try:
            drain = Drain(source, target, impersonator=work.target.impersonator)
            await drain.prepare()
            while work.todo:
                queue = work.todo.popleft()
                drained = Drained()
                work.done.append((queue, drained))
                await drain.run(_as_drained(queue), drained)
        finally:
            # In this order: acknowledgements that are under way arrive before the end.
            await source.close()
    finally:
        await target.close()


def _as_drained(queue: Json) -> Queue:
    """Whether we can be its only consumer: of a quorum queue, and of one that knows active and
    waiting consumers, nobody can, and of an auto-delete queue its guard is one already."""
    single = (queue.get("arguments") or {}).get("x-single-active-consumer")
    alone = queue["type"] == "classic" and not single and not queue["auto_delete"]
    return Queue(queue["name"], exclusive=alone, guards=int(queue["auto_delete"]))


async def _verify(work: _Work) -> None:
    """The target has what was put there; a queue may rightly have less only where messages expire
    or overflow."""
    try:
        async with asyncio.timeout(_LATE * 2):
            await _count(work)
    except TimeoutError:
        raise MoveError(
            f"{work.target} did not say within {_LATE * 2:g} seconds how many messages it has: all "
            f"were put there and confirmed; run the same command again to go on"
        ) from None


async def _count(work: _Work) -> None:
    names = [queue["name"] for queue, _ in work.done]
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LATE
    while True:
        counts = await work.target.counts(work.vhost, names)
        short = [
            f"{queue['name']!r} has {counts[queue['name']]:,} messages and should have "
            f"{drained.before + drained.moved:,}"
            for queue, drained in work.done
            if counts[queue["name"]] < drained.before + drained.moved
            and not (drained.expiring or may_shrink(queue))
        ]
        if not short:
            return
        if loop.time() > deadline:
            raise MoveError(f"At {work.target}, queue {'; '.join(short)}")
        await asyncio.sleep(0.1)  # some types of queues count a little late
