"""Exchanges, queues and bindings as values."""

from __future__ import annotations

from enum import StrEnum

import msgspec

from ciphermq import limits


class ExchangeType(StrEnum):
    """How an exchange chooses among its bindings."""

    DIRECT = "direct"
    FANOUT = "fanout"
    TOPIC = "topic"


class QueueSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a queue is; two declarations of one name must agree in everything but the owner."""

    name: str
    owner: str = ""
    """Client id of its creator; empty: the administrator's."""
    inbox: bool = False
    """The queue of a client's own name: made with its key, consumed by nobody else."""
    max_messages: int = limits.MAX_QUEUE_MESSAGES
    max_bytes: int = limits.MAX_QUEUE_BYTES
    ttl_ms: int = 0
    """Greatest time a message waits here; 0: as long as its batch lives."""
    dead_letter_exchange: str | None = None
    """None: to ``dead.<queue>``."""
    dead_letter_key: str | None = None
    """None: the batch's own routing key."""
    max_tries: int = limits.MAX_TRIES
    ack_timeout_ms: int = int(limits.ACK_TIMEOUT * 1000)


class ExchangeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an exchange is. The default exchange (empty name) is never declared."""

    name: str
    type: ExchangeType = ExchangeType.DIRECT
    owner: str = ""


class Binding(msgspec.Struct, frozen=True):
    """Batches that `exchange` gets with a matching key go to `queue` too."""

    exchange: str
    queue: str
    routing_key: str = ""


class QueueInfo(msgspec.Struct, frozen=True):
    """A queue as seen now."""

    spec: QueueSpec
    messages_ready: int
    messages_unacked: int
    batches: int
    bytes: int
    consumers: int
    messages_onex: int = 0
    """Those of CipherMQ 1.x among all these messages."""


class DeadInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why and whence messages are in a dead-letter queue."""

    queue: str
    reason: str
    """``rejected``, ``tries``, ``timeout``, ``expired``, or the `code` of a `BatchError`."""
    detail: str = ""
    at_ms: int = 0
