"""A message as its two ends see it: before it is sealed and after it is opened."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

import msgspec

NO_HEADERS: Final[Mapping[str, str]] = MappingProxyType({})


class Properties(NamedTuple):
    """What stands beside a message's payload, as secret as the payload itself."""

    content_type: str | None = None
    headers: Mapping[str, str] = NO_HEADERS
    """In the order the sender gave them. Read-only: equal ones are shared within a batch."""


NO_PROPERTIES: Final = Properties()


class OutgoingMessage(msgspec.Struct, frozen=True):
    """What a sender wants to have sealed."""

    payload: bytes
    headers: Mapping[str, str] = NO_HEADERS
    content_type: str | None = None
    """None and the empty string mean the same: none is said."""
    sent_ms: int = 0
    """When the application handed it over, in milliseconds since 1970."""


class OpenedMessage(NamedTuple):
    """One message out of an opened batch."""

    payload: bytes
    properties: Properties
    sent_ms: int
