"""The language's grammar: each command's usage line is its own parser.

::

    usage    = verb *element [" " *option]
    verb     = UPPER
    element  = keyword | argument | argument "..." | keyword "..."
    keyword  = UPPER *("|" UPPER)             any case when it is spoken
    argument = lower                          its name says what it may be: see `KINDS`
    option   = "[" 1*element "]"              options come last, in any order, each at most once

So what HELP prints, what the reference pages show and what is understood can't differ.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from ciphermq import limits
from ciphermq.errors import ProxyError


def _number(least: int, most: int) -> Callable[[str, str], int]:
    def convert(name: str, word: str) -> int:
        if re.fullmatch(r"[0-9]{1,16}", word, re.ASCII) and least <= int(word) <= most:
            return int(word)
        raise ProxyError(f"{name} must be {least} to {most}, not '{word}'.")

    return convert


def _seconds(name: str, word: str) -> float:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,6})?", word, re.ASCII):
        value = float(word)
        if 0 < value <= limits.DAY:
            return value
    raise ProxyError(f"{name} must be above 0 and at most {limits.DAY}, not '{word}'.")


def _address(name: str, word: str) -> str:
    try:
        return str(ipaddress.ip_address(word.strip("[]")))
    except ValueError:
        raise ProxyError(f"{name} must be an IPv4 or IPv6 address, not '{word}'.") from None


def _host(name: str, word: str) -> str:
    host = word[1:-1] if word.startswith("[") and word.endswith("]") else word
    if len(host) <= limits.MAX_PROXY_NAME and re.fullmatch(r"[\w.:%-]+", host):
        return host
    raise ProxyError(f"{name} must be a host's name or address, not '{word}'.")


def _name(name: str, word: str) -> str:
    if 0 < len(word.encode(errors="replace")) <= limits.MAX_PROXY_NAME:
        return word
    raise ProxyError(f"{name} must have 1 to {limits.MAX_PROXY_NAME} bytes.")


def _word(name: str, word: str) -> str:
    if word:
        return word
    raise ProxyError(f"{name} must not be empty.")


KINDS: Final[Mapping[str, tuple[Callable[[str, str], Any], str]]] = {
    "port": (_number(1, 65535), "1 to 65535"),
    "number": (_number(0, limits.MAX_PROXY_LIMIT), "a whole number"),
    "bytes": (_number(1, limits.MAX_PROXY_LIMIT), "a whole number above 0"),
    "verbosity": (_number(0, 5), "0 fatal, 1 error, 2 warn, 3 info, 4 debug, 5 trace"),
    "id": (_number(1, limits.MAX_PROXY_LIMIT), "a session's number, as CONN shows it"),
    "seconds": (_seconds, "above 0, up to 86,400; as in 0.5"),
    "address": (_address, "an IPv4 or IPv6 address"),
    "host": (_host, "a host's name, or an IPv4 or IPv6 address"),
    "file": (_word, "a path; a relative one is relative to where the proxy was started"),
    "key_file": (_word, "as `file`"),
    "chain_file": (_word, "as `file`"),
    "password_file": (_word, "as `file`; its first line is the password"),
    "target": (_word, "the path and query of a URL, as in /auth?tier=dev"),
    "filter": (
        _word,
        "overall, all, all-except-per-source, process, bufferpool, vhost=V, backend=B or source=S",
    ),
    "ciphers": (_word, "OpenSSL's names, joined by colons"),
}
"""What an argument of this name may be, and how the reference says so; all others are names."""


class _Element(NamedTuple):
    """A keyword in one of its spellings, or an argument."""

    keywords: tuple[str, ...]
    argument: str
    many: bool

    def takes(self, word: str) -> bool:
        return not self.keywords or word.upper() in self.keywords


class Call:
    """A command as it was spoken: `keywords` in upper case and in order, arguments by name."""

    def __init__(self) -> None:
        self.keywords: list[str] = []
        self._words: dict[str, list[str]] = {}
        self._values: dict[str, Any] = {}

    def take(self, element: _Element, words: Sequence[str]) -> None:
        """Note the words that stand for an element."""
        if element.keywords:
            self.keywords += [word.upper() for word in words]
        else:
            self._words[element.argument] = list(words)

    def convert(self, many: Collection[str]) -> None:
        """Make values of the arguments. `ProxyError` where one is not what its name says."""
        for name, words in self._words.items():
            kind = KINDS.get(name, (_name, ""))[0]
            spoken = name.replace("_", " ").capitalize()
            values = [kind(spoken, word) for word in words]
            self._values[name] = values if name in many else values[0]

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def get(self, name: str) -> Any:
        """An option's argument, or None."""
        return self._values.get(name)


class Usage:
    """A usage line taken apart. `verb` is its first keyword."""

    def __init__(self, text: str) -> None:
        self.text = text
        fixed, *options = re.split(r" *\[", text)
        self._fixed = [_element(token) for token in fixed.split()]
        self._options = [
            [_element(token) for token in option.rstrip("] ").split()] for option in options
        ]
        self.verb = self._fixed[0].keywords[0]

    def arguments(self) -> list[str]:
        """The names of its arguments."""
        elements = [*self._fixed, *(element for option in self._options for element in option)]
        return [element.argument for element in elements if element.argument]

    def match(self, words: Sequence[str]) -> tuple[Call | None, int]:
        """The call, if these words are one; and how many of them were understood."""
        call, at = Call(), 0
        for element in self._fixed:
            taken = 0
            while at + taken < len(words) and element.takes(words[at + taken]):
                taken += 1
                if not element.many:
                    break
            if not taken:
                return None, at
            call.take(element, words[at : at + taken])
            at += taken
        # A keyword is never taken for an argument that may stand in its place.
        left = sorted(self._options, key=lambda option: not option[0].keywords)
        while at < len(words):
            option = next((one for one in left if _fits(one, words[at:])), None)
            if option is None:
                return None, at
            left.remove(option)
            for element in option:
                call.take(element, words[at : at + 1])
                at += 1
        return call, at

    def convert(self, call: Call) -> Call:
        """Make values of a call's arguments."""
        call.convert({element.argument for element in self._fixed if element.many})
        return call


def _element(token: str) -> _Element:
    many = token.endswith("...")
    token = token.removesuffix("...")
    if token.isupper():
        return _Element(tuple(token.split("|")), "", many)
    return _Element((), token, many)


def _fits(option: Sequence[_Element], words: Sequence[str]) -> bool:
    return len(option) <= len(words) and all(
        element.takes(word) for element, word in zip(option, words, strict=False)
    )
