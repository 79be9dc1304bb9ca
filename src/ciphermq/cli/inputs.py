"""What is sent: a regular file, or whatever comes from a pipe, a terminal, a device."""

from __future__ import annotations

import asyncio
import os
import stat
import threading
from collections.abc import Callable
from typing import Final, TypeVar

from ciphermq.errors import UsageError

T = TypeVar("T")

STANDARD_INPUT: Final = "-"


class Input:
    """An open file to read from, by its descriptor: no buffer of Python's is in between, whose
    lock a thread that still reads would hold when the program wants to end."""

    def __init__(self, name: str) -> None:
        """`UsageError` when the file can't be opened."""
        self._owned = name != STANDARD_INPUT
        try:
            self._fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC) if self._owned else 0
        except OSError as error:
            raise UsageError(f"{name} can't be read: {error.strerror}") from error
        status = os.fstat(self._fd)
        if stat.S_ISDIR(status.st_mode):
            self.close()
            raise UsageError(f"{name} can't be read: it is a directory")
        self.name = os.path.realpath(name) if self._owned else STANDARD_INPUT
        self.regular = stat.S_ISREG(status.st_mode)
        """Whether it is there already: no read waits for a writer."""
        self.size = status.st_size if self.regular else None

    def read1(self, size: int, /) -> bytes:
        """What one read gives; nothing at the end."""
        return os.read(self._fd, size)

    def seek(self, offset: int) -> None:
        """Go on reading at byte `offset`; for a regular file."""
        os.lseek(self._fd, offset, os.SEEK_SET)

    async def reading(self, read: Callable[[], T]) -> T:
        """The result of `read`, which reads from this; the event loop goes on meanwhile."""
        return read() if self.regular else await in_daemon_thread(read)

    def close(self) -> None:
        """Close the file; standard input is not ours to close."""
        if self._owned:
            os.close(self._fd)


async def in_daemon_thread(call: Callable[[], T]) -> T:
    """The result of `call`, which may wait for ever and then keeps nobody from ending.

    `asyncio.to_thread` would: its threads are waited for at the end of the program, and nothing
    ends a read from a terminal where nobody types.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: T | None = None
        error: BaseException | None = None
        try:
            result = call()
        except BaseException as raised:  # noqa: BLE001  (it is the caller's, who awaits it)
            error = raised
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="ciphermq-input", daemon=True).start()
    return await future
