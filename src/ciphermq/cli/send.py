"""``ciphermq send``: lines, or a whole file, sealed for their receivers."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from ciphermq.cli.access import Access, BrokerWaitOption, with_access
from ciphermq.cli.common import JsonOption

if TYPE_CHECKING:
    from ciphermq.cli.onexsending import OnexSending
    from ciphermq.cli.sending import Sending
    from ciphermq.client import Identity

_STANDARD_INPUT: Final = "-"
_CONFIRM_TIMEOUT: Final = 60.0


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command()(send)


@dataclass(frozen=True)
class Plan:
    """What a run was asked for."""

    to: tuple[str, ...]
    file: str
    whole: bool
    queue: str | None
    exchange: str
    key: str
    headers: dict[str, str]
    content_type: str | None
    ttl: float | None
    outbox: Path | None
    patience: float
    """Seconds to wait for a confirmation."""
    broker_wait: float
    """Seconds to wait for a broker that is away at the start."""

    @property
    def dressed(self) -> bool:
        """Whether messages have more than their payload."""
        return bool(self.headers or self.content_type)


@with_access
def send(
    access: Access,
    to: Annotated[
        str,
        typer.Argument(metavar="TO", help="Who can open it: a client, or several with commas."),
    ],
    file: Annotated[
        str, typer.Argument(metavar="FILE", help="What to send; - is standard input.")
    ] = _STANDARD_INPUT,
    whole: Annotated[
        bool, typer.Option("--whole", help="All of it as one message, not a line a message.")
    ] = False,
    queue: Annotated[
        str | None,
        typer.Option(help="Into this queue, not into the receivers' inboxes.", show_default=False),
    ] = None,
    exchange: Annotated[
        str, typer.Option(help="Through this exchange, which decides the queues.")
    ] = "",
    key: Annotated[str, typer.Option("--key", "-k", help="Routing key for the exchange.")] = "",
    header: Annotated[
        list[str] | None,
        typer.Option(
            "--header", "-H", metavar="NAME=VALUE", help="A header, sealed too; repeat for more."
        ),
    ] = None,
    content_type: Annotated[
        str | None, typer.Option(help="What the content is, such as text/plain.")
    ] = None,
    ttl: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="SECONDS", help="How long it is worth delivering.  [default: 30 d]"
        ),
    ] = None,
    outbox: Annotated[
        Path | None,
        typer.Option(
            "--outbox",
            help="Remember in this file what was read and what was confirmed: a run that was "
            "killed goes on, by the same command, exactly where it stopped.",
        ),
    ] = None,
    confirm_timeout: Annotated[
        float,
        typer.Option(min=0.1, metavar="SECONDS", help="Longest wait for a confirmation."),
    ] = _CONFIRM_TIMEOUT,
    wait_for_broker: BrokerWaitOption = None,
    as_json: JsonOption = False,
) -> None:
    """Seal each line for its receivers, send it, and wait until the broker has it on disk.

    A line keeps the bytes that end it, so that what is received --raw is the file again.
    A broker that is away is waited for as long as a confirmation. To a client of CipherMQ 1.x,
    whose key `keys trust --one-x` has pinned, each line goes as a message of 1.x, without its end.
    """
    from ciphermq.cli.access import load_identity
    from ciphermq.cli.common import check_apart, run

    check_apart("--outbox", outbox, Path(file))
    plan = Plan(
        to=tuple(name.strip() for name in to.split(",") if name.strip()),
        file=file,
        whole=whole,
        queue=queue,
        exchange=exchange,
        key=key,
        headers=_headers(header or []),
        content_type=content_type,
        ttl=ttl,
        outbox=outbox,
        patience=confirm_timeout,
        broker_wait=confirm_timeout if wait_for_broker is None else wait_for_broker,
    )
    run(_send(access, load_identity(access), plan, as_json=as_json))


async def _send(access: Access, identity: Identity, plan: Plan, *, as_json: bool) -> None:
    from ciphermq.cli.access import connected
    from ciphermq.cli.inputs import Input
    from ciphermq.cli.onexsending import OnexSending, goes_as_onex
    from ciphermq.cli.output import counted
    from ciphermq.cli.progress import bar
    from ciphermq.cli.sending import Sending
    from ciphermq.client import Outbox

    kind = OnexSending if goes_as_onex(identity, plan) else Sending
    with ExitStack() as stack:
        source = Input(plan.file)
        stack.callback(source.close)
        outbox = stack.enter_context(Outbox(plan.outbox)) if plan.outbox is not None else None
        shown = not as_json and source.regular
        run = kind(plan, source, stack.enter_context(bar("sending", shown=shown)))
        begun = time.monotonic()
        try:
            async with connected(access, identity, wait=plan.broker_wait) as client:
                if outbox is not None and isinstance(run, Sending):
                    await run.through(outbox, client)
                else:
                    await run.at_once(client)
        except BaseException:
            if run.confirmed and not as_json:
                print(f"ciphermq: {counted(run.confirmed, 'message')} confirmed", file=sys.stderr)
            raise
    _show(run, time.monotonic() - begun, as_json=as_json)


def _show(run: Sending | OnexSending, seconds: float, *, as_json: bool) -> None:
    from ciphermq.cli.output import counted, report

    rate = run.confirmed / seconds if seconds else 0.0
    before = run.total - run.confirmed
    said = f"{counted(run.confirmed, 'message')} confirmed in {seconds:.1f} s ({rate:,.0f}/s)"
    if before:
        said += f"; sent before, of this input: {before}"
    facts = {
        "messages": run.total,
        "confirmed": run.confirmed,
        "seconds": round(seconds, 3),
        "messages_per_second": round(rate, 1),
    }
    report(said, facts, as_json=as_json)


def _headers(given: list[str]) -> dict[str, str]:
    from ciphermq.errors import UsageError

    headers: dict[str, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"--header {text!r}: NAME=VALUE was expected")
        if name in headers:
            raise UsageError(f"--header {name!r} is there twice: a message has each name once")
        headers[name] = value
    return headers
