"""The proxy as the move sees it: a few commands of its control language."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any, Final

import msgspec

from ciphermq import limits
from ciphermq.errors import ConnectFailed, ConnectionLost, MoveError
from ciphermq.proxy.control.words import JSON, STATUS, quote
from ciphermq.proxy.model import Backend, Farm, Target
from ciphermq.proxy.move.record import Side

_DONE: Final = "0"
_AT_A_BROKER: Final = frozenset({"broker", "open", "leaving"})


class Proxy:
    """A running proxy, at its control socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    async def say(self, *words: str, as_json: bool = False) -> str:
        """Say one command; its answer. Raises ConnectFailed, ConnectionLost; MoveError with the
        proxy's sentence when it could not be done."""
        flags = [JSON, STATUS] if as_json else [STATUS]
        line = " ".join([*flags, *(quote(word) for word in words)])
        try:
            async with asyncio.timeout(limits.MOVE_ANSWER_TIMEOUT):
                reader, writer = await asyncio.open_unix_connection(str(self._socket))
                try:
                    writer.write(f"{line}\n".encode())
                    answer = (await reader.read(-1)).decode(errors="replace")
                finally:
                    writer.close()
        except TimeoutError:
            raise ConnectFailed(
                f"The proxy at {self._socket} does not answer within "
                f"{limits.MOVE_ANSWER_TIMEOUT:.0f} s"
            ) from None
        except OSError as error:
            raise ConnectFailed(f"The proxy can't be reached at {self._socket}: {error}") from error
        text, _, status = answer.rpartition("\0")
        if not status:
            raise ConnectionLost(f"The proxy at {self._socket} ended before it had answered")
        if status != _DONE:
            raise MoveError(f"The proxy refused {' '.join(words)}: {text.strip()}")
        return text

    async def _asked(self, *words: str) -> Any:
        return json.loads(await self.say(*words, as_json=True))

    # --- where a vhost goes ---------------------------------------------------------------------

    async def target(self, vhost: str) -> Target:
        """Where the vhost is mapped to, or falls back to."""
        maps = await self._asked("MAP", "PRINT")
        found = maps["vhosts"].get(vhost) or maps["default"]
        if not found:
            raise MoveError(
                f"The proxy has no map for vhost {vhost!r}, so its clients get nowhere: nothing "
                "to move"
            )
        ((kind, name),) = found.items()
        return Target(kind, name)

    async def backends(self, target: Target) -> list[Backend]:
        """The brokers that are meant, in the farm's order."""
        known = msgspec.convert(await self._asked("BACKEND", "PRINT"), list[Backend])
        by_name = {backend.name: backend for backend in known}
        names: tuple[str, ...] = (target.name,)
        if target.kind == "farm":
            farms = msgspec.convert(await self._asked("FARM", "PRINT"), list[Farm])
            found = next((farm for farm in farms if farm.name == target.name), None)
            if found is None:
                raise MoveError(f"The proxy has no farm {target.name!r} (FARM PRINT lists them)")
            names = found.backends
        if missing := [name for name in names if name not in by_name]:
            raise MoveError(f"The proxy has no backend {missing[0]!r} (BACKEND PRINT lists them)")
        return [by_name[name] for name in names]

    async def remap(self, vhost: str, side: Side) -> None:
        """New sessions of the vhost go there."""
        await self.say("MAP", side.kind.upper(), vhost, side.name)

    # --- its file -------------------------------------------------------------------------------

    async def file_is_current(self) -> bool | None:
        """Whether a restart would find what runs now; None when there is no file."""
        try:
            return not await self._asked("CONFIG", "DIFF")
        except MoveError:
            return None

    async def save(self) -> None:
        """Let a restart find what runs now."""
        await self.say("CONFIG", "SAVE")

    # --- its clients ----------------------------------------------------------------------------

    async def pause(self, vhost: str) -> None:
        """Hold new clients of the vhost."""
        await self.say("VHOST", "PAUSE", vhost)

    async def unpause(self, vhost: str) -> None:
        """Let them go on."""
        await self.say("VHOST", "UNPAUSE", vhost)

    async def sessions(self, vhost: str) -> list[int]:
        """Sessions of the vhost that have, or are getting, a connection to a broker: not those
        that are only held."""
        return [
            session["id"]
            for session in await self._asked("CONN")
            if session["vhost"] == vhost and session["state"] in _AT_A_BROKER
        ]

    async def end_session(self, number: int, *, force: bool) -> None:
        """Ask a client to end, or cut it off. It may have ended by itself meanwhile."""
        try:
            act = "FORCE_DISCONNECT" if force else "DISCONNECT_GRACEFUL"
            await self.say("SESSION", str(number), act)
        except MoveError:
            if number in {each["id"] for each in await self._asked("CONN")}:
                raise
