"""Which messages share a batch: decisions only, without a clock.

Alone, a message goes at once. What arrives while a batch is out goes together as soon as it is
confirmed, and a batch that is full goes whenever there is room under way. So a slow trickle has
the least delay and a flood the least work, and nobody has to choose.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from ciphermq import limits
from ciphermq.model.body import HEAD_SIZE

_GRAIN_MS: Final = int(limits.EXPIRY_GRAIN * 1000)

T = TypeVar("T")


@dataclass(eq=False, slots=True)
class Item(Generic[T]):
    """One message on its way into a batch."""

    content: T
    size: int
    """What it adds to the plaintext."""
    expires_ms: int = 0
    """0: never."""
    group: Group[T] | None = None


class Group(Generic[T]):
    """The messages of one batch to be."""

    __slots__ = ("_latest_ms", "expires_ms", "items", "size")

    def __init__(self, first: Item[T]) -> None:
        self.items = [first]
        self.size = HEAD_SIZE + first.size
        self.expires_ms = first.expires_ms
        """When its batch ends: the earliest of its messages' ends, so that none lives longer
        than was asked; 0: never."""
        self._latest_ms = first.expires_ms

    def takes(self, item: Item[T], most_bytes: int, most_messages: int) -> bool:
        """Whether `item` may join."""
        return (
            self.size + item.size <= most_bytes
            and len(self.items) < most_messages
            and end_together(self.expires_ms, self._latest_ms, item.expires_ms)
        )

    def join(self, item: Item[T]) -> None:
        """Add an item that it takes."""
        self.items.append(item)
        self.size += item.size
        self.expires_ms = min(self.expires_ms, item.expires_ms)
        self._latest_ms = max(self._latest_ms, item.expires_ms)


def end_together(earliest_ms: int, latest_ms: int, expires_ms: int) -> bool:
    """Whether a message that ends at `expires_ms` may share a batch with others whose ends lie
    between the two; 0: never."""
    if not earliest_ms or not expires_ms:
        return earliest_ms == expires_ms
    return max(latest_ms, expires_ms) - min(earliest_ms, expires_ms) <= _GRAIN_MS


class Batcher(Generic[T]):
    """Messages in the order they came, cut into batches."""

    def __init__(
        self,
        most_bytes: int = limits.SEND_BATCH,
        most_messages: int = limits.MAX_BATCH_MESSAGES,
    ) -> None:
        """A message larger than `most_bytes` has a batch to itself."""
        self._most_bytes = most_bytes
        self._most_messages = most_messages
        self._full: deque[Group[T]] = deque()
        self._open: Group[T] | None = None
        self.size = 0
        """Bytes that wait here."""
        self.count = 0
        """Messages that wait here."""

    def add(self, item: Item[T]) -> None:
        """`item` comes after all others."""
        group = self._open
        if group is not None and group.takes(item, self._most_bytes, self._most_messages):
            group.join(item)
        else:
            if group is not None:
                self._full.append(group)
            group = self._open = Group(item)
        item.group = group
        self.size += item.size
        self.count += 1

    def drop(self, item: Item[T]) -> bool:
        """Forget `item`; False when it has been taken already."""
        group = item.group
        if group is None:
            return False
        group.items.remove(item)
        group.size -= item.size
        self._left(item)
        return True

    def take(self, *, idle: bool) -> Group[T] | None:
        """The next batch: a full one, or when nothing is out (`idle`) what there is."""
        group: Group[T] | None = None
        while self._full and not group:
            group = self._full.popleft()
            group = group if group.items else None
        if group is None and idle and self._open is not None:
            group, self._open = self._open, None
        if group is None or not group.items:
            return None
        for item in group.items:
            self._left(item)
        return group

    def _left(self, item: Item[T]) -> None:
        item.group = None
        self.size -= item.size
        self.count -= 1
