"""How ``ciphermq receive`` receives: to an output or a command, until something ends it."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import AsyncExitStack, ExitStack
from itertools import chain
from typing import TYPE_CHECKING, Final

from ciphermq import limits
from ciphermq.cli.access import Access, connected
from ciphermq.cli.executing import execute
from ciphermq.cli.groups import groups
from ciphermq.cli.output import counted, printable, report
from ciphermq.cli.outputs import AppendedFile, KeptFile, StandardOutput
from ciphermq.cli.rendering import Form, renderer
from ciphermq.client import Inbox
from ciphermq.errors import Unfinished

if TYPE_CHECKING:
    from ciphermq.cli.outputs import Output
    from ciphermq.cli.receive import Plan
    from ciphermq.client import Batch, Client, Identity, Receiver

_LINGER: Final = 0.002
"""Seconds that a file waits for one more batch before it is synced, which takes longer."""


async def receive_as_planned(access: Access, identity: Identity, plan: Plan) -> None:
    """One run. `Unfinished` when fewer messages came than were asked for."""
    with ExitStack() as stack:
        inbox = stack.enter_context(Inbox(plan.inbox)) if plan.inbox is not None else None
        run = _Run(plan, inbox)
        output = None if plan.command is not None else _open_output(plan, inbox)
        if output is not None:
            stack.callback(output.close)
        _say_what_is_promised(plan)
        try:
            await run.receive(access, identity, output)
        finally:
            if plan.to is not None or plan.command is not None:
                run.show()
    if run.interrupted:
        raise KeyboardInterrupt
    if plan.count is not None and run.received < plan.count and not run.stop.is_set():
        waited = f": no other came within {plan.wait:g} s" if plan.wait is not None else ""
        raise Unfinished(f"{run.received} of {plan.count} messages came{waited}")


def _open_output(plan: Plan, inbox: Inbox | None) -> Output:
    if plan.raw:
        form = Form.RAW
    elif plan.as_json or plan.to is not None:
        form = Form.JSON
    else:
        form = Form.TEXT
    if plan.to is None:
        return StandardOutput(renderer(form, terminal=sys.stdout.isatty()))
    if inbox is None or plan.inbox is None:
        return AppendedFile(plan.to, renderer(form))
    return KeptFile(plan.to, renderer(form), inbox, plan.inbox)


def _say_what_is_promised(plan: Plan) -> None:
    """On a terminal, say when a message can be shown twice: people take more for granted."""
    if not sys.stderr.isatty():
        return
    if plan.command is not None:
        print("at least once: a crash can run the command again for a message", file=sys.stderr)
    elif plan.inbox is None:
        print("at least once: --inbox remembers what was shown", file=sys.stderr)


class _Run:
    """One run's progress: how much has come, and whether it is to end."""

    def __init__(self, plan: Plan, inbox: Inbox | None) -> None:
        self.received = 0
        self.interrupted = False
        self.stop = asyncio.Event()
        self._waiting: asyncio.Timeout | None = None
        """For the broker, as long as that is so."""
        self._plan = plan
        self._inbox = inbox
        self._refused = 0

    async def receive(self, access: Access, identity: Identity, output: Output | None) -> None:
        """Until a signal, the count or the wait ends it."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._end)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        async with AsyncExitStack() as stack:
            try:
                async with asyncio.timeout(None) as self._waiting:
                    client = await stack.enter_async_context(
                        connected(access, identity, wait=self._plan.broker_wait)
                    )
            except TimeoutError:
                if not self.stop.is_set():
                    raise
                return  # a signal has ended the wait
            finally:
                self._waiting = None
            await self._receive(client, output)

    async def _receive(self, client: Client, output: Output | None) -> None:
        plan = self._plan
        prefetch = plan.prefetch or limits.DEFAULT_PREFETCH
        receiver = client.receiver(
            plan.queue,
            inbox=self._inbox,
            prefetch=prefetch if plan.count is None else min(prefetch, plan.count),
            # A command may fail: only the messages that it has done are counted.
            limit=plan.count if plan.command is None else None,
            name=plan.name,
        )
        linger = _LINGER if plan.to is not None else 0.0
        queue = plan.queue or client.name
        try:
            async with receiver:
                async for batches in groups(receiver, self.stop, idle=plan.wait, linger=linger):
                    self._say_what_was_refused(receiver, queue)
                    if output is None:
                        await self._execute(receiver, batches)
                        continue
                    output.write(batches)
                    for batch in batches:
                        self.received += len(batch)
                        batch.ack()
        finally:
            self._say_what_was_refused(receiver, queue)

    def _say_what_was_refused(self, receiver: Receiver, queue: str) -> None:
        if (new := receiver.refused - self._refused) > 0:
            self._refused = receiver.refused
            print(
                f"ciphermq: warning: {new} of the messages in {printable(queue)!r} can't be opened "
                f"as genuine; `ciphermq dead list {printable(queue)}` says why",
                file=sys.stderr,
            )

    async def _execute(self, receiver: Receiver, batches: list[Batch]) -> None:
        for message in chain.from_iterable(batches):
            if self.stop.is_set():
                return  # the rest is given back
            status = await execute(self._plan.command or "", message, receiver.renew)
            if status == 0:
                message.ack()
                self.received += 1
                if self.received == self._plan.count:
                    self.stop.set()
            elif self.interrupted:
                return  # the command had its Ctrl-C too: that is not its verdict
            else:
                print(
                    f"ciphermq: message {message.id}: the command ended with status {status}; "
                    "the message comes again",
                    file=sys.stderr,
                )
                message.nack()

    def show(self) -> None:
        """How much came: for runs that have no messages on their standard output."""
        repeated = self._inbox.duplicates if self._inbox is not None else None
        said = f"{counted(self.received, 'message')} received"
        if repeated:
            said += f"; {repeated} came again and were not taken twice"
        facts = {"received": self.received, "duplicates_dropped": repeated}
        report(said, facts, as_json=self._plan.as_json)

    def _end(self) -> None:
        self.stop.set()
        if self._waiting is not None and not self._waiting.expired():
            self._waiting.reschedule(0)

    def _interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # asked twice: what is not acknowledged comes again
        self.interrupted = True
        self._end()
