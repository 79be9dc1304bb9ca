"""A map that several threads share, and that none can touch without its lock.

A lock beside the data it protects protects nothing from whoever forgets it. Here the map is inside,
and the only way to it is `lock`, which gives a view for as long as the lock is held::

    totals = Guarded({"signed": 0})
    with totals.lock() as view:
        view["signed"] += 1
        high = sum(number for number in view.values() if number > 100)

Iterating holds the lock too, and its iterators are the view's: when the block has ended, the view,
and whatever was made from it, is dead and says so. It is also dead to any other thread. What Python
can't stop is a mutable *value* that is carried out of the block; so values are immutable here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import Generic, Self, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Guarded(Generic[K, V]):
    """A map and its lock, in one."""

    __slots__ = ("__holder", "__lock", "__map")

    def __init__(self, content: Mapping[K, V] | None = None) -> None:
        """Holds a copy of `content`, so that nobody has another way in."""
        self.__map: dict[K, V] = dict(content or {})
        self.__lock = threading.Lock()
        self.__holder: int | None = None

    @contextmanager
    def lock(self) -> Iterator[View[K, V]]:
        """Wait for the lock, and hold it to the end of the block.

        `RuntimeError` when this thread holds it already: it would wait for itself for ever.
        """
        me = threading.get_ident()
        if self.__holder == me:
            raise RuntimeError("this thread holds the lock already")
        with self.__lock:
            self.__holder = me
            view = View(self.__map, me)
            try:
                yield view
            finally:
                view.release()
                self.__holder = None

    def kept_at_forks(self) -> Self:
        """Have no thread hold the lock at the moment of a fork: a child has no other thread that
        could ever release it. For what lives as long as the process."""
        os.register_at_fork(
            before=self.__lock.acquire,
            after_in_parent=self.__lock.release,
            after_in_child=self.__lock.release,
        )
        return self

    def __repr__(self) -> str:
        return "<Guarded: lock it to see what is inside>"


class View(MutableMapping[K, V]):
    """A `Guarded` map while its lock is held. Raises `RuntimeError` ever after."""

    __slots__ = ("__map", "__thread")

    def __init__(self, content: dict[K, V], thread: int) -> None:
        """Made by `Guarded.lock` alone."""
        self.__map: dict[K, V] | None = content
        self.__thread = thread

    def __getitem__(self, key: K) -> V:
        return self.__alive()[key]

    def __setitem__(self, key: K, value: V) -> None:
        self.__alive()[key] = value

    def __delitem__(self, key: K) -> None:
        del self.__alive()[key]

    def __len__(self) -> int:
        return len(self.__alive())

    def __contains__(self, key: object) -> bool:
        return key in self.__alive()

    def __iter__(self) -> Iterator[K]:
        # Asked at each step: an iterator that left the block must not go on without the lock.
        steps = iter(self.__alive())
        while True:
            self.__alive()
            try:
                key = next(steps)
            except StopIteration:
                return
            yield key

    def __repr__(self) -> str:
        return "<a locked view>" if self.__map is not None else "<a view whose lock is released>"

    def release(self) -> None:
        """Be dead from now on."""
        self.__map = None

    def __alive(self) -> dict[K, V]:
        if self.__map is None:
            raise RuntimeError("the lock was released: this view is dead")
        if threading.get_ident() != self.__thread:
            raise RuntimeError("another thread holds the lock: this view is not yours")
        return self.__map
