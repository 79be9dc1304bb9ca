"""Which token is meant. Apart, so that who has none need not load what reaches one."""

from __future__ import annotations

from typing import NamedTuple


class Address(NamedTuple):
    """A token, by the module through which it is reached, and its label or serial number."""

    module: str
    label: str = ""
    serial: str = ""

    def __str__(self) -> str:
        named = f"token {self.label!r}" if self.label else f"token with serial {self.serial!r}"
        return f"the {named}"
