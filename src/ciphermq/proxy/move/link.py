"""One AMQP connection with one channel, which carries messages as the bytes they are.

A message's properties and headers are never decoded: its content header and its body frames go
out again exactly as they came in. So nothing about a message can change on the way, whatever
types its headers' values have, and a message costs a few microseconds.

The data plane is four methods (Deliver in; Publish out; Ack and Nack in, Ack out) read and written
here by hand; everything that happens once a queue or once a connection goes through pamqp.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
from collections.abc import Callable
from typing import Any, Final, NamedTuple, TypeVar, cast

import pamqp.base
import pamqp.commands as spec
import pamqp.exceptions
import pamqp.frame
import pamqp.header
import pamqp.heartbeat

from ciphermq import limits
from ciphermq.errors import AmqpFault, ConnectFailed, ConnectionLost, MoveError, TlsFailed

Method = TypeVar("Method", bound=pamqp.base.Frame)

_HEAD: Final = struct.Struct(">BHI")
_METHOD: Final = struct.Struct(">HH")
_TAG: Final = struct.Struct(">Q")
_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME = 1, 2, 3, 8
_KINDS: Final = frozenset({_METHOD_FRAME, _HEADER_FRAME, _BODY_FRAME, _HEARTBEAT_FRAME})
_OVERHEAD: Final = 8  # type, channel, size; end
_END: Final = 0xCE
_CHANNEL: Final = 1
_DELIVER, _RETURN = (60, 60), (60, 50)
_ACK, _NACK = (60, 80), (60, 120)
_CLOSING = (spec.Connection.Close, spec.Channel.Close, spec.Basic.Cancel)

# What the header's property flags say of a message.
_FLAGS_AT: Final = 12
_EXPIRATION, _USER_ID = 1 << 8, 1 << 4


class Address(NamedTuple):
    """Where a broker is, and as whom to connect."""

    host: str
    port: int
    user: str
    password: str
    tls: ssl.SSLContext | None = None

    def __repr__(self) -> str:
        return f"{self.host}:{self.port}"


class Message(NamedTuple):
    """A delivery: `header` is the content header's payload, `frames` all of its frames."""

    tag: int
    exchange: bytes
    routing_key: bytes
    header: bytes
    frames: bytes

    @property
    def expires(self) -> bool:
        """Whether it has a time to live of its own."""
        return bool(self._flags & _EXPIRATION)

    @property
    def has_copies(self) -> bool:
        """Whether it may have a CC header, which the default exchange would follow."""
        return b"\x02CC" in self.header

    @property
    def user_id(self) -> str | None:
        """Who its publisher proved to be, if it says."""
        if not self._flags & _USER_ID:
            return None
        header = pamqp.header.ContentHeader()
        header.unmarshal(self.header)
        return header.properties.user_id

    @property
    def _flags(self) -> int:
        return int.from_bytes(self.header[_FLAGS_AT : _FLAGS_AT + 2], "big")


class Link(asyncio.Protocol):
    """A connection to one broker. Made by `Link.open`; every failure ends it for good."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.frame_max = limits.MOVE_FRAME_MAX
        self.on_message: Callable[[Message], None] = _unexpected
        self.on_confirm: Callable[[int, bool, bool], None] = _unexpected
        """(tag, multiple, whether the broker took it)"""
        self.on_return: Callable[[str], None] = _unexpected
        self.on_read: Callable[[], None] = _nothing
        """Called when everything that had arrived has been handled."""
        self.on_failure: Callable[[Exception], None] = _nothing
        self.blocked: str | None = None
        """Why the broker takes no messages at the moment."""
        self.reply: int | None = None
        """The code with which the broker closed the channel or the connection."""
        self.failure: Exception | None = None
        self._transport: asyncio.Transport | None = None
        self._closed = asyncio.get_running_loop().create_future()
        self._answer: asyncio.Future[pamqp.base.Frame] | None = None
        self._awaited: tuple[type[pamqp.base.Frame], ...] = ()
        self._buffer = bytearray()
        self._content: list[bytes] = []
        self._content_left = 0
        self._content_method = b""
        self._header = b""
        self._heartbeats: asyncio.Task[None] | None = None
        self._heard = True
        self._paused = False
        self._ignoring = False

    # --- life -----------------------------------------------------------------------------------

    @classmethod
    async def open(cls, address: Address, vhost: str, *, frame_max: int | None = None) -> Link:
        """Connect and open a channel. `frame_max`: no larger frames than these, if a number.

        Raises ConnectFailed, TlsFailed, ConnectionLost; MoveError where the broker refuses.
        """
        link = cls(address)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(limits.MOVE_CONNECT_TIMEOUT):
                try:
                    await loop.create_connection(
                        lambda: link, address.host, address.port, ssl=address.tls
                    )
                except ssl.SSLError as error:
                    raise TlsFailed(f"{address!r}: no TLS with this broker: {error}") from error
                except OSError as error:
                    raise ConnectFailed(f"{address!r} can't be reached: {error}") from error
                await link._shake_hands(vhost, frame_max)
        except TimeoutError:
            link.abort()
            raise ConnectFailed(
                f"{address!r} does not answer within {limits.MOVE_CONNECT_TIMEOUT} s"
            ) from None
        except BaseException:
            link.abort()
            raise
        return link

    async def _shake_hands(self, vhost: str, frame_max: int | None) -> None:
        address = self.address
        start = asyncio.ensure_future(self._expect(spec.Connection.Start))
        await asyncio.sleep(0)
        self._write(b"AMQP\x00\x00\x09\x01")
        await start
        capabilities = (
            "publisher_confirms",
            "basic.nack",
            "consumer_cancel_notify",
            "connection.blocked",
            "authentication_failure_close",
        )
        self._send(
            0,
            spec.Connection.StartOk(
                client_properties={
                    "product": "CipherMQ proxy: move",
                    "connection_name": f"move of {vhost}",
                    "capabilities": dict.fromkeys(capabilities, True),
                },
                mechanism="PLAIN",
                response=f"\0{address.user}\0{address.password}",
            ),
        )
        tune = await self._expect(spec.Connection.Tune)
        bounds = [each for each in (tune.frame_max, frame_max, limits.MOVE_FRAME_MAX) if each]
        self.frame_max = min(bounds)
        self._send(
            0,
            spec.Connection.TuneOk(
                channel_max=tune.channel_max,
                frame_max=self.frame_max,
                heartbeat=limits.MOVE_HEARTBEAT,
            ),
        )
        self._heartbeats = asyncio.create_task(self._keep_alive())
        self._send(0, spec.Connection.Open(virtual_host=vhost))
        await self._expect(spec.Connection.OpenOk)
        await self.call(spec.Channel.Open(), spec.Channel.OpenOk)

    async def _keep_alive(self) -> None:
        """Say that we live; believe that the broker does while it says so."""
        silent = 0
        while True:
            await asyncio.sleep(limits.MOVE_HEARTBEAT / 2)
            self._write(pamqp.frame.marshal(pamqp.heartbeat.Heartbeat(), 0))
            silent = 0 if self._heard or self._paused else silent + 1
            self._heard = False
            if silent > 4:
                self._fail(ConnectionLost(f"{self.address!r} has been silent for too long"))

    async def close(self) -> None:
        """End the connection in an orderly way, or at once when it is broken."""
        with contextlib.suppress(Exception):
            async with asyncio.timeout(limits.MOVE_CONNECT_TIMEOUT):
                if self.failure is None:
                    self.ignore()
                    # An acknowledgement that is still under way within RabbitMQ when it handles
                    # the Close can be lost: an answer by the channel says that it had them all.
                    await self.call(spec.Basic.Qos(prefetch_count=1), spec.Basic.QosOk)
                    self._send(0, spec.Connection.Close(reply_code=200, reply_text="OK"))
                    await self._expect(spec.Connection.CloseOk)
        self.abort()
        await self._closed

    def abort(self) -> None:
        """End the connection now."""
        if self._heartbeats is not None:
            self._heartbeats.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif not self._closed.done():
            self._closed.set_result(None)

    # --- what is sent ---------------------------------------------------------------------------

    async def call(self, method: pamqp.base.Frame, *answers: type[Method]) -> Method:
        """Send a method on the channel, and return the broker's answer to it."""
        self._send(_CHANNEL, method)
        return await self._expect(*answers)

    async def messages(self, queue: str) -> tuple[int, int]:
        """How many messages are ready in a queue, and how many consumers it has."""
        declared = await self.call(
            spec.Queue.Declare(queue=queue, passive=True), spec.Queue.DeclareOk
        )
        return declared.message_count or 0, declared.consumer_count or 0

    def publish(self, exchange: bytes, routing_key: bytes, message: Message) -> None:
        """Send a message on, mandatory."""
        method = b"".join(
            (
                b"\x00\x3c\x00\x28\x00\x00",
                bytes((len(exchange),)),
                exchange,
                bytes((len(routing_key),)),
                routing_key,
                b"\x01",
            )
        )
        self._write(
            b"".join(
                (_HEAD.pack(_METHOD_FRAME, _CHANNEL, len(method)), method, b"\xce", message.frames)
            )
        )

    def acknowledge(self, tag: int) -> None:
        """This message and all before it are the broker's no more."""
        self._write(
            _HEAD.pack(_METHOD_FRAME, _CHANNEL, 13)
            + b"\x00\x3c\x00\x50"
            + _TAG.pack(tag)
            + b"\x01\xce"
        )

    def pause(self) -> None:
        """Read nothing more for now."""
        if not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def ignore(self) -> None:
        """What is delivered from here on is not acknowledged, so it goes back to its queue; and an
        answer that nobody waits for any more is none out of turn."""
        self._ignoring = True
        self.on_message = _nothing
        self.resume()

    def resume(self) -> None:
        """Go on reading."""
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()

    def _send(self, channel: int, method: pamqp.base.Frame) -> None:
        self._write(pamqp.frame.marshal(method, channel))

    def _write(self, data: bytes) -> None:
        # Lost by an earlier write, a transport is closing before it says so.
        if self._transport is None or self.failure is not None or self._transport.is_closing():
            return
        self._transport.write(data)

    async def _expect(self, *answers: type[Method]) -> Method:
        if self.failure is not None:
            raise self.failure
        self._awaited = answers
        self._answer = asyncio.get_running_loop().create_future()
        try:
            answer: Any = await self._answer
        finally:
            self._answer = None
        found: Method = answer
        return found

    # --- what arrives ---------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """For asyncio."""
        self._transport = cast("asyncio.Transport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """For asyncio."""
        self._fail(ConnectionLost(f"{self.address!r} ended the connection: {exc or 'no reason'}"))
        if not self._closed.done():
            self._closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        """For asyncio: handle every whole frame that is there now."""
        self._heard = True
        buffer = self._buffer
        buffer += data
        start, end = 0, len(buffer)
        try:
            while end - start >= _OVERHEAD:
                kind, channel, size = _HEAD.unpack_from(buffer, start)
                stop = start + _OVERHEAD + size
                if kind not in _KINDS:
                    raise AmqpFault(501, f"{self.address!r} does not speak AMQP 0.9.1")
                # What it says before it is tuned may be longer than it is to be later.
                most = limits.MOVE_FRAME_MAX if kind == _METHOD_FRAME else self.frame_max
                if size + _OVERHEAD > most:
                    raise AmqpFault(501, f"{self.address!r} sent a frame of {size:,} bytes")
                if stop > end:
                    break
                if buffer[stop - 1] != _END:
                    raise AmqpFault(501, f"{self.address!r} sent a frame without its end")
                self._frame(kind, channel, bytes(buffer[start:stop]))
                start = stop
            del buffer[:start]
            self.on_read()
        except Exception as error:  # noqa: BLE001 - whatever it is, this connection ends with it
            self._fail(error)

    def _frame(self, kind: int, channel: int, frame: bytes) -> None:
        if kind == _METHOD_FRAME:
            name = _METHOD.unpack_from(frame, 7)
            if channel == _CHANNEL and name in {_DELIVER, _RETURN}:
                self._content_method = frame
            elif channel == _CHANNEL and name in {_ACK, _NACK}:
                (tag,) = _TAG.unpack_from(frame, 11)
                self.on_confirm(tag, bool(frame[19] & 1), name == _ACK)
            else:
                self._method(frame)
        elif kind == _HEADER_FRAME:
            self._header = frame[7:-1]
            (self._content_left,) = _TAG.unpack_from(frame, 11)
            self._content = [frame]
            self._content_done()
        elif kind == _BODY_FRAME:
            self._content.append(frame)
            self._content_left -= len(frame) - _OVERHEAD
            self._content_done()

    def _content_done(self) -> None:
        if self._content_left > 0:
            return
        if self._content_left < 0 or not self._content_method:
            raise AmqpFault(505, f"{self.address!r} sent content that belongs to no method")
        method, frames = self._content_method, b"".join(self._content)
        self._content.clear()
        self._content_method = b""
        if _METHOD.unpack_from(method, 7) == _RETURN:
            returned = cast("spec.Basic.Return", pamqp.frame.unmarshal(method)[2])
            self.on_return(returned.reply_text)
            return
        at = 12 + method[11]
        (tag,) = _TAG.unpack_from(method, at)
        at += 9
        exchange = method[at + 1 : at + 1 + method[at]]
        at += 1 + len(exchange)
        routing_key = method[at + 1 : at + 1 + method[at]]
        self.on_message(Message(tag, exchange, routing_key, self._header, frames))

    def _method(self, frame: bytes) -> None:
        method: Any = pamqp.frame.unmarshal(frame)[2]
        if isinstance(method, spec.Connection.Blocked):
            self.blocked = method.reason
        elif isinstance(method, spec.Connection.Unblocked):
            self.blocked = None
        elif isinstance(method, _CLOSING):
            raise self._refusal(method)
        elif self._answer is not None and isinstance(method, self._awaited):
            if not self._answer.done():
                self._answer.set_result(method)
        elif not self._ignoring:
            raise AmqpFault(503, f"{self.address!r} sent {method.name} out of turn")

    def _refusal(self, method: Any) -> Exception:
        if isinstance(method, spec.Basic.Cancel):
            return MoveError(
                f"{self.address!r} cancelled our consumer: its queue was deleted, or its node went "
                "away"
            )
        if isinstance(method, spec.Connection.Close):
            self._send(0, spec.Connection.CloseOk())
        self.reply = method.reply_code
        return MoveError(f"{self.address!r} refused: {method.reply_code} {method.reply_text}")

    def _fail(self, error: Exception) -> None:
        """The connection is of no more use, for the first reason that there is."""
        if self.failure is not None:
            return
        self.failure = error
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)
        self.abort()
        self.on_failure(error)


def _unexpected(*_: object) -> None:
    raise AmqpFault(503, "the broker sent what nobody asked for")


def _nothing(*_: object) -> None:
    return
