"""Classes by name: ours, and those that installed packages offer through entry points."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Generic, TypeVar

from ciphermq.errors import ProxyError

_Class = TypeVar("_Class")


class Registry(Generic[_Class]):
    """What the names of one kind stand for. Ours can't be taken by others."""

    def __init__(self, group: str, kind: str, own: Mapping[str, _Class]) -> None:
        self._group = group
        self._kind = kind
        self._known = dict(own)

    def find(self, name: str) -> _Class:
        """The class of that name. `ProxyError` if there is none, or it can't be imported."""
        known = self._known.get(name)
        if known is not None:
            return known
        for entry in metadata.entry_points(group=self._group, name=name):
            try:
                loaded: _Class = entry.load()
            except Exception as error:
                raise ProxyError(
                    f"{self._kind} '{name}' ({entry.value}) can't be imported: {error}"
                ) from error
            self._known[name] = loaded
            return loaded
        raise ProxyError(f"{self._kind} '{name}' not found; there are {', '.join(self.names())}.")

    def names(self) -> list[str]:
        """Every name there is."""
        return sorted({*self._known, *metadata.entry_points(group=self._group).names})
