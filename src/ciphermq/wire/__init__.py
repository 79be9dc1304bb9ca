"""Protocols as pure state machines: bytes in, events out; no sockets, no clock.

`cmq2` is the binary batch protocol, `tls` is TLS through memory.
"""
