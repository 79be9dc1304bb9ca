"""What a proxy does with the system around it: its control socket, signals, systemd, limits."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import socket
import stat
from pathlib import Path

import pytest
from proxy_running import command, route, said, until

from ciphermq.errors import ListenFailed
from ciphermq.proxy.main import default_control, default_workers
from ciphermq.proxy.process import claim_control, notify, process_now, raise_open_files
from support.amqp import Broker, connect
from support.proxy import Proxy


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A short path: a socket's has 107 characters."""
    monkeypatch.chdir(tmp_path)
    return Path("control")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize(("umask", "expected"), [(0o022, 0o750), (0o002, 0o770), (0o077, 0o700)])
def test_only_its_user_may_steer_it(path: Path, umask: int, expected: int) -> None:
    former = os.umask(umask)
    try:
        with claim_control(path):
            assert mode(path) == expected
            assert os.umask(umask) == umask
    finally:
        os.umask(former)


def test_a_dead_proxys_socket_is_replaced_and_a_live_ones_not(path: Path) -> None:
    claim_control(path).close()
    assert path.exists()
    with claim_control(path), pytest.raises(ListenFailed, match="--take-over"):
        claim_control(path)


def test_a_file_is_not_replaced(path: Path) -> None:
    path.write_text("mine")
    with pytest.raises(ListenFailed, match="is no socket"):
        claim_control(path)
    assert path.read_text() == "mine"


def test_a_path_that_can_not_be_is_said(path: Path) -> None:
    path.write_text("a file")
    with pytest.raises(ListenFailed, match="can't be made"):
        claim_control(path / "below")


def test_systemd_is_told(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notify("READY=1")  # nobody wants to know
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        notify("READY=1\nMAINPID=7")
        assert manager.recv(100) == b"READY=1\nMAINPID=7"
    notify("READY=1")  # it is gone: no harm


def test_open_files_are_raised_to_what_is_allowed() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        assert raise_open_files() == resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= soft
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_process_knows_what_it_uses() -> None:
    used = process_now()
    assert used.rss_kb > 1000
    assert used.descriptors > 3
    assert used.user > 0


def test_the_control_socket_is_in_a_directory_of_ones_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/7")
    assert default_control() == Path("/run/user/7/ciphermq-proxy")
    monkeypatch.setenv("RUNTIME_DIRECTORY", "/run/proxy:/run/other")
    assert default_control() == Path("/run/proxy/ciphermq-proxy")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    monkeypatch.delenv("RUNTIME_DIRECTORY")
    assert str(os.geteuid()) in default_control().name
    assert 1 <= default_workers() <= 4


async def test_hup_reloads_the_file(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    async with Broker() as broker:
        with Proxy("--config", str(config), workers=2) as proxy:
            port = route(proxy, broker)
            client = await connect(port)
            await command(proxy, "CONFIG", "SAVE")
            config.write_text(config.read_text() + "\n[limits.conn_rate]\ndefault = 77\n")
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: "the configuration is reloaded" in proxy.output)
            assert "77" in await said(proxy.socket, "LIMIT PRINT")
            assert await client.echoed()
            config.write_text("nonsense")
            proxy.process.send_signal(signal.SIGHUP)
            await until(lambda: "the configuration is not reloaded" in proxy.output)
            assert "77" in await said(proxy.socket, "LIMIT PRINT")


async def test_hup_without_a_file_changes_nothing(tmp_path: Path) -> None:
    with Proxy("--config", str(tmp_path / "none.toml")) as proxy:
        port = proxy.listen()
        proxy.process.send_signal(signal.SIGHUP)
        await until(lambda: "none.toml is not there" in proxy.output)
        assert [one["port"] for one in proxy.json("LISTEN", "PRINT")] == [port]


async def test_asked_twice_it_ends_at_once() -> None:
    async with Broker() as broker:
        with Proxy() as proxy:
            port = route(proxy, broker)
            client = await connect(port)  # which doesn't answer the Close
            proxy.process.send_signal(signal.SIGTERM)
            await until(lambda: "sessions are drained" in proxy.output)
            assert "is ending" in await said(proxy.socket, "DATACENTER SET elsewhere")
            proxy.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(proxy.process.wait, 60) == 1
            assert "ended at once" in proxy.output
            client.drop()


async def test_a_configuration_that_is_not_there_yet_is_begun(tmp_path: Path) -> None:
    config = tmp_path / "proxy.toml"
    with Proxy("--config", str(config)) as proxy:
        await until(lambda: "there is no configuration yet" in proxy.output)
        await command(proxy, "DATACENTER", "SET", "here")
        await command(proxy, "CONFIG", "SAVE")
        assert 'datacenter = "here"' in config.read_text()
