"""TLS without sockets: ciphertext in and out of memory, plaintext in and out of the caller's.

Python's event loops have TLS of their own, but they drop the alert when a handshake fails, and
with it the reason: who presents an expired certificate would only see the connection end. Here
every alert gets out, TLS records are counted, and the same code serves roads that are no sockets.

How the bytes go::

    network ─receive─► incoming BIO ─┐           ┌─► handshake, fill ─► plaintext
                                     ├─ OpenSSL ─┤
    network ◄outgoing─ outgoing BIO ─┘           └─◄ write           ◄─ plaintext

The caller owns the road and the clock, and turns the crank:

1. A client calls `handshake` first, for its first words; a server waits for them.
2. Whatever comes goes into `receive`, then `handshake` is called until it says True, then `fill`.
   Both take what there is and say so; neither ever waits, and "not enough yet" is no error.
3. After every call, failed ones above all, `outgoing` may have bytes for the peer: a flight of the
   handshake, records, an alert. Whoever sends them before he closes tells the peer why.
4. `end` says that nothing more will be written. `ended` turns true when the peer has said so. A
   road that ends without that was cut: say `receive_eof`, and `fill` raises.

TLS 1.3 sends nothing by itself once the handshake is over (there is no renegotiation, and we ask
for no key update), so reading never waits for writing, nor writing for reading. What a cut record
or a changed bit does is always the same: an `ssl.SSLError`, now and at every later call, since
OpenSSL would say it only once. Its `reason` is OpenSSL's word; `wire.tls_errors.explain` makes a
sentence of it that says whose fault it is.

What a server thinks of a client's certificate, the client learns with its first `fill`, after its
own handshake has been over for long: in TLS 1.3 it speaks last.
"""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Callable
from typing import Final

Buffer = bytes | bytearray | memoryview

RECORD: Final = 16 * 1024
"""Most plaintext in one record (RFC 8446 section 5.1)."""

CHUNK: Final = 4 * RECORD
"""Best size for one `receive` or `write`: OpenSSL's memory BIOs grow to the largest there was, and
never shrink, for as long as the connection lives."""


class TlsPump:
    """One side of one TLS connection. Errors are `ssl.SSLError`s, and final."""

    def __init__(self, context: ssl.SSLContext, *, server_name: str | None = None) -> None:
        """A client when there is a `server_name`, which the certificate must be for."""
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._ssl = context.wrap_bio(
            self._incoming,
            self._outgoing,
            server_side=server_name is None,
            server_hostname=server_name,
        )
        self.established = False
        """Whether this side has finished its handshake. In TLS 1.3 a server may still refuse the
        client then: its alert comes with the first `fill`."""
        self.ended = False
        """Whether the peer has ended its side in order (close_notify)."""
        self.records_out = 0
        self.records_in = 0
        self.error: ssl.SSLError | None = None
        """What `fill` and `write` will raise from now on."""

    # --- ciphertext -------------------------------------------------------------------------

    def receive(self, data: Buffer) -> None:
        """Take in what came from the network."""
        self._incoming.write(data)

    def receive_eof(self) -> None:
        """Nothing more will come from the network."""
        self._incoming.write_eof()

    def outgoing(self) -> bytes:
        """What is to be sent to the network now."""
        return self._outgoing.read()

    # --- plaintext --------------------------------------------------------------------------

    def handshake(self) -> bool:
        """Go on with the handshake; whether it is finished."""
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        self.established = True
        return True

    def fill(self, room: memoryview) -> int:
        """Decrypt into `room` until it is full or nothing is left; how many bytes there are.

        An error that comes behind good bytes is raised by the next call.
        """
        if self.error is not None:
            raise self.error
        read: Callable[[int, memoryview], int] = self._ssl.read  # type: ignore[assignment]
        incoming, undecrypted = self._incoming, self._ssl.pending
        at, size = 0, len(room)
        try:
            # Whether OpenSSL can know more than it said: to ask it in vain costs as much as to read
            # a record, and nearly all reads are of one.
            while at < size and (incoming.pending or undecrypted() or incoming.eof):
                got = read(size - at, room[at:] if at else room)
                if not got:
                    self.ended = True
                    break
                at += got
                self.records_in += 1
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.ended = True
        except ssl.SSLError as error:
            self.error = error  # OpenSSL would not say it a second time
            if not at:
                raise
        return at

    def write(self, data: Buffer) -> None:
        """Encrypt all of `data`."""
        if self.error is not None:  # OpenSSL would say that the peer has ended the connection
            raise self.error
        if data:
            self._ssl.write(data)
            self.records_out += (len(data) + RECORD - 1) // RECORD

    def end(self) -> None:
        """End this side in order (close_notify)."""
        # It would wait for the peer's, which we don't need; or there is nothing to end.
        with contextlib.suppress(ssl.SSLError):
            self._ssl.unwrap()

    # --- the peer ---------------------------------------------------------------------------

    @property
    def peer_certificate(self) -> bytes:
        """DER; empty if there is none."""
        return self._ssl.getpeercert(True) or b""

    @property
    def version(self) -> str:
        """Of TLS: ``TLSv1.3`` or another; empty before both sides agree."""
        return self._ssl.version() or ""

    @property
    def protocol(self) -> str | None:
        """What both sides agreed to speak (ALPN, RFC 7301)."""
        return self._ssl.selected_alpn_protocol()
