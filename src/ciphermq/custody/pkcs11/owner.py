"""One thread for one module, in one process: the only place from which a token is called.

A PKCS#11 module keeps state for the whole process (a logout in one session logs all of them out),
does not survive a fork, and blocks for as long as the device pleases. So a module has one owner: a
thread, made when it is first needed and anew in a child process, which loads the module itself and
does what it is given, one piece of work after the other. Nobody else ever holds an object of the
module.

Who gives it work waits for the answer, and not for ever. A call that hangs can't be taken back;
its caller is told `TokenAway`, and what waits behind it is dropped when its own caller has left.
"""

from __future__ import annotations

import os
import queue
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ciphermq import limits
from ciphermq.custody.guarded import Guarded
from ciphermq.custody.pkcs11 import library
from ciphermq.errors import TokenAway

if TYPE_CHECKING:
    from ciphermq.custody.pkcs11.address import Address
    from ciphermq.custody.pkcs11.desk import Desk

T = TypeVar("T")


class _Job(Generic[T]):
    """A piece of work, and then what came of it."""

    def __init__(self, work: Callable[[Owner], T]) -> None:
        self._work = work
        self._ended = threading.Event()
        self._result: T
        self._error: BaseException | None = None
        self._abandoned = False

    def run(self, owner: Owner) -> None:
        """In the owner's thread."""
        if self._abandoned:  # nobody waits: the device need not be troubled
            return
        try:
            self._result = self._work(owner)
        except BaseException as error:  # noqa: BLE001 - it is raised where it belongs
            self._error = error
        self._ended.set()

    def wait(self, seconds: float, what: str) -> T:
        """In the caller's thread."""
        if not self._ended.wait(seconds):
            self._abandoned = True
            raise TokenAway(
                f"{what} has not answered within {seconds:g} s: see whether the device is "
                "plugged in and its driver runs"
            )
        if self._error is not None:
            try:
                raise self._error
            finally:
                self._error = None  # no circle of frame and error
        return self._result


class Owner:
    """The owner of the module at `path`. Get it from `owner_of`."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: Guarded[str, int] = Guarded()
        """How often a token was called, by what for: it is what a token's speed is spent on."""
        self.desks: dict[tuple[Address, bool], Desk] = {}
        """Open sessions; the thread's own, nobody else may look."""
        self._module: Any = None
        self._jobs: queue.SimpleQueue[_Job[Any]] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"ciphermq token {path}", daemon=True).start()

    def do(self, work: Callable[[Owner], T], *, timeout: float = limits.TOKEN_TIMEOUT) -> T:
        """What `work` returns or raises, called with this owner in its thread.

        `TokenAway` when that takes longer than `timeout` seconds, with what waits before it.
        """
        job = _Job(work)
        self._jobs.put(job)
        return job.wait(timeout, f"the token module {self.path}")

    def module(self) -> Any:
        """The module, loaded at its first use. In the owner's thread only."""
        if self._module is None:
            self._module = library.load(self.path)
        library.initialise(self._module, self.path)
        return self._module

    def begin_anew(self) -> None:
        """Initialise the module once more: some see a token that was put back only then. Every
        session is gone after it. In the owner's thread only."""
        self.desks.clear()
        library.finalise(self.module())

    def count(self, what: str) -> None:
        """Note a call to a token."""
        with self.calls.lock() as calls:
            calls[what] = calls.get(what, 0) + 1

    def _work(self) -> None:
        while True:
            # The variable would hold the last job, and what is in it, while the next is waited for.
            self._jobs.get().run(self)


_owners: Guarded[tuple[int, str], Owner] = Guarded[tuple[int, str], Owner]().kept_at_forks()
"""By process and path. A child keeps its parent's too, so that nothing finalises the parent's
module in its name."""


def owner_of(path: str) -> Owner:
    """The owner of the module at `path` in this very process.

    A child that was forked gets one of its own: its parent's thread did not come with it, and its
    parent's sessions are not its own.
    """
    key = (os.getpid(), path)
    with _owners.lock() as owners:
        owner = owners.get(key)
        if owner is None:
            owner = owners[key] = Owner(path)
        return owner
