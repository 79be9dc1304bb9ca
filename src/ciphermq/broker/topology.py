"""Declaring, binding, deleting.

A declaration of what exists is agreement, if it is the same in everything but the owner;
otherwise it is refused with what differs. Queues named ``dead.<queue>`` are the broker's own: it
makes them when the first message of ``<queue>`` dies. They may be declared too, so that somebody
can wait for that, but only as they are and with their source's owner.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

from ciphermq import limits
from ciphermq.broker.credit import Consumer
from ciphermq.broker.exchanges import Exchange
from ciphermq.broker.queues import Queue
from ciphermq.broker.records import Kind, Snapshot
from ciphermq.broker.state import State
from ciphermq.errors import BadRequest, NotFound, PreconditionFailed, ResourceLimit
from ciphermq.model.ids import DEAD_PREFIX
from ciphermq.model.topology import Binding, ExchangeSpec, QueueSpec

_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_MAX_QUEUE_NAME: Final = limits.MAX_NAME - len(DEAD_PREFIX)
"""So that every queue's dead-letter queue has a name that is not too long."""
_BOUNDS: Final = (
    ("max_messages", 1, limits.MAX_QUEUE_MESSAGES),
    ("max_bytes", 1, limits.MAX_QUEUE_BYTES),
    ("ttl_ms", 0, limits.MAX_QUEUE_TTL * 1000),
    ("max_tries", 1, limits.MAX_QUEUE_TRIES),
    ("ack_timeout_ms", 0, limits.MAX_QUEUE_TTL * 1000),
)


class Topology:
    """Queues, exchanges and bindings, and the records that make them last."""

    def __init__(self, state: State) -> None:
        self._state = state

    # --- queues -------------------------------------------------------------------------------

    def declare_queue(self, spec: QueueSpec) -> Queue:
        """Make the queue, or agree that it is there."""
        state = self._state
        _check_name("queue", spec.name, limits.MAX_NAME)
        if spec.name.startswith(DEAD_PREFIX):
            source = state.queue(spec.name.removeprefix(DEAD_PREFIX))
            if source.is_dead:
                raise BadRequest(
                    f"{spec.name!r} can't be: dead letters have no dead letters of their own"
                )
            _check_same("queue", dead_queue_spec(source), spec)
            return self.dead_queue(source)
        _check_queue(spec)
        queue = state.queues.get(spec.name)
        if queue is not None:
            _check_same("queue", queue.spec, spec)
            return queue
        if len(state.queues) >= state.bounds.max_queues:
            raise ResourceLimit(
                f"queue {spec.name!r} can't be made: there are {len(state.queues)} queues, "
                f"and max_queues is {state.bounds.max_queues}"
            )
        return self._make_queue(spec)

    def dead_queue(self, source: Queue) -> Queue:
        """The source's ``dead.<queue>``, made if need be; no limit stops it."""
        spec = dead_queue_spec(source)
        return self._state.queues.get(spec.name) or self._make_queue(spec)

    def _make_queue(self, spec: QueueSpec) -> Queue:
        return self.add_queue(self._state.append(Kind.DECLARE_QUEUE, spec), spec)

    def add_queue(self, queue_id: int, spec: QueueSpec) -> Queue:
        """The step that a DECLARE_QUEUE record stands for."""
        state = self._state
        queue = Queue(queue_id, spec)
        state.queues[spec.name] = queue
        state.queues_by_id[queue_id] = queue
        state.forget_routes()
        return queue

    def delete_queue(
        self, name: str, *, if_empty: bool, if_unused: bool
    ) -> tuple[int, list[Consumer]]:
        """Messages lost with it, and the consumers that it had."""
        queue = self._state.queue(name)
        if if_empty and queue.messages:
            raise PreconditionFailed(f"queue {name!r} holds {queue.messages} messages")
        if if_unused and len(queue.turn):
            raise PreconditionFailed(f"queue {name!r} has {len(queue.turn)} consumers")
        lost, consumers = queue.messages, list(queue.turn)
        self._state.append(Kind.DELETE_QUEUE, queue.id)
        self.remove_queue(queue)
        return lost, consumers

    def remove_queue(self, queue: Queue) -> None:
        """The step that a DELETE_QUEUE record stands for."""
        state = self._state
        for consumer in queue.turn:
            state.deliveries.remove_consumer(consumer)
        entries = queue.entries()
        for held in list(queue.held.values()):
            state.deliveries.take_back(held, held.bits)
        for entry in entries:
            state.remove(entry, entry.live)
        for exchange in state.exchanges.values():
            for binding in [each for each in exchange.bindings if each.queue == queue.spec.name]:
                self.remove_binding(exchange, binding)
        del state.queues[queue.spec.name]
        del state.queues_by_id[queue.id]
        state.busy.pop(queue, None)
        state.forget_routes()

    # --- exchanges ----------------------------------------------------------------------------

    def declare_exchange(self, spec: ExchangeSpec) -> None:
        """Make the exchange, or agree that it is there."""
        state = self._state
        if not spec.name:
            raise BadRequest("the default exchange, whose name is empty, is always there")
        _check_name("exchange", spec.name, limits.MAX_NAME)
        exchange = state.exchanges.get(spec.name)
        if exchange is not None:
            _check_same("exchange", exchange.spec, spec)
            return
        if len(state.exchanges) >= state.bounds.max_exchanges:
            raise ResourceLimit(
                f"exchange {spec.name!r} can't be made: there are {len(state.exchanges)} "
                f"exchanges, and max_exchanges is {state.bounds.max_exchanges}"
            )
        state.append(Kind.DECLARE_EXCHANGE, spec)
        self.add_exchange(spec)

    def add_exchange(self, spec: ExchangeSpec) -> None:
        """The step that a DECLARE_EXCHANGE record stands for."""
        self._state.exchanges[spec.name] = Exchange(spec)
        self._state.forget_routes()

    def delete_exchange(self, name: str, *, if_unused: bool) -> None:
        """Delete it with its bindings."""
        if not name:
            raise BadRequest("the default exchange, whose name is empty, can't be deleted")
        exchange = self._state.exchange(name)
        if if_unused and exchange.bindings:
            raise PreconditionFailed(f"exchange {name!r} has {len(exchange.bindings)} bindings")
        self._state.append(Kind.DELETE_EXCHANGE, name)
        self.remove_exchange(exchange)

    def remove_exchange(self, exchange: Exchange) -> None:
        """The step that a DELETE_EXCHANGE record stands for."""
        self._state.bindings -= len(exchange.bindings)
        del self._state.exchanges[exchange.spec.name]
        self._state.forget_routes()

    # --- bindings -----------------------------------------------------------------------------

    def bind(self, binding: Binding) -> None:
        """Add a binding; no error if it is there."""
        state = self._state
        exchange = self._bindable(binding)
        state.queue(binding.queue)
        if binding in exchange.bindings:
            return
        if state.bindings >= state.bounds.max_bindings:
            raise ResourceLimit(
                f"queue {binding.queue!r} can't be bound to {binding.exchange!r}: there are "
                f"{state.bindings} bindings, and max_bindings is {state.bounds.max_bindings}"
            )
        state.append(Kind.BIND, binding)
        self.add_binding(exchange, binding)

    def add_binding(self, exchange: Exchange, binding: Binding) -> None:
        """The step that a BIND record stands for."""
        exchange.bind(binding)
        self._state.bindings += 1
        self._state.forget_routes()

    def unbind(self, binding: Binding) -> None:
        """Remove a binding; `NotFound` if there is none."""
        exchange = self._bindable(binding)
        if binding not in exchange.bindings:
            raise NotFound(
                f"queue {binding.queue!r} is not bound to exchange {binding.exchange!r} "
                f"with the routing key {binding.routing_key!r}"
            )
        self._state.append(Kind.UNBIND, binding)
        self.remove_binding(exchange, binding)

    def remove_binding(self, exchange: Exchange, binding: Binding) -> None:
        """The step that an UNBIND record stands for."""
        exchange.unbind(binding)
        self._state.bindings -= 1
        self._state.forget_routes()

    def _bindable(self, binding: Binding) -> Exchange:
        if not binding.exchange:
            raise BadRequest(
                "the default exchange has no bindings: its routing key is the queue's name"
            )
        _check_text("routing key", binding.routing_key, limits.MAX_NAME)
        return self._state.exchange(binding.exchange)

    # --- the whole ----------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """All of it, for the beginning of a segment."""
        state = self._state
        return Snapshot(
            state.fingerprint_key,
            [(queue.id, queue.spec) for queue in state.queues.values()],
            [exchange.spec for exchange in state.exchanges.values()],
            [binding for exchange in state.exchanges.values() for binding in exchange.bindings],
        )


def dead_queue_spec(source: Queue) -> QueueSpec:
    """What the source's dead-letter queue is: without limits of its own, so never full."""
    return QueueSpec(name=DEAD_PREFIX + source.spec.name, owner=source.spec.owner)


def _check_queue(spec: QueueSpec) -> None:
    _check_name("queue", spec.name, _MAX_QUEUE_NAME)
    for member, least, most in _BOUNDS:
        value = getattr(spec, member)
        if not least <= value <= most:
            raise BadRequest(
                f"queue {spec.name!r} can't have {member} {value}: {least} to {most} is allowed"
            )
    for member in ("dead_letter_exchange", "dead_letter_key"):
        _check_text(member, getattr(spec, member) or "", limits.MAX_NAME)


def _check_name(what: str, name: str, most: int) -> None:
    if not name:
        raise BadRequest(f"a name for the {what} is missing")
    _check_text(f"{what} name", name, most)


def _check_text(what: str, text: str, most: int) -> None:
    if len(text.encode(errors="replace")) > most:
        raise BadRequest(f"the {what} {text[:40]!r}… has over {most} bytes")
    # Names are shown on terminals: a control character could rewrite what an operator sees.
    if _CONTROL.search(text) or not text.isprintable():
        raise BadRequest(f"the {what} {text!r} has characters that can't be printed")


def _check_same(what: str, old: QueueSpec | ExchangeSpec, new: QueueSpec | ExchangeSpec) -> None:
    different = [
        f"{member} {_spell(getattr(old, member))}, not {_spell(getattr(new, member))}"
        for member in old.__struct_fields__
        if member != "owner" and getattr(old, member) != getattr(new, member)
    ]
    if different:
        raise PreconditionFailed(f"{what} {old.name!r} exists with {', '.join(different)}")


def _spell(value: object) -> str:
    return repr(value.value if isinstance(value, Enum) else value)
