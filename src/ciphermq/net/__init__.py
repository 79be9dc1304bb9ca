"""Sockets: TLS 1.3 with certificates on both sides, over TCP.

`dial` makes a connection and `Listener` takes them; either way a `Link` comes of it, which sends
and receives frames of ``cmq/2`` and finds out when the other side is gone.
"""
