"""What amqpprox was seen to get wrong, and the same done to the running proxy."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import pytest
from pamqp import commands, frame
from proxy_running import command, connected_to_both, route, said, until

from ciphermq.cli.processes import free_port
from support.amqp import HEADER, Broker, Closed, body, connect, read_method
from support.proxy import Proxy


async def test_one_of_two_backends_refuses_and_nobody_notices() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            dead = Broker(free_port())
            port = route(proxy, dead, broker)
            for _ in range(12):
                clients = await asyncio.gather(*(connect(port) for _ in range(10)))
                await asyncio.gather(*(client.close() for client in clients))
            assert len(broker.opened) == 120


async def test_three_healthy_backends_have_a_third_each() -> None:
    async with Broker() as one, Broker() as two, Broker() as three:
        with Proxy(workers=2) as proxy:
            port = route(proxy, one, two, three)
            for _ in range(12):
                await asyncio.gather(*(connect(port) for _ in range(10)))
            shares = [len(broker.opened) for broker in (one, two, three)]
            assert sum(shares) == 120
            assert max(shares) - min(shares) <= 4  # each worker counts for itself


@pytest.mark.parametrize("sent", [b"", b"AMQP", HEADER, HEADER + b"\x01\x00\x00"])
async def test_a_client_that_falls_silent_is_let_go(sent: bytes) -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            for phase in ("header", "start_ok", "close_ok"):
                await command(proxy, "TIMEOUT", "SET", phase, "0.2")
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(sent)
            await reader.read()
            writer.close()
            await until(lambda: proxy.json("CONN") == [])


async def test_a_backend_that_says_nothing_is_passed_over() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    mute = await asyncio.start_server(silent, "127.0.0.1", 0)
    async with Broker() as broker:
        with Proxy() as proxy:
            await command(proxy, "TIMEOUT", "SET", "start", "0.2")
            port = route(proxy, Broker(mute.sockets[0].getsockname()[1]), broker)
            for _ in range(3):
                assert await (await connect(port)).echoed()
    mute.close()


async def test_a_close_that_nobody_answers_ends_in_time() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            await command(proxy, "TIMEOUT", "SET", "close_ok", "0.2")
            client = await connect(port)
            await command(proxy, "SESSION", "1", "DISCONNECT_GRACEFUL")
            await until(lambda: proxy.json("CONN") == [])
            assert b"\x00\x0a\x00\x32" in await client.reader.read()


async def test_a_bad_statsd_host_does_no_harm() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            answer = await said(proxy.socket, "STAT SEND no-such-host.invalid 8125")
            assert "no-such-host.invalid" in answer
            # Nobody listens there: each datagram is refused.
            assert await said(proxy.socket, f"STAT SEND 127.0.0.1 {free_port()}") == ""
            # Nobody may send there: it fails at once, again and again.
            assert await said(proxy.socket, "STAT SEND 255.255.255.255 8125") == ""
            await until(lambda: "statistics can't be sent" in proxy.output)
            assert await said(proxy.socket, "STAT STOP SEND") == ""
            assert await (await connect(port)).echoed()


async def test_the_brokers_own_refusal_reaches_the_client() -> None:
    async with Broker() as broker:
        broker.refuse = lambda vhost: (530, f"NOT_ALLOWED - vhost {vhost} not found")
        with Proxy() as proxy:
            port = route(proxy, broker)
            with pytest.raises(Closed, match="530 NOT_ALLOWED - vhost / not found"):
                await connect(port)


async def test_a_vhost_that_leads_nowhere_is_refused() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            with pytest.raises(Closed, match="530 NOT_ALLOWED - vhost 'other' is not mapped"):
                await connect(port, "other")


async def test_no_broker_at_all_is_said() -> None:
    with Proxy() as proxy:
        port = route(proxy, Broker(free_port()))
        with pytest.raises(Closed, match="320 CONNECTION_FORCED - no broker for vhost '/'"):
            await connect(port)


async def test_a_broker_lost_in_mid_session_is_said() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            client = await connect(route(proxy, broker))
            broker.drop_all()
            assert "320 CONNECTION_FORCED" in str(await client.closed())


async def test_header_and_start_ok_in_one_write() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            said_at_once = [
                commands.Connection.StartOk({}, "PLAIN", "\0guest\0guest", "en_US"),
                commands.Connection.TuneOk(2047, 131072, 60),
                commands.Connection.Open("/"),
            ]
            writer.write(HEADER + b"".join(frame.marshal(one, 0) for one in said_at_once))
            for kind in ("Start", "Tune", "OpenOk"):
                assert type(await read_method(reader)).__name__ == kind
            writer.close()


async def test_no_password_is_ever_logged(tmp_path: Path) -> None:
    flags = ("--log-directory", str(tmp_path), "--file-verbosity", "5")
    async with Broker() as broker:
        with Proxy(*flags, verbosity=5) as proxy:
            port = route(proxy, broker)
            client = await connect(port, response="\0guest\0xyzzy-secret")
            assert broker.opened[0][3] == "\0guest\0xyzzy-secret"
            await client.close()
            await command(proxy, "TIMEOUT", "SET", "close_ok", "0.2")
            broken = await connect(port, response="\0guest\0xyzzy-secret")
            broken.writer.write(b"\xff" * 64)
            await broken.reader.read()
            proxy("EXIT")
            await asyncio.to_thread(proxy.process.wait, 60)
            for text in (proxy.output, *(path.read_text() for path in tmp_path.iterdir())):
                assert "Starting connection" in text
                assert "xyzzy" not in text


async def test_a_deleted_backend_serves_nobody() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            name = f"broker-{broker.port}"
            answer = await said(proxy.socket, f"BACKEND DELETE {name}")
            assert f"Backend '{name}' not deleted: it is in farm farm" in answer
            await command(proxy, "FARM", "DELETE", "farm")
            await command(proxy, "BACKEND", "DELETE", name)
            with pytest.raises(Closed, match="farm 'farm', which does not exist"):
                await connect(port)


async def test_listening_on_one_address_only() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            route(proxy, broker)
            port = free_port()
            await command(proxy, "LISTEN", "START", str(port), "ADDRESS", "127.0.0.2")
            assert await (await connect(port, host="127.0.0.2")).echoed()
            with pytest.raises(ConnectionRefusedError):
                await connect(port)


async def test_how_sessions_ended_is_counted_rightly() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            await command(proxy, "TIMEOUT", "SET", "close_ok", "0.2")
            before = await totals(proxy)
            clients = await connected_to_both(proxy, port)
            count = len(clients)
            clients += [await connect(port) for _ in range(3)]
            await clients.pop().close()  # in order
            await command(proxy, "SESSION", str(proxy.json("CONN")[0]["id"]), "FORCE_DISCONNECT")
            clients[-1].drop()  # the client, without a word
            await until(lambda: len(proxy.json("CONN")) == count)
            broker.drop_all()  # the broker, without a word
            await until(lambda: proxy.json("CONN") == [])
            after = await totals(proxy)
            assert after - before == Counter({"graceful": 2, "client": 1, "broker": count})


async def totals(proxy: Proxy) -> Counter[str]:
    """How sessions ended so far, by the metrics page."""
    port = free_port()
    await command(proxy, "METRICS", "START", str(port))
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: here\r\n\r\n")
    page = (await reader.read()).decode()
    writer.close()
    found: Counter[str] = Counter()
    for line in page.splitlines():
        if line.startswith("ciphermq_proxy_sessions_ended_total{how="):
            found[line.split('"')[1]] += int(float(line.rpartition(" ")[2]))
    return found


async def test_a_session_goes_on_after_its_pause() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            client = await connect(route(proxy, broker))
            await command(proxy, "SESSION", "1", "PAUSE")
            client.writer.write(body(b"held back"))
            (session,) = proxy.json("CONN")
            assert session["paused"] is True
            await command(proxy, "SESSION", "1", "UNPAUSE")
            assert b"held back" in await client.reader.readexactly(17)


async def test_a_restart_keeps_what_was_saved() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            config = proxy.directory / "proxy.toml"
        config.parent.mkdir()
        with Proxy("--config", str(config)) as proxy:
            port = route(proxy, broker)
            await command(proxy, "CONFIG", "SAVE")
            await command(proxy, "EXIT")
            await asyncio.to_thread(proxy.process.wait, 60)
        with Proxy("--config", str(config)) as proxy:
            assert await (await connect(port)).echoed()
            await command(proxy, "MAP", "UNMAP", "/")
            await command(proxy, "CONFIG", "RELOAD")
            assert await (await connect(port)).echoed()


async def test_the_wrong_protocol_is_told_the_right_one() -> None:
    with Proxy() as proxy:
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.listen())
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        assert await reader.read() == HEADER
        writer.close()


async def test_paused_clients_are_held_and_go_on() -> None:
    async with Broker() as broker:
        with Proxy(workers=2) as proxy:
            port = route(proxy, broker)
            others = await connected_to_both(proxy, port)
            await command(proxy, "VHOST", "PAUSE", "/")
            held = [asyncio.ensure_future(connect(port)) for _ in range(8)]
            await until(lambda: sum(one["paused"] for one in proxy.json("CONN")) == 8)
            assert await others[0].echoed()
            await command(proxy, "VHOST", "UNPAUSE", "/")
            for client in await asyncio.gather(*held):
                assert await client.echoed()
            assert {(await client.closed()).reply for client in others} == {200}
