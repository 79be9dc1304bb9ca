"""StartOk and Open, read without decoding more than is asked for, and written back byte by byte.

A client's properties may hold field types that a decoder turns into something else on the way
back (AMQP has eight integers, and two opinions about their letters). So what the proxy adds is
spliced in at the table's end, and nothing else changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import AmqpFault
from ciphermq.wire.amqp.closing import SYNTAX_ERROR

_START_OK: Final = b"\x00\x0a\x00\x0b"
_FIXED: Final = {
    **dict.fromkeys(map(ord, "tbB"), 1),
    **dict.fromkeys(map(ord, "sUu"), 2),
    **dict.fromkeys(map(ord, "Iif"), 4),
    **dict.fromkeys(map(ord, "lLdT"), 8),
    ord("D"): 5,
    ord("V"): 0,
}
"""Field types of one length (RabbitMQ's letters, https://www.rabbitmq.com/amqp-0-9-1-errata)."""
_LONG: Final = frozenset(map(ord, "SxFA"))


class Field(NamedTuple):
    """A field of a table; `value` is its bytes without type and without a length in front."""

    name: bytes
    type: str
    value: bytes


class StartOk(NamedTuple):
    """A client's StartOk. `response` holds its password: its repr hides it."""

    properties: bytes
    """The table without its length."""
    mechanism: str
    response: bytes
    locale: bytes
    fields: Mapping[bytes, Field]
    """Of `properties`, by name; nested tables undivided."""

    def __repr__(self) -> str:
        return f"StartOk(mechanism={self.mechanism!r})"


def read_start_ok(payload: bytes) -> StartOk:
    """The parts of a StartOk method. Raises `AmqpFault` (502)."""
    properties, at = _long(payload, 4)
    mechanism, at = _short(payload, at)
    response, at = _long(payload, at)
    locale, at = _short(payload, at)
    if at != len(payload):
        raise AmqpFault(SYNTAX_ERROR, "SYNTAX_ERROR - StartOk has bytes behind its end")
    found: dict[bytes, Field] = {}
    for number, field in enumerate(fields(properties)):  # so it is well formed
        if number >= limits.AMQP_FIELDS:
            raise AmqpFault(
                SYNTAX_ERROR,
                f"SYNTAX_ERROR - more than {limits.AMQP_FIELDS} client properties",
            )
        found[field.name] = field
    return StartOk(properties, mechanism.decode("ascii", "replace"), response, locale, found)


def write_start_ok(start_ok: StartOk, added: Mapping[str, str]) -> bytes:
    """A StartOk frame, with `added` string fields behind the properties that were there."""
    table = start_ok.properties + b"".join(_text(name, value) for name, value in added.items())
    mechanism = start_ok.mechanism.encode("ascii", "replace")
    payload = b"".join(
        (
            _START_OK,
            len(table).to_bytes(4, "big"),
            table,
            bytes([len(mechanism)]),
            mechanism,
            len(start_ok.response).to_bytes(4, "big"),
            start_ok.response,
            bytes([len(start_ok.locale)]),
            start_ok.locale,
        )
    )
    return b"\x01\x00\x00" + len(payload).to_bytes(4, "big") + payload + b"\xce"


def fields(table: bytes) -> Iterator[Field]:
    """The fields of a table, in order, nested ones undivided. Raises `AmqpFault` (502)."""
    at, size = 0, len(table)
    while at < size:
        name, at = _short(table, at)
        if at >= size:
            raise _cut()
        kind, at = table[at], at + 1
        if kind in _LONG:
            value, at = _long(table, at)
        elif (length := _FIXED.get(kind)) is not None:
            value, at = table[at : at + length], at + length
        else:
            raise AmqpFault(SYNTAX_ERROR, f"SYNTAX_ERROR - {chr(kind)!r} is no field type")
        if at > size:
            raise _cut()
        yield Field(name, chr(kind), value)


def without(table: bytes, names: Collection[bytes]) -> bytes:
    """A well-formed table without the fields of these names; the others stay byte by byte."""
    at, kept = 0, []
    for field in fields(table):
        length = 4 if ord(field.type) in _LONG else 0
        end = at + 2 + len(field.name) + length + len(field.value)
        if field.name not in names:
            kept.append(table[at:end])
        at = end
    return b"".join(kept)


def text_field(found: Mapping[bytes, Field], name: bytes) -> str:
    """A string field's text; empty when there is no such field."""
    field = found.get(name)
    return field.value.decode("utf-8", "replace") if field and field.type == "S" else ""


def capability(found: Mapping[bytes, Field], name: bytes) -> bool:
    """Whether the field `capabilities` says yes to this one."""
    table = found.get(b"capabilities")
    if table is None or table.type != "F":
        return False
    return any(
        one.name == name and one.type == "t" and one.value != b"\0" for one in fields(table.value)
    )


def read_open(payload: bytes) -> str:
    """The virtual host that an Open asks for. Raises `AmqpFault` (502)."""
    vhost, _ = _short(payload, 4)
    try:
        return vhost.decode("utf-8")
    except UnicodeDecodeError:
        raise AmqpFault(
            SYNTAX_ERROR, "SYNTAX_ERROR - the virtual host's name is not UTF-8"
        ) from None


def read_heartbeat(payload: bytes) -> int:
    """The seconds between heartbeats in a TuneOk; 0: none. Raises `AmqpFault` (502)."""
    if len(payload) != 12:
        raise AmqpFault(SYNTAX_ERROR, "SYNTAX_ERROR - TuneOk has 12 bytes")
    return int.from_bytes(payload[10:12], "big")


def read_close(payload: bytes) -> tuple[int, str]:
    """Reply code and text of a Close. Raises `AmqpFault` (502)."""
    text, _ = _short(payload, 6)
    return int.from_bytes(payload[4:6], "big"), text.decode("utf-8", "replace")


def _text(name: str, value: str) -> bytes:
    key, text = name.encode(), value.encode()
    return bytes([len(key)]) + key + b"S" + len(text).to_bytes(4, "big") + text


def _short(data: bytes, at: int) -> tuple[bytes, int]:
    if at >= len(data):
        raise _cut()
    end = at + 1 + data[at]
    if end > len(data):
        raise _cut()
    return data[at + 1 : end], end


def _long(data: bytes, at: int) -> tuple[bytes, int]:
    end = at + 4 + int.from_bytes(data[at : at + 4], "big")
    if at + 4 > len(data) or end > len(data):
        raise _cut()
    return data[at + 4 : end], end


def _cut() -> AmqpFault:
    return AmqpFault(SYNTAX_ERROR, "SYNTAX_ERROR - a field is longer than what holds it")
