"""Which queues a routing key leads to.

A *direct* exchange takes bindings with just that key, *fanout* all of its bindings. A *topic*
exchange's bindings are patterns of words separated by dots, as in AMQP 0.9.1: ``*`` is one word,
``#`` any number of them, none too. The empty key has no words.

The patterns are kept in a trie, and a key is matched by walking all its possible nodes at once, a
word at a time: the work is bounded by words times nodes, whatever patterns strangers bind.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Protocol

from ciphermq.model.topology import Binding, ExchangeSpec, ExchangeType

_ONE: Final = "*"
_ANY: Final = "#"


class Matcher(Protocol):
    """An exchange's bindings, arranged for its way of matching. Queues are named once a key."""

    def add(self, key: str, queue: str) -> None: ...
    def remove(self, key: str, queue: str) -> None:
        """Only what was added."""

    def match(self, key: str) -> Iterable[str]:
        """Names of queues, each at least once."""


class DirectMatcher:
    """By the key itself."""

    def __init__(self) -> None:
        self._queues: dict[str, dict[str, None]] = {}

    def add(self, key: str, queue: str) -> None:
        """`key` leads to `queue` too."""
        self._queues.setdefault(key, {})[queue] = None

    def remove(self, key: str, queue: str) -> None:
        """The reverse of `add`."""
        queues = self._queues[key]
        del queues[queue]
        if not queues:
            del self._queues[key]

    def match(self, key: str) -> Iterable[str]:
        """The queues bound with `key`."""
        return self._queues.get(key, ())


class FanoutMatcher:
    """Whatever the key; a queue may still be bound several times, with several."""

    def __init__(self) -> None:
        self._bound: dict[str, int] = {}

    def add(self, key: str, queue: str) -> None:
        """Everything goes to `queue` too."""
        self._bound[queue] = self._bound.get(queue, 0) + 1

    def remove(self, key: str, queue: str) -> None:
        """The reverse of `add`."""
        self._bound[queue] -= 1
        if not self._bound[queue]:
            del self._bound[queue]

    def match(self, key: str) -> Iterable[str]:
        """All queues."""
        return self._bound


class _Node:
    """A place in the trie: the patterns that begin with the words on the way here."""

    __slots__ = ("queues", "stays", "words")

    def __init__(self, *, stays: bool = False) -> None:
        self.words: dict[str, _Node] = {}
        self.queues: dict[str, None] = {}
        self.stays = stays
        """Entered by "#": any further word leads here again."""

    def child(self, word: str) -> _Node:
        """The node that `word` leads to, made if need be."""
        node = self.words.get(word)
        if node is None:
            node = self.words[word] = _Node(stays=word == _ANY)
        return node


class TopicMatcher:
    """By pattern."""

    def __init__(self) -> None:
        self._root = _Node()

    def add(self, key: str, queue: str) -> None:
        """Keys that match the pattern `key` lead to `queue` too."""
        node = self._root
        for word in _words(key):
            node = node.child(word)
        node.queues[queue] = None

    def remove(self, key: str, queue: str) -> None:
        """The reverse of `add`; branches that lead nowhere are cut."""
        node = self._root
        path: list[tuple[_Node, str]] = []
        for word in _words(key):
            path.append((node, word))
            node = node.words[word]
        del node.queues[queue]
        for parent, word in reversed(path):
            child = parent.words[word]
            if child.queues or child.words:
                break
            del parent.words[word]

    def match(self, key: str) -> Iterable[str]:
        """The queues of all patterns that `key` matches."""
        at: set[_Node] = set()
        _enter(self._root, at)
        for word in _words(key):
            after: set[_Node] = set()
            for node in at:
                if node.stays:
                    _enter(node, after)
                for step in (word, _ONE):
                    if (child := node.words.get(step)) is not None:
                        _enter(child, after)
            at = after
        return {queue: None for node in at for queue in node.queues}


def _enter(node: _Node | None, nodes: set[_Node]) -> None:
    """`node`, and what "#" reaches from it with no word at all."""
    while node is not None and node not in nodes:
        nodes.add(node)
        node = node.words.get(_ANY)


def _words(key: str) -> list[str]:
    return key.split(".") if key else []


_MATCHERS: Final[dict[ExchangeType, type[Matcher]]] = {
    ExchangeType.DIRECT: DirectMatcher,
    ExchangeType.FANOUT: FanoutMatcher,
    ExchangeType.TOPIC: TopicMatcher,
}


class Exchange:
    """A declared exchange and its bindings."""

    def __init__(self, spec: ExchangeSpec) -> None:
        self.spec = spec
        self.bindings: dict[Binding, None] = {}
        self._matcher = _MATCHERS[spec.type]()

    def bind(self, binding: Binding) -> None:
        """Add a binding that is not there yet."""
        self.bindings[binding] = None
        self._matcher.add(binding.routing_key, binding.queue)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding that is there."""
        del self.bindings[binding]
        self._matcher.remove(binding.routing_key, binding.queue)

    def match(self, key: str) -> list[str]:
        """Names of the queues that a batch with this key goes to, each once."""
        return list(self._matcher.match(key))
