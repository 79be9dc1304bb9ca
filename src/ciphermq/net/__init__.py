"""Sockets: TLS 1.3 with certificates on both sides, over TCP.

`dial` makes a connection and `Listener` takes them. A `Channel` is what TLS makes of one; a `Link`
is what ``cmq/2`` makes of a channel: it sends and receives frames, and finds out when the other
side is gone. A listener chooses by the protocol's name in TLS who talks through a channel, so
another protocol is one more entry in its table.
"""
