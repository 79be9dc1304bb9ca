"""What an application gets: a message, and the batch that it came in.

Nothing is made before it is asked for. A `Batch` is the opened plaintext and an index of it; a
`Message` is a batch and a number; a payload is cut out when it is read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import overload

from ciphermq.client.origin import Origin
from ciphermq.client.settling import Settling
from ciphermq.model import bitmap, ids
from ciphermq.model.bitmap import Bitmap
from ciphermq.model.body import Messages
from ciphermq.model.topology import DeadInfo


class Message:
    """One message. Settle it with `ack`, `nack` or `reject`, or let the receiver do it."""

    __slots__ = ("_messages", "_settling", "index", "origin")

    def __init__(self, index: int, messages: Messages, origin: Origin, settling: Settling) -> None:
        self.index = index
        """Its place in its batch."""
        self.origin = origin
        self._messages = messages
        self._settling = settling

    # --- content ----------------------------------------------------------------------------

    @property
    def payload(self) -> bytes:
        """The bytes that were sent."""
        return self._messages.payload(self.index)

    @property
    def text(self) -> str:
        """The payload as UTF-8; `UnicodeDecodeError` when it isn't."""
        return self.payload.decode()

    @property
    def headers(self) -> Mapping[str, str]:
        """In the sender's order; sealed as the payload is."""
        return self._messages.properties(self.index).headers

    @property
    def content_type(self) -> str | None:
        """As the sender said; None when it said nothing."""
        return self._messages.properties(self.index).content_type

    @property
    def sent_ms(self) -> int:
        """When the sender's application handed it over, in milliseconds since 1970."""
        return self._messages.sent_ms(self.index)

    @property
    def sent_at(self) -> datetime:
        """`sent_ms` as a date in UTC."""
        return datetime.fromtimestamp(self.sent_ms / 1000, UTC)

    # --- where it comes from ----------------------------------------------------------------

    @property
    def id(self) -> str:
        """A UUID, the same at every delivery; leads to the batch in ``ciphermq trace``."""
        return ids.message_id(self.origin.batch_id, self.index)

    @property
    def sender(self) -> str | None:
        """Client id of who signed it; None when nobody did."""
        return self.origin.sender

    @property
    def verified(self) -> bool:
        """Whether `sender` is proven by a signature."""
        return self.origin.sender is not None

    @property
    def queue(self) -> str:
        """The queue it was taken from."""
        return self.origin.queue

    @property
    def redeliveries(self) -> int:
        """How often it was given out before, as the broker counts; 0 at first."""
        return self.origin.redeliveries

    @property
    def redelivered(self) -> bool:
        """Whether it may have been shown before, by this or another receiver."""
        return self.origin.redelivered

    @property
    def dead(self) -> DeadInfo | None:
        """Why and whence it is in a dead-letter queue; None elsewhere."""
        return self.origin.dead

    # --- settling ---------------------------------------------------------------------------

    @property
    def settling(self) -> Settling:
        """The state it shares with the rest of its batch."""
        return self._settling

    @property
    def bits(self) -> Bitmap:
        """This message in its batch's bitmaps."""
        return 1 << self.index

    @property
    def settled(self) -> bool:
        """Whether it has been acked, nacked or rejected."""
        return not self._settling.open >> self.index & 1

    def ack(self) -> None:
        """Done: it will not come again. A second time, or too late, is no error."""
        self._settling.ack(1 << self.index)

    def nack(self) -> None:
        """Not done: it comes again after a while, and counts a try."""
        self._settling.nack(1 << self.index, requeue=True)

    def reject(self, reason: str = "rejected", detail: str = "") -> None:
        """Never: it goes to the dead letters, with the reason."""
        self._settling.nack(1 << self.index, requeue=False, reason=reason, detail=detail)

    def __repr__(self) -> str:
        return f"<Message {self.id} from {self.sender or 'nobody known'}>"


class Batch(Sequence[Message]):
    """The messages of one sealed batch that are meant for this receiver now.

    Those that others have, or that are done already, are not among them.
    """

    __slots__ = ("_indices", "_messages", "_settling", "bits", "origin")

    def __init__(self, messages: Messages, origin: Origin, settling: Settling) -> None:
        self.origin = origin
        self._messages = messages
        self._settling = settling
        self.narrow(settling.open)

    def narrow(self, bits: Bitmap) -> None:
        """Only these belong to it: an Inbox found that the others are done already."""
        self.bits: Bitmap = bits
        whole = bits == bitmap.full(self.origin.count)
        self._indices: Sequence[int] = (
            range(self.origin.count) if whole else list(bitmap.indices(bits))
        )

    @property
    def payloads(self) -> list[bytes]:
        """All payloads, in order: the fastest way to many of them."""
        if len(self._indices) == len(self._messages):
            return self._messages.payloads()
        return [self._messages.payload(index) for index in self._indices]

    @property
    def id(self) -> str:
        """The batch's own id: that of its first message."""
        return ids.message_id(self.origin.batch_id, 0)

    @property
    def sender(self) -> str | None:
        """Client id of who signed it; None when nobody did."""
        return self.origin.sender

    @property
    def queue(self) -> str:
        """The queue it was taken from."""
        return self.origin.queue

    @property
    def redeliveries(self) -> int:
        """Of its most retried message; 0 at first."""
        return self.origin.redeliveries

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Message: ...
    @overload
    def __getitem__(self, index: slice) -> list[Message]: ...
    def __getitem__(self, index: int | slice) -> Message | list[Message]:
        if isinstance(index, slice):
            return [self._message(place) for place in self._indices[index]]
        return self._message(self._indices[index])

    def __iter__(self) -> Iterator[Message]:
        return map(self._message, self._indices)

    def _message(self, index: int) -> Message:
        return Message(index, self._messages, self.origin, self._settling)

    @property
    def settling(self) -> Settling:
        """The state its messages share."""
        return self._settling

    def ack(self) -> None:
        """All that are not settled yet are done."""
        self._settling.ack(self.bits)

    def nack(self) -> None:
        """All that are not settled yet come again after a while, and count a try."""
        self._settling.nack(self.bits, requeue=True)

    def reject(self, reason: str = "rejected", detail: str = "") -> None:
        """All that are not settled yet go to the dead letters, with the reason."""
        self._settling.nack(self.bits, requeue=False, reason=reason, detail=detail)

    def __repr__(self) -> str:
        return f"<Batch {self.id} of {len(self)} from {self.sender or 'nobody known'}>"
