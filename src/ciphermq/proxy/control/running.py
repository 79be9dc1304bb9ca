"""VHOST, SESSION, CONN, STAT, METRICS, LOG, CONFIG, EXIT…: what is going on, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Final

from ciphermq.errors import ProxyError
from ciphermq.proxy import config
from ciphermq.proxy.change import (
    ReplaceAll,
    SetHostnames,
    SetLog,
    SetMetrics,
    SetPaused,
    SetPerSource,
    SetStatsd,
    SetTimeout,
)
from ciphermq.proxy.control.grammar import Call
from ciphermq.proxy.control.lookup import address_of, with_addresses
from ciphermq.proxy.control.rules import Answer, rule, stream
from ciphermq.proxy.model import Destination
from ciphermq.proxy.office import Office, SessionAct, VhostAct
from ciphermq.proxy.statistics import show

# --- vhosts and sessions ---------------------------------------------------------------------


@rule("VHOST PAUSE vhost")
async def pause_vhost(office: Office, call: Call) -> None:
    """Hold a vhost's new sessions in their handshake.

    Its other sessions go on until the vhost is unpaused. Held clients are refused (320) when
    `paused_hold` is over (TIMEOUT PRINT).
    """
    await office.change(SetPaused(call["vhost"], True))


@rule("VHOST UNPAUSE vhost")
async def unpause_vhost(office: Office, call: Call) -> None:
    """Connect the held sessions, and end the vhost's others.

    The others are closed, so that they come again to wherever the vhost is mapped by then.
    """
    await office.change(SetPaused(call["vhost"], False))


@rule("VHOST FORCE_DISCONNECT vhost", "Cut a vhost's sessions at both ends")
@rule("VHOST BACKEND_DISCONNECT vhost", "Cut a vhost's sessions from their brokers")
async def disconnect_vhost(office: Office, call: Call) -> None:
    """When only their brokers are gone, clients are told so by a Close."""
    acts: dict[str, VhostAct] = {
        "BACKEND_DISCONNECT": "backend_disconnect",
        "FORCE_DISCONNECT": "force_disconnect",
    }
    await office.vhost(call["vhost"], acts[call.keywords[1]])


@rule("VHOST PRINT")
async def print_vhosts(office: Office, call: Call) -> Answer:
    """Show which vhosts are paused."""
    vhosts = dict(sorted(office.configuration.vhosts.items()))
    lines = [
        f"{vhost} = {'PAUSED' if paused else 'UNPAUSED'}\n" for vhost, paused in vhosts.items()
    ]
    return Answer("".join(lines), {vhost: {"paused": paused} for vhost, paused in vhosts.items()})


_SESSION_ACTS: Final[dict[str, SessionAct]] = {
    "PAUSE": "pause",
    "UNPAUSE": "unpause",
    "DISCONNECT_GRACEFUL": "disconnect_graceful",
    "FORCE_DISCONNECT": "force_disconnect",
}


@rule("SESSION id FORCE_DISCONNECT", "Cut a session at both ends")
@rule("SESSION id DISCONNECT_GRACEFUL", "Send a session's client a Close, and end when it answers")
@rule("SESSION id PAUSE|UNPAUSE", "Stop a session's bytes, or let them go on")
async def act_on_session(office: Office, call: Call) -> None:
    """Its number is what CONN shows. A graceful disconnect sends Close 200."""
    if not await office.session(call["id"], _SESSION_ACTS[call.keywords[1]]):
        raise ProxyError(f"Session {call['id']} not found")


@rule("CONN")
async def print_sessions(office: Office, call: Call) -> Answer:
    """Show all sessions.

    A line each, of fields `name=value`; spaces and control characters in values are escaped.
    """
    sessions = await office.sessions()
    return Answer("".join(map(_session_line, sessions)), [dict(one) for one in sessions])


def _session_line(session: Mapping[str, object]) -> str:
    return " ".join(f"{name}={_field(value)}" for name, value in session.items()) + "\n"


def _field(value: object) -> str:
    if isinstance(value, bool):
        return "Y" if value else "N"
    # Vhosts and names of connections are strangers' words: they must not look like further
    # fields or lines, nor speak to a terminal.
    return "".join(
        character if character.isprintable() and character != " " else f"\\x{ord(character):02x}"
        for character in str(value)
    )


# --- statistics ------------------------------------------------------------------------------


@stream("STAT LISTEN JSON|HUMAN [filter]")
async def listen(office: Office, call: Call, as_json: bool) -> AsyncGenerator[str, None]:
    """Show statistics once a second until the reader leaves; all of them, or what a filter says.

    JSON has one object a line. A vhost, backend or source of which nothing is known is all zeros.
    A backend is named as in BACKEND ADD, or ADDRESS_PORT.
    """
    shown = show("json" if as_json else call.keywords[2], call.get("filter") or "all")
    if shown is None:
        raise ProxyError(
            f"No filter '{call.get('filter')}'; there are overall, all, all-except-per-source, "
            "process, bufferpool, vhost=V, backend=B and source=S."
        )
    async with contextlib.aclosing(office.statistics()) as snapshots:
        async for snapshot in snapshots:
            yield shown(snapshot)


@rule("STAT SEND host port")
async def send_statistics(office: Office, call: Call) -> None:
    """Send statistics to statsd over UDP once a second."""
    await address_of(call["host"])
    await office.change(SetStatsd(Destination(call["host"], call["port"])))


@rule("STAT STOP SEND")
async def stop_statistics(office: Office, call: Call) -> None:
    """Send no statistics."""
    await office.change(SetStatsd(None))


@rule("STAT ENABLE|DISABLE PER-SOURCE")
async def per_source(office: Office, call: Call) -> None:
    """Send statistics of each client's machine too, or not."""
    await office.change(SetPerSource(call.keywords[1] == "ENABLE"))


@rule("STAT PRINT")
async def print_statistics(office: Office, call: Call) -> Answer:
    """Show where statistics are sent."""
    now = office.configuration
    place = f"SEND {now.statsd.host} {now.statsd.port}" if now.statsd else "STOP SEND"
    enabled = "ENABLE" if now.per_source else "DISABLE"
    value = {
        "host": now.statsd.host if now.statsd else None,
        "port": now.statsd.port if now.statsd else None,
        "per-source": now.per_source,
    }
    return Answer(f"{place}\n{enabled} PER-SOURCE\n", value)


@rule("METRICS START port [ADDRESS address]")
async def start_metrics(office: Office, call: Call) -> None:
    """Serve metrics for Prometheus; on 127.0.0.1 by itself."""
    await office.change(SetMetrics(Destination(call.get("address") or "127.0.0.1", call["port"])))


@rule("METRICS STOP")
async def stop_metrics(office: Office, call: Call) -> None:
    """Serve no metrics."""
    await office.change(SetMetrics(None))


@rule("METRICS PRINT")
async def print_metrics(office: Office, call: Call) -> Answer:
    """Show where metrics are served."""
    place = office.configuration.metrics
    if place is None:
        return Answer("STOP\n", None)
    plain = f"START {place.port} ADDRESS {place.host}\n"
    return Answer(plain, {"address": place.host, "port": place.port})


# --- the proxy itself ------------------------------------------------------------------------


@rule("LOG CONSOLE|FILE verbosity")
async def set_log(office: Office, call: Call) -> None:
    """Say how much is logged, to the console or the log directory."""
    sink = call.keywords[1]
    await office.change(SetLog("console" if sink == "CONSOLE" else "file", call["verbosity"]))


@rule("MAPHOSTNAME DNS")
async def name_by_dns(office: Office, call: Call) -> None:
    """Name clients by reverse DNS from now on."""
    await office.change(SetHostnames(True))


@rule("MAPHOSTNAME NONE")
async def name_by_address(office: Office, call: Call) -> None:
    """Name clients by their addresses."""
    await office.change(SetHostnames(False))


def _file(office: Office) -> Path:
    if office.config_file is None:
        raise ProxyError("This proxy was started without a configuration file.")
    return office.config_file


@rule("CONFIG PRINT")
async def print_config(office: Office, call: Call) -> Answer:
    """Show the configuration, as CONFIG SAVE would write it."""
    now = office.configuration
    return Answer(config.dumps(now), config.as_tables(now))


@rule("CONFIG SAVE")
async def save_config(office: Office, call: Call) -> None:
    """Write the configuration to the file that the proxy starts with.

    The file is replaced whole, and only its owner may read it.
    """
    await asyncio.to_thread(_save, office)


_SAVING: Final = threading.Lock()


def _save(office: Office) -> None:
    """One at a time, so that of two the later leaves its configuration in the file."""
    with _SAVING:
        config.save(_file(office), office.configuration)


def _differences(office: Office) -> list[config.Difference]:
    return config.diff(config.load(_file(office), missing_ok=True), office.configuration)


@rule("CONFIG DIFF")
async def diff_config(office: Office, call: Call) -> Answer:
    """Show what CONFIG SAVE would change in the file.

    Lines of the file begin with `-`, those of the running proxy with `+`.
    """
    differences = await asyncio.to_thread(_differences, office)
    return Answer(
        "".join(map(str, differences)), [difference._asdict() for difference in differences]
    )


@rule("CONFIG RELOAD")
async def reload_config(office: Office, call: Call) -> None:
    """Take over the configuration from the file; sessions go on.

    What the file does not say is as in a proxy that was just started. A file with a fault changes
    nothing. Renewed certificates are read.
    """
    loaded = await asyncio.to_thread(config.load, _file(office))
    await office.change(ReplaceAll(await with_addresses(loaded)))


@rule("RESTART")
async def restart(office: Office, call: Call) -> None:
    """Be succeeded by a new process of the program as it is installed now, without a gap.

    Listening sockets and configuration go over, saved or not; sessions may finish where they are,
    and the new process steers them. When the new process can't start, this one goes on. SIGUSR2
    does the same.
    """
    await office.restart()


@rule("EXIT [WITHIN seconds]")
async def leave(office: Office, call: Call) -> None:
    """End: take no more clients, send all a Close, and wait for them for the drain time at most.

    That is what TIMEOUT SET drain says, unless said here. SIGTERM does the same.
    """
    if call.get("seconds") is not None:
        await office.change(SetTimeout("drain", call["seconds"]))
    office.exit()
