"""`ciphermq.zmq.asyncio` with real sockets and real TLS, on either event loop."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import zmq
import zmq.asyncio
from zmq_kit import SOON, client, server

from ciphermq import limits
from ciphermq.cli.processes import free_port
from ciphermq.errors import ConnectionLost, TlsFailed, UsageError
from ciphermq.zmq import asyncio as looped
from support.certificates import Certificates


@pytest.mark.parametrize("context", [None, "asyncio"])
async def test_the_same_on_an_event_loop(certificates, context: str | None) -> None:
    given = zmq.asyncio.Context() if context else None
    async with asyncio.timeout(2 * SOON):
        async with looped.TlsRouter(server(certificates), context=given) as router:
            port = router.socket.bind_to_random_port("tcp://127.0.0.1")

            async def serve() -> None:
                while True:
                    peer, parts = await router.recv_multipart()
                    await router.send_multipart(peer, [(peer.client or "").encode(), *parts])

            serving = asyncio.create_task(serve())
            async with (
                looped.TlsDealer(
                    client(certificates), server_name="localhost", context=given
                ) as alice,
                looped.TlsReq(
                    client(certificates, "bob"), server_name="localhost", context=given
                ) as bob,
            ):
                alice.connect(f"tcp://127.0.0.1:{port}")
                bob.connect(f"tcp://127.0.0.1:{port}")
                sent = [[b"%d" % n, bytes(20_000 * (n % 7))] for n in range(400)]
                sending = asyncio.create_task(_send_all(alice, sent))
                assert [(await alice.recv_multipart())[1:] for _ in sent] == sent
                await sending
                for number in range(3):
                    await bob.send(b"%d" % number)
                    assert await bob.recv() == b"bob%d" % number
                big = [b"x" * 12_000_000]
                await alice.send_multipart(big)
                assert (await alice.recv_multipart())[1:] == big
                with pytest.raises(UsageError):
                    await alice.send_multipart([])
            serving.cancel()
            with pytest.raises(UsageError, match="closed"):
                await alice.recv()
    if given is not None:
        given.term()


async def _send_all(dealer: looped.TlsDealer, sent: list[list[bytes]]) -> None:
    for parts in sent:
        await dealer.send_multipart(parts)


async def test_a_send_that_is_cancelled_sends_nothing(certificates, echo, monkeypatch) -> None:
    monkeypatch.setattr(limits, "MAX_ZMQ_WAITING", 50_000)
    port = free_port()
    async with (
        asyncio.timeout(SOON),
        looped.TlsDealer(client(certificates), server_name="localhost") as alice,
    ):
        alice.connect(f"tcp://127.0.0.1:{port}")
        await alice.send(b"first" + bytes(70_000))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(alice.send(b"second"), 0.02)
        end = echo(at=f"tcp://127.0.0.1:{port}")
        await alice.send(b"third")
        assert [(await alice.recv())[:10] for _ in range(2)] == [b"alicefirst", b"alicethird"]
        assert len(end.heard) == 2


async def test_errors_reach_who_waits(certificates: Certificates, tmp_path: Path) -> None:
    others = Certificates(tmp_path)
    async with asyncio.timeout(SOON):
        async with looped.TlsRouter(server(certificates)) as router:
            port = router.socket.bind_to_random_port("tcp://127.0.0.1")
            waiting = asyncio.create_task(router.recv())
            tls = client(others, "mallory")
            async with looped.TlsDealer(tls, server_name="localhost") as mallory:
                mallory.connect(f"tcp://127.0.0.1:{port}")
                await mallory.send(b"x")
                with pytest.raises(TlsFailed, match="not issued by the authority"):
                    await mallory.recv()
            waiting.cancel()


async def test_the_same_for_an_event_loop(authority: Certificates) -> None:
    async with asyncio.timeout(SOON), looped.TlsRouter(server(authority)) as router:
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        async with looped.TlsDealer(client(authority), server_name="localhost") as alice:
            alice.connect(f"tcp://127.0.0.1:{port}")
            await alice.send(b"x")
            peer, _ = await router.recv()
            assert router.peers == [peer]
            authority.revoke_last()
            router.renew(server(authority))
            alice.renew(client(authority))
            router.end(peer, "it was revoked")
            assert str(peer.error) == "it was revoked"
            with pytest.raises(ConnectionLost, match="ended this session"):
                await alice.recv()
            waiting = asyncio.create_task(router.recv())
            await alice.send(b"y")
            with pytest.raises(TlsFailed, match="revoked"):
                await alice.recv()
            assert not waiting.done()
            waiting.cancel()


async def test_a_dealer_closed_while_messages_wait_says_so(certificates) -> None:
    async with asyncio.timeout(SOON):
        alice = looped.TlsDealer(client(certificates), server_name="localhost")
        alice.socket.linger = 0
        alice.connect(f"tcp://127.0.0.1:{free_port()}")
        await alice.send(b"for nobody")
        waiting = asyncio.create_task(alice.recv())
        await asyncio.sleep(0)
        alice.close()
        for too_late in (waiting, alice.recv(), alice.send(b"x")):
            with pytest.raises(UsageError, match="this socket is closed"):
                await too_late


async def test_a_looped_router_closed_while_messages_wait_says_so(certificates) -> None:
    async with asyncio.timeout(SOON):
        router = looped.TlsRouter(server(certificates))
        router.socket.linger = 0
        port = router.socket.bind_to_random_port("tcp://127.0.0.1")
        async with looped.TlsDealer(client(certificates), server_name="localhost") as alice:
            alice.connect(f"tcp://127.0.0.1:{port}")
            await alice.send(b"x")
            peer, _ = await router.recv()
            while not peer.full:
                await router.send(peer, bytes(limits.MIB))
            waiting = asyncio.create_task(router.send(peer, b"x"))
            await asyncio.sleep(0)
            router.close()
            for too_late in (waiting, router.recv(), router.send(peer, b"x")):
                with pytest.raises(UsageError, match="this socket is closed"):
                    await too_late
