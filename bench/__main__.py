"""``python -m bench``: run the topics named, or all, and print one JSON object for each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import catalogs, hsm, logs, machine, onex, proxy, queue, waiting, zeromq

TOPICS: dict[str, Callable[[Path, argparse.Namespace], dict[str, Any]]] = {
    "queue": queue.measure,
    "waiting": waiting.measure,
    "one-x": onex.measure,
    "catalogs": catalogs.measure,
    "logging": logs.measure,
    "hsm": hsm.measure,
    "zmq": zeromq.measure,
    "proxy": proxy.measure,
}


def main() -> None:
    """Measure and print: tables for people, or with ``--json`` one object a line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("topic", nargs="*", help=f"of {', '.join(TOPICS)}; all when none is named")
    parser.add_argument("--json", action="store_true", help="one JSON object a line, nothing else")
    parser.add_argument(
        "--messages", type=int, default=1_000_000, help="1 KiB messages a measurement (%(default)s)"
    )
    parser.add_argument(
        "--rounds", type=int, default=3, help="of a throughput; the middle one counts (%(default)s)"
    )
    parser.add_argument("--directory", type=Path, help="where to work: its disk is measured too")
    options = parser.parse_args()
    if unknown := set(options.topic) - set(TOPICS):
        parser.error(f"no topic {sorted(unknown)[0]!r}: choose from {', '.join(TOPICS)}")
    for topic in options.topic or TOPICS:
        with tempfile.TemporaryDirectory(prefix="ciphermq-bench-", dir=options.directory) as name:
            directory = Path(name)
            result = {
                "topic": topic,
                "machine": machine.describe(directory),
                **TOPICS[topic](directory, options),
            }
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            json.dump(result, sys.stdout, indent=2)
            print(flush=True)


if __name__ == "__main__":
    main()
