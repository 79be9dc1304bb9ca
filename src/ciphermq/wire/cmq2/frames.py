"""The frames of ``cmq/2``: ``u32 length | u8 type | body``, big-endian, length of type and body.

Four have a fixed binary layout, because they are on the path of every batch::

    PUBLISH   u64 seq | u8 flags (1: restart) | sealed batch
    CONFIRM   u8 kind (0: publish, 1: ack) | u64 number
              answers all up to `number` that were not answered otherwise
    DELIVER   u32 consumer | u64 tag | u32 redeliveries | u8 flags (1: redelivered)
              | u64 published_ms | u16 n | bitmap[n] | u16 m | msgpack DeadInfo[m] | sealed batch
    ACK       u64 number | u64 tag | u16 n | bitmap[n]          empty bitmap: all that is left

The others are msgpack maps (unknown members are ignored, so both sides may grow). A request has
an id chosen by its sender, and is answered by OK or ERROR with that id. Publishes and acks are
numbered by connection, from 1, rising by 1; a RETURN answers the publish it names.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any, ClassVar

import msgspec

Sealed = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """Numbers on the wire; never reused."""

    HELLO = 1
    OK = 2
    ERROR = 3
    PUBLISH = 4
    CONFIRM = 5
    RETURN = 6
    DELIVER = 7
    ACK = 8
    NACK = 9
    DECLARE = 10
    DELETE = 11
    BIND = 12
    UNBIND = 13
    CONSUME = 14
    CANCEL = 15
    CREDIT = 16
    FETCH = 17
    PURGE = 18
    PEEK = 19
    REDRIVE = 20
    LIST = 21
    STATUS = 22
    TRACE = 23
    KEY_PUT = 24
    KEY_GET = 25
    CRL_GET = 26
    PING = 27
    RECONNECT = 28
    CLOSE = 29
    CANCELLED = 30


class ConfirmKind(IntEnum):
    PUBLISH = 0
    ACK = 1


# --- fixed layout ---------------------------------------------------------------------------


class PublishFrame(msgspec.Struct, frozen=True):
    TYPE: ClassVar = FrameType.PUBLISH
    seq: int
    restart: bool
    sealed: Sealed


class ConfirmFrame(msgspec.Struct, frozen=True):
    TYPE: ClassVar = FrameType.CONFIRM
    kind: ConfirmKind
    number: int


class DeliverFrame(msgspec.Struct, frozen=True):
    TYPE: ClassVar = FrameType.DELIVER
    consumer: int
    tag: int
    redeliveries: int
    redelivered: bool
    published_ms: int
    bitmap: bytes
    dead: bytes
    """msgpack of `model.topology.DeadInfo`; empty outside dead-letter queues."""
    sealed: Sealed


class AckFrame(msgspec.Struct, frozen=True):
    TYPE: ClassVar = FrameType.ACK
    number: int
    tag: int
    bitmap: bytes


# --- msgpack --------------------------------------------------------------------------------


class Packed(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Base of every frame whose body is a msgpack map."""


class Hello(Packed, frozen=True):
    """First frame of each side. The client speaks first."""

    TYPE: ClassVar = FrameType.HELLO
    version: int = 2
    software: str = ""
    now_ms: int = 0
    """The sender's clock, so that a wrong one is told of at once."""
    heartbeat_ms: int = 20_000
    max_publish_window: int = 0
    """Server only: unconfirmed batches it allows."""
    guarantees: dict[str, bool] = {}
    """Server only: the engine's."""
    crl_number: int = 0
    """Server only: the number of the newest revocation list."""
    client: str = ""
    """Server only: who the server takes the client for."""


class Ok(Packed, frozen=True):
    TYPE: ClassVar = FrameType.OK
    request: int
    result: Any = None
    """Plain msgpack values; each request's docstring says what."""


class Error(Packed, frozen=True):
    """A request's refusal; with request 0 the connection's own, before it is closed."""

    TYPE: ClassVar = FrameType.ERROR
    request: int = 0
    code: str = "internal"
    message: str = ""


class Return(Packed, frozen=True):
    """Publish `seq` was not stored; later ones are refused until one is flagged `restart`."""

    TYPE: ClassVar = FrameType.RETURN
    seq: int
    code: str
    message: str = ""


class Nack(Packed, frozen=True):
    """Back to the queue, or (not `requeue`) to the dead letters. OK: None, once durable."""

    TYPE: ClassVar = FrameType.NACK
    request: int
    tag: int
    bitmap: bytes = b""
    requeue: bool = True
    reason: str = "rejected"
    detail: str = ""


class Declare(Packed, frozen=True):
    """A queue or an exchange. OK: None."""

    TYPE: ClassVar = FrameType.DECLARE
    request: int
    queue: dict[str, Any] | None = None
    """`QueueSpec` members but `owner` and `inbox`, which the server decides."""
    exchange: dict[str, Any] | None = None


class Delete(Packed, frozen=True):
    """OK: messages that were in the queue."""

    TYPE: ClassVar = FrameType.DELETE
    request: int
    queue: str | None = None
    exchange: str | None = None
    if_empty: bool = False
    if_unused: bool = False


class Bind(Packed, frozen=True):
    TYPE: ClassVar = FrameType.BIND
    request: int
    exchange: str
    queue: str
    routing_key: str = ""


class Unbind(Packed, frozen=True):
    TYPE: ClassVar = FrameType.UNBIND
    request: int
    exchange: str
    queue: str
    routing_key: str = ""


class Consume(Packed, frozen=True):
    """OK: the consumer's number (int)."""

    TYPE: ClassVar = FrameType.CONSUME
    request: int
    queue: str
    name: str = ""
    credit: int = 0


class Cancel(Packed, frozen=True):
    """No more deliveries to this consumer. OK: None."""

    TYPE: ClassVar = FrameType.CANCEL
    request: int
    consumer: int
    release: bool = False
    """Also take back what it holds unsettled, without counting a try: a receiver that stops."""


class Cancelled(Packed, frozen=True):
    """From the server: the consumer ended for a reason of the server's."""

    TYPE: ClassVar = FrameType.CANCELLED
    consumer: int
    code: str
    message: str = ""


class Credit(Packed, frozen=True):
    """No answer."""

    TYPE: ClassVar = FrameType.CREDIT
    consumer: int
    messages: int


class Fetch(Packed, frozen=True):
    """DELIVER frames with consumer 0, then OK: messages delivered (int)."""

    TYPE: ClassVar = FrameType.FETCH
    request: int
    queue: str
    messages: int = 1


class Purge(Packed, frozen=True):
    """OK: messages removed (int)."""

    TYPE: ClassVar = FrameType.PURGE
    request: int
    queue: str


class Peek(Packed, frozen=True):
    """OK: list of maps, one a batch, of what can be seen without a key."""

    TYPE: ClassVar = FrameType.PEEK
    request: int
    queue: str
    batches: int = 10


class Redrive(Packed, frozen=True):
    """OK: messages moved (int). `queue` is the dead-letter queue; None `messages`: all."""

    TYPE: ClassVar = FrameType.REDRIVE
    request: int
    queue: str
    messages: int | None = None


class List(Packed, frozen=True):
    """OK: list of maps. `what`: queues, exchanges, bindings, consumers, connections."""

    TYPE: ClassVar = FrameType.LIST
    request: int
    what: str
    prefix: str = ""
    offset: int = 0


class Status(Packed, frozen=True):
    """OK: a map of maps: server, engine, journal, catalog, log."""

    TYPE: ClassVar = FrameType.STATUS
    request: int


class Trace(Packed, frozen=True):
    """OK: a map of the batch's metadata, or of the 1.x message's, or None."""

    TYPE: ClassVar = FrameType.TRACE
    request: int
    batch_id: bytes = b""
    message_id: str = ""
    """A 1.x message's own id, instead of a batch's."""


class KeyPut(Packed, frozen=True):
    """A signed key record of the client's own. Makes its inbox queue. OK: None."""

    TYPE: ClassVar = FrameType.KEY_PUT
    request: int
    record: bytes


class KeyGet(Packed, frozen=True):
    """OK: the newest key record (bytes)."""

    TYPE: ClassVar = FrameType.KEY_GET
    request: int
    client: str


class CrlGet(Packed, frozen=True):
    """OK: the newest revocation list (DER bytes)."""

    TYPE: ClassVar = FrameType.CRL_GET
    request: int


class Ping(Packed, frozen=True):
    """OK: None. Either side may ask."""

    TYPE: ClassVar = FrameType.PING
    request: int


class Reconnect(Packed, frozen=True):
    """From the server: please replace this connection, new one first."""

    TYPE: ClassVar = FrameType.RECONNECT
    reason: str = ""


class Close(Packed, frozen=True):
    """No more frames from this side. The other settles what it must, closes too."""

    TYPE: ClassVar = FrameType.CLOSE
    reason: str = ""
    code: str = ""


Request = (
    Nack
    | Declare
    | Delete
    | Bind
    | Unbind
    | Consume
    | Cancel
    | Fetch
    | Purge
    | Peek
    | Redrive
    | List
    | Status
    | Trace
    | KeyPut
    | KeyGet
    | CrlGet
    | Ping
)
Frame = (
    PublishFrame
    | ConfirmFrame
    | DeliverFrame
    | AckFrame
    | Hello
    | Ok
    | Error
    | Return
    | Credit
    | Cancelled
    | Reconnect
    | Close
    | Request
)
