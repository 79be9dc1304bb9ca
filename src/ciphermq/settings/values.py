"""The kinds of value a setting can have beyond pydantic's own."""

from __future__ import annotations

from typing import Annotated, Any, Final, NamedTuple

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator
from pydantic_settings import NoDecode

from ciphermq import limits

DEFAULT_PORT: Final = 7443
_MAX_PORT: Final = 65_535
_LEVELS_OF_1X: Final = {"warn": "warning", "trace": "debug"}


class Address(NamedTuple):
    """Where to listen. Port 0 is any free port."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"


def parse_address(value: Any) -> Address:
    """``HOST:PORT``, ``[IPV6]:PORT`` or ``HOST`` alone; `ValueError` says which part is wrong."""
    if isinstance(value, Address):
        return value
    if not isinstance(value, str):
        raise ValueError("an address is text")  # noqa: TRY004  (pydantic collects ValueError only)
    host, port = _split(value.strip())
    if not host or any(character.isspace() for character in host):
        raise ValueError("the host is missing or has spaces in it")
    if not port.isascii() or not port.isdigit() or int(port) > _MAX_PORT:
        raise ValueError(f"{port!r} is no port")
    return Address(host, int(port))


def _split(text: str) -> tuple[str, str]:
    """Host and port as texts; the default port where none is given."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("the bracket is not closed, or something other than a port follows it")
        return host, rest[1:] if rest else str(DEFAULT_PORT)
    if text.count(":") > 1:
        raise ValueError("an IPv6 address stands in brackets, like [::1]:7443")
    host, colon, port = text.partition(":")
    return host, port if colon else str(DEFAULT_PORT)


def parse_level(value: Any) -> Any:
    """A log level in small letters, as 1.x spells it too."""
    if not isinstance(value, str):
        return value
    level = value.lower()
    return _LEVELS_OF_1X.get(level, level)


def parse_names(value: Any) -> Any:
    """A list as it is; text (from the environment) split at commas."""
    if isinstance(value, str):
        return [name.strip() for name in value.split(",") if name.strip()]
    return value


AddressValue = Annotated[
    Address, NoDecode, PlainValidator(parse_address), PlainSerializer(str, return_type=str)
]
"""An `Address`, written as text; NoDecode because the environment's is not JSON either."""

OptionalAddress = Annotated[
    Address | None,
    NoDecode,
    PlainValidator(lambda value: parse_address(value) if value else None),
    PlainSerializer(lambda value: None if value is None else str(value)),
]
"""The same, or ``""`` for none."""

Names = Annotated[
    tuple[Annotated[str, Field(min_length=1, max_length=limits.MAX_CLIENT_ID)], ...],
    NoDecode,
    BeforeValidator(parse_names),
]
"""Client ids: a list in the file, separated by commas in the environment."""
