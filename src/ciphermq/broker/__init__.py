"""What the queues decide, and nothing else: no socket, no disk, no clock.

`Broker` is the whole room's face. Its methods take what happened (and `now`, in milliseconds),
change the state in memory and say what is to be made durable by appending *records* to the port
they were given. Reading the same records back in the same order gives the same state, so a
restart is a replay. Who stores the records, moves the bytes and asks what time it is: the engine.

The files, in the order of a batch's life:

=============  ==================================================================================
`records`      what is written down: kinds and layouts
`exchanges`    which queues a routing key leads to
`dedup`        whether a batch was published before
`publishing`   all queues or none
`entries`      a batch in memory, and its place in a queue, in as few bytes as can be
`queues`       what waits, in order; what is in hand; what is full
`credit`       whose turn it is among a queue's consumers
`deliveries`   what is in whose hands, and until when
`redelivery`   tries, back-off, time-outs
`deadletters`  where a message goes that can't be had, and how it comes back
`topology`     declaring, binding, deleting
`administration`  purging, looking inside
`timers`       what is due when
`recovery`     records back to state; copies for compaction
`state`        what the others share
`broker`       the face
=============  ==================================================================================
"""

from __future__ import annotations

from ciphermq.broker.broker import Broker
from ciphermq.broker.state import BrokerLimits, Port

__all__ = ["Broker", "BrokerLimits", "Port"]
