"""CipherMQ: messages sealed by their sender for their receiver.

::

    async with ciphermq.connect(identity="alice") as client:
        await client.sender("bob").send("hello")

    async with ciphermq.connect(identity="bob") as client:
        async with client.receiver() as messages:
            async for message in messages:
                print(message.sender, message.text)

`ciphermq.sync` is the same without ``async``. `ciphermq.errors` is all that can go wrong.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from ciphermq.version import __version__

if TYPE_CHECKING:
    from ciphermq import errors, sync
    from ciphermq.client.connecting import connect
    from ciphermq.client.connection import Client
    from ciphermq.client.identity import Identity
    from ciphermq.client.inbox import Inbox
    from ciphermq.client.messages import Batch, Message
    from ciphermq.client.outbox import Outbox
    from ciphermq.client.receiver import Receiver
    from ciphermq.client.sender import Sender
    from ciphermq.errors import CipherMQError
    from ciphermq.model.message import OutgoingMessage

__all__ = [
    "Batch",
    "CipherMQError",
    "Client",
    "Identity",
    "Inbox",
    "Message",
    "Outbox",
    "OutgoingMessage",
    "Receiver",
    "Sender",
    "__version__",
    "connect",
    "errors",
    "sync",
]

_HOMES: Final = {
    **dict.fromkeys(
        (
            "Batch",
            "Client",
            "Identity",
            "Inbox",
            "Message",
            "Outbox",
            "Receiver",
            "Sender",
            "connect",
        ),
        "ciphermq.client",
    ),
    "CipherMQError": "ciphermq.errors",
    "OutgoingMessage": "ciphermq.model.message",
}
_MODULES: Final = frozenset({"errors", "sync"})


def __getattr__(name: str) -> Any:
    # Late, so that `import ciphermq` costs nothing, and a command only what it uses.
    if name in _MODULES:
        return import_module(f"{__name__}.{name}")
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
