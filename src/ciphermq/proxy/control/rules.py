"""What a command is made of: a usage line, a line of help, and a function that does it."""

from __future__ import annotations

import inspect
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
    """What it does, in a line."""
    about: str
    """What else is to be known of it."""
    do: Do | None
    stream: Stream | None = None


RULES: Final[list[Rule]] = []
"""Every command, in the order in which HELP shows them."""

_Do = TypeVar("_Do", bound=Do)
_Stream = TypeVar("_Stream", bound=Stream)


def _texts(function: object, said: str | None) -> tuple[str, str]:
    """A command's line of help, and what else its function's docstring says."""
    text = inspect.getdoc(function) or ""
    first, _, rest = text.partition("\n\n")
    return (first.removesuffix("."), rest) if said is None else (said, text)


def rule(usage: str, said: str | None = None) -> Callable[[_Do], _Do]:
    """Make an async function of (office, call) a command. It answers, or says nothing (None);
    it raises `ProxyError` with a sentence when it can't be done.

    Its line of help is the function's docstring's first, or what is `said`, for functions that do
    several commands; of these the lowest is added first.
    """

    def add(do: _Do) -> _Do:
        RULES.append(Rule(Usage(usage), *_texts(do, said), do))
        return do

    return add


def stream(usage: str) -> Callable[[_Stream], _Stream]:
    """Make an async generator of (office, call, as_json) a command that answers until the reader
    leaves."""

    def add(do: _Stream) -> _Stream:
        RULES.append(Rule(Usage(usage), *_texts(do, None), None, do))
        return do

    return add
