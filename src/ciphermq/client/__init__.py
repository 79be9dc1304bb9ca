"""The client library: connect, send, receive; and what remembers across crashes."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from ciphermq.client.connecting import connect
    from ciphermq.client.connection import Client
    from ciphermq.client.identity import Identity
    from ciphermq.client.inbox import Inbox
    from ciphermq.client.messages import Batch, Message
    from ciphermq.client.outbox import Outbox
    from ciphermq.client.receiver import Receiver
    from ciphermq.client.sender import Sender

__all__ = [
    "Batch",
    "Client",
    "Identity",
    "Inbox",
    "Message",
    "Outbox",
    "Receiver",
    "Sender",
    "connect",
]

_HOMES: Final = {
    "Batch": "messages",
    "Client": "connection",
    "Identity": "identity",
    "Inbox": "inbox",
    "Message": "messages",
    "Outbox": "outbox",
    "Receiver": "receiver",
    "Sender": "sender",
    "connect": "connecting",
}


def __getattr__(name: str) -> Any:
    # Late, because a part of this package (an identity's files, say) must not cost all of it.
    if name in _HOMES:
        value = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
