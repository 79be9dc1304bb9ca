"""The consumers that keep queues which go with their last one."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

from ciphermq.proxy.move.broker import Broker, trust
from ciphermq.proxy.move.guard import Guard
from ciphermq.proxy.move.record import Side
from support.rabbitmq import Node


async def test_a_guard_that_is_refused_leaves_nothing_unsaid(blue: Node) -> None:
    """A queue that can't be kept is no fault: nobody is shown a traceback for it."""
    unseen: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: unseen.append(context))
    with blue.vhost() as vhost:
        user = f"guard-{vhost.name}"
        blue.api("PUT", f"users/{user}", {"password": "pw", "tags": ""})
        rights = {"configure": "", "write": ".*", "read": ".*"}
        blue.api("PUT", f"permissions/{vhost.quoted}/{user}", rights)
        addresses = (("127.0.0.1", blue.port, False),)
        side = Side(kind="farm", name="blue", management="", user=user, addresses=addresses)
        guard = Guard()
        try:
            await guard.watch(Broker(side, "pw", trust(None)), vhost.name, ["brief"])
            await guard.close()
        finally:
            blue.api("DELETE", f"users/{user}")
    gc.collect()
    await asyncio.sleep(0)
    assert unseen == []
