"""A TLS connection: `TlsPump` on an asyncio transport, for whatever protocol is spoken in it.

Incoming bytes are decrypted straight into the buffers of whoever talks through the channel, its
*talker*. Which protocol that is, TLS tells (ALPN); so a channel is attached to its talker only when
its handshake is over.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from ciphermq import limits
from ciphermq.errors import CipherMQError
from ciphermq.net import address
from ciphermq.wire import tls_errors
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.machine import new_scratch
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import CHUNK, Buffer, TlsPump


class Talker(Protocol):
    """What speaks a protocol through a channel."""

    def get_buffer(self) -> memoryview:
        """Where the next plaintext goes; never empty."""

    def buffer_updated(self, nbytes: int) -> None:
        """So much of it has come."""

    def received(self) -> None:
        """That was all for now: nothing else is waiting."""

    def resume_writing(self) -> None:
        """`Channel.writable` has turned true."""

    def lost(self, error: BaseException | None) -> None:
        """The end; None: the peer ended it."""


class Buffers:
    """What channels read into. Those of one loop can share them: nothing stays in them."""

    def __init__(self) -> None:
        self.network = memoryview(bytearray(limits.NETWORK_BUFFER))
        self.scratch = new_scratch()


class Channel(asyncio.BufferedProtocol):
    """A connection to a peer, bytes over TLS. All of it is for the event loop's thread."""

    def __init__(
        self,
        context: ssl.SSLContext,
        on_secure: Callable[[Channel], None],
        on_failed: Callable[[CipherMQError], None],
        *,
        server_name: str | None = None,
        options: LinkOptions | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """A client's end if there is a `server_name`.

        Either `on_secure` is called, which must `attach` a talker or `abort`, or `on_failed`.
        """
        self.role = Role.SERVER if server_name is None else Role.CLIENT
        self.options = options or LinkOptions()
        self.buffers = buffers or Buffers()
        self.peer = "an unknown address"
        """The peer's ``host:port``."""
        self._pump = TlsPump(context, server_name=server_name)
        self._on_secure = on_secure
        self._on_failed = on_failed
        self._talker: Talker | None = None
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None  # uvloop's transports share no base class with asyncio's
        self._timer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._deaf = False
        self._paused = False
        self._written = 0
        self._ended: asyncio.Future[None] = self._loop.create_future()

    # --- the peer ---------------------------------------------------------------------------

    @property
    def peer_certificate(self) -> bytes:
        """DER."""
        return self._pump.peer_certificate

    @property
    def protocol(self) -> str | None:
        """What TLS agreed on (ALPN)."""
        return self._pump.protocol

    @property
    def tls_version(self) -> str:
        """``TLSv1.3`` or ``TLSv1.2``."""
        return self._pump.version

    @property
    def who(self) -> str:
        """The peer, for messages."""
        return f"the {self.role.peer.value} at {self.peer}"

    @property
    def ended(self) -> bool:
        """Whether the peer has ended its side in order (close_notify); TCP may still be up."""
        return self._pump.ended

    @property
    def records(self) -> int:
        """TLS records of the direction that has had more."""
        return max(self._pump.records_in, self._pump.records_out)

    # --- for the talker ---------------------------------------------------------------------

    def attach(self, talker: Talker) -> None:
        """From now on `talker` is given what comes."""
        self._talker = talker

    @property
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be taken by the network."""
        return not self._paused

    @property
    def untaken(self) -> int:
        """Bytes that wait to be taken by the network."""
        return int(self._transport.get_write_buffer_size())

    @property
    def taken(self) -> int:
        """Bytes that the network has taken so far."""
        return self._written - self.untaken

    def write(self, parts: Iterable[Buffer]) -> None:
        """Encrypt and send. A part becomes records of its own, at most `CHUNK` bytes long."""
        pump, encrypted = self._pump, []
        for part in parts:
            pump.write(part)
            encrypted.append(pump.outgoing())
        self._written += sum(map(len, encrypted))
        self._transport.writelines(encrypted)
        if not self._paused and self.untaken > self.options.write_high_water:
            # asyncio's own writelines forgets to ask for a pause before Python 3.12.9 and 3.13.2
            # (CVE-2024-12254). Setting the limits makes it look.
            self._transport.set_write_buffer_limits(high=self.options.write_high_water)

    def pause_reading(self) -> None:
        """Take no more from the peer; TCP slows it down."""
        if not self._ended.done():
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""
        if not self._ended.done():
            self._transport.resume_reading()

    def close(self) -> None:
        """End in order, once all that was written has gone."""
        self._pump.end()
        self._write_alert()
        self._transport.close()

    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `error` is then the reason."""
        if self._reason is None:
            self._reason = error
        self._deaf = True
        if self._transport is not None:
            self._transport.abort()

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called soon after the connection has ended, whoever talks."""
        self._ended.add_done_callback(lambda _: callback())

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await asyncio.shield(self._ended)

    # --- TLS --------------------------------------------------------------------------------

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over and somebody talks."""
        secure = self._pump.handshake()
        self._write_alert()
        if secure:
            self._set_timer(None)
            self._on_secure(self)
        return secure and self._talker is not None

    def _write_alert(self) -> bool:
        """Send what TLS itself has to say; whether there was anything."""
        data = self._pump.outgoing()
        if data:
            self._written += len(data)
            self._transport.write(data)
        return bool(data)

    def _decrypt(self, talker: Talker) -> None:
        fill = self._pump.fill
        try:
            while got := fill(talker.get_buffer()):
                talker.buffer_updated(got)
        finally:  # what came before an error counts
            talker.received()

    def _failed(self, error: ssl.SSLError) -> None:
        """Get the alert out, if there is one, before the connection ends."""
        if self._reason is None:
            self._reason = tls_errors.explain(error, self.role.peer, self.peer)
        self._deaf = True
        if not self._write_alert():
            self._transport.close()
            return
        # A socket that is closed with unread bytes is reset, and the alert would be lost: so end
        # our half, and read and forget until the peer ends its own.
        self._transport.write_eof()
        self._set_timer(self.options.linger)

    def _set_timer(self, seconds: float | None) -> None:
        """When to give the peer up; None: not for now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        late = TimeoutError(f"within {self.options.handshake_timeout:g} s")
        self.abort(tls_errors.explain(late, self.role.peer, self.peer))

    # --- asyncio.BufferedProtocol -----------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """TCP is up."""
        self._transport = transport
        self.peer = address.spell(transport.get_extra_info("peername"))
        transport.set_write_buffer_limits(high=self.options.write_high_water)
        self._set_timer(self.options.handshake_timeout)
        if self.role is Role.CLIENT:
            self._shake_hands()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where the next bytes go."""
        return self.buffers.network

    def buffer_updated(self, nbytes: int) -> None:
        """So many bytes have come."""
        data, pump = self.buffers.network, self._pump
        try:
            for at in range(0, nbytes, CHUNK):
                if self._deaf:
                    return
                pump.receive(data[at : min(at + CHUNK, nbytes)])
                if pump.established or self._shake_hands():
                    talker = self._talker
                    if talker is not None:
                        self._decrypt(talker)
        except ssl.SSLError as error:
            self._failed(error)

    def eof_received(self) -> None:
        """The peer has ended its half; with that the transport ends ours."""
        if not self._deaf and not self._pump.established:
            try:
                self._pump.receive_eof()
                self._pump.handshake()
            except ssl.SSLError as error:
                self._failed(error)

    def pause_writing(self) -> None:
        """The transport's buffer is over its high-water mark."""
        self._paused = True

    def resume_writing(self) -> None:
        """The transport's buffer has drained."""
        self._paused = False
        if self._talker is not None:
            self._talker.resume_writing()

    def connection_lost(self, exc: BaseException | None) -> None:
        """The transport has ended."""
        self._set_timer(None)
        self._ended.set_result(None)
        if self._talker is not None:
            self._talker.lost(self._reason or exc)
        else:
            error = self._reason or tls_errors.explain(exc or EOFError(), self.role.peer, self.peer)
            self._on_failed(error)
