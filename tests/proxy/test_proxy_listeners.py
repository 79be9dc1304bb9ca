"""Listening sockets, and who takes connections in when there is no room."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from typing import Any

import pytest

from ciphermq import limits
from ciphermq.cli.processes import free_port
from ciphermq.errors import ListenFailed
from ciphermq.proxy.listeners import Acceptor, ListeningSockets, open_sockets, shares
from ciphermq.proxy.model import Listener


def ports(sockets: list[socket.socket]) -> set[int]:
    return {sock.getsockname()[1] for sock in sockets}


def test_every_worker_has_a_socket_of_each_family() -> None:
    port = free_port()
    sockets = open_sockets(Listener(port=port), 3)
    families = [sock.family for sock in sockets]
    assert families.count(socket.AF_INET) == 3
    assert families.count(socket.AF_INET6) in (0, 3)
    assert ports(sockets) == {port}
    for sock in sockets:
        sock.close()


@pytest.mark.parametrize(
    ("listener", "sentence"),
    [
        (Listener(port=5672, address="192.0.2.1"), "this machine has no such address"),
        (Listener(port=5672, address="not an address"), "Can't listen on not an address port 5672"),
    ],
)
def test_what_can_not_be_listened_on_is_said(listener: Listener, sentence: str) -> None:
    with pytest.raises(ListenFailed, match=sentence):
        open_sockets(listener, 1)


def test_sockets_are_dealt_out() -> None:
    some: list[Any] = list("abcde")
    assert shares(some, 2) == [["a", "c", "e"], ["b", "d"]]
    assert shares(some, 7)[5:] == [[], []]


def test_a_change_that_fails_leaves_every_socket_as_it_was() -> None:
    sockets = ListeningSockets(2)
    first = Listener(port=free_port(), address="127.0.0.1")
    sockets.settle([first], sockets.prepare([first]))
    with socket.create_server(("127.0.0.1", 0)) as other:
        second = Listener(port=free_port(), address="127.0.0.1")
        busy = Listener(port=other.getsockname()[1], address="127.0.0.1")
        with pytest.raises(ListenFailed):
            sockets.prepare([first, second, busy])
        with socket.create_server(("127.0.0.1", second.port)):
            pass  # it is free again
    assert sockets.all()[0] == (first, first)
    sockets.close()


def test_a_listener_that_changes_its_ways_keeps_its_port() -> None:
    sockets = ListeningSockets(1)
    plain = Listener(port=free_port(), address="127.0.0.1")
    sockets.settle([plain], sockets.prepare([plain]))
    secure = Listener(port=plain.port, address="127.0.0.1", secure=True)
    with socket.create_connection(("127.0.0.1", plain.port)):  # waits in the queue all along
        sockets.settle([secure], sockets.prepare([secure]))
        (listener,), (descriptor,) = sockets.of(0)
        assert listener == secure
        with socket.socket(fileno=os.dup(descriptor)) as same:
            same.accept()[0].close()
    sockets.close()


def test_sockets_of_another_process_are_dealt_out_anew() -> None:
    listener = Listener(port=free_port(), address="127.0.0.1")
    descriptors = [sock.detach() for sock in open_sockets(listener, 3)]
    sockets = ListeningSockets(2)
    sockets.adopt([listener] * 3, descriptors)
    assert [len(sockets.of(worker)[1]) for worker in range(2)] == [2, 1]
    assert sockets.prepare([listener]) == {}
    sockets.close()


class Door:
    """An acceptor of one listening socket, and what has come in."""

    def __init__(self, most: int = 1000) -> None:
        self.listener = Listener(port=free_port(), address="127.0.0.1")
        self.inside: list[socket.socket] = []
        self.acceptor = Acceptor(self._take, lambda: len(self.inside), most)
        (self.socket,) = open_sockets(self.listener, 1)
        self.acceptor.add(self.listener, self.socket)

    def _take(self, sock: socket.socket, address: tuple[str, int], listener: Listener) -> None:
        assert address[0] == "127.0.0.1"
        assert listener == self.listener
        self.inside.append(sock)

    async def knock(self) -> asyncio.StreamWriter:
        return (await asyncio.open_connection("127.0.0.1", self.listener.port))[1]

    async def has(self, number: int) -> None:
        async with asyncio.timeout(60):
            while len(self.inside) < number:
                await asyncio.sleep(0.005)

    def leave(self) -> None:
        self.inside.pop().close()

    def close(self) -> None:
        self.acceptor.close(drain_backlog=False)
        while self.inside:
            self.leave()


async def test_no_more_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROXY_ACCEPT_PAUSE", 0.02)
    door = Door(most=3)
    clients = [await door.knock() for _ in range(5)]
    await door.has(3)
    while door.acceptor.accepting:
        await asyncio.sleep(0.005)
    assert len(door.inside) == 3
    door.leave()
    await door.has(3)  # the next one had waited
    assert door.acceptor.refused >= 1
    door.close()
    for client in clients:
        client.close()


class Exhausted:
    """A listening socket of a machine without descriptors."""

    def __init__(self, sock: socket.socket, error: int) -> None:
        self._sock = sock
        self.error = error
        self.asked = 0

    def accept(self) -> Any:
        self.asked += 1
        if self.error:
            raise OSError(self.error, os.strerror(self.error))
        return self._sock.accept()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS])
async def test_without_descriptors_it_waits_and_goes_on(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "PROXY_ACCEPT_PAUSE", 0.02)
    door = Door()
    door.acceptor.remove([door.listener])
    (sock,) = open_sockets(door.listener, 1)
    poor: Any = Exhausted(sock, error)
    door.acceptor.add(door.listener, poor)
    client = await door.knock()
    while door.acceptor.refused < 2:
        await asyncio.sleep(0.005)
    # Asked once a pause, not as fast as the loop turns.
    assert poor.asked <= door.acceptor.refused + 1
    poor.error = 0
    await door.has(1)
    door.close()
    client.close()


async def test_a_client_that_is_gone_before_it_is_accepted_stops_nothing() -> None:
    door = Door()
    door.acceptor.remove([door.listener])
    (sock,) = open_sockets(door.listener, 1)
    poor: Any = Exhausted(sock, errno.ECONNABORTED)
    door.acceptor.add(door.listener, poor)
    client = await door.knock()
    while not poor.asked:
        await asyncio.sleep(0.005)
    poor.error = 0
    await door.has(1)
    assert door.acceptor.refused == 0
    door.close()
    client.close()


async def test_who_had_connected_is_taken_in_at_the_end() -> None:
    door = Door()
    door.acceptor.remove([door.listener], drain_backlog=False)
    (sock,) = open_sockets(door.listener, 1)
    clients = [await door.knock() for _ in range(5)]
    door.acceptor.add(door.listener, sock)
    door.acceptor.remove([door.listener])
    assert len(door.inside) == 5
    door.close()
    for client in clients:
        client.close()
