"""The client without ``async``: `ciphermq.client.sync` under a shorter name."""

from __future__ import annotations

from ciphermq.client.sync import Client, Receiver, Relay, Sender, connect

__all__ = ["Client", "Receiver", "Relay", "Sender", "connect"]
