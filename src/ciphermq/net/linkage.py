"""What a connection that carries frames and one that carries lines have in common.

Whatever is sent in one turn of the event loop is written together, so that small pieces share TLS
records and packets. Whoever takes nothing is not read from either, once too much waits for him. One
tick looks after all the clocks, and the end is told once, with its reason.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from ciphermq.errors import CipherMQError
from ciphermq.net.conduit import Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.net.outgoing import gather
from ciphermq.net.watch import Watch
from ciphermq.wire.cmq2.codec import Buffer

OnLost = Callable[[CipherMQError | None], None]


def nothing(*_: object) -> None:
    """What a link calls until it is attached to an owner."""


class _Machine(Protocol):
    """What takes a stream of bytes apart."""

    @property
    def mid_frame(self) -> bool:
        """Whether something has begun and not ended."""

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""

    def buffer_updated(self, nbytes: int) -> None:
        """So many have come."""


class Linkage(ABC):
    """A protocol's `Talker` on a `Conduit`. All of it is for the event loop's thread.

    A subclass calls `channel.attach(self)` at the end of its `__init__`.
    """

    def __init__(self, channel: Conduit, machine: _Machine, options: LinkOptions) -> None:
        self.options = options
        self.peer = channel.peer
        """The peer's ``host:port``."""
        self.peer_certificate = channel.peer_certificate
        """DER."""
        self._channel = channel
        self._bytes = machine
        self._on_lost: OnLost = nothing
        self._on_writable: Callable[[], None] = nothing
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(options, channel.who, self._loop.time())
        self._ticker = self._loop.call_later(options.tick, self._tick)
        self._closer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._lost = False
        self._pieces: list[Buffer] = []
        self._queued = 0
        self._flush_due = False
        self._paused = False
        self._stopped = False

    # --- what a subclass has of its own -----------------------------------------------------

    @abstractmethod
    def received(self) -> None:
        """That was all for now: tell the owner."""

    @abstractmethod
    def close(self, reason: str = "", code: str = "") -> None:
        """End in order."""

    @abstractmethod
    def _see_to_keys(self) -> None:
        """Something was encrypted: is AES-GCM's limit near?"""

    @abstractmethod
    def _why(self, error: BaseException | None) -> CipherMQError | None:
        """What the link ended of; `error` is what the channel did."""

    @abstractmethod
    def _tick(self) -> None:
        """Look at the clocks, and `_tick_again`."""

    # --- sending ----------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be written."""
        return self._channel.writable and self._queued < self.options.write_high_water

    @property
    def behind(self) -> bool:
        """Whether so much waits to be written that this side should answer nothing more."""
        if self.writable or self._lost:
            return False
        return self._queued + self._channel.untaken > self.options.most_untaken

    def _write(self, pieces: Iterable[Buffer], size: int) -> None:
        """Have `pieces`, of `size` bytes, written with all others of this turn of the loop."""
        self._pieces += pieces
        self._queued += size
        if not self._flush_due:
            self._flush_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        if self._lost or not self._pieces:
            return
        was_full = not self.writable
        pieces, self._pieces, self._queued = self._pieces, [], 0
        self._channel.write(gather(pieces))
        self._see_to_keys()
        if was_full and self.writable:
            self._drained()

    # --- the end ----------------------------------------------------------------------------

    def fail(self, error: CipherMQError) -> None:
        """End for a fault: the peer is told, if there are words for it; `on_lost` gets `error`."""
        if self._reason is None:
            self._reason = error
        self.close(str(error), error.code)

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `on_lost` gets `error`."""
        self._channel.abort(error)

    def _abort_in_time(self, error: CipherMQError) -> None:
        """Be patient for `options.linger`, and then `abort`."""
        self._closer = self._loop.call_later(self.options.linger, self.abort, error)

    # --- receiving --------------------------------------------------------------------------

    def pause_reading(self) -> None:
        """Take no more from the peer; TCP slows it down."""
        self._read(paused=True, stopped=self._stopped)

    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""
        self._read(paused=False, stopped=self._stopped)

    def _read(self, *, paused: bool, stopped: bool) -> None:
        """Read unless the owner has `paused` the link or it has `stopped` by itself."""
        before = self._paused or self._stopped
        self._paused, self._stopped = paused, stopped
        if (paused or stopped) == before:
            return
        if before:
            self._channel.resume_reading()
        else:
            self._channel.pause_reading()
        self._watch.reading(self._loop.time(), on=before)

    # --- what the channel calls -------------------------------------------------------------

    def get_buffer(self) -> memoryview:
        """Where the next bytes go."""
        return self._bytes.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._bytes.buffer_updated(nbytes)

    def resume_writing(self) -> None:
        """The channel is writable again."""
        if self.writable:
            self._drained()

    def _drained(self) -> None:
        """`writable` has turned true."""
        self._read(paused=self._paused, stopped=False)
        self._on_writable()

    def lost(self, error: BaseException | None) -> None:
        """The channel has ended."""
        self._ticker.cancel()
        if self._closer is not None:
            self._closer.cancel()
        self._lost = True
        self._pieces = []
        self._on_lost(self._why(error))

    # --- clocks -----------------------------------------------------------------------------

    def _in_time(self, *, greeted: bool) -> bool:
        """Whether no clock has run out; else this is the end."""
        channel = self._channel
        error = self._watch.check(
            self._loop.time(), greeted=greeted, taken=channel.taken, untaken=channel.untaken
        )
        if error is not None:
            self.abort(error)
        return error is None

    def _tick_again(self) -> None:
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
