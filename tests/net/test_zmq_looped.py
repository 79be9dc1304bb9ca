"""The event loop's sockets where something goes wrong around them: a loop that is held up, a
context that ends, a wait that is given up, a socket that is closed while somebody uses it."""

from __future__ import annotations

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import zmq

from ciphermq import limits
from ciphermq.errors import ConnectionLost, TlsFailed, UsageError
from ciphermq.net.zmq import ends
from ciphermq.wire.tlszmq.parts import ALPN
from ciphermq.zmq import TlsDealer
from ciphermq.zmq import asyncio as looped
from support.certificates import Certificates

SOON = 30.0

MANY = 3 * limits.ZMQ_TAKE
"""Clients: more than one look takes in, and than two."""


def server(certificates: Certificates) -> ssl.SSLContext:
    return certificates.server(protocols=(ALPN,))


def client(certificates: Certificates, name: str = "alice") -> ssl.SSLContext:
    return certificates.client(name, protocols=(ALPN,))


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of an ``async with`` waits as long as it must, however slow this machine is."""
    monkeypatch.setattr(limits, "LINGER", SOON)


def listening(router: looped.TlsRouter) -> str:
    return f"tcp://127.0.0.1:{router.socket.bind_to_random_port('tcp://127.0.0.1')}"


def to_nobody(dealer: looped.TlsDealer) -> None:
    """What it sends will never go."""
    dealer.socket.linger = 0
    dealer.connect("tcp://127.0.0.1:9")


async def until(done: Any) -> None:
    async with asyncio.timeout(SOON):
        while not done():
            await asyncio.sleep(0.01)


# --- clocks -------------------------------------------------------------------------------------


async def test_nobody_is_silent_whose_words_are_here(
    certificates: Certificates, context: zmq.Context[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + ahead, sleep=time.sleep)
    monkeypatch.setattr(ends, "time", clock)
    ended: list[str] = []
    tls = client(certificates)
    async with (
        asyncio.timeout(2 * SOON),
        looped.TlsRouter(
            server(certificates), context=context, on_end=lambda _, why: ended.append(str(why))
        ) as router,
    ):
        router.bind("inproc://held-up")  # what is sent is there at once
        dealers = [TlsDealer(tls, server_name="localhost", context=context) for _ in range(MANY)]
        for dealer in dealers:
            dealer.connect("inproc://held-up")
            dealer.send(b"first")
        assert {(await router.recv())[1] for _ in dealers} == {b"first"}
        for dealer in dealers:
            dealer.send(b"second")
            dealer.flush()
        time.sleep(2 * limits.ZMQ_TICK)  # the loop is held up, until it has to look at its clocks
        ahead = 2 * limits.ZMQ_IDLE
        got = 0
        while got < MANY and not ended:
            assert (await router.recv())[1] == b"second"
            got += 1
        for dealer in dealers:
            dealer.close(timeout=0)
    assert got == MANY, ended[:1]


# --- a context that ends ------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["term", "destroy"])
async def test_who_waits_is_told_that_the_context_has_ended(
    certificates: Certificates, how: str
) -> None:
    faults: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, what: faults.append(what))
    context: zmq.Context[Any] = zmq.Context()
    router = looped.TlsRouter(server(certificates), context=context)
    dealer = looped.TlsDealer(client(certificates), server_name="localhost", context=context)
    dealer.connect(listening(router))
    waiting = [asyncio.create_task(router.recv()), asyncio.create_task(dealer.recv())]
    await until(lambda: router.peers)
    thread = threading.Thread(target=getattr(context, how), daemon=True)
    thread.start()
    try:
        async with asyncio.timeout(SOON):
            for each in waiting:
                with pytest.raises(zmq.ZMQError):
                    await each
        with pytest.raises(zmq.ZMQError):
            await dealer.send(b"x")
        with pytest.raises(zmq.ZMQError):
            await router.recv()
        await until(lambda: not thread.is_alive())  # all its sockets are closed
    finally:
        router.close()
        dealer.close()
    assert faults == []


async def test_the_end_of_a_with_says_that_the_context_has_ended(
    certificates: Certificates, patient: None
) -> None:
    context: zmq.Context[Any] = zmq.Context()
    thread = threading.Thread(target=context.term, daemon=True)
    with pytest.raises(zmq.ContextTerminated):
        async with looped.TlsDealer(
            client(certificates), server_name="localhost", context=context
        ) as dealer:
            to_nobody(dealer)
            await dealer.send(b"x")
            thread.start()
    await until(lambda: not thread.is_alive())


# --- the end of an ``async with`` ---------------------------------------------------------------


async def test_the_end_of_a_with_raises_what_nobody_was_told(
    certificates: Certificates, patient: None
) -> None:
    async with asyncio.timeout(SOON), looped.TlsRouter(server(certificates)) as router:
        address = listening(router)
        with pytest.raises(TlsFailed, match="is for another name"):
            async with looped.TlsDealer(client(certificates), server_name="elsewhere") as dealer:
                dealer.connect(address)
                await dealer.send(b"this can't be sent")
        assert dealer.socket.closed


async def test_the_end_of_a_with_raises_nothing_twice(certificates: Certificates) -> None:
    async with asyncio.timeout(SOON), looped.TlsRouter(server(certificates)) as router:
        address = listening(router)

        async def lose(dealer: looped.TlsDealer) -> None:
            dealer.connect(address)
            await dealer.send(b"x")
            peer, _ = await router.recv()
            router.end(peer)
            await until(lambda: dealer._machine.error is not None)

        with pytest.raises(ConnectionLost, match="ended this session"):
            async with looped.TlsDealer(client(certificates), server_name="localhost") as dealer:
                await lose(dealer)
        async with looped.TlsDealer(client(certificates), server_name="localhost") as dealer:
            await lose(dealer)
            with pytest.raises(ConnectionLost, match="ended this session"):
                await dealer.recv()
        async with looped.TlsDealer(client(certificates), server_name="elsewhere") as dealer:
            dealer.connect(address)
            await dealer.send(b"this can't be sent, however often it is tried")
            with pytest.raises(TlsFailed, match="is for another name"):
                await dealer.recv()
        with pytest.raises(ZeroDivisionError):
            async with looped.TlsDealer(client(certificates), server_name="localhost") as dealer:
                await lose(dealer)
                raise ZeroDivisionError


async def test_who_closes_it_ends_the_wait_at_the_end_of_a_with(
    certificates: Certificates, context: zmq.Context[Any], patient: None
) -> None:
    async with asyncio.timeout(SOON / 2):
        async with looped.TlsDealer(
            client(certificates), server_name="localhost", context=context
        ) as dealer:
            to_nobody(dealer)
            await dealer.send(b"x")
            waiting = asyncio.create_task(dealer.drain())
            await until(lambda: dealer._waiters)
            asyncio.get_running_loop().call_later(0.01, dealer.close)
        await waiting


async def test_who_gives_the_wait_up_at_the_end_of_a_with_leaves_no_socket(
    certificates: Certificates, context: zmq.Context[Any], patient: None
) -> None:
    made: list[looped.TlsDealer] = []

    async def work() -> None:
        async with looped.TlsDealer(
            client(certificates), server_name="localhost", context=context
        ) as dealer:
            to_nobody(dealer)
            await dealer.send(b"x")
            made.append(dealer)

    working = asyncio.create_task(work())
    await until(lambda: made and made[0]._waiters)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working
    assert made[0].socket.closed


async def test_what_a_close_leaves_unsent_is_in_the_log(
    certificates: Certificates, context: zmq.Context[Any], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    dealer = looped.TlsDealer(client(certificates), server_name="localhost", context=context)
    dealer.close()
    assert caplog.messages == []
    dealer = looped.TlsDealer(client(certificates), server_name="localhost", context=context)
    to_nobody(dealer)
    await dealer.send(b"x")
    dealer.close()
    assert "closed before all was sent" in caplog.text


# --- a loop that is not there -------------------------------------------------------------------


def test_without_a_loop_no_socket_is_made(
    certificates: Certificates, context: zmq.Context[Any]
) -> None:
    with pytest.raises(RuntimeError, match="no running event loop") as told:
        looped.TlsRouter(server(certificates), context=context)
    assert not list(context._sockets), told  # which keeps alive what was made


async def test_a_req_whose_answer_was_lost_asks_again(certificates: Certificates) -> None:
    async with (
        asyncio.timeout(SOON),
        looped.TlsRouter(server(certificates)) as router,
        looped.TlsReq(client(certificates), server_name="localhost") as alice,
    ):
        alice.connect(f"tcp://127.0.0.1:{router.socket.bind_to_random_port('tcp://127.0.0.1')}")
        await alice.send(b"one")
        assert (await router.recv())[1] == b"one"
        with pytest.raises(UsageError, match="receive its answer before"):
            await alice.send(b"two")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.recv(), 0.05)
        await alice.send(b"two")
        peer, question = await router.recv()
        await router.send(peer, b"answer to " + question)
        assert await alice.recv() == b"answer to two"
