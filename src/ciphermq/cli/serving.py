"""How ``ciphermq server`` serves: the broker's parts put together, and the signals it heeds."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

from ciphermq import limits
from ciphermq.broker import BrokerLimits
from ciphermq.catalog.configured import configured_catalog
from ciphermq.cli.output import print_json
from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions, StoreOptions
from ciphermq.net.address import ZMQ_SCHEME, HostPort, spell
from ciphermq.server import trust
from ciphermq.server.server import Server
from ciphermq.settings import ServerSettings
from ciphermq.telemetry.logs import Logging


async def serve(settings: ServerSettings, logs: Logging, *, as_json: bool) -> None:
    """A broker from start to end. Raises why it can't start, or can't go on."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_stop, stop)

    def reread() -> None:
        broker.reread()

    # Before the files are read: a wish that comes meanwhile is heard after that, not lost.
    loop.add_signal_handler(signal.SIGHUP, reread)
    broker = assemble(settings, logs)

    def ready(where: HostPort) -> None:
        _say_ready(where, broker.zmq_where, as_json=as_json)

    try:
        await broker.run(ready=ready, stop=stop)
    finally:
        # The loop's own end would have it kill a process that is about to end in order.
        loop.remove_signal_handler(signal.SIGHUP)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)


def assemble(settings: ServerSettings, logs: Logging) -> Server:
    """A server with the embedded engine and the catalog that is configured; not started.

    Raises what is wrong with its files, before anything is opened for writing.
    """
    check_dates(settings)
    storage = settings.storage
    catalog = configured_catalog(settings)
    storage.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    bounds, delivery = settings.limits, settings.delivery
    broker = BrokerLimits(
        max_queues=bounds.max_queues,
        max_exchanges=bounds.max_exchanges,
        max_bindings=bounds.max_bindings,
        dedup_window_ms=int(delivery.dedup_window_seconds * 1000),
        max_dedup_entries=delivery.max_dedup_entries,
    )
    store = StoreOptions(reserve=int(storage.reserve_mb * limits.MIB))
    options = EmbeddedOptions(broker=broker, store=store)
    engine = EmbeddedEngine(storage.journal_directory, options=options)
    return Server(settings, engine, catalog, log_stats=logs.stats, traffic=logs.traffic)


def check_dates(settings: ServerSettings) -> None:
    """Refuse a start after which nobody could connect: a wrong clock or outlived files."""
    now_ms = time.time_ns() // 1_000_000
    trust.load(settings.tls).check_dates(settings.tls.cert_path, now_ms)


def _asked_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        # Asked twice: whoever waits no longer loses nothing, since the journal survives a kill.
        print("ciphermq: ended at once", file=sys.stderr)
        os._exit(1)
    stop.set()


def _say_ready(where: HostPort, zmq: HostPort | None, *, as_json: bool) -> None:
    over_zmq = zmq and f"{ZMQ_SCHEME}://{spell(zmq)}"
    if as_json:
        facts = {"ready": True, "address": spell(where), "port": where[1]}
        print_json({**facts, "zmq_address": over_zmq, "pid": os.getpid()})
    else:
        too = f" and {over_zmq}" if over_zmq else ""
        # In one write: a log line on the same terminal or file must not come into the middle of it.
        sys.stdout.write(f"ciphermq ready on {spell(where)}{too}\n")
        sys.stdout.flush()
