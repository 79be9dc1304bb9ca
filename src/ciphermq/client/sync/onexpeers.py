"""Dealing with clients of CipherMQ 1.x without ``async``."""

from __future__ import annotations

import concurrent.futures

from ciphermq.client import onexpeers
from ciphermq.client.payload import Payload
from ciphermq.client.sync.loop import Loop, result_of


class OnexPeers:
    """See `ciphermq.client.onexpeers.OnexPeers`."""

    def __init__(self, loop: Loop, peers: onexpeers.OnexPeers) -> None:
        self._loop = loop
        self._peers = peers

    def register_key(self) -> None:
        """Give out this identity's 1.x key, so that senders of 1.x can seal to it."""
        self._loop.run(self._peers.register_key())

    def public_key(self, client: str) -> bytes:
        """The 1.x key of `client`, if it is the one whose fingerprint was pinned by hand."""
        return self._loop.run(self._peers.public_key(client))

    def send(
        self, to: str, payload: Payload, *, exchange: str = "", routing_key: str | None = None
    ) -> str:
        """Seal a message to the 1.x client `to`, and wait until the broker has it on disk; the
        message's 1.x id."""
        return self._loop.run(
            self._peers.send(to, payload, exchange=exchange, routing_key=routing_key)
        )

    def post(
        self, to: str, payload: Payload, *, exchange: str = "", routing_key: str | None = None
    ) -> concurrent.futures.Future[str]:
        """`send` in two halves: waits only until there is room for the message, and gives a
        future of its 1.x id."""
        answer = self._loop.run(
            self._peers.post(to, payload, exchange=exchange, routing_key=routing_key)
        )
        return self._loop.start(result_of(answer))
