"""The sessions a restart leaves in the old process: steered through the new one to their end."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from proxy_running import alive, children, command, route, said, until

from ciphermq.errors import ProxyError
from ciphermq.proxy.handover import Succession
from ciphermq.proxy.messages import DoVhost
from support.amqp import Broker, Client, connect
from support.proxy import Proxy


@asynccontextmanager
async def running(*flags: str) -> AsyncIterator[tuple[Proxy, Broker, int]]:
    """A proxy of two workers that is ended through its control socket, whoever has that by then."""
    async with Broker() as broker:
        with Proxy("--handover-drain", "60", *flags, workers=2) as proxy:
            port = await asyncio.to_thread(route, proxy, broker)
            await command(proxy, "TIMEOUT", "SET", "drain", "0.5")
            try:
                yield proxy, broker, port
            finally:
                with contextlib.suppress(OSError):
                    await said(proxy.socket, "EXIT")
                await until(lambda: not proxy.socket.exists())


async def sessions(proxy: Proxy) -> list[dict[str, Any]]:
    listed: list[dict[str, Any]] = await asyncio.to_thread(proxy.json, "CONN")
    return listed


async def old_and_new(proxy: Proxy, port: int) -> tuple[Client, int, Client, int]:
    """A session of the process that was replaced, one of its successor, and their numbers."""
    old = await connect(port)
    (before,) = await sessions(proxy)
    await command(proxy, "RESTART")
    new = await connect(port)
    numbers = [each["id"] for each in await sessions(proxy)]
    assert numbers[0] == before["id"]
    assert len(set(numbers)) == 2
    return old, numbers[0], new, numbers[1]


async def test_one_session_is_ended_and_the_other_stays() -> None:
    async with running() as (proxy, _, port):
        old, number, new, _ = await old_and_new(proxy, port)
        await command(proxy, "SESSION", str(number), "DISCONNECT_GRACEFUL")
        assert (await old.closed()).reply == 200
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        assert await new.echoed()
        assert len(await sessions(proxy)) == 1
        assert "not found" in await said(proxy.socket, f"SESSION {number} PAUSE")


async def test_a_vhost_is_paused_remapped_and_unpaused_in_both() -> None:
    async with running() as (proxy, _, port), Broker() as other:
        await command(proxy, "VHOST", "PAUSE", "/")
        held = asyncio.ensure_future(connect(port))
        await until(lambda: [each["paused"] for each in proxy.json("CONN")] == [True])
        await command(proxy, "RESTART")
        # Who is held by the old process goes where the vhost is mapped by now.
        await command(proxy, "BACKEND", "ADD", "other", "dc", "127.0.0.1", str(other.port))
        await command(proxy, "MAP", "BACKEND", "/", "other")
        await command(proxy, "VHOST", "UNPAUSE", "/")
        client = await held
        assert await client.echoed()
        assert [each["backend"] for each in await sessions(proxy)] == ["other"]
        # An unpause ends who was there before it, in both.
        fresh = await connect(port)
        await command(proxy, "VHOST", "PAUSE", "/")
        await command(proxy, "VHOST", "UNPAUSE", "/")
        assert [(await one.closed()).reply for one in (client, fresh)] == [200, 200]


async def test_a_vhosts_sessions_are_cut_off_in_both() -> None:
    async with running() as (proxy, _, port):
        old, _, new, _ = await old_and_new(proxy, port)
        await command(proxy, "VHOST", "FORCE_DISCONNECT", "/")
        assert await old.reader.read() == await new.reader.read() == b""


async def test_the_end_is_told_to_both() -> None:
    async with running() as (proxy, _, port):
        old, _, new, _ = await old_and_new(proxy, port)
        await command(proxy, "EXIT")
        reasons = {(await client.closed()).text for client in (old, new)}
        assert reasons == {"CONNECTION_FORCED - the proxy is stopping"}
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0


async def test_a_restart_after_a_restart_leaves_all_of_them_in_reach() -> None:
    async with running() as (proxy, _, port):
        oldest, number, newer, _ = await old_and_new(proxy, port)
        await command(proxy, "RESTART")
        newest = await connect(port)
        assert len({each["id"] for each in await sessions(proxy)}) == 3
        # The middle one has no session any more, and stays for the oldest's sake.
        await newer.close()
        await until(lambda: len(proxy.json("CONN")) == 2)
        await command(proxy, "SESSION", str(number), "DISCONNECT_GRACEFUL")
        assert (await oldest.closed()).reply == 200
        assert await newest.echoed()


async def test_a_predecessor_that_is_killed_is_no_hindrance() -> None:
    async with running() as (proxy, _, port):
        workers = children(proxy.process.pid)
        old, _, new, _ = await old_and_new(proxy, port)
        os.kill(proxy.process.pid, signal.SIGKILL)
        await asyncio.to_thread(proxy.process.wait, 60)
        await until(lambda: len(proxy.json("CONN")) == 1)
        await command(proxy, "DATACENTER", "SET", "elsewhere")
        assert await new.echoed()
        old.drop()
        await until(lambda: not any(map(alive, workers)))


async def test_a_service_manager_that_ends_all_processes_cuts_nobody_off() -> None:
    async with running() as (proxy, _, port):
        old, _, new, _ = await old_and_new(proxy, port)
        proxy.process.send_signal(signal.SIGTERM)
        assert (await old.closed()).text == "CONNECTION_FORCED - the proxy is stopping"
        assert await asyncio.to_thread(proxy.process.wait, 60) == 0
        assert "ended at once" not in proxy.output
        assert await new.echoed()


async def test_a_command_for_the_successor_is_refused_before_there_is_one() -> None:
    async with running() as (proxy, _, port):
        client = await connect(port)
        assert await client.echoed()
        succession = await Succession.begin(proxy.socket)
        with pytest.raises(ProxyError, match="no successor yet"):
            await succession.predecessor.ask(DoVhost("/", "force_disconnect"))
        succession.abandon()
        assert await client.echoed()
