"""A client's session: from the protocol through access to the engine, and back.

`server` owns the parts and their life. Every connection gets a `session`, which hands frames to
`publishing` (batches in), `consuming` (batches out), or `requests` (the rest); `access` says who
may do what, `keys` keeps the directory, `flow` stops readers when the disk can't follow.
"""
