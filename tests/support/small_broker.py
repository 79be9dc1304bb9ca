"""`support.amqp.Broker` in a process of its own, which says its port: ``python -m …``."""

from __future__ import annotations

import asyncio
import resource
import sys

import uvloop

from support.amqp import Broker


async def main() -> None:
    """Serve until standard input ends."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    async with Broker() as broker:
        sys.stdout.write(f"{broker.port}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


if __name__ == "__main__":
    uvloop.run(main())
