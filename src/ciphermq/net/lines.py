"""One connection that carries lines: `ServerLines` on a `Channel`.

It is what `Link` is for frames, as far as the 1.x protocol has it: that knows no heartbeat and no
farewell, and can't be asked to replace a connection. So a silent peer may stay (the kernel looks
after dead ones), and a connection whose keys have encrypted enough is just ended: 1.x clients
connect again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from dataclasses import replace

from ciphermq.errors import CipherMQError, ConnectionLost
from ciphermq.net.conduit import Conduit
from ciphermq.net.outgoing import gather
from ciphermq.net.watch import Watch
from ciphermq.wire.cmq2.codec import Buffer
from ciphermq.wire.lines.machine import ServerLines
from ciphermq.wire.lines.speech import Command, Reply, Wrong

OnCommand = Callable[[Command | Wrong], None]
OnLost = Callable[[CipherMQError | None], None]


def _nothing(*_: object) -> None:
    """What a link calls until `attach`."""


class LineLink:
    """A server's connection to a 1.x client. All of it is for the event loop's thread."""

    def __init__(self, channel: Conduit) -> None:
        """Begin to talk through `channel`, whose handshake is over."""
        self.options = replace(channel.options, heartbeat=math.inf)
        self.peer = channel.peer
        """The peer's ``host:port``."""
        self.peer_certificate = channel.peer_certificate
        """DER."""
        self.tls_version = channel.tls_version
        self._channel = channel
        self._machine = ServerLines(channel.buffers.scratch)
        self._on_command: OnCommand = _nothing
        self._on_lost: OnLost = _nothing
        self._on_writable: Callable[[], None] = _nothing
        self._loop = asyncio.get_running_loop()
        self._watch = Watch(self.options, channel.who, self._loop.time())
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
        self._closer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._closed = False
        self._lost = False
        self._pieces: list[Buffer] = []
        self._queued = 0
        self._flush_due = False
        self._paused = False
        self._stopped = False
        channel.attach(self)

    def attach(
        self, on_command: OnCommand, on_lost: OnLost, on_writable: Callable[[], None]
    ) -> None:
        """Say who is told of commands, of the end, and of `writable` turning true.

        The end is told once: with its reason, or with None when the client just left."""
        self._on_command, self._on_lost, self._on_writable = on_command, on_lost, on_writable

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

    @property
    def open(self) -> bool:
        """Whether this side can send."""
        return not (self._lost or self._closed)

    def send(self, reply: Reply) -> None:
        """Have `reply` written with all others of this turn of the loop; never blocks.

        Does nothing once this side has closed or the link is lost. Raises `LocalProtocolError`
        for what no line can say."""
        line = self._machine.send(reply)
        if not self.open:
            return
        self._pieces.append(line)
        self._queued += len(line)
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
        self._end_in_time()
        if was_full and self.writable:
            self._drained()

    # --- the end ----------------------------------------------------------------------------

    def close(self, reason: str = "", code: str = "") -> None:
        """End once all that was said is written: 1.x has no words for why. Idempotent."""
        del reason, code
        if self.open:
            self._flush()
            self._shut()

    def _shut(self) -> None:
        if not self.open:
            return
        self._closed = True
        late = ConnectionLost(f"{self._channel.who} did not take what was left for it")
        self._closer = self._loop.call_later(self.options.linger, self.abort, late)
        self._channel.close()

    def fail(self, error: CipherMQError) -> None:
        """End for a fault; `on_lost` gets `error`."""
        if self._reason is None:
            self._reason = error
        self.close()

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `on_lost` gets `error`."""
        self._channel.abort(error)

    def _end_in_time(self) -> None:
        """End before AES-GCM's limit."""
        if self._channel.records >= self.options.tls_records and self.open:
            self.fail(ConnectionLost(f"{self._channel.who} has used its TLS keys up"))

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
        return self._machine.get_buffer()

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        self._machine.buffer_updated(nbytes)

    def received(self) -> None:
        """That was all for now."""
        machine = self._machine
        commands = machine.events()
        self._watch.heard(self._loop.time(), frames=bool(commands), mid_frame=machine.mid_frame)
        for command in commands:
            if not self.open:
                return
            self._on_command(command)
        if machine.fault is not None:
            self.fail(machine.fault)
        self._end_in_time()
        if self._channel.ended:  # it waits for our side to end too, and reads no reply
            self.close()
        if self.behind:
            self._read(paused=self._paused, stopped=True)

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

    def _why(self, error: BaseException | None) -> CipherMQError | None:
        """What the link ended of; a 1.x client just leaves."""
        if self._reason is not None:
            return self._reason
        if isinstance(error, CipherMQError):
            return error
        who = self._channel.who
        if isinstance(error, OSError):
            return ConnectionLost(f"{who} ended the connection: {error.strerror or error}")
        if self._machine.mid_frame and not self._closed:
            return ConnectionLost(f"{who} ended the connection in the middle of a line")
        return None

    def _tick(self) -> None:
        now, channel = self._loop.time(), self._channel
        error = self._watch.check(now, greeted=True, taken=channel.taken, untaken=channel.untaken)
        if error is not None:
            self.abort(error)
            return
        self._ticker = self._loop.call_later(self.options.tick, self._tick)
