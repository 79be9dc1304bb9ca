"""The demo's run: what goes in, who is killed when, and what came out."""

from __future__ import annotations

import hashlib
import itertools
import json
import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ciphermq.cli.processes import Process, Stage, free_port
from ciphermq.errors import Unfinished

if TYPE_CHECKING:
    from rich.console import Console

    from ciphermq.client.tokens import TokenPlan

_SENDER: Final = "alice"
_RECEIVER: Final = "bob"
_RECEIVER_DIES_AT: Final = 0.3
_BROKER_DIES_AT: Final = 0.6
"""After the receiver, so that one receiver sees all that comes again, and can count it."""
_TICK: Final = 0.005
_PATIENCE: Final = 120.0
"""Seconds without any progress, on however slow a machine."""


class Outcome(msgspec.Struct, frozen=True):
    """What was found."""

    sent: int
    confirmed: int
    received: int
    duplicates_dropped: int
    lost: int
    shown_twice: int
    checksum_equal: bool
    kills: int
    messages_per_second: int

    @property
    def perfect(self) -> bool:
        """Whether every line came out, once, in its place."""
        return self.checksum_equal and not self.lost and not self.shown_twice

    def as_dict(self) -> dict[str, Any]:
        """The members, for JSON."""
        return msgspec.structs.asdict(self)


class Rehearsal:
    """One run in `directory`: lines go from one client to another while others are killed."""

    def __init__(
        self,
        directory: Path,
        messages: int,
        *,
        kill: bool,
        console: Console,
        softhsm: bool = False,
    ) -> None:
        """`softhsm`: the receiver's key is on a token, made for the run."""
        self._softhsm = softhsm
        self._directory = directory
        self._messages = messages
        self._console = console
        self._sent = directory / "sent.txt"
        self._received = directory / "received.txt"
        self._deaths = [
            (_RECEIVER_DIES_AT, self._kill_receiver),
            (_BROKER_DIES_AT, self._kill_broker),
        ] * kill
        self._kills = 0
        self._broker: Process
        self._receiver: Process

    def run(self) -> Outcome:
        """Set the stage, play, compare."""
        lines, whence = real_lines(self._messages)
        self._sent.write_bytes(b"".join(lines))
        self._say(f"{len(lines):,} lines of {whence}")
        clients = [_SENDER, _RECEIVER]
        with Stage(
            self._directory / "run", clients, port=free_port(), plans=self._plans()
        ) as stage:
            return self._play(stage, lines)

    def _plans(self) -> dict[str, TokenPlan]:
        if not self._softhsm:
            return {}
        from ciphermq.cli.softhsm import SoftToken

        made = SoftToken(self._directory / "hsm")
        self._say(f"{_RECEIVER}'s key is made on {made.token} of SoftHSM, and stays there")
        return {_RECEIVER: made.plan()}

    def _play(self, stage: Stage, lines: list[bytes]) -> Outcome:
        self._broker = stage.broker()
        self._say("a broker listens, for mutual TLS only")
        stage.register(_RECEIVER)
        self._receiver = self._start_receiver(stage)
        began = time.monotonic()
        sender = self._start_sender(stage)
        with self._progress() as progress:
            bar = progress.add_task("received", total=len(lines))
            for share in self._shares(sender):
                progress.update(bar, completed=int(share * len(lines)))
                if self._deaths and share >= self._deaths[0][0]:
                    self._deaths.pop(0)[1](stage)
        took = time.monotonic() - began
        confirmed = json.loads(sender.output.splitlines()[-1])["confirmed"]
        stage.wait_until_empty(_RECEIVER)
        self._receiver.stop()
        self._broker.stop()
        came_again = re.search(r"(\d+) came again", self._receiver.output)
        dropped = int(came_again[1]) if came_again else 0
        return self._compare(lines, confirmed, dropped, took)

    # --- the players ----------------------------------------------------------------------------

    def _start_sender(self, stage: Stage) -> Process:
        outbox = str(self._directory / "outbox.sqlite")
        words = ("send", _RECEIVER, str(self._sent), "--outbox", outbox, "--json")
        return stage.start("sender", *words, identity=_SENDER)

    def _start_receiver(self, stage: Stage) -> Process:
        inbox = str(self._directory / "inbox.sqlite")
        words = ("receive", "--inbox", inbox, "--raw", "--to", str(self._received))
        return stage.start("receiver", *words, identity=_RECEIVER)

    def _kill_broker(self, stage: Stage) -> None:
        self._broker.kill()
        self._kills += 1
        self._say("the broker is killed with SIGKILL, and started again")
        self._broker = stage.broker()

    def _kill_receiver(self, stage: Stage) -> None:
        self._receiver.kill()
        self._kills += 1
        self._say("the receiver is killed with SIGKILL, and started again")
        stage.wait_for_consumers(0)
        self._receiver = self._start_receiver(stage)
        # The broker dies next: a receiver that is just starting would not wait for it.
        stage.wait_for_consumers(1)

    # --- watching -------------------------------------------------------------------------------

    def _shares(self, sender: Process) -> Iterator[float]:
        """How much has been received so far, again and again, until it is all and the sender has
        ended."""
        total = self._sent.stat().st_size
        size, changed = 0, time.monotonic()
        while size < total or sender.running or self._deaths:
            yield min(size / total, 1.0)
            time.sleep(_TICK)
            before, size = size, self._received.stat().st_size if self._received.exists() else 0
            if size != before:
                changed = time.monotonic()
            elif time.monotonic() - changed > _PATIENCE:
                raise Unfinished(
                    f"nothing has moved for {_PATIENCE:g} s, with {size} of {total} bytes "
                    "received; with --keep DIR the logs are left in DIR/run"
                )
            for process in (self._broker, self._receiver, sender):
                if not process.running and (process is not sender or process.wait()):
                    raise Unfinished(f"{process.name} ended by itself: {process.output}")
        yield 1.0

    def _compare(self, lines: list[bytes], confirmed: int, dropped: int, took: float) -> Outcome:
        result = self._received.read_bytes()
        came = result.splitlines(keepends=True)
        missing, extra = Counter(lines), Counter(came)
        missing.subtract(came)
        extra.subtract(lines)
        return Outcome(
            sent=len(lines),
            confirmed=confirmed,
            received=len(came),
            duplicates_dropped=dropped,
            lost=(+missing).total(),
            shown_twice=(+extra).total(),
            checksum_equal=_checksum(result) == _checksum(self._sent.read_bytes()),
            kills=self._kills,
            messages_per_second=round(len(came) / took),
        )

    def _progress(self) -> Progress:
        return Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
        )

    def _say(self, sentence: str) -> None:
        self._console.print(f"[dim]·[/dim] {sentence}", highlight=False)


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what is sent ---------------------------------------------------------------------------------


def real_lines(count: int) -> tuple[list[bytes], str]:
    """So many lines of this machine's own, and whence they are: from its word lists, its lists of
    installed files, or else its Python's library; from the beginning again if there are fewer."""
    for whence, paths in (
        ("words of /usr/share/dict", Path("/usr/share/dict").glob("*")),
        ("this machine's package lists", Path("/var/lib/dpkg/info").glob("*.list")),
        ("Python's own library", Path(sysconfig.get_path("stdlib")).rglob("*.py")),
    ):
        found = list(itertools.islice(_lines_of(paths), count))
        if found:
            return list(itertools.islice(itertools.cycle(found), count)), whence
    raise Unfinished("this machine has no text to send: not even Python's own library")


def _lines_of(paths: Iterable[Path]) -> Iterator[bytes]:
    for path in sorted(path for path in paths if path.is_file()):
        for line in path.read_bytes().splitlines():
            yield line + b"\n"
