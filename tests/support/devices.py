"""ZeroMQ devices in processes of their own, honest and hostile.

A device binds a ROUTER for clients and connects a DEALER to what is behind it. A hostile one loses,
repeats and reorders messages, by a seed.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

import zmq

from ciphermq.cli.processes import free_port


class Device:
    """One device; `kill` and `start` it at will."""

    def __init__(self, behind: str, *, fault: str = "", seed: int = 0, each: int = 40) -> None:
        """`fault`: "lose", "repeat", "reorder" or none; about one message in `each`."""
        self.behind = behind
        self.port = free_port()
        self._arguments = [fault, str(seed), str(each)]
        self._process: subprocess.Popen[bytes] | None = None
        self._faults = 0

    @property
    def address(self) -> str:
        """For clients and other devices."""
        return f"tcp://127.0.0.1:{self.port}"

    def start(self) -> Self:
        """Begin to pass messages on; returns when it does."""
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, str(self.port), self.behind, *self._arguments],
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"ready\n"
        os.set_blocking(self._process.stdout.fileno(), False)
        return self

    @property
    def faults(self) -> int:
        """How many messages it has lost, repeated or let others overtake, as it says itself."""
        self._listen()
        return self._faults

    def _listen(self) -> None:
        if self._process is not None:
            assert self._process.stdout is not None
            self._faults += len(self._process.stdout.read() or b"")

    def kill(self) -> None:
        """End it as SIGKILL does, with all that is in its queues."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._listen()  # to its last words
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()


def run(port: str, behind: str, fault: str, seed: str, each: str) -> None:
    """Pass messages on, for ever."""
    context = zmq.Context()
    front, back = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    deadline = time.monotonic() + 10
    while True:
        try:
            front.bind(f"tcp://127.0.0.1:{port}")
            break
        except zmq.ZMQError:  # the one before has not quite gone
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
    back.connect(behind)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    if not fault:
        zmq.proxy(front, back)
        return
    chance, held = random.Random(int(seed)), {front: None, back: None}
    poller = zmq.Poller()
    for sock in held:
        poller.register(sock, zmq.POLLIN)
    while True:
        for sock, _ in poller.poll():
            message, other = sock.recv_multipart(), back if sock is front else front
            late, held[sock] = held[sock], None
            if late is not None:
                other.send_multipart(message)
                other.send_multipart(late)
                tell()
            elif chance.random() >= 1 / int(each):
                other.send_multipart(message)
            elif fault == "reorder":
                held[sock] = message
            elif fault == "repeat":
                other.send_multipart(message)
                other.send_multipart(message)
                tell()
            else:
                tell()  # lost


def tell() -> None:
    """Say that there was a fault."""
    os.write(sys.stdout.fileno(), b".")


if __name__ == "__main__":
    run(*sys.argv[1:])
