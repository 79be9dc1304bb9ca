"""A broker as simple as can be: lists of single messages, searched from the front.

Places in a queue, states of a message, and nothing about batches but that what came together goes
out together. The state machine in `test_broker_machine.py` holds the real one against it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ciphermq.model.topology import QueueSpec

BACKOFF_MS = [1000, 2000, 4000, 8000, 16000, 32000, 60000]


@dataclass
class Message:
    tries: int = 0
    given: int = 0
    tag: int | None = None
    """In whose hands."""
    until_ms: int = 0
    """Back-off."""

    @property
    def ready(self) -> bool:
        return self.tag is None and not self.until_ms


@dataclass(eq=False)
class Group:
    """Messages of one batch that came into a queue together."""

    number: int
    messages: dict[int, Message]
    placed_ms: int
    expires_ms: int
    boundary: int
    """The last record of the step that placed it."""
    onex: bool = False
    """A message of CipherMQ 1.x."""
    dead: tuple[str, str] | None = None
    """Source queue and reason."""
    recovered: bool = False

    def bits(self, wanted: Callable[[Message], bool] = lambda _: True) -> int:
        return sum(1 << index for index, message in self.messages.items() if wanted(message))


@dataclass
class Model:
    specs: dict[str, QueueSpec] = field(default_factory=dict)
    queues: dict[str, list[Group]] = field(default_factory=dict)
    seen: dict[int, int] = field(default_factory=dict)
    """Batch number to when it was published."""
    durable: int = 0

    def copy(self) -> Model:
        return copy.deepcopy(self)

    def forget_hands(self) -> None:
        """After a crash: nobody holds anything, nothing waits for its back-off."""
        for group in self.groups():
            group.recovered = True
            for message in group.messages.values():
                message.tag, message.until_ms, message.given = None, 0, message.tries

    # --- looking ------------------------------------------------------------------------------

    def groups(self) -> Iterator[Group]:
        for queue in self.queues.values():
            yield from queue

    def expires_ms(self, name: str, group: Group) -> int:
        if name.startswith("dead."):
            return 0
        ttl_ms = self.specs[name].ttl_ms
        times = [group.placed_ms + ttl_ms] if ttl_ms else []
        if group.expires_ms and group.dead is None:
            times.append(group.expires_ms)
        return min(times, default=0)

    def next_out(self, name: str, now: int, *, onex: bool = False) -> Group | None:
        """The oldest with something to give out; `onex`: to one who takes only 1.x."""
        for group in self.queues[name]:
            if group.boundary > self.durable:
                break
            if group.onex >= onex and group.bits(lambda message: message.ready):
                assert not 0 < self.expires_ms(name, group) <= now
                return group
        return None

    def held(self, tag: int) -> tuple[str, Group, int]:
        for name, queue in self.queues.items():
            for group in queue:
                if bits := group.bits(lambda message: message.tag == tag):
                    return name, group, bits
        raise LookupError(tag)

    # --- steps --------------------------------------------------------------------------------

    def remove(self, name: str, group: Group, bits: int) -> dict[int, Message]:
        gone = {i: group.messages.pop(i) for i in list(group.messages) if bits >> i & 1}
        if not group.messages:
            self.queues[name].remove(group)
        return gone

    def bury(self, name: str, group: Group, bits: int, reason: str, now: int, end: int) -> None:
        spec = self.specs[name]
        target = f"dead.{name}"
        if spec.dead_letter_exchange is not None and group.dead is None:
            other = spec.dead_letter_key or ""
            room = self.specs[other].max_messages if other in self.specs else 0
            if (
                sum(len(each.messages) for each in self.queues.get(other, [])) + (bits.bit_count())
                <= room
            ):
                target = other
        if target not in self.specs:
            self.specs[target] = QueueSpec(target, owner=spec.owner)
            self.queues[target] = []
        gone = self.remove(name, group, bits)
        self.queues[target].append(
            Group(
                group.number,
                {index: Message() for index in gone},
                now,
                group.expires_ms,
                end,
                group.onex,
                (name, reason),
            )
        )

    def try_again(
        self, name: str, group: Group, bits: int, reason: str, now: int, end: int
    ) -> None:
        """A nack (`tries`) or a time-out."""
        last = 0
        for index, message in group.messages.items():
            if not bits >> index & 1:
                continue
            message.tag = None
            if message.tries + 1 >= self.specs[name].max_tries and not name.startswith("dead."):
                last |= 1 << index
                continue
            message.tries += 1
            message.given += 1
            if reason == "tries":
                message.until_ms = now + BACKOFF_MS[min(message.tries, 7) - 1]
        if last:
            self.bury(name, group, last, reason, now, end)

    def give_back(self, wanted: Callable[[int], bool]) -> None:
        for group in self.groups():
            for message in group.messages.values():
                if message.tag is not None and wanted(message.tag):
                    message.tag = None
                    message.given += 1

    def pass_time(self, now: int, end: int) -> None:
        """Back-offs that are over, then expiry."""
        for group in self.groups():
            for message in group.messages.values():
                if 0 < message.until_ms <= now:
                    message.until_ms = 0
        for name in list(self.queues):
            for group in list(self.queues[name]):
                if 0 < self.expires_ms(name, group) <= now:
                    bits = group.bits(lambda message: message.tag is None)
                    if bits:
                        self.bury(name, group, bits, "expired", now, end)
