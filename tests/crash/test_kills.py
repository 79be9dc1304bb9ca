"""A file goes in at one end and comes out at the other, whoever is killed on the way.

Each run draws its kill points before it begins: how much is to have come out, who dies then, how
much later, and whether the one that is just starting again dies once more. So a seed gives the
same plan on every machine, and every kill is one in the middle.
"""

from __future__ import annotations

import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from ciphermq.cli.processes import Process, Stage, free_port

pytestmark = [pytest.mark.crash, pytest.mark.slow, pytest.mark.timeout(400)]

FIRST, SEEDS = (int(n) for n in os.environ.get("CRASH_SEEDS", "1+4").split("+"))
"""``CRASH_SEEDS=100+40 make test ARGS=tests/crash`` tries forty others."""
POINTS = 14
PATIENCE = 60.0


class Kill(NamedTuple):
    at: int
    """Bytes that have come out."""
    victim: str
    delay: float
    again: float | None
    """Seconds after its new start at which it dies once more."""


def plan(rng: random.Random, size: int) -> list[Kill]:
    points = sorted(rng.sample(range(1, size * 9 // 10), POINTS))
    # Each of the three dies about as often; which when is chance.
    victims = ["broker", "sender", "receiver"] * -(-POINTS // 3)
    rng.shuffle(victims)
    return [
        Kill(
            at,
            victim,
            delay=rng.uniform(0, 0.05),
            again=rng.uniform(0, 1.0) if rng.random() < 0.4 else None,
        )
        for at, victim in zip(points, victims, strict=False)
    ]


class Run:
    """The three processes, and what has come out so far."""

    def __init__(self, stage: Stage, source: Path) -> None:
        self.stage = stage
        self.source = source
        self.result = stage.directory / "received"
        self.kills = 0
        self.running: dict[str, Process] = {}

    def start(self, name: str) -> None:
        directory = self.stage.directory
        words, identity = {
            "broker": (["server", "--config", str(self.stage.deployment.config)], None),
            "sender": (
                ["send", "bob", str(self.source), "--outbox", str(directory / "outbox")],
                "alice",
            ),
            "receiver": (
                ["receive", "--inbox", str(directory / "inbox"), "--raw", "--to", str(self.result)],
                "bob",
            ),
        }[name]
        self.running[name] = self.stage.start(name, *words, identity=identity)

    @property
    def size(self) -> int:
        return self.result.stat().st_size if self.result.exists() else 0

    def watch(self) -> Iterator[int]:
        """The size of what has come out, until it is all and the sender says it is done."""
        deadline = time.monotonic() + PATIENCE
        size, total = -1, self.source.stat().st_size
        while size < total or self.running["sender"].running:
            if self.size != size:
                size, deadline = self.size, time.monotonic() + PATIENCE
            assert time.monotonic() < deadline, self.outputs()
            for name in ("sender", "receiver"):
                self.mend(name)
            assert self.running["broker"].running, self.outputs()
            yield size
            time.sleep(0.003)

    def mend(self, name: str) -> None:
        """Start a client again that found the broker away for longer than it cares to wait."""
        process = self.running[name]
        if process.running or (name == "sender" and process.wait() == 0):
            return
        assert (
            "can't be reached" in process.output
            or "nothing listens" in process.output
            or ("ended the connection" in process.output)
        ), self.outputs()
        self.start(name)

    def kill(self, kill: Kill) -> None:
        time.sleep(kill.delay)
        if kill.victim == "sender" and not self.running["sender"].running:
            kill = kill._replace(victim="receiver")
        self.strike(kill.victim)
        if kill.again is not None:
            time.sleep(kill.again)
            self.strike(kill.victim)

    def strike(self, victim: str) -> None:
        self.running[victim].kill()
        self.kills += 1
        self.start(victim)

    def outputs(self) -> str:
        return "\n".join(f"--- {name}\n{each.output}" for name, each in self.running.items())


def short_lines(rng: random.Random) -> bytes:
    """Over 100,000 lines as people write them, some empty, some alike."""
    words = [f"{rng.getrandbits(32):x}" for _ in range(500)]
    lines = [" ".join(rng.choices(words, k=rng.randrange(12))) for _ in range(110_000)]
    return "\n".join(lines).encode() + b"\n"


def wild_lines(rng: random.Random) -> bytes:
    """Bytes of every kind, lines of up to 4 kB, and no line break at the end."""
    lines = [rng.randbytes(rng.randrange(1, 4000)).replace(b"\n", b"\r") for _ in range(12_000)]
    return b"\n".join(lines)


@pytest.mark.parametrize("seed", range(FIRST, FIRST + SEEDS))
def test_a_file_survives_every_kill(seed: int, tmp_path: Path) -> None:
    rng = random.Random(seed)
    source = tmp_path / "sent"
    source.write_bytes(wild_lines(rng) if seed % 2 else short_lines(rng))
    kills = plan(rng, source.stat().st_size)
    with Stage(tmp_path / "stage", ["alice", "bob"], port=free_port()) as stage:
        run = Run(stage, source)
        run.running["broker"] = stage.broker()
        stage.register("bob")
        run.start("receiver")
        run.start("sender")
        for size in run.watch():
            while kills and size >= kills[0].at:
                run.kill(kills.pop(0))
        # The last receiver may have found the broker away, with nobody left to start another: the
        # file was whole already. One that starts now finds the broker there.
        run.running["broker"].wait_for("ciphermq ready on")
        run.mend("receiver")
        run.strike("receiver")
        stage.wait_until_empty("bob")
        # One that is just starting again has no handler for SIGTERM yet.
        assert run.running["receiver"].stop() in {0, -signal.SIGTERM}
        assert run.running["broker"].stop() == 0

        assert run.kills > POINTS
        assert digest(run.result) == digest(source)
        checked = stage.start("verify", "journal", "verify", str(stage.deployment.server / "data"))
        assert checked.wait() == 0, checked.output


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
