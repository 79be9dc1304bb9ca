"""A PKCS#11 module that fails when it is told to: a layer between ours and a real one.

Every call that reaches the real module, through whatever object it gave out, is announced by name
first; what was planned for it happens then. So a token can be pulled out, answer slowly or fail at
any single call, while all else is the real thing.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from ciphermq.custody.pkcs11 import library

_PLAIN = (str, bytes, int, float, bool, type(None))


class Faults:
    """What is to go wrong, by the name of the call."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self._plans: dict[str, list[Callable[[], None]]] = {}
        self._always: dict[str, Callable[[], None]] = {}

    def once(self, name: str, error: BaseException) -> None:
        """The next call of that name raises `error`."""
        self._plans.setdefault(name, []).append(_raiser(error))

    def always(self, name: str, act: Callable[[], None] | BaseException) -> None:
        """Every call of that name, until `mend`, raises this or does that first."""
        self._always[name] = _raiser(act) if isinstance(act, BaseException) else act

    def mend(self) -> None:
        """All is well from now on."""
        self._plans.clear()
        self._always.clear()

    def reach(self, name: str) -> None:
        """A call is about to be made."""
        self.calls[name] += 1
        for key in (name, "*"):
            if plans := self._plans.get(key):
                plans.pop(0)()
            if key in self._always:
                self._always[key]()


class Layer:
    """Stands for one object of the module."""

    def __init__(self, real: Any, faults: Faults) -> None:
        self._real = real
        self._faults = faults

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        return self._calling(name, value) if callable(value) else self._wrapped(value)

    def __getitem__(self, key: Any) -> Any:
        self._faults.reach("get_attribute")
        return self._real[key]

    def _calling(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*values: Any, **named: Any) -> Any:
            self._faults.reach(name)
            return self._wrapped(real(*values, **named))

        return call

    def _wrapped(self, value: Any) -> Any:
        if isinstance(value, _PLAIN) or type(value).__module__ in {"builtins", "pkcs11.constants"}:
            if isinstance(value, (list, tuple)):
                return type(value)(self._wrapped(each) for each in value)
            if isinstance(value, Iterator):
                return map(self._wrapped, value)
            return value
        if isinstance(value, Iterator):
            return map(self._wrapped, value)
        if type(value).__module__.startswith(("pkcs11.constants", "pkcs11.mechanisms")):
            return value
        return Layer(value, self._faults)


def _raiser(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def put_between(monkeypatch: pytest.MonkeyPatch, module: ModuleType = library) -> Faults:
    """From now on, modules are loaded with such a layer on top."""
    faults = Faults()
    real = module.load
    monkeypatch.setattr(module, "load", lambda path: Layer(real(path), faults))
    return faults
