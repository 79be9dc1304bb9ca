"""From words to an answer: find the command, do it.

What the language can say is in `routes`, `access` and `running`; importing them fills `RULES`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncGenerator, Iterable

from ciphermq.errors import CipherMQError, ProxyError
from ciphermq.proxy.control import access, routes, running
from ciphermq.proxy.control.grammar import Call
from ciphermq.proxy.control.rules import RULES, Answer, Rule, rule
from ciphermq.proxy.control.words import check
from ciphermq.proxy.office import Office

__all__ = ["access", "execute", "failure", "help_text", "routes", "running", "understand"]


def help_text(rules: Iterable[Rule] = ()) -> str:
    """A line for each command: how it is spoken, and what it does."""
    shown = list(rules) or sorted(RULES, key=lambda one: one.usage.verb)
    return "".join(f"{one.usage.text} - {one.help}\n" for one in shown)


@rule("HELP")
async def show_help(office: Office, call: Call) -> Answer:
    """Show this."""
    value = [{"usage": one.usage.text, "help": one.help} for one in RULES]
    return Answer(help_text(), sorted(value, key=lambda one: one["usage"].split()[0]))


def understand(words: tuple[str, ...]) -> tuple[Rule, Call]:
    """The command these words are. `ProxyError` if they are none: its text is the whole help, or
    what was not understood and the lines of help that come nearest."""
    check(words)
    best, nearest = 0, list[Rule]()
    for one in RULES:
        call, at = one.usage.match(words)
        if call is not None:
            return one, one.usage.convert(call)
        if at > best:
            best, nearest = at, []
        if at == best:
            nearest.append(one)
    if not best:
        raise ProxyError(help_text().rstrip("\n"))
    said = " ".join(words[:best])
    fault = f"After '{said}' came '{words[best]}'" if best < len(words) else f"'{said}' is not all"
    raise ProxyError(f"{fault}. What can be said:\n{help_text(nearest)}".rstrip("\n"))


async def execute(
    office: Office, words: tuple[str, ...], as_json: bool
) -> AsyncGenerator[str, None]:
    """Do a command; yields its answer in pieces, and nothing at all when there is nothing to say.

    Raises `CipherMQError`, usually `ProxyError`, with a sentence when it could not be done.
    """
    found, call = understand(words)
    if found.stream is not None:
        async with contextlib.aclosing(found.stream(office, call, as_json)) as pieces:
            async for piece in pieces:
                yield piece
    elif found.do is not None:
        answer = await found.do(office, call)
        if answer is not None:
            yield answer.text(as_json)


def failure(error: CipherMQError, as_json: bool) -> str:
    """How a failure is told."""
    if as_json:
        return json.dumps({"error": error.code, "message": str(error)}, ensure_ascii=False) + "\n"
    return f"{error}\n"
