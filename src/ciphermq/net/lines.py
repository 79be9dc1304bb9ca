"""One connection that carries lines: `ServerLines` on a `Channel`.

It is what `Link` is for frames, as far as the 1.x protocol has it: that knows no heartbeat and no
farewell, and can't be asked to replace a connection. So a silent peer may stay (the kernel looks
after dead ones), and a connection whose keys have encrypted enough is just ended: 1.x clients
connect again.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from ciphermq.errors import CipherMQError, ConnectionLost
from ciphermq.net.conduit import Conduit
from ciphermq.net.linkage import Linkage, OnLost, nothing
from ciphermq.wire.lines.machine import ServerLines
from ciphermq.wire.lines.speech import Command, Reply, Wrong

OnCommand = Callable[[Command | Wrong], None]


class LineLink(Linkage):
    """A server's connection to a 1.x client. All of it is for the event loop's thread."""

    def __init__(self, channel: Conduit) -> None:
        """Begin to talk through `channel`, whose handshake is over."""
        self._machine = ServerLines(channel.buffers.scratch)
        super().__init__(channel, self._machine, replace(channel.options, heartbeat=math.inf))
        self.tls_version = channel.tls_version
        self._on_command: OnCommand = nothing
        self._closed = False
        channel.attach(self)

    def attach(
        self, on_command: OnCommand, on_lost: OnLost, on_writable: Callable[[], None]
    ) -> None:
        """Say who is told of commands, of the end, and of `writable` turning true.

        The end is told once: with its reason, or with None when the client just left."""
        self._on_command, self._on_lost, self._on_writable = on_command, on_lost, on_writable

    # --- sending ----------------------------------------------------------------------------

    @property
    def open(self) -> bool:
        """Whether this side can send."""
        return not (self._lost or self._closed)

    def send(self, reply: Reply) -> None:
        """Have `reply` written with all others of this turn of the loop; never blocks.

        Does nothing once this side has closed or the link is lost. Raises `LocalProtocolError`
        for what no line can say."""
        line = self._machine.send(reply)
        if self.open:
            self._write([line], len(line))

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
        who = self._channel.who
        self._abort_in_time(ConnectionLost(f"{who} did not take what was left for it"))
        self._channel.close()

    def _see_to_keys(self) -> None:
        """End before AES-GCM's limit."""
        if self._channel.records >= self.options.tls_records and self.open:
            self.fail(ConnectionLost(f"{self._channel.who} has used its TLS keys up"))

    # --- receiving --------------------------------------------------------------------------

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
        self._see_to_keys()
        if self._channel.ended:  # it waits for our side to end too, and reads no reply
            self.close()
        if self.behind:
            self._read(paused=self._paused, stopped=True)

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
        if self._in_time(greeted=True):
            self._tick_again()
