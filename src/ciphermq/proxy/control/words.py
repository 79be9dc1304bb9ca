"""A line of the control language as words.

::

    line   = [flag *flag] word *word LF
    flag   = "--json" | "--status"
    word   = any bytes but white space | DQUOTE *(any but DQUOTE and "\\" | "\\" any) DQUOTE

Words are UTF-8. White space parts them; quotes are for names with white space in them, which
amqpprox has no way to say. A quote that is never closed stands for itself. ``--json`` asks for the
answer as JSON. ``--status`` asks for the answer to be followed by a NUL and a digit, 0 for done and
3 for failed, which is how `ctl` knows; without it there is nothing but the answer, as any other
client of the socket expects.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from ciphermq.errors import ProxyError

_WORD: Final = re.compile(r'"((?:[^"\\]|\\.)*)"(?=\s|$)|(\S+)', re.DOTALL)
_ESCAPED: Final = re.compile(r"\\(.)", re.DOTALL)

JSON: Final = "--json"
STATUS: Final = "--status"


class Line(NamedTuple):
    """What a client asked for, and how it wants the answer."""

    words: tuple[str, ...]
    json: bool = False
    status: bool = False


def parse(line: bytes) -> Line:
    """Part a line, without its line break. Never raises: bytes that aren't UTF-8 stay in the
    words as lone surrogates, which `check` refuses."""
    words = []
    for quoted, plain in _WORD.findall(line.decode(errors="surrogateescape")):
        words.append(plain or _ESCAPED.sub(r"\1", quoted))
    flags = set()
    while words and words[0] in (JSON, STATUS):
        flags.add(words.pop(0))
    return Line(tuple(words), JSON in flags, STATUS in flags)


def check(words: tuple[str, ...]) -> None:
    """Raise `ProxyError` for what no name may contain: it would come out again in a listing, on
    somebody's terminal."""
    for word in words:
        if not word.isprintable():
            shown = word.encode("unicode_escape", "surrogatepass").decode()
            raise ProxyError(
                f"A word may not contain control characters, or be other than UTF-8: {shown}"
            )


def quote(name: str) -> str:
    """A name as a word of a command."""
    if name and not re.search(r'[\s"\\]', name):
        return name
    return '"' + re.sub(r'(["\\])', r"\\\1", name) + '"'
