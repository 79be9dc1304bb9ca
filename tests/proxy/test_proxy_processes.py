"""The running proxy's processes: several workers, one of them dying, the end, a restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import sys
from pathlib import Path

import pytest
from proxy_running import alive, children, command, connected_to_both, route, said, until

from ciphermq.errors import HandoverFailed, ProxyError
from ciphermq.proxy.handover import Succession, place
from ciphermq.proxy.ipc import Channel
from ciphermq.proxy.messages import Taken, TakeOver
from support.amqp import Broker, Closed, connect
from support.proxy import Proxy


async def test_two_workers_serve_under_one_control() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            clients = await connected_to_both(proxy, port)
            for client in clients:
                assert await client.echoed()
            sessions = proxy.json("CONN")
            assert [one["id"] for one in sessions] == sorted(one["id"] for one in sessions)
            assert len(sessions) == len(clients)
            # Whichever worker a session is at, it is found by its number.
            for session in sessions:
                await command(proxy, "SESSION", str(session["id"]), "DISCONNECT_GRACEFUL")
            reasons = await asyncio.gather(*(client.closed() for client in clients))
            assert {(one.reply, one.text) for one in reasons} == {(200, "OK")}
            await until(lambda: proxy.json("CONN") == [])


async def test_a_worker_that_dies_takes_only_its_own_sessions_along() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            clients = await connected_to_both(proxy, port)
            victim = children(proxy.process.pid)[0]
            before = len(clients)
            os.kill(victim, signal.SIGKILL)
            await until(lambda: "worker died, and is started anew" in proxy.output)
            await until(
                lambda: len([one for one in children(proxy.process.pid) if alive(one)]) == 2
            )
            await until(lambda: 0 < len(proxy.json("CONN")) < before)
            left = len(proxy.json("CONN"))
            echoes = await asyncio.gather(
                *(client.echoed() for client in clients), return_exceptions=True
            )
            assert echoes.count(True) == left
            # What connects to the dead one's socket meanwhile waits for the new one.
            fresh = await asyncio.gather(*(connect(port) for _ in range(20)))
            for client in fresh:
                assert await client.echoed()


async def test_a_busy_port_is_an_error_of_that_command_only() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy, socket.create_server(("127.0.0.1", 0)) as other:
            port = route(proxy, broker)
            client = await connect(port)
            busy = other.getsockname()[1]
            answer = await said(proxy.socket, f"LISTEN START {busy}")
            assert f"port {busy}" in answer
            assert "another program listens there" in answer
            assert await client.echoed()
            assert await (await connect(port)).echoed()
            assert [one["port"] for one in proxy.json("LISTEN", "PRINT")] == [port]


async def test_two_proxies_do_not_share_a_port_by_mistake() -> None:
    with Proxy(workers=2) as one, Proxy(workers=2) as two:
        port = one.listen()
        assert "another program listens there" in await said(two.socket, f"LISTEN START {port}")


async def test_listening_stops_and_sessions_stay() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            await command(proxy, "LISTEN", "STOP", str(port))
            with pytest.raises(ConnectionRefusedError):
                await connect(port)
            assert await client.echoed()
            await command(proxy, "LISTEN", "START", str(port))
            assert await (await connect(port)).echoed()


@pytest.mark.parametrize("how", ["EXIT", "SIGTERM"])
async def test_the_end_is_told_to_clients(how: str) -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            clients = [await connect(port) for _ in range(5)]
            if how == "EXIT":
                await command(proxy, "EXIT")
            else:
                proxy.process.send_signal(signal.SIGTERM)
            reasons = await asyncio.gather(*(client.closed() for client in clients))
            assert {one.reply for one in reasons} == {320}
            assert {one.text for one in reasons} == {"CONNECTION_FORCED - the proxy is stopping"}
            assert await asyncio.to_thread(proxy.process.wait, 60) == 0
            assert not proxy.socket.exists()
            assert list(proxy.directory.glob("*.handover")) == []


async def test_who_does_not_answer_the_close_is_cut_off_after_the_drain_time() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "TIMEOUT", "SET", "drain", "0.5")
            await command(proxy, "TIMEOUT", "SET", "close_ok", "60")
            client = await connect(port)
            proxy.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(proxy.process.wait, 60) == 0
            assert b"the proxy is stopping" in await client.reader.read()


async def test_the_supervisor_killed_its_workers_end_by_themselves() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            await command(proxy, "TIMEOUT", "SET", "drain", "0.2")
            client = await connect(port)
            workers = children(proxy.process.pid)
            proxy.process.kill()
            reason = await client.closed()
            assert reason.text == "CONNECTION_FORCED - the proxy has lost its supervisor"
            await until(lambda: not any(map(alive, workers)))


class Load:
    """Clients that connect, say something and close, without a pause, until told to stop."""

    def __init__(self, port: int, clients: int) -> None:
        self.done = 0
        self.failures: list[BaseException] = []
        self._stop = False
        self._tasks = [asyncio.ensure_future(self._run(port)) for _ in range(clients)]

    async def _run(self, port: int) -> None:
        while not self._stop:
            try:
                client = await connect(port)
                assert await client.echoed()
                await client.close()
            except (OSError, Closed, asyncio.IncompleteReadError, AssertionError) as error:
                self.failures.append(error)
                return
            self.done += 1

    async def stop(self) -> None:
        self._stop = True
        await asyncio.gather(*self._tasks)


class Successor:
    """A proxy that takes over from another."""

    def __init__(self, proxy: Proxy, *flags: str, workers: int = 2) -> None:
        self._command = [
            sys.executable, "-m", "ciphermq.proxy.main", "--control", str(proxy.socket),
            "--take-over", "--workers", str(workers), *flags,
        ]  # fmt: skip

    async def __aenter__(self) -> asyncio.subprocess.Process:
        self.process = await asyncio.create_subprocess_exec(
            *self._command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        return self.process

    async def __aexit__(self, *_: object) -> None:
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        await self.process.communicate()


@pytest.mark.parametrize("workers", [1, 3])
async def test_a_restart_drops_nothing(workers: int) -> None:
    async with Broker() as broker:
        with Proxy("--handover-drain", "60", workers=2) as proxy:
            port = route(proxy, broker)
            await command(proxy, "LIMIT", "DATA_RATE", "VHOST", "other", "12345")
            held = [await connect(port) for _ in range(10)]
            load = Load(port, 4)
            await until(lambda: load.done > 20)
            async with Successor(proxy, workers=workers) as successor:
                assert successor.stdout is not None
                ready = await successor.stdout.readline()
                assert f"*:{port}" in ready.decode()
                reached = load.done
                await until(lambda: load.done > reached + 20)
                # The new one has the configuration, saved or not, and the control socket.
                assert "12345" in await said(proxy.socket, "LIMIT PRINT other")
                assert proxy.process.poll() is None
                for client in held:
                    assert await client.echoed()
                await load.stop()
                assert load.failures == []
                for client in held:
                    await client.close()
                assert await asyncio.to_thread(proxy.process.wait, 60) == 0
                assert await (await connect(port)).echoed()
                successor.terminate()
                assert await successor.wait() == 0
                assert not proxy.socket.exists()


async def test_sessions_that_stay_are_closed_when_patience_ends() -> None:
    async with Broker() as broker:
        with Proxy("--handover-drain", "0.3", workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            async with Successor(proxy) as successor:
                assert successor.stdout is not None
                await successor.stdout.readline()
                reason = await client.closed()
                assert (reason.reply, reason.text) == (
                    320,
                    "CONNECTION_FORCED - the proxy was replaced",
                )
                assert await asyncio.to_thread(proxy.process.wait, 60) == 0


async def test_a_successor_that_fails_changes_nothing() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            succession = await Succession.begin(proxy.socket)
            assert [one.port for one in succession.estate.listeners] == [port] * 4
            # Nothing is changed from here on, until it is clear who goes on.
            waiting = asyncio.ensure_future(said(proxy.socket, "DATACENTER SET there"))
            second = await said(proxy.socket, "CONN")
            assert second.startswith("id=")
            assert not waiting.done()
            succession.abandon()
            assert await waiting == ""
            await until(lambda: "the successor has failed" in proxy.output)
            assert await client.echoed()
            assert await (await connect(port)).echoed()


async def test_a_successor_that_is_refused_or_never_asks_changes_nothing() -> None:
    with Proxy() as proxy:

        async def ask(question: object) -> None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.setblocking(False)
            sock.connect(str(place(proxy.socket)))
            channel = Channel(sock, TakeOver | Taken, silent)
            with pytest.raises(ProxyError):
                await channel.ask(question)
            channel.close()

        async def silent(_: object, __: list[int]) -> None:
            return None

        for number, question in enumerate([TakeOver(version=0), Taken(), Taken()]):
            await ask(question)
            await until(
                lambda times=number + 1: proxy.output.count("successor has failed") == times  # type: ignore[misc]
            )
            assert await said(proxy.socket, f"DATACENTER SET number-{number}") == ""
        assert "RuntimeError" not in proxy.output
        succession = await Succession.begin(proxy.socket)
        assert succession.estate.configuration.datacenter == "number-2"
        succession.abandon()


async def test_a_second_successor_at_a_time_is_turned_away() -> None:
    with Proxy() as proxy:
        succession = await Succession.begin(proxy.socket)
        with pytest.raises(HandoverFailed):
            await Succession.begin(proxy.socket)
        succession.abandon()


async def test_signal_usr2_starts_the_successor() -> None:
    async with Broker() as broker:
        with Proxy("--handover-drain", "60", workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            proxy.process.send_signal(signal.SIGUSR2)
            await until(lambda: proxy.output.count(" ready on ") == 2)
            assert await client.echoed()
            fresh = await connect(port)
            await client.close()
            assert await asyncio.to_thread(proxy.process.wait, 60) == 0
            assert await fresh.echoed()
            assert await said(proxy.socket, "EXIT") == ""
            assert (await fresh.closed()).reply == 320
            await until(lambda: not proxy.socket.exists())


async def test_nothing_to_take_over_is_said() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "ciphermq.proxy.main", "--control", "nowhere", "--take-over",
        stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    _, errors = await process.communicate()
    assert process.returncode == 1
    assert b"No proxy hands over at nowhere.handover" in errors


async def test_a_control_socket_is_not_taken_from_a_running_proxy() -> None:
    with Proxy() as proxy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "ciphermq.proxy.main", "--control", str(proxy.socket),
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        _, errors = await process.communicate()
        assert process.returncode == 1
        assert b"runs with the control socket" in errors
        assert proxy.json("CONN") == []


async def test_out_of_descriptors_it_serves_whom_it_has() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            (worker,) = children(proxy.process.pid)
            used = len(list(Path(f"/proc/{worker}/fd").iterdir()))
            _, hard = resource.prlimit(worker, resource.RLIMIT_NOFILE)
            resource.prlimit(worker, resource.RLIMIT_NOFILE, (used + 8, hard))
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
            await until(lambda: "no new connections are accepted" in proxy.output)
            assert await client.echoed()
            assert proxy.json("CONN") != []
            for _, writer in silent:
                writer.close()
            await until(lambda: "new connections are accepted again" in proxy.output)
            late = await connect(port)
            assert await late.echoed()
            assert alive(worker)


async def test_a_control_client_that_stalls_holds_nobody_up() -> None:
    with Proxy() as proxy:
        stalled = [await asyncio.open_unix_connection(str(proxy.socket)) for _ in range(20)]
        stalled[0][1].write(b"CONN")
        for _ in range(3):
            assert await said(proxy.socket, "CONN") == ""
        for _, writer in stalled:
            writer.close()
