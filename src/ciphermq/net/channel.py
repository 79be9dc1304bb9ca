"""A TLS connection over TCP: `TlsPump` on an asyncio transport."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable
from typing import Any

from ciphermq.errors import CipherMQError
from ciphermq.net import address
from ciphermq.net.conduit import Buffers, Conduit
from ciphermq.net.options import LinkOptions
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import CHUNK, Buffer, TlsPump


class Channel(Conduit, asyncio.BufferedProtocol):
    """A `Conduit` over TCP."""

    def __init__(
        self,
        context: ssl.SSLContext,
        on_secure: Callable[[Conduit], None],
        on_failed: Callable[[CipherMQError], None],
        *,
        server_name: str | None = None,
        options: LinkOptions | None = None,
        buffers: Buffers | None = None,
    ) -> None:
        """A client's end if there is a `server_name`.

        Either `on_secure` is called, which must `attach` a talker or `abort`, or `on_failed`.
        """
        role = Role.SERVER if server_name is None else Role.CLIENT
        pump = TlsPump(context, server_name=server_name)
        super().__init__(pump, role, on_secure, on_failed, options, buffers)
        self._transport: Any = None  # uvloop's transports share no base class with asyncio's
        self._paused = False
        self._written = 0

    # --- for the talker ---------------------------------------------------------------------

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
        pump, encrypted = self._pump, list[bytes]()
        # The talker may answer what came before a bad record; its reason is on its way to him.
        if self._deaf or pump.error is not None:
            return
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

    # --- TLS --------------------------------------------------------------------------------

    def _write_alert(self) -> bool:
        data = self._pump.outgoing()
        if data:
            self._written += len(data)
            self._transport.write(data)
        return bool(data)

    def _failed(self, error: ssl.SSLError) -> None:
        """Get the alert out, if there is one, before the connection ends."""
        self._explain(error)
        if not self._write_alert():
            self._transport.close()
            return
        # A socket that is closed with unread bytes is reset, and the alert would be lost: so end
        # our half, and read and forget until the peer ends its own.
        self._transport.write_eof()
        self._set_timer(self.options.linger)

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
        self._over(exc)
