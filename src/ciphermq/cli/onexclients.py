"""``ciphermq sender`` and ``ciphermq receiver``: those of CipherMQ 1.x, from their config.json."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, TypeVar

import typer

from ciphermq.cli.common import JsonOption

if TYPE_CHECKING:
    from ciphermq.cli.onexconsole import OnexConsole
    from ciphermq.client.classic.receiver import ClassicReceiver
    from ciphermq.settings.onexclient import ClientFile

    FileT = TypeVar("FileT", bound=ClientFile)

RECEIVED: Final = Path("data/received_messages.jsonl")

_ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="A client's configuration of 1.x, as it is."),
]
_DialectOption = Annotated[
    str | None,
    typer.Option(
        "--dialect",
        help="How session keys are sealed: ciphermq-1.4 or ciphermq-1.5.  [default: as the file "
        "says]",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands."""
    app.command()(sender)
    app.command()(receiver)


def sender(
    config: _ConfigOption = Path("config.json"),
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=0, help="So many messages instead of the file's number."),
    ] = None,
    accept_new_keys: Annotated[
        bool,
        typer.Option(
            "--accept-new-keys",
            help="Take a receiver's key that is not the one it had, after its owner said so.",
        ),
    ] = False,
    dialect: _DialectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send messages as the sender of CipherMQ 1.x does, from its own config.json.

    The messages are those that its section `sender` describes. Each is sent until the server has
    acknowledged it; the status is 0 only if all were. For anything else there is `ciphermq send`.
    """
    from ciphermq.cli.common import run
    from ciphermq.cli.onexconsole import OnexConsole
    from ciphermq.client.classic.keys import ReceiversKeys
    from ciphermq.client.classic.peer import Peer, dialect_of
    from ciphermq.client.classic.sender import ClassicSender
    from ciphermq.settings.onexclient import SenderFile

    file = _load(config, SenderFile, dialect)
    with OnexConsole("SENDER", file.logging, as_json=as_json) as console:
        peer = Peer.of(file)
        keys = ReceiversKeys(config.absolute().parent, file.generation, accept_new=accept_new_keys)
        console.say("client", f"Extracted client_id from certificate: {peer.client}")
        program = ClassicSender(
            file, peer, keys, dialect_of(file, dialect, v1_5=False), console.say, count=count
        )
        run(program.run())


def receiver(
    config: _ConfigOption = Path("config.json"),
    key: Annotated[
        Path | None,
        typer.Option(
            help="The private key.  [default: receiver_private.key where 1.x looks for it]",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help=f"The file of received messages.  [default: {RECEIVED} beside the configuration]",
            show_default=False,
        ),
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", "-n", min=1, help="End after so many new messages.")
    ] = None,
    wait: Annotated[
        float | None,
        typer.Option(
            "--wait",
            "--idle-timeout",
            min=0.001,
            metavar="SECONDS",
            help="End when no new one has come for so long.",
        ),
    ] = None,
    dialect: _DialectOption = None,
    as_json: JsonOption = False,
) -> None:
    """Receive messages as the receiver of CipherMQ 1.x does, from its own config.json.

    Each is in the file of received messages, on the disk and once only, before it is acknowledged.
    Goes on until it is stopped; a server that is away is waited for.
    """
    from ciphermq.cli.common import run
    from ciphermq.cli.onexconsole import OnexConsole
    from ciphermq.client.classic.keys import find_own_key
    from ciphermq.client.classic.peer import Peer, dialect_of
    from ciphermq.client.classic.receiver import ClassicReceiver
    from ciphermq.client.classic.record import Record
    from ciphermq.errors import Unfinished
    from ciphermq.settings.onexclient import ReceiverFile

    file = _load(config, ReceiverFile, dialect)
    base = config.absolute().parent
    with OnexConsole("RECEIVER", file.logging, as_json=as_json) as console:
        peer = Peer.of(file)
        own = find_own_key(base, key)
        console.say("client", f"Extracted client_id from certificate: {peer.client}")
        with Record(output if output is not None else base / RECEIVED) as record:
            program = ClassicReceiver(
                file,
                peer,
                own.key,
                dialect_of(file, dialect, v1_5=own.of_1_5),
                record,
                console.say,
                count=count,
                wait=wait,
            )
            stopped = run(_until_stopped(program, console))
    if count is not None and program.received < count and not stopped:
        raise Unfinished(f"{program.received} of {count} messages came")


async def _until_stopped(program: ClassicReceiver, console: OnexConsole) -> bool:
    """Run it; whether a signal ended it. After Ctrl-C raises `KeyboardInterrupt`, in order."""
    import asyncio
    import signal

    loop = asyncio.get_running_loop()
    caught: list[signal.Signals] = []

    def stop(number: signal.Signals) -> None:
        caught.append(number)
        program.stop()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    await program.run()
    console.say("done", f"Received {program.received} messages", messages=program.received)
    if signal.SIGINT in caught:
        raise KeyboardInterrupt
    return bool(caught)


def _load(config: Path, kind: type[FileT], dialect: str | None) -> FileT:
    """The configuration, its files there; what is not known in it is said on standard error."""
    import sys

    from ciphermq.client.classic.peer import check_files
    from ciphermq.errors import UsageError
    from ciphermq.model.onex import SessionSeal
    from ciphermq.settings.onexclient import load_client_file

    if dialect is not None and dialect not in list(SessionSeal):
        raise UsageError(f"--dialect {dialect!r} is not one of {', '.join(SessionSeal)}")
    file, unknown = load_client_file(config, kind)
    for sentence in unknown:
        print(f"ciphermq: warning: {sentence}", file=sys.stderr)
    check_files(file, config)
    if file.tls.verify_mode != "CERT_REQUIRED":
        print(
            f"ciphermq: warning: {config}: tls.verify_mode = {file.tls.verify_mode}: the server's "
            "certificate is verified all the same",
            file=sys.stderr,
        )
    return file
