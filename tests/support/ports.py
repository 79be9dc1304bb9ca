"""Loopback ports for servers that must come back on the port they had."""

from __future__ import annotations

import os
import random
import socket

# Below the range from which the kernel takes ports for outgoing connections (32768 on Linux):
# otherwise a reconnecting client can be given the very port its killed server wants back.
_FIRST, _LAST = 20_000, 32_000
_random = random.Random(os.getpid())  # xdist's workers must not walk the same way


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nothing listens on."""
    while True:
        port = _random.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
