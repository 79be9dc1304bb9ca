"""Who may do what: one table, no state, no I/O.

Whoever creates a queue or exchange owns it, and a ``dead.`` queue has its source's owner. A right
depends on the verb and on what the client is to the thing: its owner, an administrator, or anyone.
An inbox is its client's alone: not even an administrator takes messages out of it, since whoever
acks what he can't read destroys it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, Flag, auto
from typing import Final, NamedTuple

from ciphermq.errors import AccessRefused
from ciphermq.model.ids import DEAD_PREFIX


class Verb(Enum):
    """What a client wants to do."""

    PUBLISH = "publish to"
    CONSUME = "consume"
    DECLARE = "declare"
    DELETE = "delete"
    BIND = "bind"
    PURGE = "purge"
    PEEK = "look into"
    REDRIVE = "redrive"
    SEE = "see"
    REGISTER_KEY = "register a key for"


class Kind(Enum):
    """What kind of thing it wants to do that to."""

    DEFAULT_EXCHANGE = "the default exchange"
    EXCHANGE = "exchange"
    QUEUE = "queue"
    INBOX = "inbox"
    BATCH = "batch"
    CLIENT = "client"
    BROKER = "the broker's status"


class Thing(NamedTuple):
    """One thing and its owner: the client whose batch, key or queue it is; empty for nobody."""

    kind: Kind
    name: str = ""
    owner: str = ""

    def __str__(self) -> str:
        return f"{self.kind.value} {self.name!r}" if self.name else self.kind.value


class Relation(Flag):
    """What a client is to a thing."""

    OWNER = auto()
    ADMINISTRATOR = auto()
    ANYONE = auto()


_OWNER: Final = Relation.OWNER
_MANAGER: Final = Relation.OWNER | Relation.ADMINISTRATOR
_ADMINISTRATOR: Final = Relation.ADMINISTRATOR
_ANYONE: Final = Relation.ANYONE

RIGHTS: Final[Mapping[tuple[Verb, Kind], Relation]] = {
    (Verb.PUBLISH, Kind.DEFAULT_EXCHANGE): _ANYONE,
    (Verb.PUBLISH, Kind.EXCHANGE): _MANAGER,
    (Verb.CONSUME, Kind.QUEUE): _MANAGER,
    (Verb.CONSUME, Kind.INBOX): _OWNER,
    (Verb.DECLARE, Kind.EXCHANGE): _ANYONE,
    (Verb.DECLARE, Kind.QUEUE): _ANYONE,
    (Verb.DELETE, Kind.EXCHANGE): _MANAGER,
    (Verb.DELETE, Kind.QUEUE): _MANAGER,
    (Verb.DELETE, Kind.INBOX): _MANAGER,
    (Verb.BIND, Kind.EXCHANGE): _MANAGER,
    (Verb.BIND, Kind.QUEUE): _MANAGER,
    (Verb.BIND, Kind.INBOX): _MANAGER,
    (Verb.PURGE, Kind.QUEUE): _MANAGER,
    (Verb.PURGE, Kind.INBOX): _MANAGER,
    (Verb.PEEK, Kind.QUEUE): _MANAGER,
    (Verb.PEEK, Kind.INBOX): _MANAGER,
    (Verb.REDRIVE, Kind.QUEUE): _MANAGER,
    (Verb.SEE, Kind.QUEUE): _MANAGER,
    (Verb.SEE, Kind.INBOX): _MANAGER,
    (Verb.SEE, Kind.EXCHANGE): _MANAGER,
    (Verb.SEE, Kind.BATCH): _MANAGER,
    (Verb.SEE, Kind.CLIENT): _MANAGER,
    (Verb.SEE, Kind.BROKER): _ADMINISTRATOR,
    (Verb.REGISTER_KEY, Kind.CLIENT): _OWNER,
}
"""To whom a verb is open. What isn't here is open to nobody: inboxes and dead-letter queues are
not declared by hand, and nothing is bound to the default exchange."""

DEFAULT_EXCHANGE: Final = Thing(Kind.DEFAULT_EXCHANGE)
BROKER: Final = Thing(Kind.BROKER)


class Access:
    """Decides; the administrators are known by their client ids."""

    def __init__(self, administrators: Collection[str], *, allow_all: bool = False) -> None:
        """`allow_all`: everyone is one of them."""
        self._administrators = frozenset(administrators)
        self._allow_all = allow_all

    def decide(self, client: str, verb: Verb, thing: Thing) -> bool:
        """Whether `client` may do that."""
        allowed = RIGHTS.get((verb, thing.kind))
        return allowed is not None and bool(allowed & self._relation(client, thing))

    def require(self, client: str, verb: Verb, thing: Thing) -> None:
        """`AccessRefused`, saying who may, unless `client` may do that."""
        if not self.decide(client, verb, thing):
            who = _who(RIGHTS.get((verb, thing.kind)))
            if not thing.owner and thing.kind in (Kind.QUEUE, Kind.EXCHANGE):
                who = "there is none of that name, or it is the administrators'"
            raise AccessRefused(f"{client!r} may not {verb.value} {thing}: {who}")

    def _relation(self, client: str, thing: Thing) -> Relation:
        relation = Relation.ANYONE
        if client == thing.owner:
            relation |= Relation.OWNER
        if self._allow_all or client in self._administrators:
            relation |= Relation.ADMINISTRATOR
        return relation


def queue_to_declare(name: str, client: str) -> Thing:
    """A queue that `client` wants to make by hand, as a thing to decide about."""
    if name.startswith(DEAD_PREFIX):
        raise AccessRefused(
            f"{name!r} can't be declared: a dead-letter queue is made with the first dead letter"
        )
    # Whoever could make it would be asked by nobody why the real owner's messages end there.
    if name == client:
        raise AccessRefused(f"the inbox {name!r} can't be declared: it comes with your key record")
    return Thing(Kind.QUEUE, name, client)


def _who(allowed: Relation | None) -> str:
    if allowed is None:
        return "nobody may"
    if allowed == _OWNER:
        return "only its owner may"
    if allowed == _ADMINISTRATOR:
        return "only an administrator may"
    return "only its owner or an administrator may"
