"""A session: a client's connection, a broker's connection, and what both are up to.

::

    BEGINNING ──Open──► ADMISSION ──admitted──► BROKER ──OpenOk──► OPEN ──► ENDED
        └───────────────────┴─────refused──────────┴──────► LEAVING ──────────┘

Before OPEN an `Ingress` has the client, from then on a `Road` has both. A client that is refused,
and one whose broker is lost, gets Close with a reason wherever a frame boundary allows; then its
answer is waited for, so that no reset overtakes the reason. Whatever happens, `Gate.ended` is
called once and both sockets are closed.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Final, NamedTuple

from ciphermq.errors import AmqpFault
from ciphermq.proxy.deadline import Deadline
from ciphermq.proxy.egress import Declined, Opened
from ciphermq.proxy.end import End, prepare
from ciphermq.proxy.gate import Admission, Contexts, Gate, Opening, Refusal
from ciphermq.proxy.ingress import Ingress, discard
from ciphermq.proxy.model import Backend, Listener
from ciphermq.proxy.opening import Found, admit, find_broker
from ciphermq.proxy.pace import Meter, Pace
from ciphermq.proxy.proxyheader import Source
from ciphermq.proxy.pump import Pump
from ciphermq.proxy.road import Road
from ciphermq.proxy.statistics import Ending
from ciphermq.proxy.timeouts import Timeouts
from ciphermq.telemetry import get_logger
from ciphermq.wire.amqp import closing

_log = get_logger("proxy.session")

Address = tuple[str, int]
_NOWHERE: Final[Address] = ("", 0)


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

    def plus(self, pump: Pump) -> Flow:
        """This, and what a pump has counted."""
        return Flow(
            self.bytes + pump.bytes,
            self.frames + pump.scanner.frames,
            self.packets + pump.packets,
        )


_NO_FLOW: Final = Flow(0, 0, 0)


def accept(
    sock: socket.socket,
    address: Address,
    listener: Listener,
    gate: Gate,
    contexts: Contexts,
    timeouts: Timeouts,
    on_done: Callable[[Session], None],
    number: int,
) -> Session:
    """Begin a session with a client that has just connected; `on_done` when it is over.

    To be called within the worker's event loop. Raises nothing: a socket that is dead already is a
    session that ends soon after.
    """
    session = Session(sock, address, listener, gate, contexts, timeouts, on_done, number)
    session.begin()
    return session


class Session:
    """One pair of connections. Made by `accept`."""

    __slots__ = (
        "__weakref__", "_beat", "_before", "_client", "_contexts", "_deadline", "_gate",
        "_held", "_how", "_ingress", "_listener", "_loop", "_on_done", "_paused", "_road",
        "_task", "_timeouts", "address", "backend", "broker_address", "certificate_name",
        "connection_name", "id", "local_address", "phase", "proxy_address", "vhost",
    )  # fmt: skip

    def __init__(
        self,
        sock: socket.socket,
        address: Address,
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
        self.phase = Phase.BEGINNING
        self.connection_name = ""
        self.certificate_name: str | None = None
        self.address: Address = address[0], address[1]
        """Of the client, as the socket or a PROXY header says."""
        self.local_address: Address = ("", listener.port)
        """Ours, towards the client;"""
        self.proxy_address = _NOWHERE
        """and towards the broker."""
        self.broker_address = _NOWHERE
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        self._gate = gate
        self._contexts = contexts
        self._timeouts = timeouts
        self._on_done = on_done
        self._deadline = Deadline(self._loop, self._late)
        self._client = End(sock, self._loop)
        self._ingress: Ingress | None = Ingress(
            self._client, listener, contexts, timeouts, self._deadline, self
        )
        self._road: Road | None = None
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
    def opened(self) -> bool:
        """Whether the broker's OpenOk came, ever."""
        return self._road is not None

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
        ingress = self._ingress
        if ingress is not None:
            return Flow(ingress.bytes, ingress.frames, ingress.packets)
        return self._before[0] if self._road is None else self._before[0].plus(self._road.up)

    @property
    def sent(self) -> Flow:
        """To the client."""
        ingress = self._ingress
        if ingress is not None:
            return Flow(ingress.sent, ingress.said, ingress.said)
        return self._before[1] if self._road is None else self._before[1].plus(self._road.down)

    @property
    def spilled(self) -> int:
        """Bytes in memory that one of both sides does not take."""
        return self._client.left + (self._road.broker.left if self._road is not None else 0)

    def describe(self) -> dict[str, object]:
        """The fields of ``CONN``, in their order."""
        received, sent = self.received, self.sent
        leaving = self._road is not None and self._road.leaving
        return {
            "id": self.id,
            "vhost": self.vhost,
            "disconnected": leaving or self.phase in (Phase.LEAVING, Phase.ENDED),
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
        if self._road is not None:
            self._road.hold()

    def unpause(self) -> None:
        """Go on."""
        self._paused = False
        if self._road is not None:
            self._road.release()

    def set_rates(self, data_rate: int | None, data_rate_alarm: int | None) -> None:
        """See `Admission`: the same, while it is open; None takes a rate away."""
        if self._road is not None:
            now, up = self._loop.time(), self._road.up
            up.set_pace(Pace(data_rate, now) if data_rate else None)
            up.meter = Meter(data_rate_alarm, now) if data_rate_alarm else None

    def disconnect_graceful(self, reply: int = closing.OK, text: str = "OK") -> None:
        """Send the client Close between two frames, wait for its answer, then close the broker."""
        self._paused = False
        if self._road is not None:
            self._road.close(reply, text)
        else:
            self._refuse(reply, text, "graceful")

    def disconnect_backend(self) -> None:
        """Leave the broker at once, and tell the client with Close 320."""
        self._paused = False
        text = "CONNECTION_FORCED - the proxy was told to leave the broker"
        if self._road is not None:
            self._road.leave_broker(text)
        else:
            self._refuse(closing.CONNECTION_FORCED, text, "graceful")

    def force_disconnect(self) -> None:
        """End both connections now."""
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
        except OSError:  # it is gone again
            self._loop.call_soon(self._end, "client")
            return
        if self._ingress is not None:
            self._ingress.begin()

    def asked(self, ingress: Ingress) -> None:
        """The client's Open has come."""
        self.phase = Phase.ADMISSION
        self.vhost = ingress.vhost
        self.connection_name = ingress.connection_name
        self.certificate_name = ingress.certificate_name
        if ingress.source is not None:
            self.address = ingress.source[:2]
        self._deadline.set(self._timeouts.admission, "admission")
        self._schedule_beat(ingress.heartbeat)
        self._task = self._loop.create_task(self._open(ingress))

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
        if self._client.tls or not self._listener.secure:
            self._client.write(closing.PROTOCOL_HEADER)
        self._refuse(closing.NOT_IMPLEMENTED, why, "failed")

    # --- finding a broker ---------------------------------------------------------------------

    async def _open(self, ingress: Ingress) -> None:
        """From Open to OpenOk."""
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
        source = Source(*self.address, *self.local_address)
        try:
            admission = await admit(self._gate, opening, self)
            self.phase = Phase.BROKER
            self._deadline.clear()
            found = await find_broker(
                ingress, opening, admission, source, self._gate, self._contexts, self._timeouts
            )
        except Refusal as refusal:
            self._task = None
            self._refuse(refusal.reply, str(refusal), refusal.ending)
        except Exception as error:  # noqa: BLE001  (a fault of ours: this session's, no other's)
            _log.error("session failed", session=self.id, exc_info=error)
            self._task = None
            self._refuse(closing.INTERNAL_ERROR, "INTERNAL_ERROR - the proxy failed", "failed")
        else:
            self._task = None
            self._answered(ingress, found, admission)

    def _answered(self, ingress: Ingress, found: Found, admission: Admission) -> None:
        self.backend = found.backend
        self.proxy_address = _name(found.end.sock.getsockname)
        self.broker_address = _name(found.end.sock.getpeername)
        if isinstance(found.outcome, Opened):
            self._start(ingress, found.end, found.outcome, admission)
        else:
            found.end.close()
            self._declined(found.outcome)

    def _start(self, ingress: Ingress, broker: End, outcome: Opened, admission: Admission) -> None:
        """Bytes go both ways from now on."""
        rest = ingress.rest()
        received = self.received
        self._before = received._replace(bytes=received.bytes - len(rest)), self.sent
        self._ingress = None
        self._stop_beat()
        self.phase = Phase.OPEN
        self._road = road = Road(
            self._client,
            broker,
            self._deadline,
            self._timeouts.close_ok,
            self.id,
            self._end,
            lambda rate: self._gate.alarm(self, rate),
        )
        self.set_rates(admission.data_rate, admission.data_rate_alarm)
        self._gate.opened(self)
        if self._paused:
            road.hold()
        road.start(outcome.open_ok.raw + outcome.rest, rest)

    def _declined(self, outcome: Declined) -> None:
        """The broker said no: the client is told as if it had asked the broker itself."""
        if outcome.close is None:
            self._leave("denied")
            self._shut_client()
        else:
            self._leave("graceful")
            self._client.write(outcome.close.raw)
            discard(self._client, self._client_done)

    # --- leaving before it is open ------------------------------------------------------------

    def _refuse(self, reply: int, text: str, how: Ending) -> None:
        """Close towards a client whose session is not open (yet)."""
        ingress = self._ingress
        if ingress is None or self.phase in (Phase.LEAVING, Phase.ENDED):
            return
        ingress.stop()
        self._cancel()
        self._leave(how)
        if ingress.may_close:
            self._client.write(closing.close(reply, text))
            discard(self._client, self._client_done)
        else:
            self._shut_client()

    def _leave(self, how: Ending) -> None:
        """The end has begun; it may take no longer than one time-out."""
        self._how, self.phase = how, Phase.LEAVING
        self._stop_beat()
        self._deadline.set(self._timeouts.close_ok, "the end of the connection")

    def _client_done(self) -> None:
        self._end(self._how)

    def _shut_client(self) -> None:
        """End our half, and let the other end its own: a reset could overtake what was said."""
        self._client.shut()
        discard(self._client, self._client_done)

    def _late(self, what: str) -> None:
        if self._road is not None:
            self._road.late()
        elif self.phase is Phase.LEAVING:
            self._end(self._how)
        else:
            _log.warning("time-out", session=self.id, client=self.client, waited_for=what)
            self._refuse(
                closing.CONNECTION_FORCED,
                f"CONNECTION_FORCED - waited too long for {what}",
                "failed",
            )

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

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
        if self._road is not None:
            self._road.broker.close()
        self._gate.ended(self, how)
        self._on_done(self)

    # --- heartbeats to a client that waits for OpenOk -----------------------------------------

    def _schedule_beat(self, seconds: int) -> None:
        if seconds:
            self._beat = self._loop.call_later(seconds / 2, self._send_beat, seconds)

    def _send_beat(self, seconds: int) -> None:
        self._client.write(closing.HEARTBEAT_FRAME)
        self._schedule_beat(seconds)

    def _stop_beat(self) -> None:
        if self._beat is not None:
            self._beat.cancel()
            self._beat = None


def _name(ask: Callable[[], tuple[str, int]]) -> Address:
    try:
        return ask()[:2]
    except OSError:  # the connection has just ended
        return _NOWHERE


def _spell(address: Address) -> str:
    host, port = address
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
