"""TLS over ZeroMQ: the sockets.

`ends` joins a machine of `wire.tlszmq` to a ZeroMQ socket; `plain` and `looped` make of that the
sockets that programs use, blocking and on an event loop.
"""
