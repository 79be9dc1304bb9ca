"""``cmq/2``, the binary batch protocol between a client and a server.

`frames` says what is said, `table` who may say it when and how long it may be, `codec` how it
looks in bytes; `machine` puts the three together for one connection.
"""
