"""What every secure connection is to whoever talks through it, whatever road it takes.

A `Conduit` is TLS with a peer; its *talker* speaks a protocol inside. Which protocol that is, TLS
tells (ALPN), so a conduit is attached to its talker only when its handshake is over. Incoming bytes
are decrypted straight into the talker's buffers. `Channel` is the one over TCP, `ZmqChannel` the
one over ZeroMQ.
"""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Protocol

from ciphermq import limits
from ciphermq.errors import CipherMQError
from ciphermq.net.memory import keep_freed_memory
from ciphermq.net.options import LinkOptions
from ciphermq.wire import tls_errors
from ciphermq.wire.cmq2.machine import new_scratch
from ciphermq.wire.cmq2.table import Role
from ciphermq.wire.tls import Buffer, TlsPump


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
        keep_freed_memory()
        self.network = memoryview(bytearray(limits.NETWORK_BUFFER))
        self.scratch = new_scratch()


class Conduit(ABC):
    """A connection to a peer, bytes over TLS. All of it is for the event loop's thread."""

    def __init__(
        self,
        pump: TlsPump,
        role: Role,
        on_secure: Callable[[Conduit], None],
        on_failed: Callable[[CipherMQError], None],
        options: LinkOptions | None,
        buffers: Buffers | None,
    ) -> None:
        """Either `on_secure` is called, which must `attach` a talker or `abort`, or `on_failed`."""
        self.role = role
        self.options = options or LinkOptions()
        self.buffers = buffers or Buffers()
        self.peer = "an unknown address"
        """Where the peer is, for people."""
        self._pump = pump
        self._on_secure = on_secure
        self._on_failed = on_failed
        self._talker: Talker | None = None
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        self._reason: CipherMQError | None = None
        self._deaf = False
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
        """Whether the peer has ended its side in order (close_notify); the road may still be up."""
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
    @abstractmethod
    def writable(self) -> bool:
        """Whether less than the high-water mark waits to be taken by the network."""

    @property
    @abstractmethod
    def untaken(self) -> int:
        """Bytes that wait to be taken by the network."""

    @property
    @abstractmethod
    def taken(self) -> int:
        """Bytes that the network has taken so far."""

    @abstractmethod
    def write(self, parts: Iterable[Buffer]) -> None:
        """Encrypt and send. A part becomes records of its own, at most `CHUNK` bytes long."""

    @abstractmethod
    def pause_reading(self) -> None:
        """Take no more from the peer; the network slows it down."""

    @abstractmethod
    def resume_reading(self) -> None:
        """The reverse of `pause_reading`."""

    @abstractmethod
    def close(self) -> None:
        """End in order, once all that was written has gone."""

    @abstractmethod
    def abort(self, error: CipherMQError | None = None) -> None:
        """End now, whatever waits to be written; `error` is then the reason."""

    def on_end(self, callback: Callable[[], None]) -> None:
        """Have `callback` called soon after the connection has ended, whoever talks."""
        self._ended.add_done_callback(lambda _: callback())

    async def wait_closed(self) -> None:
        """Wait until the connection has ended, for whatever reason."""
        await asyncio.shield(self._ended)

    # --- TLS --------------------------------------------------------------------------------

    @abstractmethod
    def _write_alert(self) -> bool:
        """Send what TLS itself has to say; whether there was anything."""

    def _shake_hands(self) -> bool:
        """Go on with the handshake; whether it is over and somebody talks."""
        secure = self._pump.handshake()
        self._write_alert()
        if secure:
            self._set_timer(None)
            self._on_secure(self)
        return secure and self._talker is not None

    def _decrypt(self, talker: Talker) -> None:
        fill = self._pump.fill
        try:
            while got := fill(talker.get_buffer()):
                talker.buffer_updated(got)
        finally:  # what came before an error counts
            talker.received()

    def _explain(self, error: ssl.SSLError) -> None:
        """A failure of TLS is the reason, unless there was another before."""
        if self._reason is None:
            self._reason = tls_errors.explain(error, self.role.peer, self.peer)
        self._deaf = True

    def _set_timer(self, seconds: float | None) -> None:
        """When to give the peer up; None: not for now."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self._loop.call_later(seconds, self._too_slow)

    def _too_slow(self) -> None:
        late = TimeoutError(f"within {self.options.handshake_timeout:g} s")
        self.abort(tls_errors.explain(late, self.role.peer, self.peer))

    def _over(self, error: BaseException | None) -> None:
        """The road has ended."""
        self._set_timer(None)
        self._ended.set_result(None)
        if self._talker is not None:
            self._talker.lost(self._reason or error)
        else:
            fault = error if error is not None else EOFError()
            self._on_failed(self._reason or tls_errors.explain(fault, self.role.peer, self.peer))
