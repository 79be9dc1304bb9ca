"""A vhost at one node, behind the real proxy, and ``vhost move`` as an operator calls it."""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import sys
from asyncio.subprocess import PIPE, Process
from pathlib import Path
from typing import Any

import aiormq

from ciphermq.proxy.move.arguments import SOURCE_VARIABLE, TARGET_VARIABLE
from ciphermq.proxy.move.main import DONE
from support.proxy import Proxy
from support.rabbitmq import Node, Vhost

CTL = Path(sys.executable).with_name("ciphermq-proxy-ctl")


class Site:
    """A vhost at a blue node, behind a proxy, with a green node beside it."""

    def __init__(self, proxy: Proxy, port: int, blue: Vhost, green: Node, state: Path) -> None:
        self.proxy = proxy
        self.blue = blue
        self.green = Vhost(green, blue.name)
        self.vhost = blue.name
        self.state = state
        self.port = port
        self.user = f"app-{blue.name}"
        self._password = secrets.token_hex(8)
        proxy("MAP", "FARM", self.vhost, "blue")
        # Known to the old broker only: the move has to bring it along.
        user = {"password": self._password, "tags": ""}
        blue.node.api("PUT", f"users/{self.user}", user)
        rights = {"configure": ".*", "write": ".*", "read": ".*"}
        blue.node.api("PUT", f"permissions/{blue.quoted}/{self.user}", rights)

    def close(self) -> None:
        """Leave nothing behind."""
        self.proxy("MAP", "UNMAP", self.vhost)
        self.proxy("VHOST", "UNPAUSE", self.vhost)
        for node in (self.blue.node, self.green.node):
            node.api("DELETE", f"users/{self.user}")
            node.api("DELETE", f"vhosts/{self.blue.quoted}")

    @property
    def url(self) -> str:
        """Where applications connect to."""
        return f"amqp://{self.user}:{self._password}@127.0.0.1:{self.port}/{self.blue.quoted}"

    def queue(self, name: str, *, at: Vhost | None = None, **more: Any) -> None:
        vhost = at or self.blue
        vhost.node.api("PUT", f"queues/{vhost.quoted}/{name}", {"durable": True} | more)

    @property
    def farm(self) -> str:
        """Where the vhost is mapped to."""
        target: dict[str, str] = self.proxy.json("MAP", "PRINT")["vhosts"][self.vhost]
        return target["farm"]

    @property
    def paused(self) -> bool:
        vhosts: dict[str, dict[str, bool]] = self.proxy.json("VHOST", "PRINT")
        return vhosts.get(self.vhost, {}).get("paused", False)

    # --- the command ----------------------------------------------------------------------------

    async def start(self, *words: str, socket: Path | None = None) -> Process:
        blue, green = self.blue.node, self.green.node
        return await asyncio.create_subprocess_exec(
            *(str(CTL), str(socket or self.proxy.socket), "vhost", "move", self.vhost),
            *("--state", str(self.state)),
            *("--source", f"http://{blue.user}@127.0.0.1:{blue.management}"),
            *("--target", f"http://{green.user}@127.0.0.1:{green.management}"),
            *words,
            env=os.environ | {SOURCE_VARIABLE: blue.password, TARGET_VARIABLE: green.password},
            stdout=PIPE,
            stderr=PIPE,
            start_new_session=True,
        )

    async def move(self, *words: str, expect: int = DONE, socket: Path | None = None) -> str:
        """Run it to its end; what it printed, first its result and then its progress."""
        process = await self.start(*words, socket=socket)
        out, err = await process.communicate()
        text = out.decode() + err.decode()
        assert process.returncode == expect, text
        for password in (self.blue.node.password, self.green.node.password):
            assert password not in text
        return text

    def record(self) -> dict[str, Any]:
        (path,) = self.state.glob("*.json")
        found: dict[str, Any] = json.loads(path.read_text())
        return found

    async def seen(self, process: Process, text: str) -> str:
        """Read what a move prints until it says this; what it has said by then. It may also have
        ended before, without saying it."""
        assert process.stderr is not None
        said = ""
        while text not in said and (line := await process.stderr.readline()):
            said += line.decode()
        return said

    # --- messages -------------------------------------------------------------------------------

    async def fill(self, queue: str, count: int) -> None:
        """Numbered messages, persistent and confirmed, in a queue of the blue node."""
        connection = await aiormq.connect(self.blue.node.url(self.vhost))
        channel = await connection.channel(publisher_confirms=True)
        properties = aiormq.spec.Basic.Properties(delivery_mode=2)
        for start in range(0, count, 1000):
            await asyncio.gather(
                *(
                    channel.basic_publish(b"%d" % number, routing_key=queue, properties=properties)
                    for number in range(start, min(start + 1000, count))
                )
            )
        await connection.close()
