"""The authentication service: a question about each new session, over HTTP, in protobuf.

The grammar is amqpprox's (proto3; what is empty or zero is left out)::

    request   1: vhost string · 2: sasl · 3: client host string · 4: connection name string
    answer    1: result (0 allow, 1 deny) · 2: reason string · 3: sasl, instead of the client's
    sasl      1: mechanism string · 2: credentials bytes

A service that can't be asked, is late, or answers nonsense has denied: its answer may be what keeps
a stranger out. So has one with another status than 200, whatever its body would mean (an empty body
means "allow").
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.gate import Admission, Credentials, Opening, Refusal
from ciphermq.proxy.model import AuthService
from ciphermq.telemetry import get_logger

if TYPE_CHECKING:
    import httpx

ACCESS_REFUSED: Final = 403
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_log = get_logger("proxy.auth")


class Answer(NamedTuple):
    """What the service said."""

    allowed: bool
    reason: str = ""
    mechanism: str | None = None
    credentials: Credentials | None = None


# --- the codec ---------------------------------------------------------------------------------


def encode_request(opening: Opening, credentials: bytes | None = None) -> bytes:
    """The question. `credentials` instead of the client's own, where those are empty."""
    own = opening.credentials if credentials is None else credentials
    sasl = _field(1, opening.mechanism.encode()) + _field(2, own)
    return (
        _field(1, opening.vhost.encode())
        + _field(2, sasl, always=True)
        + _field(3, opening.client.encode())
        + _field(4, opening.connection_name.encode())
    )


def decode_answer(data: bytes) -> Answer:
    """The service's answer; unknown fields are passed over. `ProxyError` for what is no answer."""
    result, reason, sasl = 0, b"", None
    for number, value in _fields(data):
        if number == 1 and isinstance(value, int):
            result = value
        elif number == 2 and isinstance(value, bytes):
            reason = value
        elif number == 3 and isinstance(value, bytes):
            sasl = value
    text = reason.decode("utf-8", "replace")
    if result not in (0, 1):
        raise ProxyError(f"result {result} is neither 0 (allow) nor 1 (deny)")
    if sasl is None:
        return Answer(result == 0, text)
    mechanism, credentials = b"", b""
    for number, value in _fields(sasl):
        if number == 1 and isinstance(value, bytes):
            mechanism = value
        elif number == 2 and isinstance(value, bytes):
            credentials = value
    return Answer(result == 0, text, mechanism.decode("utf-8", "replace"), Credentials(credentials))


def encode_answer(allowed: bool, reason: str = "", sasl: tuple[str, bytes] | None = None) -> bytes:
    """What a service sends; for services written in Python, and for tests."""
    answer = b"" if allowed else b"\x08\x01"
    answer += _field(2, reason.encode())
    if sasl is not None:
        answer += _field(3, _field(1, sasl[0].encode()) + _field(2, sasl[1]), always=True)
    return answer


def decode_request(data: bytes) -> dict[str, bytes]:
    """A question's parts: vhost, mechanism, credentials, client, connection_name."""
    names = {1: "vhost", 3: "client", 4: "connection_name"}
    found = dict.fromkeys([*names.values(), "mechanism", "credentials"], b"")
    for number, value in _fields(data):
        if not isinstance(value, bytes):
            continue
        if number in names:
            found[names[number]] = value
        elif number == 2:
            for inner, part in _fields(value):
                if inner in (1, 2) and isinstance(part, bytes):
                    found["mechanism" if inner == 1 else "credentials"] = part
    return found


def _field(number: int, value: bytes, *, always: bool = False) -> bytes:
    if not value and not always:
        return b""
    return bytes([number << 3 | _BYTES]) + _varint(len(value)) + value


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values, in order."""
    at = 0
    while at < len(data):
        tag, at = _read_varint(data, at)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, at = _read_varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _read_varint(data, at)
        elif kind in (_FIXED64, _FIXED32):
            size = 8 if kind == _FIXED64 else 4
        else:
            raise ProxyError(f"a field of wire type {kind}")
        if size > len(data) - at:
            raise ProxyError("it ends in the middle of a field")
        yield number, data[at : at + size]
        at += size


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(data):
            raise ProxyError("it ends in the middle of a number")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value, at
    raise ProxyError("a number of more than 64 bits")


# --- asking ------------------------------------------------------------------------------------


class Authenticator:
    """Asks one service, over connections that are kept."""

    def __init__(self, service: AuthService) -> None:
        self.service = service
        host = f"[{service.host}]" if ":" in service.host else service.host
        target = service.target if service.target.startswith("/") else f"/{service.target}"
        self._url = f"http://{host}:{service.port}{target}"
        self._client: httpx.AsyncClient | None = None

    async def admit(self, opening: Opening, credentials: bytes | None = None) -> Admission:
        """The service's leave, with what it replaces. `Refusal` (403) with the reason."""
        try:
            answer = await self._ask(encode_request(opening, credentials))
        except ProxyError as error:
            _log.error("authentication service", vhost=opening.vhost, reason=str(error))
            raise Refusal(ACCESS_REFUSED, f"ACCESS_REFUSED - {error}", "denied") from error
        if not answer.allowed:
            reason = answer.reason or "the authentication service gives no reason"
            _log.info("denied", vhost=opening.vhost, client=opening.client, reason=reason)
            raise Refusal(ACCESS_REFUSED, f"ACCESS_REFUSED - {reason}", "denied")
        return Admission(
            mechanism=answer.mechanism,
            credentials=answer.credentials,
            auth_reason=answer.reason or None,
        )

    async def close(self, after: float) -> None:
        """End its connections, after so many seconds."""
        await asyncio.sleep(after)
        if self._client is not None:
            await self._client.aclose()

    async def _ask(self, question: bytes) -> Answer:
        # Only who uses it pays for it: a fifth of a second at a worker's start, and 15 MB.
        import httpx

        if self._client is None:
            bounds = httpx.Limits(
                max_connections=limits.PROXY_AUTH_CONNECTIONS,
                max_keepalive_connections=limits.PROXY_AUTH_CONNECTIONS,
            )
            # An http_proxy in the environment isn't meant for this.
            late = limits.PROXY_AUTH_TIMEOUT
            self._client = httpx.AsyncClient(limits=bounds, trust_env=False, timeout=late)
        where = f"{self.service.host}:{self.service.port}"
        headers = {"content-type": "application/octet-stream"}
        try:
            async with asyncio.timeout(limits.PROXY_AUTH_TIMEOUT):
                request = self._client.stream("POST", self._url, content=question, headers=headers)
                async with request as response:
                    body = b""
                    async for piece in response.aiter_bytes():
                        body += piece
                        if len(body) > limits.PROXY_AUTH_ANSWER:
                            raise ProxyError(f"the answer of {where} is too long")
        except TimeoutError as error:
            raise ProxyError(f"the authentication service at {where} didn't answer") from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            reason = str(error) or type(error).__name__
            raise ProxyError(
                f"the authentication service at {where} can't be reached: {reason}"
            ) from error
        if response.status_code != 200:
            raise ProxyError(
                f"the authentication service at {where} answered with status {response.status_code}"
            )
        try:
            return decode_answer(body)
        except ProxyError as error:
            raise ProxyError(
                f"the authentication service at {where} gave an answer that can't be read: {error}"
            ) from error
