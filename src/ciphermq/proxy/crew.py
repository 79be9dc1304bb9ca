"""The supervisor's workers: started, asked, and started anew when one dies."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from ciphermq import limits
from ciphermq.errors import ChannelLost, ProxyError
from ciphermq.proxy.ipc import Channel, socket_pair
from ciphermq.proxy.messages import Begin, ToSupervisor
from ciphermq.telemetry import get_logger

_log = get_logger("proxy.supervisor")

_WORKER: Final = "ciphermq.proxy.worker"

Beginning = Callable[[int], tuple[Begin, Sequence[int]]]
"""What a worker, from 0, is told first, with the sockets it accepts from."""
OnMessage = Callable[[int, Any], Awaitable[Any]]
OnDeath = Callable[[int], None]


class _Member:
    """One worker's place, whichever process holds it now."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.channel: Channel | None = None
        self.process: asyncio.subprocess.Process | None = None
        self.keeper: asyncio.Task[None] | None = None


class Crew:
    """As many workers as there shall be. All of it is for the event loop's thread."""

    def __init__(
        self, size: int, beginning: Beginning, on_message: OnMessage, on_death: OnDeath
    ) -> None:
        self.size = size
        self.restarts = 0
        """Workers that had to be started anew."""
        self._beginning = beginning
        self._on_message = on_message
        self._on_death = on_death
        self._members = [_Member(number) for number in range(size)]
        self._ending = asyncio.Event()

    async def start(self) -> None:
        """Start all of them. `ProxyError` when one doesn't begin."""
        loop = asyncio.get_running_loop()
        begun = [loop.create_future() for _ in self._members]
        for member, future in zip(self._members, begun, strict=True):
            member.keeper = loop.create_task(self._keep(member, future))
        await asyncio.gather(*begun)

    async def ask(self, number: int, question: Any, descriptors: Sequence[int] = ()) -> Any:
        """One worker's answer; None from one that is dead or dies meanwhile."""
        (answer,) = await self._gather([(self._members[number], question, descriptors)])
        return answer

    def ask_all(
        self,
        question: Callable[[int], Any],
        descriptors: Callable[[int], Sequence[int]] = lambda _: (),
        patience: float | None = limits.PROXY_ANSWER_TIMEOUT,
    ) -> Awaitable[list[Any]]:
        """Every worker's answer, in order; None from those that are dead or die meanwhile.

        All have been asked when this returns, before anything is awaited. `ProxyError` when one
        refuses or is late.
        """
        asked = [(one, question(one.number), descriptors(one.number)) for one in self._members]
        return self._gather(asked, patience)

    def pids(self) -> list[int | None]:
        """The workers' processes."""
        return [one.process.pid if one.process else None for one in self._members]

    async def stop(self) -> None:
        """End all of them, at once; none is left when this returns. May be repeated."""
        self._ending.set()
        keepers = [one.keeper for one in self._members if one.keeper is not None]
        for member in self._members:
            if member.channel is not None:
                member.channel.close()
            self._kill(member)
        for keeper in keepers:
            keeper.cancel()
        await asyncio.gather(*keepers, return_exceptions=True)
        # What a worker holds, sockets above all, is free only when it is really gone.
        gone = [asyncio.ensure_future(one.process.wait()) for one in self._members if one.process]
        if gone:
            await asyncio.wait(gone, timeout=limits.PROXY_WORKER_KILL)

    def _gather(
        self,
        asked: Sequence[tuple[_Member, Any, Sequence[int]]],
        patience: float | None = limits.PROXY_ANSWER_TIMEOUT,
    ) -> Awaitable[list[Any]]:
        futures = [
            (member, member.channel.ask(question, descriptors))
            for member, question, descriptors in asked
            if member.channel is not None
        ]
        return self._answers([member for member, _, _ in asked], dict(futures), patience)

    async def _answers(
        self,
        members: Sequence[_Member],
        futures: dict[_Member, asyncio.Future[Any]],
        patience: float | None,
    ) -> list[Any]:
        if futures:
            await asyncio.wait(futures.values(), timeout=patience)
        answers: list[Any] = []
        for member in members:
            future = futures.get(member)
            if future is None:
                answers.append(None)
                continue
            if not future.done():
                future.cancel()
                raise ProxyError(f"Worker {member.number + 1} doesn't answer.")
            try:
                answers.append(future.result())
            except ChannelLost:
                answers.append(None)
        return answers

    async def _keep(self, member: _Member, begun: asyncio.Future[None]) -> None:
        """Start a worker, wait for its death, start it anew, for ever."""
        loop = asyncio.get_running_loop()
        while True:
            started = loop.time()
            try:
                await self._spawn(member)
            except (ProxyError, OSError, TimeoutError) as error:
                if not begun.done():
                    begun.set_exception(ProxyError(f"A worker can't be started: {error}"))
                    return
                _log.error("worker can't be started", worker=member.number + 1, reason=str(error))
                self._kill(member)
            else:
                if not begun.done():
                    begun.set_result(None)
                elif member.process is not None:
                    _log.info("worker started", worker=member.number + 1, pid=member.process.pid)
            how = await self._death(member)
            if self._ending.is_set():
                return
            self.restarts += 1
            _log.error("worker died, and is started anew", worker=member.number + 1, how=how)
            self._on_death(member.number)
            if loop.time() - started < limits.PROXY_WORKER_STEADY:
                await asyncio.sleep(limits.PROXY_WORKER_PAUSE)

    async def _spawn(self, member: _Member) -> None:
        near, far = socket_pair()
        try:
            with far:
                member.process = await asyncio.create_subprocess_exec(
                    sys.executable,
                    "-m",
                    _WORKER,
                    str(far.fileno()),
                    pass_fds=(far.fileno(),),
                    stdin=asyncio.subprocess.DEVNULL,
                )
        except BaseException:
            near.close()
            raise

        async def handle(message: Any, _: list[int]) -> Any:
            return await self._on_message(member.number, message)

        channel = member.channel = Channel(near, ToSupervisor, handle)
        # Nothing may come between: what changes from here on is told it after this.
        begin, descriptors = self._beginning(member.number)
        beginning = channel.ask(begin, descriptors)
        async with asyncio.timeout(limits.PROXY_WORKER_START):
            await beginning

    @staticmethod
    def _kill(member: _Member) -> None:
        if member.process is not None and member.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                member.process.kill()

    async def _death(self, member: _Member) -> str:
        if member.process is None:
            return "it never lived"
        code = await member.process.wait()
        if member.channel is not None:
            member.channel.close()
            member.channel = None
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
