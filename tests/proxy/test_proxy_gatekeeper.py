"""The gate of a worker beside a supervisor whose answers come when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from ciphermq.proxy.change import AddBackend, Map, SetLimit
from ciphermq.proxy.gatekeeper import Gatekeeper
from ciphermq.proxy.ipc import Channel, socket_pair
from ciphermq.proxy.limits import ConnectionLimits
from ciphermq.proxy.messages import Closed, Held, MayOpen, ToSupervisor, ToWorker
from ciphermq.proxy.model import Backend, Configuration, Target
from ciphermq.proxy.routing import Router
from ciphermq.wire.amqp import closing
from support.sessions import HEADER, OPEN, START_OK, TUNE_OK, Peer, Rig

ALL = HEADER + START_OK + TUNE_OK + OPEN
WORKER = 0


class Supervisor:
    """The real limits; while `answering` is clear, answers are on their way."""

    def __init__(self, configuration: Configuration) -> None:
        self.configuration = configuration
        self.limits = ConnectionLimits()
        self.asked = self.released = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def handle(self, message: Any, _: list[int]) -> Any:
        match message:
            case MayOpen():
                self.asked += 1
                verdict = self.limits.admit(self.configuration, message.vhost, WORKER, 0.0)
                await self.answering.wait()
                return verdict
            case Closed():
                self.limits.release(message.vhost, WORKER)
                self.released += 1
            case Held():
                self.limits.recount(WORKER, message.vhosts)
        return None


@asynccontextmanager
async def one_place(rig: Rig) -> AsyncIterator[tuple[Supervisor, Gatekeeper]]:
    """`rig` with a real gate, for a vhost that may have one connection."""
    (backend,) = rig.gate.backends
    assert isinstance(backend, Backend)
    configuration = Configuration()
    for change in (
        AddBackend(backend),
        Map("/", Target("backend", backend.name)),
        SetLimit("connections", "/", 1),
    ):
        configuration = change.apply(configuration)
    supervisor = Supervisor(configuration)
    near, far = socket_pair()

    async def silent(_: Any, __: list[int]) -> None:
        return None

    worker = Channel(near, ToWorker, silent)
    other = Channel(far, ToSupervisor, supervisor.handle)
    gate = Gatekeeper(configuration, Router(configuration), worker)
    rig.gate = gate  # type: ignore[assignment]
    yield supervisor, gate
    worker.close()
    other.close()


async def ask_and_leave(rig: Rig, supervisor: Supervisor) -> None:
    """A client that leaves while the supervisor is asked about it."""
    asked, there = supervisor.asked, len(rig.sessions)
    client = await rig.client()
    client.send(ALL)
    await rig.until(lambda: supervisor.asked > asked)
    client.reset()
    await rig.until(lambda: len(rig.sessions) == there)


async def refusal(client: Peer) -> bytes:
    client.send(ALL)
    for number in (10, 30):
        await client.method(number)
    return (await client.method(50)).payload


async def test_who_leaves_before_being_refused_gives_no_place_back() -> None:
    """Else a cap is passed by coming and going quickly."""
    async with Rig() as rig:
        broker = await rig.broker()
        async with one_place(rig) as (supervisor, _):
            first = await rig.client()
            first.send(ALL)
            await (await broker.accept()).open()
            await first.method(10)
            supervisor.answering.clear()
            for _ in range(3):
                await ask_and_leave(rig, supervisor)
            supervisor.answering.set()
            assert b"limit of 1 connections" in await refusal(await rig.client())
            assert supervisor.limits.held("/") == 1


async def test_who_leaves_before_being_let_in_gives_the_place_back() -> None:
    async with Rig() as rig:
        broker = await rig.broker()
        async with one_place(rig) as (supervisor, _):
            supervisor.answering.clear()
            await ask_and_leave(rig, supervisor)
            supervisor.answering.set()
            await rig.until(lambda: supervisor.released == 1)
            client = await rig.client()
            client.send(ALL)
            await (await broker.accept()).open()
            for number in (10, 30):
                await client.method(number)
            assert supervisor.limits.held("/") == 1


async def test_a_place_is_not_asked_for_while_the_supervisor_is_gone() -> None:
    async with Rig() as rig:
        await rig.broker()
        async with one_place(rig) as (_, gate):
            gate._supervisor.close()
            payload = await refusal(await rig.client())
            assert payload[4:6] == closing.CONNECTION_FORCED.to_bytes(2, "big")
            assert b"the proxy is ending" in payload
