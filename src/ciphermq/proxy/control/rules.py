"""What a command is made of: a usage line, a line of help, and a function that does it."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Final, NamedTuple, TypeVar

from ciphermq.proxy.control.grammar import Call, Usage
from ciphermq.proxy.office import Office


class Answer(NamedTuple):
    """What a command that shows something answers, in both ways."""

    plain: str
    """Whole lines."""
    value: object
    """The same for ``--json``."""

    def text(self, as_json: bool) -> str:
        """As it is written."""
        return json.dumps(self.value, ensure_ascii=False) + "\n" if as_json else self.plain


Do = Callable[[Office, Call], Awaitable[Answer | None]]
Stream = Callable[[Office, Call, bool], AsyncGenerator[str, None]]


class Rule(NamedTuple):
    """One command."""

    usage: Usage
    help: str
    do: Do | None
    stream: Stream | None = None


RULES: Final[list[Rule]] = []
"""Every command, in the order in which HELP shows them."""

_Do = TypeVar("_Do", bound=Do)
_Stream = TypeVar("_Stream", bound=Stream)


def rule(usage: str, about: str) -> Callable[[_Do], _Do]:
    """Make an async function of (office, call) a command. It answers, or says nothing (None);
    it raises `ProxyError` with a sentence when it can't be done. Of several above one function
    the lowest is added first."""

    def add(do: _Do) -> _Do:
        RULES.append(Rule(Usage(usage), about, do))
        return do

    return add


def stream(usage: str, about: str) -> Callable[[_Stream], _Stream]:
    """Make an async generator of (office, call, as_json) a command that answers until the reader
    leaves."""

    def add(do: _Stream) -> _Stream:
        RULES.append(Rule(Usage(usage), about, None, do))
        return do

    return add
