"""What every change is made with."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar, TypeVar

import msgspec

from ciphermq import limits
from ciphermq.errors import ProxyError
from ciphermq.proxy.model import LimitKind

Value = TypeVar("Value")


def check_names(names: Collection[str]) -> None:
    """Raise `ProxyError` if there are too many names, or one is none."""
    if len(names) > limits.MAX_PROXY_ENTRIES:
        raise ProxyError(f"At most {limits.MAX_PROXY_ENTRIES} of each are kept.")
    for name in names:
        # What can't be printed would come out again in a listing, on somebody's terminal.
        if not name or not name.isprintable() or len(name.encode()) > limits.MAX_PROXY_NAME:
            most = limits.MAX_PROXY_NAME
            raise ProxyError(f"A name is 1 to {most} bytes of text, which {name[:40]!r} is not.")


def check_limit(kind: LimitKind, value: int) -> None:
    """Raise `ProxyError` if a limit of this kind can't have this value."""
    least = 1 if kind.startswith("data_rate") else 0
    if not least <= value <= limits.MAX_PROXY_LIMIT:
        raise ProxyError(f"A limit is {least} to {limits.MAX_PROXY_LIMIT}, not {value}.")


def with_member(members: Mapping[str, Value], name: str, value: Value) -> dict[str, Value]:
    """A copy that has this member, in its old place if it was there."""
    if name not in members:
        check_names([name])
        if len(members) >= limits.MAX_PROXY_ENTRIES:
            raise ProxyError(f"There are {len(members)} of these already, and no more are kept.")
    return {**members, name: value}


def without(members: Mapping[str, Value], name: str) -> dict[str, Value]:
    """A copy that has not."""
    return {key: value for key, value in members.items() if key != name}


class OneChange(msgspec.Struct, frozen=True, tag=True):
    """A change knows its own name between processes; each has
    ``apply(now: Configuration) -> Configuration``."""

    rereads: ClassVar[bool] = False
    """Whether files are to be read anew although the configuration stays as it is: what is in
    them may have changed (a renewed certificate)."""
