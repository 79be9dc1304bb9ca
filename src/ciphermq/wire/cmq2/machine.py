"""One connection of ``cmq/2`` as a machine: bytes in, frames out, frames in, bytes out.

It reads no socket and no clock. Bytes come in by either of two doors::

    receive_data(data)                            any cut of the stream
    get_buffer() → fill it → buffer_updated(n)    as `asyncio.BufferedProtocol` does

Both fill the same buffers. Bytes go into one scratch buffer, and the frames that are whole there
are cut out of it. The one frame that isn't gets memory of its own, of exactly its length, once
its type and length have been found lawful; the rest of it is read straight into that memory and
handed over as it is. So a large batch isn't copied, and a waiting connection holds no buffer:
every machine of a loop may use the same scratch, since none keeps anything in it between calls.

What breaks the protocol ends up in `fault`, after the good frames before it. A fault is final.
"""

from __future__ import annotations

from typing import Final

from ciphermq import limits
from ciphermq.errors import (
    FrameTooLarge,
    LocalProtocolError,
    MalformedFrame,
    RemoteProtocolError,
    UnknownFrame,
)
from ciphermq.wire.cmq2.codec import HEAD, LENGTH_SIZE, Buffer, decode, encode
from ciphermq.wire.cmq2.frames import Frame, FrameType, Hello
from ciphermq.wire.cmq2.numbering import NUMBERED, Numbering
from ciphermq.wire.cmq2.table import (
    AFTER_OWN,
    AFTER_PEER,
    FIRST_STATE,
    LENGTHS,
    RULES,
    Role,
)

VERSION: Final = 2

_CARRY_BATCHES: Final = frozenset({int(FrameType.PUBLISH), int(FrameType.DELIVER)})
_MOVING: Final = frozenset({FrameType.HELLO, FrameType.CLOSE})


def new_scratch() -> memoryview:
    """A buffer for `Cmq2Machine`; machines that are used from one thread can share one."""
    return memoryview(bytearray(limits.READ_BUFFER))


class Cmq2Machine:
    """One side's view of one connection."""

    def __init__(self, role: Role, scratch: memoryview | None = None) -> None:
        self.role = role
        self.ours = FIRST_STATE[role]
        """State of the direction this side sends in."""
        self.theirs = FIRST_STATE[role.peer]
        """State of the direction this side receives in."""
        self.fault: RemoteProtocolError | None = None
        """What the peer did wrong. No frame follows it."""
        self._scratch = new_scratch() if scratch is None else scratch
        self._head = b""
        self._kind = 0
        self._body: bytearray | None = None
        self._filled = 0
        self._events: list[Frame] = []
        self._numbering = Numbering()
        self._note_states()

    # --- frames in, bytes out ---------------------------------------------------------------

    def send(self, frame: Frame) -> list[Buffer]:
        """The bytes of `frame` in pieces, to be sent in this order.

        Raises `LocalProtocolError` if this side may not send it now.
        """
        kind = frame.TYPE
        most = self._sendable.get(kind)
        if most is None:
            raise LocalProtocolError(
                f"a {self.role.value} whose direction is {self.ours.value} may not send {kind.name}"
            )
        pieces = encode(frame)
        length = sum(map(len, pieces)) - LENGTH_SIZE
        if length > most:
            raise LocalProtocolError(f"a {kind.name} frame of {length} bytes; at most {most}")
        if isinstance(frame, NUMBERED) and (wrong := self._numbering.check(frame)):
            raise LocalProtocolError(wrong)
        if kind in _MOVING:
            self.ours = AFTER_OWN[self.ours, kind]
            if kind is FrameType.HELLO:  # of a CLOSE the peer may not know yet
                self.theirs = AFTER_PEER.get((self.theirs, kind), self.theirs)
            self._note_states()
        return pieces

    # --- bytes in, frames out ---------------------------------------------------------------

    @property
    def mid_frame(self) -> bool:
        """Whether a frame has begun that isn't whole yet."""
        return self._body is not None or bool(self._head)

    def receive_data(self, data: Buffer) -> None:
        """Take in the next bytes of the stream, however it was cut."""
        rest = memoryview(data)
        while rest:
            room = self.get_buffer()
            size = min(len(room), len(rest))
            room[:size] = rest[:size]
            self.buffer_updated(size)
            rest = rest[size:]

    def get_buffer(self) -> memoryview:
        """Where the next bytes go; never empty. Followed by `buffer_updated` with how many."""
        if self._body is not None:
            return memoryview(self._body)[self._filled :]
        return self._scratch[len(self._head) :]

    def buffer_updated(self, size: int) -> None:
        """So many bytes were put at the start of what `get_buffer` gave."""
        if self.fault is not None:
            return
        try:
            if self._body is not None:
                self._fill(self._body, size)
            else:
                self._cut(size)
        except RemoteProtocolError as fault:
            self.fault = fault
            self._body, self._head = None, b""

    def events(self) -> list[Frame]:
        """The frames that became whole since the last call, oldest first."""
        events, self._events = self._events, []
        return events

    def _fill(self, body: bytearray, size: int) -> None:
        self._filled += size
        if self._filled == len(body):
            self._body = None
            self._take(self._kind, memoryview(body).toreadonly())

    def _cut(self, size: int) -> None:
        """Take every whole frame out of the scratch buffer, and put aside what is left."""
        scratch, head = self._scratch, self._head
        scratch[: len(head)] = head
        at, end = 0, len(head) + size
        self._head = b""
        while end - at >= HEAD.size:
            length, kind = HEAD.unpack_from(scratch, at)
            self._admit(kind, length)
            start, stop = at + HEAD.size, at + LENGTH_SIZE + length
            if stop > end:
                self._kind, self._filled = kind, end - start
                self._body = bytearray(length - 1)
                self._body[: self._filled] = scratch[start:end]
                return
            body = scratch[start:stop]
            if kind in _CARRY_BATCHES:
                body = memoryview(bytes(body))  # a batch outlives the scratch buffer's content
            self._take(kind, body)
            at = stop
        self._head = bytes(scratch[at:end])

    def _admit(self, kind: int, length: int) -> None:
        """Refuse a frame by its first five bytes, before anything is kept or read for it."""
        most = self._takeable.get(kind)
        if most is not None and 1 <= length <= most:
            return
        if kind not in RULES:
            raise UnknownFrame(f"a frame of unknown type {kind}, {length} bytes long")
        name, peer = FrameType(kind).name, self.role.peer.value
        if most is None:
            raise RemoteProtocolError(
                f"a {peer} whose direction is {self.theirs.value} may not send {name}"
            )
        if length < 1:
            raise MalformedFrame(f"a {name} frame of length 0, which doesn't even hold its type")
        raise FrameTooLarge(f"a {name} frame of {length} bytes; at most {most} are allowed")

    def _take(self, kind: int, body: memoryview) -> None:
        frame = decode(kind, body)
        if isinstance(frame, NUMBERED) and (wrong := self._numbering.check(frame)):
            raise MalformedFrame(wrong)
        if isinstance(frame, Hello) and frame.version != VERSION:
            raise RemoteProtocolError(
                f"the {self.role.peer.value} speaks version {frame.version} of the protocol; "
                f"this side speaks version {VERSION}"
            )
        if frame.TYPE in _MOVING:
            self.theirs = AFTER_OWN[self.theirs, frame.TYPE]
            self.ours = AFTER_PEER.get((self.ours, frame.TYPE), self.ours)
            self._note_states()
        self._events.append(frame)

    def _note_states(self) -> None:
        """Look up what the states allow, once for all the frames until they move."""
        self._sendable = LENGTHS[self.role, self.ours]
        self._takeable = LENGTHS[self.role.peer, self.theirs]
