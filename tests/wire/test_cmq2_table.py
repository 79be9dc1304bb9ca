"""Every role in every state with every frame: what may be sent, what is taken, where it leads."""

from __future__ import annotations

import pytest

from ciphermq.errors import FrameTooLarge, LocalProtocolError, RemoteProtocolError
from ciphermq.wire.cmq2.codec import HEAD, encode
from ciphermq.wire.cmq2.frames import (
    AckFrame,
    Close,
    ConfirmFrame,
    ConfirmKind,
    FrameType,
    Hello,
    PublishFrame,
)
from ciphermq.wire.cmq2.machine import Cmq2Machine
from ciphermq.wire.cmq2.table import LENGTHS, RULES, Role, State
from support.frames import example, greeted, transfer

ONLY_CLIENTS = {
    *("PUBLISH", "ACK", "NACK", "DECLARE", "DELETE", "BIND", "UNBIND", "CONSUME", "CANCEL"),
    *("CREDIT", "FETCH", "PURGE", "PEEK", "REDRIVE", "LIST", "STATUS", "TRACE"),
    *("KEY_PUT", "KEY_GET", "CRL_GET"),
}
ONLY_SERVERS = {"ERROR", "CONFIRM", "RETURN", "DELIVER", "RECONNECT", "CANCELLED"}
BOTH = {"OK", "PING", "CLOSE"}

EXPECTED: dict[tuple[Role, State], set[str]] = {
    (Role.CLIENT, State.WAITING): set(),
    (Role.CLIENT, State.NEW): {"HELLO", "CLOSE"},
    (Role.CLIENT, State.OPEN): ONLY_CLIENTS | BOTH,
    (Role.CLIENT, State.CLOSING): {"ACK", "NACK", "OK", "CLOSE"},
    (Role.CLIENT, State.CLOSED): set(),
    (Role.SERVER, State.WAITING): {"ERROR", "CLOSE"},
    (Role.SERVER, State.NEW): {"HELLO", "ERROR", "CLOSE"},
    (Role.SERVER, State.OPEN): ONLY_SERVERS | BOTH,
    (Role.SERVER, State.CLOSING): {"CONFIRM", "RETURN", "OK", "ERROR", "CLOSE"},
    (Role.SERVER, State.CLOSED): set(),
}
CELLS = [
    (role, state, kind)
    for role, state in EXPECTED
    for kind in FrameType
    if (role, state) != (Role.CLIENT, State.WAITING)  # a client never waits
]


def in_state(role: Role, state: State) -> tuple[Cmq2Machine, Cmq2Machine]:
    """A machine of `role` whose own direction is in `state`, and its peer."""
    ours, theirs = Cmq2Machine(role), Cmq2Machine(role.peer)
    if state is State.WAITING:
        return ours, theirs
    if state is State.NEW:
        if role is Role.SERVER:
            transfer(theirs, ours, Hello())
        return ours, theirs
    client, server = greeted()
    ours, theirs = (client, server) if role is Role.CLIENT else (server, client)
    # Something to answer, so that CONFIRM and RETURN have a number.
    transfer(client, server, PublishFrame(1, False, b""))
    if role is Role.CLIENT:
        transfer(server, client, ConfirmFrame(ConfirmKind.PUBLISH, 1))
    if state is State.CLOSING:
        transfer(theirs, ours, Close())
    elif state is State.CLOSED:
        transfer(ours, theirs, Close())
    assert ours.ours is state
    return ours, theirs


def numbered(kind: FrameType) -> object:
    """An example whose number is the next after `in_state`."""
    return PublishFrame(2, False, b"") if kind is FrameType.PUBLISH else example(kind)


@pytest.mark.parametrize(("role", "state", "kind"), CELLS)
def test_what_may_be_sent(role: Role, state: State, kind: FrameType) -> None:
    ours, _ = in_state(role, state)
    frame = numbered(kind)
    if kind.name in EXPECTED[role, state]:
        ours.send(frame)
    else:
        with pytest.raises(LocalProtocolError, match=f"{role.value}.*{state.value}.*{kind.name}"):
            ours.send(frame)


@pytest.mark.parametrize(("role", "state", "kind"), CELLS)
def test_what_is_taken(role: Role, state: State, kind: FrameType) -> None:
    """From the peer's side. It can't know that its CLOSE has arrived, so CLOSING is as OPEN."""
    if state is State.CLOSING:
        return
    _, peer = in_state(role, state)
    frame = numbered(kind)
    peer.receive_data(b"".join(encode(frame)))
    if kind.name in EXPECTED[role, state]:
        assert peer.events() == [frame]
        assert peer.fault is None
    else:
        assert peer.events() == []
        assert isinstance(peer.fault, RemoteProtocolError)
        assert kind.name in str(peer.fault)


def test_a_direction_that_has_closed_is_closed_for_both() -> None:
    client, server = greeted()
    transfer(client, server, Close())
    assert (client.ours, client.theirs) == (State.CLOSED, State.OPEN)
    assert (server.ours, server.theirs) == (State.CLOSING, State.CLOSED)
    transfer(server, client, Close())
    assert (client.ours, client.theirs) == (State.CLOSED, State.CLOSED)
    assert (server.ours, server.theirs) == (State.CLOSED, State.CLOSED)


def test_frames_may_cross_with_a_close() -> None:
    client, server = greeted()
    late = b"".join(client.send(PublishFrame(1, False, b"late")))
    transfer(server, client, Close())
    server.receive_data(late)
    assert server.fault is None
    assert server.events() == [PublishFrame(1, False, b"late")]
    # What is still owed may be settled, in both directions.
    assert transfer(client, server, AckFrame(1, 1, b"")) == [AckFrame(1, 1, b"")]


def test_a_client_may_leave_before_the_servers_hello() -> None:
    client, server = Cmq2Machine(Role.CLIENT), Cmq2Machine(Role.SERVER)
    transfer(client, server, Hello())
    transfer(client, server, Close())
    assert server.ours is State.CLOSING
    with pytest.raises(LocalProtocolError):
        server.send(Hello())
    server.send(Close())


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("kind", list(FrameType))
def test_a_frame_is_refused_by_its_length_before_it_is_read(role: Role, kind: FrameType) -> None:
    state = State.NEW if kind is FrameType.HELLO else State.OPEN
    most = LENGTHS[role, state].get(kind)
    if most is None:
        return
    _, peer = in_state(role, state)
    peer.receive_data(HEAD.pack(most, kind))
    assert peer.fault is None
    _, peer = in_state(role, state)
    peer.receive_data(HEAD.pack(most + 1, kind))
    assert isinstance(peer.fault, FrameTooLarge)
    assert all(said in str(peer.fault) for said in (kind.name, str(most), str(most + 1)))


def test_every_frame_can_be_sent_by_somebody() -> None:
    assert [kind for kind, rule in RULES.items() if not (rule.client or rule.server)] == []
