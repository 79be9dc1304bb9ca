"""``ciphermq-proxy``, and ``amqpprox``: the same proxy with the older program's flags and words.

Ends with 0 when it was told to end, and with 1 when it could not start or go on, with one sentence
on standard error. ``amqpprox`` keeps that program's own codes: 1 for ``--help`` and unknown flags,
2 and 3 for values that make no sense.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from ciphermq import limits
from ciphermq.errors import CipherMQError
from ciphermq.proxy.change import (
    AddBackend,
    AddFarm,
    Change,
    SetDefault,
    SetMetrics,
    StartListening,
)
from ciphermq.proxy.model import Backend, Destination, Farm, Listener, Target
from ciphermq.version import __version__

DESCRIPTION = """An AMQP 0.9.1 proxy: routes each virtual host to its broker or farm.

It is configured by a file (--config), while it runs by ciphermq-proxy-ctl (begin with HELP), or,
with --listen-port, --destination-dns and --destination-port, to send every virtual host to one
place. SIGTERM ends it in order, SIGHUP reloads the file, SIGUSR2 replaces it by a new process
without an interruption."""

_AMQPPROX_CONTROL = Path("/tmp") / "amqpprox"  # noqa: S108  (its scripts look for it there)


def main(arguments: Sequence[str] | None = None) -> None:
    """``ciphermq-proxy``."""
    flags = parser()
    _run(flags, flags.parse_args(arguments), default_control())


def amqpprox(arguments: Sequence[str] | None = None) -> None:
    """``amqpprox``: its flags, its first and last line on standard output, its exit codes."""
    flags = _Amqpprox("amqpprox", description=DESCRIPTION, add_help=False)
    _add_flags(flags, log_directory=Path("logs"))
    flags.add_argument("--help", action="store_true", help="this help")
    options = flags.parse_args(arguments)
    if options.help:
        flags.print_help()
        sys.exit(1)
    control = options.control or _AMQPPROX_CONTROL
    place = f"logging to: '{options.log_directory}' control using: '{control}'"
    _check_simple(flags, options)
    print(f"Starting amqpprox, {place}", flush=True)
    _run(flags, options, _AMQPPROX_CONTROL, quiet=True)
    print(f"Stopping amqpprox, instance: '{control}'", flush=True)


class _Amqpprox(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print(f"{message}\n")
        self.print_help()
        sys.exit(1)


def default_control() -> Path:
    """Where the control socket is unless told otherwise: a directory of this user's own."""
    for name in ("RUNTIME_DIRECTORY", "XDG_RUNTIME_DIR"):
        directory = os.environ.get(name, "").partition(":")[0]
        if directory:
            return Path(directory) / "ciphermq-proxy"
    return Path(tempfile.gettempdir()) / f"ciphermq-proxy-{os.geteuid()}"


def default_workers() -> int:
    """One a core this process may use, four at most."""
    return min(len(os.sched_getaffinity(0)), limits.PROXY_WORKERS_DEFAULT)


def parser() -> argparse.ArgumentParser:
    """The command line of ``ciphermq-proxy``."""
    made = argparse.ArgumentParser(
        "ciphermq-proxy",
        description=DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_flags(made, log_directory=None)
    made.add_argument(
        "--version", action="version", version=f"ciphermq-proxy {__version__}", help="which this is"
    )
    return made


def _add_flags(parser: argparse.ArgumentParser, log_directory: Path | None) -> None:
    """Every flag; those of amqpprox in its spelling and in ours."""
    add = parser.add_argument
    add(
        "--config",
        type=Path,
        metavar="FILE",
        help="configuration, in TOML; CONFIG SAVE writes it [default: the control socket's path "
        "with .toml]",
    )
    add(
        "--control",
        "--controlSocket",
        type=Path,
        metavar="PATH",
        help="control socket [default: ciphermq-proxy in the user's runtime directory]",
    )
    add(
        "--workers",
        type=_count,
        default=default_workers(),
        metavar="N",
        help=f"worker processes, 1 to {limits.PROXY_WORKERS} [default: one a core, at most "
        f"{limits.PROXY_WORKERS_DEFAULT}]",
    )
    add(
        "--metrics",
        type=_destination,
        metavar="[HOST:]PORT",
        help="serve /metrics for Prometheus, and /health; on loopback unless HOST is given",
    )
    add(
        "--log-directory",
        "--logDirectory",
        type=Path,
        default=log_directory,
        metavar="DIR",
        help="write log files there",
    )
    add("--log-json", action="store_true", help="log files have one JSON object a line")
    add(
        "--verbosity",
        "-v",
        "--consoleVerbosity",
        type=int,
        default=0 if log_directory is not None else 2,
        metavar="0..5",
        help="what is logged on standard error: fatal, error, warn, info, debug, trace "
        "[default: %(default)s]",
    )
    add(
        "--file-verbosity",
        type=int,
        default=3,
        metavar="0..5",
        help="what is logged to files [default: %(default)s]",
    )
    add(
        "--take-over",
        action="store_true",
        help="replace the proxy that runs with this control socket: its sockets and its "
        "configuration are taken over, its sessions may finish",
    )
    add(
        "--handover-drain",
        type=float,
        default=limits.PROXY_HANDOVER_DRAIN,
        metavar="SECONDS",
        help="how long its sessions may go on once it is replaced itself [default: %(default)g]",
    )
    add(
        "--cleanup-interval",
        "--cleanupIntervalMs",
        type=int,
        default=round(limits.PROXY_STATISTICS_PERIOD * 1000),
        metavar="MS",
        help="the period of statistics [default: %(default)s]",
    )
    simple = "in simple mode (these three together): "
    add(
        "--listen-port",
        "--listenPort",
        type=int,
        default=0,
        metavar="P",
        help=f"{simple}listen on every address at this port",
    )
    add(
        "--destination-dns",
        "--destinationDNS",
        default="",
        metavar="HOST",
        help=f"{simple}where every virtual host goes, looked up at each use",
    )
    add(
        "--destination-port",
        "--destinationPort",
        type=int,
        default=0,
        metavar="P",
        help=f"{simple}that host's port",
    )


def _count(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= limits.PROXY_WORKERS):
        raise argparse.ArgumentTypeError(f"1 to {limits.PROXY_WORKERS}, not {text!r}")
    return int(text)


def _destination(text: str) -> Destination:
    host, colon, port = text.rpartition(":")
    if not (port.isdecimal() and int(port) <= 0xFFFF):
        raise argparse.ArgumentTypeError(f"HOST:PORT or PORT, not {text!r}")
    return Destination(host.strip("[]") if colon else "127.0.0.1", int(port))


def _check_simple(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    simple = [options.listen_port, options.destination_port, options.destination_dns]
    old = isinstance(parser, _Amqpprox)
    if any(simple) and not all(simple):
        _refuse(
            "If configuring in simple mode, the --listenPort, --destinationPort and "
            "--destinationDNS must all be set"
            if old
            else "--listen-port, --destination-port and --destination-dns go together"
        )
    if not (0 <= options.verbosity <= 5 and 0 <= options.file_verbosity <= 5):
        _refuse("Console log verbosity must be between 0 and 5", code=3)
    if options.cleanup_interval <= 0 or options.handover_drain < 0:
        _refuse("A period or drain time must not be negative")


def _refuse(sentence: str, code: int = 2) -> NoReturn:
    print(sentence)
    sys.exit(code)


def _changes(options: argparse.Namespace) -> tuple[Change, ...]:
    changes: list[Change] = []
    if options.metrics is not None:
        changes.append(SetMetrics(options.metrics))
    if options.listen_port:
        backend = Backend(
            name="default-backend",
            datacenter="none",
            host=options.destination_dns,
            port=options.destination_port,
            dns=True,
        )
        changes += [
            AddBackend(backend),
            AddFarm(Farm(name="default", backends=(backend.name,))),
            SetDefault(Target("farm", "default")),
            StartListening(Listener(port=options.listen_port)),
        ]
    return tuple(changes)


def _run(
    parser: argparse.ArgumentParser,
    namespace: argparse.Namespace,
    control: Path,
    *,
    quiet: bool = False,
) -> None:
    _check_simple(parser, namespace)
    # Only who really starts pays for the rest.
    import uvloop

    from ciphermq.proxy.logs import OFF, Writer
    from ciphermq.proxy.options import Options
    from ciphermq.proxy.supervisor import Supervisor

    control_path = namespace.control or control
    options = Options(
        control=control_path,
        config_file=namespace.config or control_path.with_name(f"{control_path.name}.toml"),
        workers=namespace.workers,
        changes=_changes(namespace),
        take_over=namespace.take_over,
        console_level=namespace.verbosity,
        file_level=namespace.file_verbosity if namespace.log_directory is not None else OFF,
        log_as_json=namespace.log_json,
        period=namespace.cleanup_interval / 1000,
        handover_drain=namespace.handover_drain,
    )

    def ready(listeners: Sequence[Listener]) -> None:
        if not quiet:
            # In one write: nothing may come into the middle of it.
            places = ", ".join(map(_spell, listeners)) or "no port yet"
            sys.stdout.write(f"ciphermq-proxy ready on {places}; control {options.control}\n")
            sys.stdout.flush()

    async def serve() -> None:
        await Supervisor(options, writer).run(ready)

    try:
        writer = Writer(namespace.log_directory, parser.prog)
        try:
            uvloop.run(serve())
        finally:
            writer.stop()
    except CipherMQError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        sys.exit(1)


def _spell(listener: Listener) -> str:
    host = f"[{listener.address}]" if ":" in listener.address else listener.address or "*"
    return f"{host}:{listener.port}"


if __name__ == "__main__":
    main()
