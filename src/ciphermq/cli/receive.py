"""``ciphermq receive``: what is in a queue, to the terminal, a file or a command."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from ciphermq.cli.access import Access, BrokerWaitOption, with_access
from ciphermq.cli.common import JsonOption


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
    broker_wait: float
    """Seconds to wait for a broker that is away at the start."""


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
            help="Remember in this file what is done; it is not shown again. With --to, each "
            "message is in the file exactly once, whatever is killed when.",
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
    wait_for_broker: BrokerWaitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show the messages of a queue, and acknowledge them; goes on until it is stopped.

    Without --inbox a message can come twice after a crash. What can't be opened as genuine goes
    to the dead letters, with the reason. A broker that is away is waited for, without end or as
    long as --idle-timeout says; why is said on standard error, once until that changes.

    A certificate that is revoked or has expired is an error at the start. While this runs, it is
    said and tried again: once the identity's directory has a new one, messages come again.
    """
    from ciphermq.cli.access import load_identity
    from ciphermq.cli.common import run
    from ciphermq.cli.receiving import receive_as_planned

    broker_wait = wait_for_broker
    if broker_wait is None:
        broker_wait = math.inf if wait is None else wait
    plan = Plan(queue, as_json, raw, to, command, inbox, count, wait, prefetch, name, broker_wait)
    _check(plan)
    run(receive_as_planned(access, load_identity(access), plan))


def _check(plan: Plan) -> None:
    """Refuse what contradicts itself, before anything is opened."""
    from ciphermq.cli.common import check_apart
    from ciphermq.errors import UsageError

    check_apart("--inbox", plan.inbox, plan.to)
    if plan.command is not None and (plan.raw or plan.to is not None):
        raise UsageError("--exec gives messages to a command: --raw and --to don't apply")
    if plan.raw and plan.as_json and plan.to is None:
        raise UsageError("--raw and --json contradict each other: choose one, or write --to a file")
