"""What all sessions of one server share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ciphermq.catalog.face import Catalog
from ciphermq.engines.face import Engine
from ciphermq.model.topology import ExchangeSpec, QueueSpec
from ciphermq.server.access import DEFAULT_EXCHANGE, Access, Kind, Thing
from ciphermq.server.flow import Flow
from ciphermq.server.keys import KeyDirectory
from ciphermq.telemetry import Counters
from ciphermq.telemetry.traffic import Traffic

if TYPE_CHECKING:
    from ciphermq.server.onex import OnexSession
    from ciphermq.server.session import Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The parts a session works with, and what it must know of its server."""

    engine: Engine
    catalog: Catalog
    access: Access
    keys: KeyDirectory
    flow: Flow
    now_ms: Callable[[], int]
    status: Callable[[], dict[str, dict[str, int | float | str]]]
    max_publish_window: int
    one_x: bool = False
    """Whether messages of CipherMQ 1.x are taken."""
    counters: Counters = field(
        default_factory=lambda: Counters(
            "publishes", "publishes_confirmed", "publishes_returned", "deliveries", "acks", "nacks"
        )
    )
    traffic: Traffic = field(default_factory=Traffic)
    """Where each message that passes is noted, for the logs."""
    sessions: set[Session | OnexSession] = field(default_factory=set)

    def queue(self, name: str) -> Thing:
        """The queue of that name as a thing to decide about; unowned if there is none."""
        info = self.engine.queue(name)
        return Thing(Kind.QUEUE, name) if info is None else queue_thing(info.spec)

    def exchange(self, name: str) -> Thing:
        """The exchange of that name likewise."""
        if not name:
            return DEFAULT_EXCHANGE
        spec = self.engine.exchange(name)
        return Thing(Kind.EXCHANGE, name) if spec is None else exchange_thing(spec)


def queue_thing(spec: QueueSpec) -> Thing:
    """A queue as a thing to decide about."""
    return Thing(Kind.INBOX if spec.inbox else Kind.QUEUE, spec.name, spec.owner)


def exchange_thing(spec: ExchangeSpec) -> Thing:
    """An exchange as a thing to decide about."""
    return Thing(Kind.EXCHANGE, spec.name, spec.owner)
