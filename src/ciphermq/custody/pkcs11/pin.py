"""A token's PIN: where it comes from, and that it shows nowhere.

In a configuration the source is spelled ``env:NAME``, ``file:PATH`` or ``prompt``. Never the PIN
itself: a configuration is copied, shown and backed up.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from ciphermq import limits
from ciphermq.custody import disk
from ciphermq.errors import ConfigError, PinError

VARIABLE: Final = "CIPHERMQ_PIN"
PROMPT: Final = "prompt"
_ENVIRONMENT: Final = "env:"
_FILE: Final = "file:"


class Pin:
    """A PIN that neither a log nor a traceback shows."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        """`PinError` for what no token takes."""
        if not 0 < len(value.encode()) <= limits.MAX_PIN or not value.isprintable():
            raise PinError(f"a PIN has 1 to {limits.MAX_PIN} bytes, all of them printable")
        self._value = value

    def reveal(self) -> str:
        """The PIN itself: for the module alone."""
        return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pin) and self._value == other._value

    def __hash__(self) -> int:
        # So that what remembers refused PINs has no bare text, which a traceback would show.
        return hash(self._value)

    def __repr__(self) -> str:
        return "<a PIN>"

    def __reduce__(self) -> str:
        raise TypeError("a PIN is not stored")


def check_source(source: str, where: str) -> str:
    """`source`, if it is one; else `ConfigError`, which names `where`."""
    for prefix in (_ENVIRONMENT, _FILE):
        if source.startswith(prefix) and source != prefix and source.isprintable():
            return source
    if source != PROMPT:
        raise ConfigError(
            f'{where}: the PIN\'s source must be "env:NAME", "file:PATH" or "prompt" (never the '
            "PIN itself)"
        )
    return source


def read(source: str, base: Path) -> Pin:
    """The PIN from `source`; a relative file's path counts from `base`.

    ``prompt`` is answered by who starts the program, or else by $CIPHERMQ_PIN. Raises `PinError`
    when there is none, `IdentityError` for a file that others may read.
    """
    if source.startswith(_FILE):
        return read_file(base / source.removeprefix(_FILE))
    name = source.removeprefix(_ENVIRONMENT) if source.startswith(_ENVIRONMENT) else VARIABLE
    value = os.environ.get(name)
    if value is None:
        hint = "" if name != VARIABLE else ", or at the prompt of a command at a terminal"
        raise PinError(f"the token's PIN is missing: give it in ${name}{hint}")
    return Pin(value)


def read_file(path: Path) -> Pin:
    """The PIN in the first line of `path`, which must be private."""
    text = disk.read_private(path, limit=limits.MAX_KEY_FILE)
    line = text.partition(b"\n")[0].rstrip(b"\r")
    try:
        return Pin(line.decode())
    except UnicodeDecodeError:
        raise PinError(f"{path} holds no PIN: its first line is not text") from None
