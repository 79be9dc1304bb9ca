"""Thousands of clients in a process of their own: ``python -m support.crowd PORT HELD FAILING``.

Opens HELD connections and keeps them; beside them FAILING clients come and go wrong, each in one
of the ways there are. Says what it has done on standard output, a JSON object a line: ``held`` (how
many are open), ``failed`` (how many of the others were let go of, as they should be). Then each
line of standard input is an order: ``echo`` has every held connection send a frame and get it back
(``echoed``), ``drop`` ends all of them at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import resource
import struct
import sys
from collections.abc import Sequence

import uvloop

from support.amqp import HEADER, Client, Closed, connect

AT_ONCE = 100


async def hold(port: int, number: int) -> list[Client]:
    """So many open connections."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one() -> Client:
        async with places:
            return await connect(port)

    return list(await asyncio.gather(*(one() for _ in range(number))))


WRONG: Sequence[bytes] = (
    b"",
    b"AMQP\x00\x01\x00\x00",
    b"GET / HTTP/1.1\r\n\r\n",
    HEADER,
    HEADER + b"\x01\x00\x00\x00\xff\xff\xff" + b"\x00" * 64,
    HEADER + struct.pack(">BHI", 1, 0, 4) + b"\x00\x0a\x00\x28\xce",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 64,
)


async def fail(port: int, number: int) -> int:
    """So many clients that go wrong; how many of them ended."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(at: int) -> None:
        async with places:
            if at % (len(WRONG) + 1) == len(WRONG):
                with contextlib.suppress(Closed):
                    await connect(port, f"nowhere-{at}")
                return
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(WRONG[at % (len(WRONG) + 1)])
            with contextlib.suppress(OSError):
                await writer.drain()
                if at % 3:
                    await asyncio.wait_for(reader.read(4096), 0.2)
            writer.close()

    done = await asyncio.gather(*(one(at) for at in range(number)), return_exceptions=True)
    accepted = (type(None), TimeoutError, ConnectionError, asyncio.IncompleteReadError)
    return sum(isinstance(each, accepted) for each in done)


def say(**what: int) -> None:
    """A line of JSON."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(port: int, held: int, failing: int) -> None:
    """See the module."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    wrong = asyncio.ensure_future(fail(port, failing))
    clients = await hold(port, held)
    say(held=len(clients))
    say(failed=await wrong)
    loop = asyncio.get_running_loop()
    while order := await loop.run_in_executor(None, sys.stdin.readline):
        if order.strip() == "echo":
            say(echoed=sum(await asyncio.gather(*(client.echoed() for client in clients))))
        else:
            for client in clients:
                client.drop()
            clients = []
            say(dropped=0)


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
