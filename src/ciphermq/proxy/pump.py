"""One direction of an open session: read, scan, send on.

This is the whole of the proxy's work for nearly all bytes, so `_readable` does nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from ciphermq import limits
from ciphermq.errors import AmqpFault
from ciphermq.proxy.end import BUFFER, PACED, STALLED, VIEW, WAITING, End
from ciphermq.proxy.pace import Meter, Pace
from ciphermq.wire.amqp.frames import Scanner


class Watcher(Protocol):
    """Whom a pump tells."""

    def ended(self, pump: Pump) -> None:
        """The source's stream has ended; all of it was sent on or is on its way."""

    def faulty(self, pump: Pump, fault: AmqpFault) -> None:
        """The source does not send frames: all before `fault` were sent on."""

    def closing(self, pump: Pump) -> None:
        """The first Close or CloseOk has gone by."""

    def alarmed(self, rate: int) -> None:
        """More than `meter`'s rate has come within a second."""


class Pump:
    """From `source` to `sink`. Counts bytes, packets (reads) and, in its scanner, frames."""

    __slots__ = (
        "_closing",
        "_cut",
        "_loop",
        "_most",
        "_on_cut",
        "_pause",
        "_watcher",
        "broken",
        "bytes",
        "dropping",
        "meter",
        "pace",
        "packets",
        "scanner",
        "sink",
        "source",
    )

    def __init__(
        self, source: End, sink: End, watcher: Watcher, loop: asyncio.AbstractEventLoop
    ) -> None:
        self.source = source
        self.sink = sink
        self.scanner = Scanner()
        self.bytes = 0
        self.packets = 0
        self.pace: Pace | None = None
        self.meter: Meter | None = None
        self.dropping = False
        """What comes is followed, and goes nowhere."""
        self.broken = False
        """The sink was left within a frame: nothing that makes sense can be said to it."""
        self._watcher = watcher
        self._loop = loop
        self._closing = False
        self._most = limits.PROXY_BUFFER
        self._cut = b""
        self._on_cut: Callable[[], None] | None = None
        self._pause: asyncio.TimerHandle | None = None

    def start(self, first: bytes = b"") -> None:
        """Begin, with these bytes of the source that were read before."""
        self.source.on_readable(self._readable)
        if first:
            self.bytes += len(first)
            self.packets += 1
            for at in range(0, len(first), len(BUFFER)):
                part = first[at : at + len(BUFFER)]
                VIEW[: len(part)] = part
                if not self._pass_on(len(part)):
                    return

    def set_pace(self, pace: Pace | None) -> None:
        """No more bytes a second than this from now on."""
        self.pace = pace
        self._most = pace.most if pace else limits.PROXY_BUFFER
        # What the former one held back need not wait for as long as that one would have; and what
        # this one will hold back must not be let go when the former one would have.
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        self.source.release(PACED)

    def cut(self, last: bytes, then: Callable[[], None]) -> None:
        """Between two frames, send `last` and nothing more to the sink; `then` is called when
        that has been written. From then on what comes is dropped."""
        if self.dropping:
            return
        if self.scanner.between and not self.broken:
            self.dropping = True
            self.sink.write(last)
            then()
            return
        self._cut, self._on_cut = last, then

    def _readable(self) -> None:
        size = self.source.receive(self._most)
        if size is None:
            return
        if not size:
            self.source.hold(WAITING)
            self._watcher.ended(self)
            return
        self.packets += 1
        self.bytes += size
        self._pass_on(size)

    def _pass_on(self, size: int) -> bool:
        """Send on what stands in the buffer; whether the session goes on."""
        scanner = self.scanner
        try:
            scanner.scan(BUFFER, size)
        except AmqpFault as fault:
            self._fault(fault, size)
            return False
        if self._on_cut is not None:
            self._cut_off(size)
        elif not self.dropping and not self.sink.write(VIEW[:size]):
            self.source.hold(STALLED)
            self.sink.on_drained(self._drained)
        if scanner.closing and not self._closing:
            self._closing = True
            self._watcher.closing(self)
        if self.meter is not None and self.meter.took(size, self._loop.time()):
            self._watcher.alarmed(self.meter.rate)
        if self.pace is not None and (delay := self.pace.took(size, self._loop.time())):
            self.source.hold(PACED)
            self._pause = self._loop.call_later(delay, self.source.release, PACED)
        return True

    def _drained(self) -> None:
        self.source.release(STALLED)

    def _fault(self, fault: AmqpFault, size: int) -> None:
        good = self.scanner.good
        if good > 0 and not self.dropping:
            self.sink.write(VIEW[:good])
        self.broken = good < 0
        self.dropping = True
        self.source.hold(WAITING)
        self._watcher.faulty(self, fault)

    def _cut_off(self, size: int) -> None:
        whole = size - self.scanner.tail
        if whole < 0:  # still within the frame that was under way
            self.sink.write(VIEW[:size])
            return
        then, self._on_cut = self._on_cut, None
        self.dropping = True
        self.sink.write(VIEW[:whole])
        self.sink.write(self._cut)
        if then is not None:
            then()
