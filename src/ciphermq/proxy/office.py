"""What the control language asks of a running proxy; the supervisor answers.

Every method that talks to workers waits for all of them, so that when a command has answered,
what it asked for is so. A worker that dies meanwhile counts as having answered: it is started
anew with the configuration as it then is.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Mapping
from pathlib import Path
from typing import Literal, Protocol

from ciphermq.proxy.change import Change
from ciphermq.proxy.model import Configuration
from ciphermq.proxy.statistics import Snapshot

SessionAct = Literal["pause", "unpause", "disconnect_graceful", "force_disconnect"]
VhostAct = Literal["backend_disconnect", "force_disconnect"]


class Office(Protocol):
    """The running proxy, as commands see it."""

    @property
    def configuration(self) -> Configuration:
        """As it is now, in the supervisor and in every worker."""

    @property
    def config_file(self) -> Path | None:
        """The file it was started with, and is saved to."""

    async def change(self, change: Change) -> None:
        """Make one change, here and in every worker.

        Listening sockets are opened before anything else changes. `ProxyError` with a sentence
        when it can't be made; then nothing has changed. ``CONFIG RELOAD`` is a `ReplaceAll`.
        """

    async def sessions(self) -> list[Mapping[str, object]]:
        """Every session's `describe()`, by id: the fields of ``CONN`` in their order."""

    async def session(self, number: int, act: SessionAct) -> bool:
        """Do it to one session; False when there is none with that number."""

    async def vhost(self, vhost: str, act: VhostAct) -> int:
        """Do it to every session of a vhost; how many there were."""

    def statistics(self) -> AsyncGenerator[Snapshot, None]:
        """A snapshot once a second, each of the second before it, until the iterator is closed."""

    async def health(self) -> Mapping[str, Mapping[str, object]]:
        """What is known of each backend's health, by name, the worst of all workers."""

    async def restart(self) -> None:
        """Be succeeded by a new process with the same command line; returns when it serves.

        `ProxyError` when it does not take over; then this one goes on as it was.
        """

    def exit(self) -> None:
        """Begin to end: no new sessions, Close 320 to clients, a drain time, the end."""
