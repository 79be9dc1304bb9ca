"""TLS over ZeroMQ, as pure machines: ZeroMQ messages in and out, never a socket.

From the bottom up: `header` is how one ZeroMQ message looks, `session` is one TLS session in such
messages, `parts` keeps messages of several parts apart inside TLS, `speaker` joins the two, and
`dealer` and `router` are the two ends that a program has.
"""
