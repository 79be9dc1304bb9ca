"""What is said in the 1.x protocol: UTF-8, one command or reply a line, ``\\n`` at its end.

Words are separated by one space, and the last takes the rest of the line::

    declare_queue Q             Queue declared · Missing queue name
    declare_exchange X          Exchange declared · Missing exchange name
    bind Q X KEY                Queue bound · Missing parameters
    publish X KEY JSON          ACK ID · Invalid message format: … · Missing parameters
    publish_batch X KEY [JSON,…]  for each: ACK ID or Error: … for message ID;
                                Invalid batch format: … · Missing parameters
    consume Q                   Subscribed to queue · Missing queue name
    fetch Q                     Message: ID JSON · No messages · Missing queue name
    ack ID                      ACK_CONFIRMED ID · Missing message ID
    resend ID                   Resend requested · Unauthorized resend request
                                · Message ID not found · Missing message ID
    register_public_key B64     Public key registered · Missing public key
    get_public_key CLIENT       Public key: B64 · Public key not found · Missing client ID

Each may be answered with ``Error: …``; what is none of them with ``Unknown command``. Older
clients say ``register_key [CLIENT] B64`` and ``get_key CLIENT``. After `consume` the server sends
``Message: ID JSON`` for each message, between its replies. A `\\r` before the `\\n` is let pass.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec

# --- from the client --------------------------------------------------------------------------


class DeclareQueue(msgspec.Struct, frozen=True):
    """``declare_queue Q``"""

    queue: str


class DeclareExchange(msgspec.Struct, frozen=True):
    """``declare_exchange X``"""

    exchange: str


class Bind(msgspec.Struct, frozen=True):
    """``bind Q X KEY``"""

    queue: str
    exchange: str
    routing_key: str


class Publish(msgspec.Struct, frozen=True):
    """``publish X KEY JSON``"""

    exchange: str
    routing_key: str
    message: bytes
    """The JSON as it came, not looked into: `ciphermq.model.onex.parse` does."""


class PublishBatch(msgspec.Struct, frozen=True):
    """``publish_batch X KEY [JSON,…]``"""

    exchange: str
    routing_key: str
    messages: bytes
    """The array as it came: `ciphermq.model.onex.split` takes it apart."""


class Consume(msgspec.Struct, frozen=True):
    """``consume Q``"""

    queue: str


class Fetch(msgspec.Struct, frozen=True):
    """``fetch Q``"""

    queue: str


class Ack(msgspec.Struct, frozen=True):
    """``ack ID``"""

    message_id: str


class Resend(msgspec.Struct, frozen=True):
    """``resend ID``"""

    message_id: str


class RegisterKey(msgspec.Struct, frozen=True):
    """``register_public_key B64``, or ``register_key [CLIENT] B64``"""

    public_key: str
    """Base64 as it came, not looked into."""
    client: str | None = None
    """Whom the older spelling names. A key is only ever its connection's client's."""


class GetKey(msgspec.Struct, frozen=True):
    """``get_public_key CLIENT``, or ``get_key CLIENT``"""

    client: str


# --- from the server --------------------------------------------------------------------------


class Said(StrEnum):
    """Replies that are always the same."""

    QUEUE_DECLARED = "Queue declared"
    EXCHANGE_DECLARED = "Exchange declared"
    QUEUE_BOUND = "Queue bound"
    SUBSCRIBED = "Subscribed to queue"
    NO_MESSAGES = "No messages"
    RESEND_REQUESTED = "Resend requested"
    RESEND_UNAUTHORISED = "Unauthorized resend request"
    MESSAGE_NOT_FOUND = "Message ID not found"
    KEY_REGISTERED = "Public key registered"
    KEY_NOT_FOUND = "Public key not found"
    MISSING_QUEUE = "Missing queue name"
    MISSING_EXCHANGE = "Missing exchange name"
    MISSING_PARAMETERS = "Missing parameters"
    MISSING_MESSAGE_ID = "Missing message ID"
    MISSING_KEY = "Missing public key"
    MISSING_CLIENT = "Missing client ID"
    UNKNOWN_COMMAND = "Unknown command"


class Stored(msgspec.Struct, frozen=True):
    """``ACK ID``: the message is in its queues, and there to stay."""

    message_id: str


class Acknowledged(msgspec.Struct, frozen=True):
    """``ACK_CONFIRMED ID``"""

    message_id: str


class Message(msgspec.Struct, frozen=True):
    """``Message: ID JSON``, pushed or fetched"""

    message_id: str
    message: bytes
    """The JSON as its sender published it."""


class PublicKey(msgspec.Struct, frozen=True):
    """``Public key: B64``"""

    public_key: str


class Failed(msgspec.Struct, frozen=True):
    """``Error: …``, in a batch ``Error: … for message ID``"""

    reason: str
    message_id: str | None = None
    """Only from the server's side. A client finds it at the end of the `reason`."""


class InvalidMessage(msgspec.Struct, frozen=True):
    """``Invalid message format: …``"""

    reason: str


class InvalidBatch(msgspec.Struct, frozen=True):
    """``Invalid batch format: …``"""

    reason: str


class Other(msgspec.Struct, frozen=True):
    """A line that no server should send, to a client's eyes"""

    text: str


class Wrong(msgspec.Struct, frozen=True):
    """A line that is no command, to a server's eyes, and the reply that it gets"""

    reply: Reply


Command = (
    DeclareQueue
    | DeclareExchange
    | Bind
    | Publish
    | PublishBatch
    | Consume
    | Fetch
    | Ack
    | Resend
    | RegisterKey
    | GetKey
)
Reply = (
    Said
    | Stored
    | Acknowledged
    | Message
    | PublicKey
    | Failed
    | InvalidMessage
    | InvalidBatch
    | Other
)
