"""The text protocol of CipherMQ 1.x.

`speech` says what is said, `codec` how it looks as a line; `machine` cuts lines out of a stream
for one connection.
"""
