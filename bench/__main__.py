"""``python -m bench``: run the topics named, or all, and print one JSON object for each."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

from bench import catalogs, hsm, logs, machine, onex, proxy, queue, waiting, zeromq


class Topic(NamedTuple):
    """What can be measured."""

    module: ModuleType
    """Its first paragraph says what; its `measure` does it."""
    takes: str
    """How long, with the defaults on two cores: an order of magnitude."""

    @property
    def about(self) -> str:
        """All that its file says of it."""
        return (self.module.__doc__ or "").strip().replace("`", "")


TOPICS: Final = {
    "queue": Topic(queue, "a minute or two"),
    "waiting": Topic(waiting, "some minutes"),
    "one-x": Topic(onex, "a minute or two"),
    "catalogs": Topic(catalogs, "a minute or two"),
    "logging": Topic(logs, "some minutes"),
    "hsm": Topic(hsm, "a minute"),
    "zmq": Topic(zeromq, "some minutes"),
    "proxy": Topic(proxy, "ten minutes"),
}
_ABOUT: Final = "Run the topics named, or all, and print one JSON object for each."


def explained(words: Sequence[str]) -> str:
    """What the topics among `words` measure, in full; without any, all of them, a line for each."""
    named = [topic for topic in TOPICS if topic in words]
    if named:
        return "\n\n".join(
            f"{name} (takes {TOPICS[name].takes}):\n\n{TOPICS[name].about}" for name in named
        )
    rows = [
        f"  {name:10}{topic.about.partition(chr(10))[0]}\n{'':12}takes {topic.takes}"
        for name, topic in TOPICS.items()
    ]
    head = "topics, and about how long each takes with the defaults on two cores:"
    foot = (
        "With --messages 50000 --rounds 1 most take less than a minute.\n"
        "python -m bench TOPIC --help says more about one."
    )
    return "\n".join([head, *rows, "", foot])


def main() -> None:
    """Measure and print: tables for people, or with ``--json`` one object a line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=_ABOUT,
        epilog=explained(sys.argv[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
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
                **TOPICS[topic].module.measure(directory, options),
            }
        if options.json:
            print(json.dumps(result), flush=True)
        else:
            json.dump(result, sys.stdout, indent=2)
            print(flush=True)


if __name__ == "__main__":
    main()
