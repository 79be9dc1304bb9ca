"""The sealed batch as bytes: the codec, without any cryptography.

A batch is one block. Its parts follow a head that gives their lengths; integers are big-endian,
times are milliseconds since 1970 (at most the last of the year 9999)::

    batch     = "CMQ2" | u32 len(P) | u32 len(wraps) | u32 len(body) | u16 len(chain)
                | u16 len(signature) | P | wraps | body | chain | signature

    P         = u8 version (2)
                | str sender                  a client id
                | 32 bytes                    SHA-256 of the sender's certificate (DER)
                | 16 bytes batch id           UUIDv7 whose last ten bits are zero
                | u64 created | u64 expires   expires 0: never
                | str exchange | str routing key
                                              at most 255 bytes each, no control characters
                | u16 count                   messages in the body, 1 to 1024
                | 32 bytes                    K_commit
                | u8 n | n * receiver         1 to 32, ascending by client id, each once
    receiver  = str client id | 16 bytes key id | u8 suite
    str       = u16 length | UTF-8

    wraps     = the wrapped session keys in the order of the receivers; the suite gives the size
    body      = AES-256-GCM ciphertext and tag of the plaintext in `ciphermq.model.body`
    chain     = u8 n | n * (u16 length | DER certificate)     the sender's first
    signature = ECDSA, DER; what it covers is said in `ciphermq.sealing`

There is one way to write any batch: the lengths add up to the whole, nothing may follow, receivers
are in order. So equal content means equal bytes, and a part can't be read in two ways.

The broker calls `read_header` once a batch and stores the rest unread. A receiver calls `parse`.
Both take any bytes and give a value or a `BatchError`; lengths are checked against
`ciphermq.limits` before anything is copied.
"""

from __future__ import annotations

import re
import struct
from typing import Final

import msgspec

from ciphermq import limits
from ciphermq.errors import (
    BatchTooLarge,
    MalformedBatch,
    UnsupportedSuite,
    UnsupportedVersion,
    UsageError,
)
from ciphermq.model.ids import is_batch_id, is_client_id
from ciphermq.model.suites import TAG_SIZE, Suite

FORMAT_VERSION: Final = 2
MAGIC: Final = b"CMQ2"
KEY_ID_SIZE: Final = 16
HASH_SIZE: Final = 32
MAX_TIME_MS: Final = 253_402_300_799_999
"""The last millisecond of the year 9999: what a date can hold."""

Buffer = bytes | bytearray | memoryview

_HEAD: Final = struct.Struct(">4sIIIHH")
_MIDDLE: Final = struct.Struct(">32s16sQQ")
_TAIL: Final = struct.Struct(">H32sB")
_KEY: Final = struct.Struct(">16sB")
_U16: Final = struct.Struct(">H")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_SUITES: Final = {int(suite): suite for suite in Suite}
_MIN_MESSAGE: Final = 16
"""Bytes of an empty message in the body: its time and two lengths."""
_MIN_BODY: Final = TAG_SIZE + 3


class ReceiverRef(msgspec.Struct, frozen=True):
    """One receiver of a batch: who, and under which of its keys the session key is wrapped."""

    client: str
    key_id: bytes
    """16 bytes: `ciphermq.custody.keys.key_id` of the suite and the public key."""
    suite: Suite


class Header(msgspec.Struct, frozen=True):
    """What anyone may read of a batch. Bound to the rest by the sender's signature."""

    sender: str
    certificate_sha256: bytes
    batch_id: bytes
    created_ms: int
    expires_ms: int
    """0: never."""
    exchange: str
    routing_key: str
    count: int
    commitment: bytes
    """K_commit: the session key is compared with it before anything is opened."""
    receivers: tuple[ReceiverRef, ...]
    """Ascending by client id, each client once."""


class Envelope:
    """A batch taken apart. The large parts are views of the bytes given to `parse`."""

    __slots__ = ("body", "chain", "header", "header_bytes", "signature", "wraps")

    def __init__(
        self,
        header: Header,
        header_bytes: bytes,
        wraps: memoryview,
        body: memoryview,
        chain: tuple[bytes, ...],
        signature: bytes,
    ) -> None:
        self.header = header
        self.header_bytes = header_bytes
        self.wraps = wraps
        self.body = body
        self.chain = chain
        """Certificates (DER), the sender's first; not yet looked into."""
        self.signature = signature

    def wrap_of(self, index: int) -> bytes:
        """The wrapped session key of the header's receiver `index`."""
        receivers = self.header.receivers
        start = sum(ref.suite.wrap_size for ref in receivers[:index])
        return bytes(self.wraps[start : start + receivers[index].suite.wrap_size])


# --- the header P -----------------------------------------------------------------------------


def encode_header(header: Header) -> bytes:
    """P. Raises `BatchTooLarge` for too many messages or receivers, else `UsageError`, when the
    header is one that `decode_header` would not give back."""
    if len(header.receivers) > limits.MAX_RECEIVERS:
        raise _count_error("receivers", len(header.receivers), limits.MAX_RECEIVERS)
    try:
        receivers = [
            part
            for ref in header.receivers
            for part in (_string(ref.client), _KEY.pack(ref.key_id, ref.suite))
        ]
        encoded = b"".join(
            [
                bytes([FORMAT_VERSION]),
                _string(header.sender),
                _MIDDLE.pack(
                    header.certificate_sha256,
                    header.batch_id,
                    header.created_ms,
                    header.expires_ms,
                ),
                _string(header.exchange),
                _string(header.routing_key),
                _TAIL.pack(header.count, header.commitment, len(header.receivers)),
                *receivers,
            ]
        )
        # Reading it back is the check: no header is ever sent that a broker would refuse.
        if decode_header(encoded) != header:
            raise UsageError("a hash or an id in the batch's header has the wrong length")
    except (struct.error, UnicodeEncodeError, MalformedBatch) as error:
        raise UsageError(f"the batch's header can't be encoded: {error}") from error
    return encoded


def decode_header(data: Buffer) -> Header:
    """P's fields. All of `data` must be P, and written in the one way there is."""
    return _decode_header(data)[0]


def _decode_header(data: Buffer) -> tuple[Header, int]:
    """The header, and the size its receivers' wraps have together."""
    if len(data) > limits.MAX_HEADER_P:
        raise BatchTooLarge(
            f"the batch's header has {len(data)} bytes; {limits.MAX_HEADER_P} at most"
        )
    p = bytes(data)
    try:
        # The version is judged before anything else is read: what follows may differ.
        if p[0] != FORMAT_VERSION:
            raise UnsupportedVersion(
                f"the batch has format version {p[0]}; this program knows {FORMAT_VERSION}"
            )
        sender, at = _take_client(p, 1)
        certificate_sha256, batch_id, created_ms, expires_ms = _MIDDLE.unpack_from(p, at)
        exchange, at = _take_name(p, at + _MIDDLE.size)
        routing_key, at = _take_name(p, at)
        count, commitment, n = _TAIL.unpack_from(p, at)
        at += _TAIL.size
        if not 0 < n <= limits.MAX_RECEIVERS:
            raise _count_error("receivers", n, limits.MAX_RECEIVERS)
        receivers: list[ReceiverRef] = []
        wraps = 0
        for _ in range(n):
            client, at = _take_client(p, at)
            key_id, number = _KEY.unpack_from(p, at)
            at += _KEY.size
            suite = _SUITES.get(number)
            if suite is None:
                raise UnsupportedSuite(
                    f"receiver {client!r} has the unknown cryptographic suite {number}"
                )
            # Ascending and unique: otherwise one batch had several spellings, and a receiver
            # named twice could be given two session keys.
            if receivers and client <= receivers[-1].client:
                raise MalformedBatch("the batch's receivers are not in order, each once")
            receivers.append(ReceiverRef(client, key_id, suite))
            wraps += suite.wrap_size
    except (struct.error, IndexError):
        raise MalformedBatch("the batch's header is cut short") from None
    if at != len(p):
        raise MalformedBatch(f"{len(p) - at} bytes too many follow the batch's header")
    if not 0 < count <= limits.MAX_BATCH_MESSAGES:
        raise _count_error("messages", count, limits.MAX_BATCH_MESSAGES)
    if not is_batch_id(batch_id):
        raise MalformedBatch(f"{batch_id.hex()} is not a batch id (a UUIDv7, ten bits zero)")
    if created_ms > MAX_TIME_MS or expires_ms > MAX_TIME_MS:
        raise MalformedBatch("the batch's times are beyond the year 9999")
    header = Header(
        sender,
        certificate_sha256,
        batch_id,
        created_ms,
        expires_ms,
        exchange,
        routing_key,
        count,
        commitment,
        tuple(receivers),
    )
    return header, wraps


def _string(text: str) -> bytes:
    data = text.encode()
    return _U16.pack(len(data)) + data


def _take_string(p: bytes, at: int) -> tuple[str, int]:
    start = at + 2
    end = start + (p[at] << 8 | p[at + 1])
    if end > len(p):
        raise MalformedBatch("the batch's header is cut short")
    try:
        return p[start:end].decode(), end
    except UnicodeDecodeError:
        raise MalformedBatch("a name in the batch's header is not UTF-8") from None


def _take_client(p: bytes, at: int) -> tuple[str, int]:
    client, end = _take_string(p, at)
    if not is_client_id(client):
        raise MalformedBatch(f"{client[: limits.MAX_CLIENT_ID]!r} is not a client id")
    return client, end


def _take_name(p: bytes, at: int) -> tuple[str, int]:
    name, end = _take_string(p, at)
    if end - at - 2 > limits.MAX_NAME:
        raise MalformedBatch(f"an exchange or routing key has over {limits.MAX_NAME} bytes")
    # Names are shown on terminals: a control character could rewrite what an operator sees.
    if _CONTROL.search(name):
        raise MalformedBatch(f"the name {name!r} has control characters")
    return name, end


def _count_error(what: str, number: int, most: int) -> BatchTooLarge | MalformedBatch:
    if number:
        return BatchTooLarge(f"the batch has {number} {what}; {most} at most")
    return MalformedBatch(f"the batch has no {what}")


# --- the chain --------------------------------------------------------------------------------


def encode_chain(certificates: tuple[bytes, ...]) -> bytes:
    """A certificate chain, leaf first. `UsageError` when it has none or is over 4 KiB."""
    total = 1 + sum(2 + len(der) for der in certificates)
    if not certificates or not all(certificates) or total > limits.MAX_CHAIN:
        raise UsageError(
            f"a certificate chain of {len(certificates)} certificates and {total} bytes "
            f"can't be sent: 1 at least, {limits.MAX_CHAIN} bytes at most"
        )
    parts = [bytes([len(certificates)])]
    for der in certificates:
        parts += (_U16.pack(len(der)), der)
    return b"".join(parts)


def decode_chain(data: bytes) -> tuple[bytes, ...]:
    """The DER certificates of a chain, leaf first; not empty, not yet looked into."""
    if len(data) > limits.MAX_CHAIN:
        raise BatchTooLarge(f"the chain has {len(data)} bytes; {limits.MAX_CHAIN} at most")
    certificates = []
    at = 1
    for _ in range(data[0] if data else 0):
        start = at + 2
        at = start + int.from_bytes(data[at:start], "big")
        if at > len(data) or at == start:
            raise MalformedBatch("the sender's certificate chain is cut short")
        certificates.append(data[start:at])
    if not certificates or at != len(data):
        raise MalformedBatch("the sender's certificate chain is empty, or bytes follow it")
    return tuple(certificates)


# --- the whole --------------------------------------------------------------------------------


def build(
    header_bytes: bytes, wraps: Buffer, body: Buffer, chain: tuple[bytes, ...], signature: bytes
) -> bytes:
    """A batch from its parts. `UsageError` or `BatchTooLarge` when they don't fit each other."""
    chain_bytes = encode_chain(chain)
    parts = (header_bytes, wraps, body, chain_bytes, signature)
    try:
        head = _HEAD.pack(MAGIC, *map(len, parts))
        _check_parts(head, _HEAD.size + sum(map(len, parts)))
        _check_fit(*_decode_header(header_bytes), len(wraps), len(body))
    except (struct.error, MalformedBatch) as error:
        raise UsageError(f"a batch can't be built of these parts: {error}") from error
    return b"".join((head, *parts))


def read_header(data: Buffer) -> Header:
    """The header of a batch whose parts add up to exactly `data`; the rest is not looked into.

    What the broker does to every batch: it copies nothing but P."""
    len_p, len_wraps, len_body, _, _ = _check_parts(data, len(data))
    header, wraps_size = _decode_header(data[_HEAD.size : _HEAD.size + len_p])
    _check_fit(header, wraps_size, len_wraps, len_body)
    return header


def parse(data: Buffer) -> Envelope:
    """A batch taken apart. Nothing in it is verified, save that it is well formed."""
    len_p, len_wraps, len_body, len_chain, _ = _check_parts(data, len(data))
    view = memoryview(data)
    wraps = _HEAD.size + len_p
    body = wraps + len_wraps
    chain = body + len_body
    signature = chain + len_chain
    header_bytes = bytes(view[_HEAD.size : wraps])
    header, wraps_size = _decode_header(header_bytes)
    _check_fit(header, wraps_size, len_wraps, len_body)
    return Envelope(
        header,
        header_bytes,
        view[wraps:body],
        view[body:chain],
        decode_chain(bytes(view[chain:signature])),
        bytes(view[signature:]),
    )


def _check_parts(head: Buffer, total: int) -> tuple[int, int, int, int, int]:
    """The lengths of P, wraps, body, chain and signature, which make up `total` bytes."""
    if total < _HEAD.size:
        raise MalformedBatch(f"{total} bytes are too few for a sealed batch")
    magic, len_p, len_wraps, len_body, len_chain, len_signature = _HEAD.unpack_from(head)
    if magic != MAGIC:
        if magic[:3] == MAGIC[:3]:
            raise UnsupportedVersion(
                f"the batch's format is {magic!r}; this program knows {MAGIC!r}"
            )
        raise MalformedBatch("these bytes are not a sealed batch")
    for part, size, most in (
        ("header", len_p, limits.MAX_HEADER_P),
        ("body", len_body, limits.MAX_PLAINTEXT + TAG_SIZE),
        ("certificate chain", len_chain, limits.MAX_CHAIN),
        ("signature", len_signature, limits.MAX_SIGNATURE),
    ):
        if size > most:
            raise BatchTooLarge(f"the batch's {part} has {size} bytes; {most} at most")
    if _HEAD.size + len_p + len_wraps + len_body + len_chain + len_signature != total:
        raise MalformedBatch(f"the batch's parts do not add up to its {total} bytes")
    if not len_chain or not len_signature:
        raise MalformedBatch("the batch has no certificate chain or no signature")
    return len_p, len_wraps, len_body, len_chain, len_signature


def _check_fit(header: Header, wraps_size: int, len_wraps: int, len_body: int) -> None:
    """What the header says of the parts must be so."""
    if len_wraps != wraps_size:
        raise MalformedBatch(f"the receivers' wraps have {len_wraps} bytes, not {wraps_size}")
    # Credit and quotas count messages: nobody may claim 1,024 of them in an empty body.
    if len_body < _MIN_BODY + _MIN_MESSAGE * header.count:
        raise MalformedBatch(f"a body of {len_body} bytes can't hold {header.count} messages")
