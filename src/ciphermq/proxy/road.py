"""An open session's two connections, from OpenOk until both are gone.

Whoever ends first decides how the session is counted, and what the other is told: Close with a
reason if it stands between two frames, else the bare end of the stream, which is all that is left.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from ciphermq.errors import AmqpFault
from ciphermq.proxy.deadline import Deadline
from ciphermq.proxy.end import PAUSED, End
from ciphermq.proxy.farewell import Farewell
from ciphermq.proxy.ingress import discard
from ciphermq.proxy.pump import Pump
from ciphermq.proxy.statistics import Ending
from ciphermq.telemetry import get_logger
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.frames import CLOSE_OK

_log = get_logger("proxy.session")


class Road:
    """Both directions. It closes no socket before its owner is told that it is over."""

    __slots__ = (
        "_alarm",
        "_close_seconds",
        "_deadline",
        "_how",
        "_number",
        "_over",
        "broker",
        "client",
        "down",
        "leaving",
        "up",
    )

    def __init__(
        self,
        client: End,
        broker: End,
        deadline: Deadline,
        close_seconds: float,
        number: int,
        over: Callable[[Ending], None],
        alarm: Callable[[int], None],
    ) -> None:
        """`number` is the session's, for the log. `over` is called once, at the end; `alarm` when
        the client sends more than its meter allows."""
        loop = asyncio.get_running_loop()
        self.client = client
        self.broker = broker
        self.up = Pump(client, broker, self, loop)
        self.down = Pump(broker, client, self, loop)
        self.leaving = False
        self._deadline = deadline
        self._close_seconds = close_seconds
        self._number = number
        self._over = over
        self._alarm = alarm
        self._how: Ending = "graceful"

    def start(self, to_client: bytes, to_broker: bytes) -> None:
        """Begin, with what came from either before."""
        self.down.start(to_client)
        if not self.leaving:
            self.up.start(to_broker)

    # --- what can be done to it ---------------------------------------------------------------

    def hold(self) -> None:
        """Read nothing more from either side."""
        self.client.hold(PAUSED)
        self.broker.hold(PAUSED)

    def release(self) -> None:
        """Read on."""
        self.client.release(PAUSED)
        self.broker.release(PAUSED)

    def close(self, reply: int, text: str) -> None:
        """Close towards the client, then towards the broker: see `farewell`."""
        if not self.leaving:
            self._leave("graceful")
            self.down.cut(closing.close(reply, text), self._say_farewell)

    def leave_broker(self, text: str) -> None:
        """Drop the broker, and close the client with 320."""
        if not self.leaving:
            self._leave("graceful")
            self._without_broker(closing.CONNECTION_FORCED, text)

    def late(self) -> None:
        """The time-out that was set has passed."""
        self._over(self._how)

    # --- what the pumps tell ------------------------------------------------------------------

    def alarmed(self, rate: int) -> None:
        """More came from the client in a second than it should."""
        self._alarm(rate)

    def closing(self, pump: Pump) -> None:
        """Close or CloseOk has gone by."""
        if not self.leaving:
            self._deadline.set(self._close_seconds, "CloseOk")
        elif pump is self.down and pump.scanner.closing == CLOSE_OK:
            self._over(self._how)

    def ended(self, pump: Pump) -> None:
        """A stream has ended."""
        if self.leaving:
            self._ended_meanwhile(pump)
        elif self.up.scanner.closing or self.down.scanner.closing:
            self._leave("graceful")
            self._flush_and_end(pump.sink)
        elif pump is self.up:
            self._leave("client")
            self._flush_and_end(pump.sink)
        else:
            self._leave("broker")
            why = f": {self.broker.error.strerror}" if self.broker.error else ""
            self._without_broker(
                closing.CONNECTION_FORCED,
                f"CONNECTION_FORCED - the broker ended the connection{why}",
            )

    def faulty(self, pump: Pump, fault: AmqpFault) -> None:
        """What comes is no frame, and nothing behind it can be understood."""
        who = "client" if pump is self.up else "broker"
        _log.warning(f"{who} broke the protocol", session=self._number, reason=str(fault))
        if self.leaving:
            self._over(self._how)
        elif pump is self.up:
            self._leave("client")
            self.down.cut(closing.close(fault.reply, str(fault)), self._broker_not_needed)
        else:
            self._leave("broker")
            self._without_broker(
                closing.INTERNAL_ERROR,
                f"INTERNAL_ERROR - the broker sent what is no frame: {fault}",
            )

    # --- leaving ------------------------------------------------------------------------------

    def _leave(self, how: Ending) -> None:
        """The end has begun; it may take no longer than one time-out."""
        self.leaving, self._how = True, how
        self.release()
        self._deadline.set(self._close_seconds, "the end of the connection")

    def _done(self) -> None:
        self._over(self._how)

    def _flush_and_end(self, end: End) -> None:
        """What is left goes out first, within the time-out."""
        if end.left:
            end.on_drained(self._done)
        else:
            self._over(self._how)

    def _without_broker(self, reply: int, text: str) -> None:
        """The broker's connection is of no more use: tell the client, if that is possible."""
        self.broker.close()
        if self.down.broken or not self.down.scanner.between:
            _log.warning("client cut off within a frame", session=self._number, reason=text)
            self._flush_and_end(self.client)
            return
        self.client.write(closing.close(reply, text))
        discard(self.client, self._done)

    def _broker_not_needed(self) -> None:
        self.broker.close()
        discard(self.client, self._done)

    def _say_farewell(self) -> None:
        Farewell(self.up, self._client_left).begin()

    def _client_left(self, clean: bool) -> None:
        """The client has answered our Close: now the broker's turn."""
        self.client.close()
        if clean and not self.broker.closed:
            self._deadline.set(self._close_seconds, "the broker's CloseOk")
            self.broker.write(closing.close(closing.OK, "OK"))
        else:
            self._over(self._how)

    def _ended_meanwhile(self, pump: Pump) -> None:
        """A stream has ended while the other side was being told to go."""
        if pump is self.up or self.client.closed:
            self._over(self._how)
            return
        self.broker.close()
        if not self.down.dropping:  # the Close still waits for a frame that will never end
            self._flush_and_end(self.client)
