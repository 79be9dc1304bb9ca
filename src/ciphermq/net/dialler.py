"""Make a connection to a server."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from functools import partial
from typing import Final

from ciphermq.errors import (
    CipherMQError,
    ConnectFailed,
    ConnectionLost,
    HostUnknown,
    ProtocolNotOffered,
)
from ciphermq.net.address import SCHEME, HostPort, parse_road, spell
from ciphermq.net.channel import Channel
from ciphermq.net.conduit import Conduit
from ciphermq.net.link import Link, OnFrame
from ciphermq.net.linkage import OnLost
from ciphermq.net.options import LinkOptions
from ciphermq.net.tls import ALPN
from ciphermq.wire import tls_errors
from ciphermq.wire.cmq2.frames import Close, Frame, Hello
from ciphermq.wire.cmq2.table import Role

_NO_SUCH_NAME: Final = frozenset({socket.EAI_NONAME, socket.EAI_NODATA})
"""Other failures of a look-up (a name server that does not answer) may pass."""


async def dial(
    url: str,
    context: ssl.SSLContext,
    *,
    hello: Hello,
    on_frame: OnFrame,
    on_lost: OnLost,
    on_writable: Callable[[], None] | None = None,
    server_name: str | None = None,
    options: LinkOptions | None = None,
) -> Link:
    """A link to the server at `url`, after both HELLOs; the server's is `Link.hello`.

    `server_name` is what the server's certificate must be for; the URL's host by default.
    `options` bound every wait. Frames that come right behind the server's HELLO may reach
    `on_frame` before this returns. `on_lost` is called only for a link that was returned.

    Raises `ConnectFailed`, `TlsFailed`, `ProtocolNotOffered`, `WaitTimeout`, `ConnectionLost`, or
    the server's own refusal.
    """
    scheme, where = parse_road(url)
    options = options or LinkOptions()
    greeting = _Greeting(hello, on_frame, on_lost, on_writable)
    sock = await connect_tcp(where, options.connect_timeout)
    name = server_name or where[0]
    if scheme == SCHEME:
        return await _over_tcp(sock, where, context, greeting, name, options)
    return await _over_zmq(sock, context, greeting, name, options)


async def _over_tcp(
    sock: socket.socket,
    where: HostPort,
    context: ssl.SSLContext,
    greeting: _Greeting,
    name: str,
    options: LinkOptions,
) -> Link:
    channel = Channel(context, greeting.speak, greeting.refused, server_name=name, options=options)
    try:
        await asyncio.get_running_loop().create_connection(lambda: channel, sock=sock)
        return await greeting.done
    except OSError as error:
        sock.close()
        raise tls_errors.explain(error, Role.SERVER, spell(where)) from error
    except asyncio.CancelledError:
        channel.abort()
        raise


async def _over_zmq(
    probe: socket.socket,
    context: ssl.SSLContext,
    greeting: _Greeting,
    name: str,
    options: LinkOptions,
) -> Link:
    """ZeroMQ goes on trying for ever, in silence, where nothing listens. So a `probe` went ahead:
    it says what is wrong, and which of the name's addresses answers."""
    from ciphermq.net.zmq.dialler import open_channel  # it takes a while, and TCP needs none of it

    where: HostPort = probe.getpeername()[:2]
    probe.close()
    channel = open_channel(
        where, context, greeting.speak, greeting.refused, server_name=name, options=options
    )
    try:
        return await greeting.done
    except asyncio.CancelledError:
        channel.abort()
        raise


async def connect_tcp(where: HostPort, limit: float) -> socket.socket:
    """A TCP connection to the first of the host's addresses that answers, within `limit` seconds.

    Raises `ConnectFailed` or `HostUnknown`."""
    try:
        async with asyncio.timeout(limit):
            return await _connect_any(where)
    except TimeoutError as error:
        raise ConnectFailed(f"{spell(where)} did not answer within {limit:g} s") from error
    except socket.gaierror as error:
        kind = HostUnknown if error.errno in _NO_SUCH_NAME else ConnectFailed
        raise kind(f"no address is known for {where[0]!r}: {error.strerror}") from error
    except ConnectionRefusedError as error:
        raise ConnectFailed(f"nothing listens at {spell(where)}: is the server running?") from error
    except OSError as error:
        raise ConnectFailed(
            f"{spell(where)} can't be reached: {error.strerror or error}"
        ) from error


async def _connect_any(where: HostPort) -> socket.socket:
    loop = asyncio.get_running_loop()
    last: OSError | None = None
    for family, kind, number, _, name in await loop.getaddrinfo(*where, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, number)
        try:
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await loop.sock_connect(sock, name)
        except OSError as error:
            sock.close()
            last = error
        except BaseException:
            sock.close()
            raise
        else:
            return sock
    raise last or OSError("the name has no address")


class _Greeting:
    """The exchange of HELLOs, between the end of TLS and the caller's own frames."""

    def __init__(
        self,
        hello: Hello,
        on_frame: OnFrame,
        on_lost: OnLost,
        on_writable: Callable[[], None] | None,
    ) -> None:
        self.done: asyncio.Future[Link] = asyncio.get_running_loop().create_future()
        self._hello = hello
        self._callers = (on_frame, on_lost, on_writable)

    def speak(self, channel: Conduit) -> None:
        """TLS is up: say HELLO."""
        if channel.protocol == ALPN:
            link = Link(channel)
            link.attach(partial(self._first_frame, link), self.refused)
            link.send(self._hello)
        else:
            channel.abort(
                ProtocolNotOffered(
                    f"the server at {channel.peer} doesn't speak {ALPN}: is it a CipherMQ 2 server?"
                )
            )

    def refused(self, error: CipherMQError | None) -> None:
        """The connection ended before the server's HELLO."""
        if not self.done.done():
            self.done.set_exception(
                error or ConnectionLost("the server closed the connection before its HELLO")
            )

    def _first_frame(self, link: Link, frame: Frame) -> None:
        if isinstance(frame, Hello) and not self.done.done():
            link.attach(*self._callers)
            self.done.set_result(link)
        elif isinstance(frame, Close):  # a refusal, which the link keeps as its reason
            link.abort()
