"""A session: a client's connection, a broker's connection, and what both are up to.

::

    BEGINNING ──Open──► ADMISSION ──admitted──► BROKER ──OpenOk──► OPEN ──► LEAVING ──► ENDED
        └───────────────────┴──────refused─────────┴───────────────────────────┘

A client that is refused, and one whose broker is lost, gets Close with a reason wherever a frame
boundary allows; then its answer is waited for, so that no reset overtakes the reason. Whatever
happens, `Gate.ended` is called once and both sockets are closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final, NamedTuple

from ciphermq.errors import AmqpFault, CipherMQError
from ciphermq.proxy.deadline import Deadline
from ciphermq.proxy.dial import dial
from ciphermq.proxy.egress import Approach, Declined, Opened, Replay
from ciphermq.proxy.end import PAUSED, End, prepare
from ciphermq.proxy.farewell import Farewell
from ciphermq.proxy.gate import Admission, Contexts, Gate, Opening, Refusal
from ciphermq.proxy.ingress import Ingress, discard
from ciphermq.proxy.model import Backend, Listener
from ciphermq.proxy.pace import Meter, Pace
from ciphermq.proxy.proxyheader import Source
from ciphermq.proxy.pump import Pump
from ciphermq.proxy.statistics import Ending
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.telemetry import get_logger
from ciphermq.wire.amqp import closing, properties
from ciphermq.wire.amqp.frames import CLOSE_OK

_log = get_logger("proxy.session")

_HERE: Final = socket.gethostname()


class Phase(Enum):
    """How far a session is."""

    BEGINNING = "beginning"
    ADMISSION = "admission"
    BROKER = "broker"
    OPEN = "open"
    LEAVING = "leaving"
    ENDED = "ended"


class Flow(NamedTuple):
    """What went one way."""

    bytes: int
    frames: int
    packets: int


_NO_FLOW: Final = Flow(0, 0, 0)


def accept(
    sock: socket.socket,
    address: tuple[str, int],
    listener: Listener,
    gate: Gate,
    contexts: Contexts,
    timeouts: Timeouts,
    on_done: Callable[[Session], None],
    number: int,
) -> Session:
    """Begin a session with a client that has just connected; `on_done` when it is over.

    To be called within the worker's event loop. Raises nothing: a socket that is dead already is a
    session that ends.
    """
    session = Session(sock, address, listener, gate, contexts, timeouts, on_done, number)
    session.begin()
    return session


class Session:
    """One pair of connections. Made by `accept`."""

    __slots__ = (
        "__weakref__",
        "_beat",
        "_before",
        "_broker",
        "_client",
        "_contexts",
        "_deadline",
        "_down",
        "_gate",
        "_held",
        "_how",
        "_ingress",
        "_listener",
        "_loop",
        "_on_done",
        "_paused",
        "_task",
        "_timeouts",
        "_up",
        "address",
        "backend",
        "broker_address",
        "certificate_name",
        "connection_name",
        "id",
        "local_address",
        "opened",
        "phase",
        "proxy_address",
        "vhost",
    )

    def __init__(
        self,
        sock: socket.socket,
        address: tuple[str, int],
        listener: Listener,
        gate: Gate,
        contexts: Contexts,
        timeouts: Timeouts,
        on_done: Callable[[Session], None],
        number: int,
    ) -> None:
        self.id = number
        self.vhost = ""
        self.backend: Backend | None = None
        self.opened = False
        """Whether the broker's OpenOk came, ever."""
        self.phase = Phase.BEGINNING
        self.connection_name = ""
        self.certificate_name: str | None = None
        self.address: tuple[str, int] = address[0], address[1]
        """Of the client, as the socket or a PROXY header says."""
        self.local_address: tuple[str, int] = ("", listener.port)
        self.proxy_address: tuple[str, int] = ("", 0)
        """Ours, towards the broker."""
        self.broker_address: tuple[str, int] = ("", 0)
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._gate = gate
        self._contexts = contexts
        self._timeouts = timeouts
        self._on_done = on_done
        self._deadline = Deadline(self._loop, self._late)
        self._client = End(sock, self._loop)
        self._broker: End | None = None
        self._ingress: Ingress | None = Ingress(
            self._client, listener, contexts, timeouts, self._deadline, self
        )
        self._up: Pump | None = None
        self._down: Pump | None = None
        self._before = _NO_FLOW, _NO_FLOW
        self._task: asyncio.Task[None] | None = None
        self._beat: asyncio.TimerHandle | None = None
        self._how: Ending = "failed"
        self._held = False
        self._paused = False

    # --- what is to be known ------------------------------------------------------------------

    @property
    def client(self) -> str:
        """The client's address."""
        return self.address[0]

    @property
    def backend_host(self) -> str:
        """The broker's address; empty before there is a broker."""
        return self.broker_address[0]

    @property
    def waits(self) -> bool:
        """Whether it is held because its vhost is paused."""
        return self._held

    @property
    def paused(self) -> bool:
        """Whether it is held, or was paused by itself."""
        return self._held or self._paused

    @property
    def received(self) -> Flow:
        """From the client."""
        return self._flow(0, self._up)

    @property
    def sent(self) -> Flow:
        """To the client."""
        return self._flow(1, self._down)

    @property
    def spilled(self) -> int:
        """Bytes in memory that one of both sides does not take."""
        return self._client.left + (self._broker.left if self._broker is not None else 0)

    def _flow(self, way: int, pump: Pump | None) -> Flow:
        ingress = self._ingress
        if ingress is not None:
            return (
                Flow(ingress.bytes, ingress.frames, ingress.packets),
                Flow(ingress.sent, min(ingress.frames, 2), min(ingress.frames, 2)),
            )[way]
        before = self._before[way]
        if pump is None:
            return before
        return Flow(
            before.bytes + pump.bytes,
            before.frames + pump.scanner.frames,
            before.packets + pump.packets,
        )

    def describe(self) -> dict[str, object]:
        """The fields of ``CONN``, in their order."""
        received, sent = self.received, self.sent
        return {
            "id": self.id,
            "vhost": self.vhost,
            "disconnected": self.phase in (Phase.LEAVING, Phase.ENDED),
            "paused": self.paused,
            "authDenied": self._how == "denied",
            "ingressRemote": _spell(self.address),
            "ingressLocal": self.local_address[0],
            "egressLocal": _spell(self.proxy_address),
            "egressRemote": _spell(self.broker_address),
            "inBytes": received.bytes,
            "inFrames": received.frames,
            "inPackets": received.packets,
            "outBytes": sent.bytes,
            "outFrames": sent.frames,
            "outPackets": sent.packets,
            "state": self.phase.value,
            "backend": self.backend.name if self.backend is not None else "",
            "connectionName": self.connection_name,
            "listenPort": self._listener.port,
            "tls": self._client.tls,
            "certificateName": self.certificate_name or "",
        }

    # --- what can be done to it ---------------------------------------------------------------

    def pause(self) -> None:
        """Read nothing more from either side, until `unpause`."""
        self._paused = True
        if self.phase is Phase.OPEN:
            self._hold()

    def unpause(self) -> None:
        """Go on."""
        if self._paused:
            self._paused = False
            self._client.release(PAUSED)
            if self._broker is not None:
                self._broker.release(PAUSED)

    def disconnect_graceful(self, reply: int = closing.OK, text: str = "OK") -> None:
        """Send the client Close between two frames, wait for its answer, then close the broker."""
        if self.phase is Phase.OPEN:
            assert self._down is not None
            self._leave("graceful")
            self._down.cut(closing.close(reply, text), self._say_farewell)
        else:
            self._refuse(reply, text, "graceful")

    def disconnect_backend(self) -> None:
        """Leave the broker at once, and tell the client with Close 320."""
        text = "CONNECTION_FORCED - the proxy was told to leave the broker"
        if self.phase is Phase.OPEN:
            self._leave("graceful")
            self._without_broker(closing.CONNECTION_FORCED, text)
        else:
            self._refuse(closing.CONNECTION_FORCED, text, "graceful")

    def force_disconnect(self) -> None:
        """End both connections now."""
        if self.phase is not Phase.ENDED:
            self._end("graceful")

    @contextmanager
    def held(self) -> Iterator[None]:
        """For the gate: within, the session waits because its vhost is paused."""
        self._held = True
        self._deadline.set(self._timeouts.paused_hold, "the paused virtual host")
        try:
            yield
        finally:
            self._held = False
            if self.phase is Phase.ADMISSION:
                self._deadline.set(self._timeouts.admission, "admission")

    # --- the client's beginning (Ingress tells) -----------------------------------------------

    def begin(self) -> None:
        """Start reading; see `accept`."""
        try:
            prepare(self._client.sock, self._timeouts.stall)
            self.local_address = self._client.sock.getsockname()[:2]
        except OSError as error:
            self._client.error = error
            self._loop.call_soon(self._end, "client")
            return
        assert self._ingress is not None
        self._ingress.begin()

    def asked(self) -> None:
        """The client's Open has come."""
        assert self._ingress is not None
        self.phase = Phase.ADMISSION
        self.vhost = self._ingress.vhost
        self.connection_name = self._ingress.connection_name
        self.certificate_name = self._ingress.certificate_name
        if self._ingress.source is not None:
            self.address = self._ingress.source[:2]
        self._deadline.set(self._timeouts.admission, "admission")
        self._schedule_beat()
        self._task = self._loop.create_task(self._open())

    def left(self, *, in_order: bool) -> None:
        """The client is gone before its session was open."""
        self._end("graceful" if in_order else "client")

    def wrong(self, fault: AmqpFault) -> None:
        """The client broke the protocol before its session was open."""
        _log.warning("client broke the protocol", session=self.id, reason=str(fault))
        self._refuse(fault.reply, str(fault), "failed")

    def not_amqp(self, why: str) -> None:
        """What came is not AMQP 0.9.1: say what would be (section 4.2.2), and end."""
        _log.warning("not a client", session=self.id, client=self.client, reason=why)
        if self.phase is Phase.BEGINNING and not (self._listener.secure and not self._client.tls):
            self._client.write(closing.PROTOCOL_HEADER)
        self._leave("failed")
        self._shut_client()

    # --- finding a broker ---------------------------------------------------------------------

    async def _open(self) -> None:
        """From Open to OpenOk."""
        ingress = self._ingress
        assert ingress is not None
        opening = Opening(
            vhost=self.vhost,
            client=self.address[0],
            client_port=self.address[1],
            connection_name=self.connection_name,
            mechanism=ingress.start_ok.mechanism,
            credentials=ingress.credentials,
            listen_port=self._listener.port,
            tls=self._client.tls,
            certificate_name=self.certificate_name,
        )
        try:
            admission = await self._gate.admit(opening, self)
            if opening.mechanism == "EXTERNAL" and admission.mechanism in (None, "EXTERNAL"):
                # To the broker the certificate would be the proxy's own: the client would be it.
                raise Refusal(closing.ACCESS_REFUSED, "ACCESS_REFUSED - EXTERNAL", "denied")
            self.phase = Phase.BROKER
            self._deadline.clear()
            await self._find_broker(opening, admission)
        except Refusal as refusal:
            self._refuse(refusal.reply, str(refusal), refusal.ending)
        except Exception as error:  # noqa: BLE001  (a fault of ours: this session's, no other's)
            _log.error("session failed", session=self.id, exc_info=error)
            self._refuse(closing.INTERNAL_ERROR, "INTERNAL_ERROR - the proxy failed", "failed")
        finally:
            self._task = None

    async def _find_broker(self, opening: Opening, admission: Admission) -> None:
        source = Source(*self.address, *self.local_address)
        tried = 0
        for backend in self._gate.route(opening):
            tried += 1
            end: End | None = None
            try:
                end = await dial(backend, source, self._contexts, self._timeouts)
                self.backend, self._broker = backend, end
                outcome = await self._approach(end, backend, admission)
            except (CipherMQError, OSError) as error:
                self._gate.failed(backend, error)
                self.backend = self._broker = None
                if end is not None:
                    end.close()
                continue
            if isinstance(outcome, Opened):
                self._opened(outcome, admission)
            else:
                self._declined(outcome)
            return
        raise Refusal(
            closing.CONNECTION_FORCED,
            f"CONNECTION_FORCED - no broker for vhost '{self.vhost}' can be reached, {tried} tried",
        )

    async def _approach(
        self, end: End, backend: Backend, admission: Admission
    ) -> Opened | Declined:
        self.proxy_address = end.sock.getsockname()[:2]
        self.broker_address = end.sock.getpeername()[:2]
        approach = Approach(
            end,
            backend,
            self._replay(admission),
            self._timeouts,
            lambda: self._gate.connected(backend),
        )
        return await approach.run()

    def _replay(self, admission: Admission) -> Replay:
        ingress = self._ingress
        assert ingress is not None
        start_ok = ingress.start_ok
        name = admission.client_name or self.address[0]
        added = {
            "amqpprox_client": f"{name}:{self.address[1]}{' TLS' if self._client.tls else ''}",
            "amqpprox_host": f"(:{self._listener.port}) {_HERE}:{self.proxy_address[1]}",
        }
        if admission.auth_reason is not None:
            added["amqpprox_auth"] = admission.auth_reason
        if self.certificate_name is not None:
            added["amqpprox_certificate"] = self.certificate_name
        if admission.mechanism is not None:
            start_ok = start_ok._replace(mechanism=admission.mechanism)
        if admission.credentials is not None:
            start_ok = start_ok._replace(response=admission.credentials)
        return Replay(
            properties.write_start_ok(start_ok, added),
            ingress.tune_ok + ingress.open,
            properties.capability(start_ok.properties, b"authentication_failure_close"),
        )

    def _declined(self, outcome: Declined) -> None:
        """The broker said no: the client is told as if it had asked the broker itself."""
        assert self._broker is not None
        self._broker.close()
        self._leave("denied" if outcome.close is None else "graceful")
        if outcome.close is None:
            self._shut_client()
            return
        self._client.write(outcome.close.raw)
        discard(self._client, self._client_done)

    # --- open ---------------------------------------------------------------------------------

    def _opened(self, outcome: Opened, admission: Admission) -> None:
        ingress, broker = self._ingress, self._broker
        assert ingress is not None
        assert broker is not None
        self._before = self.received, self.sent
        rest = ingress.rest()
        self._ingress = None
        self._stop_beat()
        self.phase, self.opened = Phase.OPEN, True
        self._up = up = Pump(self._client, broker, self, self._loop)
        self._down = down = Pump(broker, self._client, self, self._loop)
        now = self._loop.time()
        if admission.data_rate:
            up.set_pace(Pace(admission.data_rate, now))
        if admission.data_rate_alarm:
            up.meter = Meter(admission.data_rate_alarm, now)
        self._gate.opened(self)
        if self._paused:
            self._hold()
        down.start(outcome.open_ok.raw + outcome.rest)
        if self.phase is Phase.OPEN:
            up.start(rest)

    def _hold(self) -> None:
        self._client.hold(PAUSED)
        if self._broker is not None:
            self._broker.hold(PAUSED)

    def alarmed(self, rate: int) -> None:
        """A pump tells: more came in a second than the alarm's rate."""
        self._gate.alarm(self, rate)

    def closing(self, pump: Pump) -> None:
        """A pump tells: Close or CloseOk has gone by."""
        if self.phase is Phase.OPEN:
            self._deadline.set(self._timeouts.close_ok, "CloseOk")
        elif pump is self._down and pump.scanner.closing == CLOSE_OK:
            self._end(self._how)

    def ended(self, pump: Pump) -> None:
        """A pump tells: its source's stream has ended."""
        if self.phase is not Phase.OPEN:
            if self._client.closed or pump is self._up:
                self._end(self._how)
            else:
                self._broker_gone_meanwhile()
            return
        assert self._up is not None
        assert self._down is not None
        if self._up.scanner.closing or self._down.scanner.closing:
            self._leave("graceful")
            self._flush_and_end(pump.sink)
        elif pump is self._up:
            self._leave("client")
            self._flush_and_end(pump.sink)
        else:
            self._leave("broker")
            why = f": {pump.source.error}" if pump.source.error else ""
            self._without_broker(
                closing.CONNECTION_FORCED,
                f"CONNECTION_FORCED - the broker ended the connection{why}",
            )

    def faulty(self, pump: Pump, fault: AmqpFault) -> None:
        """A pump tells: its source does not send frames."""
        assert self._up is not None
        assert self._down is not None
        if self.phase is not Phase.OPEN:
            self._end(self._how)
            return
        _log.warning(
            "client broke the protocol" if pump is self._up else "broker broke the protocol",
            session=self.id,
            reason=str(fault),
        )
        if pump is self._up:
            self._leave("client")
            self._down.cut(
                closing.close(fault.reply, str(fault)), lambda: self._answer_or_end(leave=True)
            )
        else:
            self._leave("broker")
            self._without_broker(
                closing.INTERNAL_ERROR,
                f"INTERNAL_ERROR - the broker sent what is no frame: {fault}",
            )

    # --- leaving ------------------------------------------------------------------------------

    def _leave(self, how: Ending) -> None:
        """The end has begun; it may take no longer than one time-out."""
        self._how = how
        self.phase = Phase.LEAVING
        self._stop_beat()
        self.unpause()
        self._deadline.set(self._timeouts.close_ok, "the end of the connection")

    def _refuse(self, reply: int, text: str, how: Ending) -> None:
        """Close towards a client whose session is not open (yet)."""
        if self.phase in (Phase.OPEN, Phase.LEAVING, Phase.ENDED):
            return
        ingress = self._ingress
        assert ingress is not None
        may_close = ingress.may_close
        ingress.stop()
        self._cancel()
        if self._broker is not None:
            self._broker.close()
        self._leave(how)
        if not may_close:
            self._shut_client()
            return
        self._client.write(closing.close(reply, text))
        discard(self._client, self._client_done)

    def _without_broker(self, reply: int, text: str) -> None:
        """The broker's connection is of no more use: tell the client, if that is possible."""
        broker, down = self._broker, self._down
        assert broker is not None
        assert down is not None
        broker.close()
        if down.broken or not (down.dropping or down.scanner.between):
            _log.warning("client cut off within a frame", session=self.id, reason=text)
            self._flush_and_end(self._client)
            return
        self._client.write(closing.close(reply, text))
        discard(self._client, self._client_done)

    def _answer_or_end(self, *, leave: bool) -> None:
        if leave and self._broker is not None:
            self._broker.close()
        discard(self._client, self._client_done)

    def _say_farewell(self) -> None:
        assert self._up is not None
        Farewell(self._up, self._client_left).begin()

    def _client_left(self, clean: bool) -> None:
        """The client has answered our Close: now the broker's turn."""
        self._client.close()
        assert self._broker is not None
        if clean and not self._broker.closed:
            self._deadline.set(self._timeouts.close_ok, "the broker's CloseOk")
            self._broker.write(closing.close(closing.OK, "OK"))
        else:
            self._end(self._how)

    def _broker_gone_meanwhile(self) -> None:
        """The broker left while the client was being told to go."""
        assert self._broker is not None
        self._broker.close()
        if self._down is not None and not self._down.dropping:
            # The Close still waits for a frame to end that will never end.
            self._flush_and_end(self._client)

    def _client_done(self) -> None:
        self._end(self._how)

    def _flush_and_end(self, end: End) -> None:
        """What is left goes out first, within the time-out."""
        if end.left:
            end.on_drained(self._client_done)
        else:
            self._end(self._how)

    def _shut_client(self) -> None:
        """End our half, and let the other end its own: a reset could overtake what was said."""
        try:
            self._client.sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._end(self._how)
            return
        discard(self._client, self._client_done)

    def _late(self, what: str) -> None:
        if self.phase is Phase.LEAVING:
            self._end(self._how)
        elif self.phase is Phase.OPEN:  # a Close that nobody answered
            self._end("graceful")
        else:
            _log.warning("time-out", session=self.id, client=self.client, waited_for=what)
            self._refuse(
                closing.CONNECTION_FORCED,
                f"CONNECTION_FORCED - waited too long for {what}",
                "failed",
            )

    def _cancel(self) -> None:
        task = self._task
        if task is not None and task is not asyncio.current_task(self._loop):
            task.cancel()

    def _end(self, how: Ending) -> None:
        if self.phase is Phase.ENDED:
            return
        self._how, self.phase = how, Phase.ENDED
        self._stop_beat()
        self._deadline.clear()
        if self._ingress is not None:
            self._ingress.stop()
        self._cancel()
        self._client.close()
        if self._broker is not None:
            self._broker.close()
        self._gate.ended(self, how)
        self._on_done(self)

    # --- heartbeats to a client that waits for OpenOk -----------------------------------------

    def _schedule_beat(self) -> None:
        seconds = self._ingress.heartbeat if self._ingress is not None else 0
        if seconds:
            self._beat = self._loop.call_later(seconds / 2, self._send_beat)

    def _send_beat(self) -> None:
        self._client.write(closing.HEARTBEAT_FRAME)
        self._schedule_beat()

    def _stop_beat(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None


def _spell(address: tuple[str, int]) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
