"""A conversation between two processes of the proxy, with descriptors travelling along.

Each side asks the other and answers it, several at a time, over a SOCK_SEQPACKET Unix socket,
which keeps the kernel's own boundaries: descriptors arrive with the packet they were sent with.
A packet is one byte (1: more of this message follows; 0: that was all) and a piece of msgpack:

    [number, kind, body]   kind: 0 told, 1 asked, 2 answered, 3 refused (body: a sentence)

Nothing here ever waits for the other side: what it doesn't take at once is queued.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import socket
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from ciphermq import limits
from ciphermq.errors import ChannelLost, CipherMQError, ProxyError
from ciphermq.proxy.messages import ANSWERS
from ciphermq.telemetry import get_logger

_TOLD, _ASKED, _ANSWERED, _REFUSED = range(4)
_LAST, _MORE = b"\0", b"\1"
_ANCILLARY: Final = socket.CMSG_SPACE(limits.PROXY_DESCRIPTORS * array.array("i").itemsize)

Handler = Callable[[Any, list[int]], Awaitable[Any]]
"""Answers one message. It owns the descriptors that came with it. A `CipherMQError` it raises is
raised again, as a `ProxyError`, where the question was asked."""

_log = get_logger("proxy.ipc")


class _Envelope(msgspec.Struct, array_like=True):
    number: int
    kind: int
    body: msgspec.Raw


_encoder: Final = msgspec.msgpack.Encoder()
_envelopes: Final = msgspec.msgpack.Decoder(_Envelope)
_sentences: Final = msgspec.msgpack.Decoder(str)


def socket_pair() -> tuple[socket.socket, socket.socket]:
    """Two ends for two channels."""
    near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class Channel:
    """One end of a conversation. All of it is for the event loop's thread."""

    def __init__(
        self,
        sock: socket.socket,
        questions: Any,
        handler: Handler,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        """Talk over `sock`, which is the channel's from now on.

        `questions` is the type (a union) of what the other side may say. `on_lost` is called once,
        when the other side has gone; not after `close`.
        """
        self._sock = sock
        self._questions = msgspec.msgpack.Decoder(questions)
        self._handler = handler
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._waiting: dict[int, tuple[type, asyncio.Future[Any]]] = {}
        self._number = 0
        self._outgoing: deque[tuple[bytes, Sequence[int]]] = deque()
        self._pieces: list[bytes] = []
        self._descriptors: list[int] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._emptied = asyncio.Event()
        self.queued = 0
        """Bytes the other side has not taken yet."""
        self.closed = False
        self._loop.add_reader(sock.fileno(), self._readable)

    def ask(self, question: Any, descriptors: Sequence[int] = ()) -> asyncio.Future[Any]:
        """Ask, before anything else is said; the future is the answer.

        `descriptors` stay the caller's, to be kept open until the answer is there. The future
        raises `ProxyError` where it was refused, `ChannelLost` when the other side is gone.
        """
        future: asyncio.Future[Any] = self._loop.create_future()
        if self.closed:
            future.set_exception(ChannelLost("the other process has ended"))
            return future
        self._number += 1
        self._waiting[self._number] = (type(question), future)
        self._send(self._number, _ASKED, question, descriptors)
        return future

    def tell(self, message: Any) -> None:
        """Say it, and want no answer. Nothing, when the other side is gone."""
        if not self.closed:
            self._send(0, _TOLD, message)

    async def flush(self) -> None:
        """Wait until the other side's socket has all that was said, or is gone."""
        if self._outgoing and not self.closed:
            await self._emptied.wait()

    def close(self) -> None:
        """End the conversation; questions that wait raise `ChannelLost`. May be repeated."""
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._outgoing.clear()
        self._emptied.set()
        self.queued = 0
        close_all(self._descriptors)
        for _, future in self._waiting.values():
            if not future.done():
                future.set_exception(ChannelLost("the other process has ended"))
        for task in self._tasks:
            task.cancel()

    # --- out ---

    def _send(self, number: int, kind: int, body: Any, descriptors: Sequence[int] = ()) -> None:
        whole = memoryview(_encoder.encode((number, kind, body)))
        size = limits.PROXY_PACKET
        pieces = [whole[at : at + size] for at in range(0, len(whole), size)]
        # More descriptors than a packet may carry ride on empty packets before the first piece.
        most = limits.PROXY_DESCRIPTORS
        carried = [descriptors[at : at + most] for at in range(0, len(descriptors), most)]
        # Ours are duplicated by the kernel at sendmsg, so they must be open until then.
        for batch in carried:
            self._outgoing.append((_MORE, batch))
        for piece in pieces[:-1]:
            self._outgoing.append((_MORE + piece, ()))
        self._outgoing.append((_LAST + pieces[-1], ()))
        self._emptied.clear()
        self.queued += len(whole)
        self._flush()

    def _flush(self) -> None:
        while self._outgoing:
            packet, descriptors = self._outgoing[0]
            ancillary = []
            if descriptors:
                rights = array.array("i", descriptors)
                ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
            try:
                self._sock.sendmsg([packet], ancillary)
            except BlockingIOError:
                self._loop.add_writer(self._sock.fileno(), self._flush)
                return
            except OSError:
                self._lose()
                return
            self._outgoing.popleft()
            self.queued -= len(packet) - 1
        self._loop.remove_writer(self._sock.fileno())
        self._emptied.set()

    # --- in ---

    def _readable(self) -> None:
        for _ in range(limits.PROXY_PACKETS_AT_ONCE):
            try:
                packet, ancillary, flags, _ = self._sock.recvmsg(
                    limits.PROXY_PACKET + 1, _ANCILLARY, socket.MSG_CMSG_CLOEXEC
                )
            except BlockingIOError:
                return
            except OSError:
                packet, ancillary, flags = b"", [], 0
            for level, kind, data in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    rights = array.array("i")
                    rights.frombytes(data[: len(data) - len(data) % rights.itemsize])
                    self._descriptors.extend(rights)
            # An end that is out of descriptors gets the message without them: all is lost then,
            # since it can't be known which are missing.
            if not packet or flags & socket.MSG_CTRUNC:
                self._lose()
                return
            self._pieces.append(packet[1:])
            if packet[:1] == _LAST:
                message, self._pieces = b"".join(self._pieces), []
                descriptors, self._descriptors = self._descriptors, []
                self._take(message, descriptors)
                if self.closed:
                    return

    def _take(self, message: bytes, descriptors: list[int]) -> None:
        try:
            envelope = _envelopes.decode(message)
        except msgspec.DecodeError:
            # Whatever else it meant to say is out of step: whoever waits must not wait for it.
            close_all(descriptors)
            self._lose()
            return
        if envelope.kind in (_TOLD, _ASKED):
            try:
                question = self._questions.decode(envelope.body)
            except msgspec.DecodeError as error:
                close_all(descriptors)
                self._unreadable(envelope, error)
                return
            answering = self._answer(envelope, question, descriptors)
            task = self._loop.create_task(answering)
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            return
        asked, future = self._waiting.pop(envelope.number, (type(None), None))
        if future is None or future.done():
            close_all(descriptors)  # whoever asked doesn't wait any longer
        elif envelope.kind == _REFUSED:
            future.set_exception(ProxyError(_sentences.decode(envelope.body)))
        else:
            try:
                answer = msgspec.msgpack.decode(envelope.body, type=ANSWERS[asked])
            except msgspec.DecodeError as error:
                close_all(descriptors)
                future.set_exception(ProxyError(f"The answer can't be read: {error}"))
                return
            future.set_result((answer, descriptors) if descriptors else answer)

    def _unreadable(self, envelope: _Envelope, error: msgspec.DecodeError) -> None:
        """Another version of the proxy may ask what this one doesn't know: it is told so."""
        _log.error("a message could not be read", reason=str(error))
        if envelope.kind == _ASKED:
            self._send(envelope.number, _REFUSED, f"This version can't read that: {error}")

    async def _answer(self, envelope: _Envelope, question: Any, descriptors: list[int]) -> None:
        asked = envelope.kind == _ASKED
        try:
            answer = await self._handler(question, descriptors)
        except CipherMQError as error:
            if asked and not self.closed:
                self._send(envelope.number, _REFUSED, str(error))
            return
        except Exception as error:  # noqa: BLE001  (whoever asked must not wait for ever)
            _log.exception("a message could not be handled", message=type(question).__name__)
            if asked and not self.closed:
                name = type(question).__name__
                self._send(envelope.number, _REFUSED, f"{name} failed: {error!r}; see the log")
            return
        if asked and not self.closed:
            if isinstance(answer, WithDescriptors):
                self._send(envelope.number, _ANSWERED, answer.answer, answer.descriptors)
            else:
                self._send(envelope.number, _ANSWERED, answer)

    def _lose(self) -> None:
        if not self.closed:
            self.close()
            self._on_lost()


class WithDescriptors:
    """A handler's answer that has descriptors to go with it; `ask` gives a pair then."""

    def __init__(self, answer: Any, descriptors: Sequence[int]) -> None:
        self.answer = answer
        self.descriptors = descriptors


def close_all(descriptors: list[int]) -> None:
    """Close what came and is not wanted."""
    while descriptors:
        with contextlib.suppress(OSError):
            socket.close(descriptors.pop())
