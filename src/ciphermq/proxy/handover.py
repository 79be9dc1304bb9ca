"""A restart without an interruption: the new process is given the old one's sockets.

Beside its control socket ``PATH`` a proxy listens on ``PATH.handover``. A successor connects there:

1. It says `TakeOver`. The old process answers with its `Estate`: the configuration as it is now,
   saved or not, and every listening socket, the control socket among them (SCM_RIGHTS). From here
   on it changes nothing more; if the successor dies, it goes on as if nothing had been.
2. The successor starts its workers, which accept from the same sockets as the old one's do.
3. It says `Taken`. The old process stops accepting and being steered, answers, and lets its
   sessions finish.
4. While they last, the new process passes on to it what it tells its own workers: changes, and
   whatever is asked of sessions (`Predecessor`). So a vhost is paused in both, and no session is
   out of reach.

No socket is ever closed that anybody could be waiting in, so no client is refused, and nobody who
connects to the control socket either.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, Final, Protocol

from ciphermq import limits
from ciphermq.errors import ChannelLost, HandoverFailed, ProxyError
from ciphermq.proxy.ipc import Channel, WithDescriptors, close_all
from ciphermq.proxy.messages import Estate, Steering, Taken, TakeOver, ToPredecessor
from ciphermq.telemetry import get_logger

VERSION: Final = 2
"""Of what is said here; a successor of another one is refused, and starts afresh."""

_CREDENTIALS: Final = struct.Struct("3i")

_log = get_logger("proxy.handover")


def place(control: Path) -> Path:
    """Where the proxy with this control socket is succeeded."""
    return control.with_name(control.name + ".handover")


class Testator(Protocol):
    """What the old process does about it."""

    async def bequeath(self) -> tuple[Estate, list[int]]:
        """Change nothing from now on, and say what there is. `ProxyError` when it can't be."""

    def keep(self) -> None:
        """The successor has failed, maybe before it was given anything: go on."""

    async def let_go(self) -> None:
        """The successor serves: stop accepting and being steered; then drain, and end.
        `ProxyError` when nothing was bequeathed."""

    async def follow(self, message: Steering) -> Any:
        """The successor was told this, and it concerns the sessions that are left here, too."""


class Handover:
    """The old process' side: waits for a successor."""

    def __init__(self, control: Path, testator: Testator) -> None:
        self._path = place(control)
        self._testator = testator
        self._loop = asyncio.get_running_loop()
        self._channel: Channel | None = None
        self._gone = False
        # Over whatever a predecessor left: whoever owns the control socket owns this.
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setblocking(False)
        former = os.umask(0o177)
        try:
            self._socket.bind(str(self._path))
        finally:
            os.umask(former)
        self._socket.listen(1)
        self._loop.add_reader(self._socket.fileno(), self._accept)

    def close(self, *, unlink: bool) -> None:
        """Wait for nobody any more. Not unlinked where the successor has its own there by now."""
        if self._gone:
            return
        self._gone = True
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        if unlink:
            self._path.unlink(missing_ok=True)

    def _accept(self) -> None:
        try:
            sock, _ = self._socket.accept()
        except OSError:
            return
        sock.setblocking(False)
        raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        _, user, _ = _CREDENTIALS.unpack(raw)
        if user not in (0, os.geteuid()) or self._channel is not None:
            sock.close()  # a stranger, or a second successor at a time
            return
        self._channel = Channel(sock, ToPredecessor, self._handle, self._lost)

    async def _handle(self, message: Any, _: list[int]) -> Any:
        if isinstance(message, Taken):
            await self._testator.let_go()
            self.close(unlink=False)
            return None
        if not isinstance(message, TakeOver):
            if not self._gone:
                raise ProxyError("This proxy has no successor yet.")
            return await self._testator.follow(message)
        if message.version != VERSION:
            raise HandoverFailed(
                f"The running proxy hands over in version {VERSION}, not {message.version}: "
                "stop it, and start the new one without --take-over."
            )
        estate, descriptors = await self._testator.bequeath()
        _log.info("a successor takes over")
        return WithDescriptors(estate, descriptors)

    def _lost(self) -> None:
        self._channel = None
        if not self._gone:
            _log.error("the successor has failed: this proxy goes on")
            self._testator.keep()


class Succession:
    """The new process' side, from `begin` to `finish`."""

    def __init__(self, predecessor: Predecessor, estate: Estate, descriptors: list[int]) -> None:
        self.predecessor = predecessor
        self._finished = False
        self.estate = estate
        self.control = socket.socket(fileno=descriptors[0])
        """The control socket, which listens already."""
        self._descriptors = descriptors[1:]

    def take_descriptors(self) -> list[int]:
        """Of the estate's listeners, in order; the caller's from now on."""
        taken, self._descriptors = self._descriptors, []
        return taken

    @classmethod
    async def begin(cls, control: Path) -> Succession:
        """Ask the proxy that runs at `control` for everything. `HandoverFailed` if it can't be."""
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            sock.setblocking(False)
            sock.connect(str(place(control)))
        except OSError as error:
            sock.close()
            raise HandoverFailed(
                f"No proxy hands over at {place(control)}: {error.strerror}. Is one running with "
                f"the control socket {control}?"
            ) from error

        predecessor = Predecessor(sock)
        estate, descriptors = await predecessor.hand_over(TakeOver(VERSION))
        return cls(predecessor, estate, descriptors)

    async def finish(self) -> Predecessor:
        """Say that this process serves; when this returns, the old one no longer does."""
        await self.predecessor.hand_over(Taken())
        self._finished = True
        return self.predecessor

    def abandon(self) -> None:
        """Leave everything to the old process. Nothing, after `finish`."""
        if not self._finished:
            self._finished = True
            self.predecessor.close()
            self.control.close()
            close_all(self._descriptors)


class Predecessor:
    """The old process, as the new one sees it: until it has handed over, and then until the last of
    its sessions has ended."""

    def __init__(self, sock: socket.socket) -> None:
        """`sock` is connected to its `Handover`."""
        self._ended = asyncio.Event()
        self._channel = Channel(sock, ToPredecessor, _heed, self._ended.set)

    async def hand_over(self, question: TakeOver | Taken) -> Any:
        """Its answer to a step of the handover. `HandoverFailed` when there is none."""
        try:
            async with asyncio.timeout(limits.PROXY_HANDOVER_TIMEOUT):
                return await self._channel.ask(question)
        except TimeoutError as error:
            self.close()
            raise HandoverFailed("The running proxy doesn't answer its successor.") from error
        except ChannelLost as error:
            raise HandoverFailed("The running proxy has ended while it handed over.") from error
        except ProxyError as error:
            self.close()
            raise HandoverFailed(str(error)) from error

    def ask(
        self, question: Steering, patience: float = limits.PROXY_ANSWER_TIMEOUT
    ) -> Awaitable[Any]:
        """Its answer, or None when it has ended or does meanwhile. It has been asked when this
        returns. `ProxyError` when it refuses or is late."""
        return self._answer(self._channel.ask(question), patience)

    async def ended(self) -> None:
        """Wait for its end."""
        await self._ended.wait()

    def close(self) -> None:
        """Say nothing to it any more. May be repeated."""
        self._channel.close()
        self._ended.set()

    @staticmethod
    async def _answer(answer: Awaitable[Any], patience: float) -> Any:
        try:
            async with asyncio.timeout(patience):
                return await answer
        except ChannelLost:
            return None
        except TimeoutError as error:
            raise ProxyError(
                "The process before this one, where sessions still go on, doesn't answer."
            ) from error


async def _heed(_: Any, __: list[int]) -> None:
    """A predecessor asks nothing."""
