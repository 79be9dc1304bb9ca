"""What tests of a running proxy share: brokers in the test's own loop, and patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from support.amqp import Broker, Client, connect
from support.proxy import Proxy

PATIENCE = 60.0


async def until(holds: Callable[[], object]) -> None:
    """Return as soon as `holds()` is true, and let the loop go on meanwhile."""
    async with asyncio.timeout(PATIENCE):
        while not holds():
            await asyncio.sleep(0.02)


async def command(proxy: Proxy, *words: str) -> str:
    """A command's answer, from a thread: brokers in this loop go on answering meanwhile."""
    return await asyncio.to_thread(proxy, *words)


async def said(path: Path, line: str) -> str:
    """What a control client that sends `line` is answered, bare, until the end."""
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(line.encode() + b"\n")
    answer = await reader.read()
    writer.close()
    return answer.decode()


def route(proxy: Proxy, *brokers: Broker, vhost: str = "/") -> int:
    """Send a vhost to a farm of these brokers; the port the proxy listens on."""
    names = []
    for broker in brokers:
        name = f"broker-{broker.port}"
        proxy("BACKEND", "ADD", name, "dc", "127.0.0.1", str(broker.port))
        names.append(name)
    proxy("FARM", "ADD", "farm", "round-robin", *names)
    proxy("MAP", "FARM", vhost, "farm")
    return proxy.listen()


def children(pid: int) -> list[int]:
    """The processes a process has started."""
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def alive(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def connected_to_both(proxy: Proxy, port: int, workers: int = 2) -> list[Client]:
    """Clients until every worker has one: the kernel deals them out by chance."""
    clients: list[Client] = []

    async def have_all() -> bool:
        ids = [session["id"] % workers for session in await asyncio.to_thread(proxy.json, "CONN")]
        return len(set(ids)) == workers

    while not await have_all():
        clients.append(await connect(port))
        assert len(clients) < 200
    return clients
