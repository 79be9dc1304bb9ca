"""Protocols as pure state machines: bytes in, frames out; no sockets, no clock."""
