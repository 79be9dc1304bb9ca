"""Moving a virtual host from one RabbitMQ to another, behind the proxy, as one command.

What happens, in this order, and why in this order (`mover.py`)::

    plan       look at both sides, change nothing          what can't work is said now
    copy       definitions, to the target                  while clients still work at the source
    pause      the proxy holds new clients of the vhost    nobody gets the source any more
    close      old sessions are asked to end               they come again, and are held
    copy       definitions once more                       what was declared meanwhile
    drain      messages, queue by queue (`drain.py`)       order kept, confirms before acks
    remap      the vhost's map to the target
    unpause    who was held goes on, at the target

Before the remap the vhost is the source's, after it the target's, and between the two nobody uses
it: so each message is taken by clients of one side only, after all that went before it in its
queue. Each step may be done twice; a file says which are done (`record.py`), so that a move that
was interrupted, in whatever way, is taken up again, or back.
"""
