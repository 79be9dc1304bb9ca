"""What one ZeroMQ message looks like: its routing envelope, a header, TLS bytes.

::

    envelope    zero or more frames: who is to have it, hop by hop. ROUTERs add and remove them
    delimiter   one empty frame
    header      a frame that begins with 34 bytes, big-endian:
                  u8   mark     0xC3: no TLS record begins with it
                  u8   kind     1 DATA, 2 REQUEST, 3 TAKEN, 4 ASK, 5 RESET
                  16   token    which session: drawn by its client at random
                  u64  number   DATA and REQUEST: of this message in its direction, from 0;
                                TAKEN and ASK: how many of these the sender has sent
                  u64  taken    how many of the other direction's the sender has done with
    body        the rest of that frame and any number of frames, which joined are TLS bytes of a
                DATA or REQUEST, and the reason of a RESET

The header is not protected, as TCP's is not. Whoever can change it can end a session or hold it up,
which he could do anyway by dropping messages; he can't put anything into it.

A message whose frame behind the delimiter begins with no mark is `BARE`: that one frame is TLS
bytes, as in the published example of TLS over ZeroMQ, whose clients are REQ sockets.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import RemoteProtocolError

Buffer = bytes | bytearray | memoryview
Envelope = tuple[bytes, ...]

MARK: Final = 0xC3
TOKEN_SIZE: Final = 16
_HEAD: Final = struct.Struct(f">BB{TOKEN_SIZE}sQQ")
HEAD_SIZE: Final = _HEAD.size
DELIMITER: Final = b""


class Kind(IntEnum):
    """What a message is for."""

    BARE = 0
    """TLS bytes alone; every message is owed one answer."""
    DATA = 1
    REQUEST = 2
    """DATA from a REQ socket: owed exactly one answer, whatever is in it."""
    TAKEN = 3
    """Nothing but the header."""
    ASK = 4
    """Are you there? Answered by TAKEN."""
    RESET = 5
    """There is no such session here (any more)."""


_KINDS: Final = {kind.value: kind for kind in Kind if kind is not Kind.BARE}


class Head(NamedTuple):
    """A header."""

    kind: Kind
    token: bytes = b""
    number: int = 0
    taken: int = 0

    def encode(self) -> bytes:
        """Its 34 bytes."""
        return _HEAD.pack(MARK, self.kind, self.token, self.number, self.taken)


BARE: Final = Head(Kind.BARE)


class Packet(NamedTuple):
    """A ZeroMQ message, taken apart."""

    envelope: Envelope
    head: Head
    body: Sequence[Buffer]


def parse(frames: Sequence[Buffer]) -> Packet:
    """Take a message apart; `RemoteProtocolError` when it is none of ours."""
    at = 0
    for frame in frames:
        if not len(frame):
            break
        if len(frame) > limits.MAX_HOP_SIZE:
            raise RemoteProtocolError(
                f"a routing id of {len(frame)} bytes: ZeroMQ's have at most {limits.MAX_HOP_SIZE}"
            )
        at += 1
        if at > limits.MAX_HOPS:
            raise RemoteProtocolError(f"a message went over more than {limits.MAX_HOPS} hops")
    else:
        raise RemoteProtocolError("a message has no empty frame behind its routing envelope")
    envelope = tuple(map(bytes, frames[:at])) if at else ()
    body = frames[at + 1 :]
    if not body:
        raise RemoteProtocolError("a message has nothing behind its routing envelope")
    first = body[0]
    if len(first) < HEAD_SIZE or first[0] != MARK:
        if len(body) != 1:
            raise RemoteProtocolError("a message has no header, and more than one frame")
        return Packet(envelope, BARE, body)
    _, number_of_kind, token, number, taken = _HEAD.unpack_from(first)
    kind = _KINDS.get(number_of_kind)
    if kind is None:
        raise RemoteProtocolError(f"a message is of the unknown kind {number_of_kind}")
    rest = body[1:]
    if len(first) > HEAD_SIZE:
        rest = [memoryview(first)[HEAD_SIZE:], *rest]
    return Packet(envelope, Head(kind, token, number, taken), rest)


def spell_envelope(envelope: Envelope) -> str:
    """A routing envelope, for people."""
    return "/".join(
        frame.decode() if frame.isascii() and frame.decode().isprintable() else frame.hex()
        for frame in envelope
    )
