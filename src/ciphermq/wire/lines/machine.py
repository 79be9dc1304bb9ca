"""One connection of the 1.x protocol as a machine: bytes in, lines read; things said, bytes out.

It reads no socket and no clock. Bytes come in by the same two doors as for
`ciphermq.wire.cmq2.machine.Cmq2Machine`, so one kind of connection can drive either::

    receive_data(data)                            any cut of the stream
    get_buffer() → fill it → buffer_updated(n)    as `asyncio.BufferedProtocol` does

How long a line may be depends on its first word, so a message is refused before it is read whole.
A server reads on behind a line that is too long: it says so and waits for the line's end, keeping
none of it. To a client it is a fault, which is final.

There is no greeting and no farewell, so there are no states: whatever may be said may be said at
any time. Replies come in the order of their commands; that is the server's business, which may
have to wait for a disk before it can answer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from ciphermq.errors import RemoteProtocolError
from ciphermq.wire.cmq2.codec import Buffer
from ciphermq.wire.cmq2.machine import new_scratch
from ciphermq.wire.lines import codec
from ciphermq.wire.lines.speech import Command, Reply, Wrong

Heard = TypeVar("Heard")


class LineMachine(Generic[Heard]):
    """Cuts lines out of a stream; what they mean is for `ServerLines` and `ClientLines`."""

    def __init__(
        self,
        read: Callable[[bytes], Heard],
        longest: Callable[[bytes | bytearray], int],
        overrun: Callable[[bytes | bytearray], Heard],
        scratch: memoryview | None = None,
    ) -> None:
        """`longest` judges a line by its first bytes; `overrun` says what becomes of one that is
        longer, or raises what becomes the `fault`. Machines that are used from one thread can
        share a `scratch` buffer."""
        self.fault: RemoteProtocolError | None = None
        """What the peer did wrong. Nothing is heard after it."""
        self._read = read
        self._longest = longest
        self._overrun = overrun
        self._scratch = new_scratch() if scratch is None else scratch
        self._partial = bytearray()
        self._skipping = False
        self._heard: list[Heard] = []

    @property
    def mid_frame(self) -> bool:
        """Whether a line has begun that has not ended yet."""
        return bool(self._partial) or self._skipping

    def receive_data(self, data: Buffer) -> None:
        """Take in the next bytes of the stream, however it was cut."""
        self._receive(bytes(data))

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty. Followed by `buffer_updated` with how many."""
        return self._scratch

    def buffer_updated(self, size: int) -> None:
        """So many bytes were put at the start of what `get_buffer` gave."""
        self._receive(bytes(self._scratch[:size]))

    def events(self) -> list[Heard]:
        """What was said since the last call, oldest first."""
        heard, self._heard = self._heard, []
        return heard

    def _receive(self, data: bytes) -> None:
        if self.fault is not None:
            return
        try:
            self._cut(data)
        except RemoteProtocolError as fault:
            self.fault = fault
            self._partial.clear()

    def _cut(self, data: bytes) -> None:
        start = 0
        while (end := data.find(b"\n", start)) >= 0:
            if self._skipping:
                self._skipping = False
            else:
                self._take(bytes(self._partial) + data[start:end])
                self._partial.clear()
            start = end + 1
        if self._skipping:
            return
        self._partial += data[start:]
        # Judged by its bytes alone, and not by how they came, so that no cut makes a difference.
        if len(self._partial) > self._longest(self._partial):
            self._heard.append(self._overrun(self._partial))
            self._skipping = True
            self._partial.clear()

    def _take(self, line: bytes) -> None:
        if len(line) > self._longest(line):
            self._heard.append(self._overrun(line))
        else:
            self._heard.append(self._read(line.removesuffix(b"\r")))


class ServerLines(LineMachine[Command | Wrong]):
    """The server's side: commands come in, replies and messages go out."""

    def __init__(self, scratch: memoryview | None = None) -> None:
        super().__init__(
            codec.decode_command, codec.longest_command, codec.command_too_long, scratch
        )

    def send(self, reply: Reply) -> bytes:
        """The line that says `reply`; `LocalProtocolError` if none can."""
        return codec.encode_reply(reply)


class ClientLines(LineMachine[Reply]):
    """The client's side: commands go out, replies and messages come in."""

    def __init__(self, scratch: memoryview | None = None) -> None:
        super().__init__(codec.decode_reply, codec.longest_reply, codec.reply_too_long, scratch)

    def send(self, command: Command) -> bytes:
        """The line that says `command`; `LocalProtocolError` if none can."""
        return codec.encode_command(command)
