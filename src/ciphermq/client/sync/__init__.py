"""The client without ``async``: the same names, the same errors, the same promises.

::

    with ciphermq.sync.connect(identity="alice") as client:
        client.sender("bob").send("hello")

    with ciphermq.sync.connect(identity="bob") as client, client.receiver() as messages:
        for message in messages:
            print(message.sender, message.text)

The asynchronous client runs in an event loop of its own, in a thread of its own. What belongs to
the application stays in the application's thread: what it iterates over, its handlers, its Inbox.
Every call is for the thread that made the client, but for `Receiver.stop`.
"""

from __future__ import annotations

from ciphermq.client.sync.client import Client, connect
from ciphermq.client.sync.receiver import Receiver
from ciphermq.client.sync.sender import Relay, Sender

__all__ = ["Client", "Receiver", "Relay", "Sender", "connect"]
