"""``ciphermq receive``: what is in a queue, to the terminal, a file or a command."""

from __future__ import annotations

import asyncio
import signal
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ciphermq.cli.access import Access, with_access
from ciphermq.cli.common import JsonOption

if TYPE_CHECKING:
    from ciphermq.cli.outputs import Output
    from ciphermq.client import Batch, Client, Identity, Inbox, Receiver

_LINGER: Final = 0.002
"""Seconds that a file waits for one more batch before it is synced, which takes longer."""


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(receive)


@dataclass(frozen=True)
class Plan:
    """What a run was asked for."""

    queue: str | None
    as_json: bool
    raw: bool
    to: Path | None
    command: str | None
    inbox: Path | None
    count: int | None
    wait: float | None
    prefetch: int | None
    name: str | None


@with_access
def receive(
    access: Access,
    queue: Annotated[
        str | None,
        typer.Argument(
            metavar="QUEUE", help="Whence.  [default: your own inbox]", show_default=False
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Write to this file: JSON lines, or bytes with --raw."),
    ] = None,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="The bytes that were sent, end to end; nothing is added or taken away."
        ),
    ] = False,
    inbox: Annotated[
        Path | None,
        typer.Option(
            "--inbox",
            help="Remember in this file what is done, so that nothing is shown twice. With --to, "
            "each message is in the file exactly once, whatever is killed when.",
        ),
    ] = None,
    command: Annotated[
        str | None,
        typer.Option(
            "--exec",
            metavar="COMMAND",
            help="Run it for each message, payload on its standard input, CIPHERMQ_* in its "
            "environment. Status 0 is done, another one gives the message back. At least once.",
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="End after so many messages.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            "--idle-timeout",
            min=0,
            metavar="SECONDS",
            help="End when none has come for so long.",
        ),
    ] = None,
    prefetch: Annotated[
        int | None, typer.Option(min=1, help="Messages in hand at a time.", show_default=False)
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(help="Take over from an earlier receiver of this name at once."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the messages of a queue, and acknowledge them; goes on until it is stopped.

    Without --inbox a message can come twice after a crash. What can't be opened as genuine goes
    to the dead letters, with the reason.
    """
    from ciphermq.cli.access import load_identity
    from ciphermq.cli.common import run

    plan = Plan(queue, as_json, raw, to, command, inbox, count, wait, prefetch, name)
    _check(plan)
    run(_receive(access, load_identity(access), plan))


def _check(plan: Plan) -> None:
    """Refuse what contradicts itself, before anything is opened."""
    from ciphermq.errors import UsageError

    if plan.command is not None and (plan.raw or plan.to is not None):
        raise UsageError("--exec gives messages to a command: --raw and --to don't apply")
    if plan.raw and plan.as_json and plan.to is None:
        raise UsageError("--raw and --json contradict each other: choose one, or write --to a file")


async def _receive(access: Access, identity: Identity, plan: Plan) -> None:
    from ciphermq.cli.access import connected
    from ciphermq.client import Inbox
    from ciphermq.errors import Unfinished

    with ExitStack() as stack:
        inbox = stack.enter_context(Inbox(plan.inbox)) if plan.inbox is not None else None
        run = _Run(plan, inbox)
        output = None if plan.command is not None else _open_output(plan, inbox)
        if output is not None:
            stack.callback(output.close)
        _say_what_is_promised(plan)
        try:
            async with connected(access, identity) as client:
                await run.receive(client, output)
        finally:
            if plan.to is not None or plan.command is not None:
                run.show()
    if run.interrupted:
        raise KeyboardInterrupt
    if plan.count is not None and run.received < plan.count and not run.stop.is_set():
        raise Unfinished(f"{run.received} of {plan.count} messages came within {plan.wait:g} s")


def _open_output(plan: Plan, inbox: Inbox | None) -> Output:
    from ciphermq.cli.outputs import AppendedFile, KeptFile, StandardOutput
    from ciphermq.cli.rendering import Form, renderer

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
        self._plan = plan
        self._inbox = inbox

    async def receive(self, client: Client, output: Output | None) -> None:
        """Until a signal, the count or the wait ends it."""
        from ciphermq import limits
        from ciphermq.cli.groups import groups

        plan = self._plan
        receiver = client.receiver(
            plan.queue,
            inbox=self._inbox,
            prefetch=plan.prefetch or limits.DEFAULT_PREFETCH,
            limit=plan.count,
            name=plan.name,
        )
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self.stop.set)
        loop.add_signal_handler(signal.SIGINT, self._interrupt)
        linger = _LINGER if plan.to is not None else 0.0
        async with receiver:
            async for batches in groups(receiver, self.stop, idle=plan.wait, linger=linger):
                if output is None:
                    await self._execute(receiver, batches)
                    continue
                output.write(batches)
                for batch in batches:
                    self.received += len(batch)
                    batch.ack()

    async def _execute(self, receiver: Receiver, batches: list[Batch]) -> None:
        from ciphermq.cli.executing import execute

        for message in chain.from_iterable(batches):
            if self.stop.is_set():
                return  # the rest is given back
            status = await execute(self._plan.command or "", message, receiver.renew)
            if status == 0:
                message.ack()
            elif self.interrupted:
                return  # the command had its Ctrl-C too: that is not its verdict
            else:
                print(
                    f"ciphermq: message {message.id}: the command ended with status {status}; "
                    "the message comes again",
                    file=sys.stderr,
                )
                message.nack()
            self.received += 1

    def show(self) -> None:
        """How much came: for runs that have no messages on their standard output."""
        from ciphermq.cli.output import report

        repeated = self._inbox.duplicates if self._inbox is not None else None
        said = f"{self.received} messages received"
        if repeated:
            said += f"; {repeated} came again and were not taken twice"
        facts = {"received": self.received, "duplicates_dropped": repeated}
        report(said, facts, as_json=self._plan.as_json)

    def _interrupt(self) -> None:
        if self.interrupted:
            raise KeyboardInterrupt  # asked twice: what is not acknowledged comes again
        self.interrupted = True
        self.stop.set()
