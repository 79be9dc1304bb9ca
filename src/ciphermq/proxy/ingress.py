"""A client until its Open has come, and while it waits for OpenOk.

First the PROXY header, if the listener demands one, then TLS, then AMQP as a broker speaks it.
Nothing of this needs a broker, so silent and hostile clients cost a socket and a small object, and
never a broker's.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from ciphermq import limits
from ciphermq.errors import AmqpFault, CipherMQError, ConfigError, ConnectionLost, NotAmqp
from ciphermq.proxy.deadline import Deadline
from ciphermq.proxy.end import PACED, STALLED, VIEW, WAITING, End
from ciphermq.proxy.gate import Contexts, Credentials
from ciphermq.proxy.model import Listener
from ciphermq.proxy.proxyheader import HeaderReader, Source
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.telemetry import get_logger
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.handshake import Handshake, Method, Role, State, Step
from ciphermq.wire.amqp.properties import StartOk

_log = get_logger("proxy.session")


_NO_ROOM: Final = (
    "RESOURCE_ERROR - too many clients with long handshakes at a time: send less, or later"
)


class Begun:
    """Bytes that clients which are not open yet have sent, of all of a worker's together."""

    total = 0


class Host(Protocol):
    """Whom an ingress tells."""

    def asked(self, ingress: Ingress) -> None:
        """The client's Open has come: `Ingress.vhost` says for what."""

    def left(self, *, in_order: bool) -> None:
        """The client is gone, or has sent Close and was answered."""

    def wrong(self, fault: AmqpFault) -> None:
        """The client broke the protocol."""

    def not_amqp(self, why: str) -> None:
        """It does not speak AMQP 0.9.1 at all, or not the TLS or PROXY protocol demanded."""


class Ingress:
    """One client's beginning."""

    def __init__(
        self,
        end: End,
        listener: Listener,
        contexts: Contexts,
        timeouts: Timeouts,
        deadline: Deadline,
        host: Host,
    ) -> None:
        self.source: Source | None = None
        """Whom a PROXY header named."""
        self.certificate_name: str | None = None
        self.start_ok: StartOk
        self.tune_ok = b""
        self.heartbeat = 0
        """Seconds, as the client's TuneOk has it."""
        self.open = b""
        self.vhost = ""
        self.connection_name = ""
        self.bytes = self.packets = self.frames = self.sent = self.said = 0
        """Received; and sent: bytes, and methods."""
        self._counted = 0
        self._end = end
        self._listener = listener
        self._contexts = contexts
        self._timeouts = timeouts
        self._deadline = deadline
        self._host = host
        self._handshake = Handshake(Role.BROKER)
        self._verifies = False
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Start with the client's first byte."""
        if self._listener.proxy_header or self._listener.secure:
            self._deadline.set(self._timeouts.ingress_tls, "the beginning of the connection")
            self._task = asyncio.get_running_loop().create_task(self._preliminaries())
        else:
            self._speak()

    def stop(self) -> None:
        """Listen to nothing any more."""
        if self._task is not None:
            self._task.cancel()
        self._end.hold(WAITING)
        self._no_longer_begins()

    @property
    def may_close(self) -> bool:
        """Whether a Close would be understood: the client has sent its protocol header."""
        return self._handshake.state is not State.HEADER

    def rest(self) -> bytes:
        """What the client has sent behind its Open, once it is open."""
        self._no_longer_begins()
        return self._handshake.rest()

    # --- before AMQP --------------------------------------------------------------------------

    async def _preliminaries(self) -> None:
        try:
            if self._listener.proxy_header:
                self.source = await self._read_proxy_header()
            if self._listener.secure:
                context = self._contexts.ingress(self._listener)
                self._verifies = context.verify_mode is not ssl.CERT_NONE
                await self._end.start_tls(context)
                self.certificate_name = _name_of(self._end.sock)
        except ConnectionLost:
            self._host.left(in_order=False)
        except ConfigError as error:
            _log.error("clients can't have TLS", port=self._listener.port, reason=str(error))
            self._host.not_amqp("it came for TLS, which isn't set up")
        except CipherMQError as error:
            self._host.not_amqp(str(error))
        else:
            self._speak()
        finally:
            self._task = None

    async def _read_proxy_header(self) -> Source | None:
        reader, sock = HeaderReader(), self._end.sock
        while not reader.done:
            try:
                seen = sock.recv(reader.most, socket.MSG_PEEK)
                if not seen:
                    raise ConnectionLost("the connection ended within its PROXY header")
                reader.take(sock.recv(reader.wants(seen)))
            except BlockingIOError:
                await self._end.readable()
            except OSError as error:
                raise ConnectionLost(str(error)) from error
        return reader.source

    # --- AMQP ---------------------------------------------------------------------------------

    def _speak(self) -> None:
        self._deadline.set(self._timeouts.header, State.HEADER.value)
        self._end.on_readable(self._readable)

    def _readable(self) -> None:
        size = self._end.receive()
        if size is None:
            return
        if not size:
            self._end.hold(WAITING)
            self._host.left(in_order=False)
            return
        self.bytes += size
        self.packets += 1
        self._counted += size
        Begun.total += size
        handshake = self._handshake
        handshake.receive(VIEW[:size])
        try:
            for step in self._steps():
                self._take(step)
        except NotAmqp as fault:
            self._host.not_amqp(str(fault))
        except AmqpFault as fault:
            self._host.wrong(fault)
        if Begun.total > limits.PROXY_BEGUN and self._counted > limits.PROXY_SMALL_BEGINNING:
            self._host.wrong(AmqpFault(closing.RESOURCE_ERROR, _NO_ROOM))
        elif handshake.waiting > limits.PROXY_HANDSHAKE_BYTES:
            self._end.hold(WAITING)  # until the broker's OpenOk; `Pump.start` reads on

    def _no_longer_begins(self) -> None:
        Begun.total -= self._counted
        self._counted = 0

    def _steps(self) -> Iterator[Step]:
        while (step := self._handshake.next_step()) is not None:
            self.frames += 1
            yield step

    def _take(self, step: Step) -> None:
        method, frame = step
        if method is Method.PROTOCOL_HEADER:
            mechanisms = ("PLAIN", "EXTERNAL") if self._verifies else ("PLAIN",)
            self._say(closing.start(*mechanisms))
            self._deadline.set(self._timeouts.start_ok, State.START_OK.value)
        elif method is Method.START_OK:
            self.start_ok = start_ok = properties.read_start_ok(frame.payload)
            name = properties.text_field(start_ok.fields, b"connection_name")
            self.connection_name = name[: limits.AMQP_NAME]
            self._say(closing.TUNE)
            self._deadline.set(self._timeouts.tune_ok, State.TUNE_OK.value)
        elif method is Method.TUNE_OK:
            self.tune_ok = frame.raw
            self.heartbeat = properties.read_heartbeat(frame.payload)
            self._deadline.set(self._timeouts.open, State.OPEN.value)
        elif method is Method.OPEN:
            self.vhost = properties.read_open(frame.payload)
            self.open = frame.raw
            self._host.asked(self)
        else:
            self._say(closing.CLOSE_OK)
            self._host.left(in_order=True)

    def _say(self, data: bytes) -> None:
        self.sent += len(data)
        self.said += 1
        self._end.write(data)

    @property
    def credentials(self) -> Credentials:
        """The client's SASL response."""
        return Credentials(self.start_ok.response)


def discard(end: End, until: Callable[[], None]) -> None:
    """Read and drop what `end` still sends; `until` is called when it answers a Close, or ends.

    The answer is looked for among the bytes, since the stream may not be frames any more.
    """
    tail = b""

    def readable() -> None:
        nonlocal tail
        size = end.receive()
        if size is None:
            return
        tail += VIEW[:size]
        if not size or closing.CLOSE_OK in tail:
            end.hold(WAITING)
            until()
        tail = tail[-len(closing.CLOSE_OK) :]

    end.release(STALLED | PACED)  # there is nobody any more to whom it might go too fast
    end.on_readable(readable)


def _name_of(sock: socket.socket) -> str | None:
    """The common name of the certificate the client proved to have."""
    der = sock.getpeercert(True) if isinstance(sock, ssl.SSLSocket) else None
    if not der:
        return None
    # Only who verifies clients pays for it: 9 MB a worker.
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    try:
        subject = x509.load_der_x509_certificate(der).subject
    except ValueError:  # OpenSSL is not as strict
        return None
    names = subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[-1].value) if names else None
