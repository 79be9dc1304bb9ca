"""Binary things as text that survives mail and terminals: PEM (RFC 7468) with our own labels."""

from __future__ import annotations

import base64
import binascii
import textwrap

_WIDTH = 64


def armour(label: str, data: bytes) -> bytes:
    """`data` between ``-----BEGIN label-----`` and its end."""
    lines = textwrap.wrap(base64.b64encode(data).decode(), _WIDTH)
    return "\n".join([f"-----BEGIN {label}-----", *lines, f"-----END {label}-----", ""]).encode()


def label_of(text: bytes) -> str | None:
    """What kind of thing `text` says it is; None when it is not armoured."""
    first, _, _ = text.lstrip().partition(b"\n")
    first = first.strip()
    if not (first.startswith(b"-----BEGIN ") and first.endswith(b"-----")):
        return None
    return first[len(b"-----BEGIN ") : -len(b"-----")].decode("ascii", "replace")


def strip_armour(label: str, text: bytes) -> bytes:
    """What `armour` was given; `ValueError` when `text` is not that, whole, and nothing else."""
    begin, end = f"-----BEGIN {label}-----".encode(), f"-----END {label}-----".encode()
    lines = text.split()
    # Splitting on white space also splits the two marker lines: put them together again.
    joined = b" ".join(lines)
    if not joined.startswith(begin + b" ") or not joined.endswith(b" " + end):
        raise ValueError(f"not a {label}")
    inside = joined[len(begin) : -len(end)].replace(b" ", b"")
    try:
        return base64.b64decode(inside, validate=True)
    except binascii.Error as error:
        raise ValueError(f"a damaged {label}: {error}") from error
