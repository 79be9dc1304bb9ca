"""The handshake's table: every state, every method, every cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ciphermq.errors import AmqpFault, NotAmqp
from ciphermq.wire.amqp import closing
from ciphermq.wire.amqp.handshake import FIRST, TABLE, Handshake, Method, Role, State
from support.sessions import (
    HEADER,
    OPEN,
    OPEN_OK,
    START_OK,
    TUNE_OK,
    frame,
    method,
    start_ok,
    text,
)

AS_BROKER = [HEADER, START_OK, TUNE_OK, OPEN]
AS_CLIENT = [closing.start("PLAIN"), closing.TUNE, OPEN_OK]
WAITING = [state for state in State if state not in (State.DONE, State.CLOSED)]


def steps(role: Role, parts: list[bytes]) -> tuple[list[Method], Handshake]:
    handshake, taken = Handshake(role), []
    for part in parts:
        handshake.receive(part)
        while (step := handshake.next_step()) is not None:
            taken.append(step.method)
    return taken, handshake


def in_state(state: State) -> Handshake:
    """A handshake that has come so far."""
    if state is State.CLOSING:
        _, handshake = steps(Role.BROKER, AS_BROKER[:2])
        handshake.close()
        return handshake
    for role, said in ((Role.BROKER, AS_BROKER), (Role.CLIENT, AS_CLIENT)):
        for many in range(len(said) + 1):
            _, handshake = steps(role, said[:many])
            if handshake.state is state:
                return handshake
    raise AssertionError(state)


def spoken(which: Method) -> bytes:
    return HEADER if which is Method.PROTOCOL_HEADER else method(which.value, bytes(16))


@given(sizes=st.lists(st.integers(1, 60), max_size=20), extra=st.binary(max_size=20))
def test_any_cut_gives_the_same_steps_as_a_broker(sizes: list[int], extra: bytes) -> None:
    """The header and StartOk in one write, all in one, or byte by byte."""
    behind = frame(1, 1, extra)
    data = b"".join(AS_BROKER) + behind
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    taken, handshake = steps(Role.BROKER, [*parts, data[at:]])
    assert taken == [Method.PROTOCOL_HEADER, Method.START_OK, Method.TUNE_OK, Method.OPEN]
    assert handshake.state is State.HELD
    assert handshake.rest() == behind


@given(sizes=st.lists(st.integers(1, 60), max_size=20), extra=st.binary(max_size=20))
def test_any_cut_gives_the_same_steps_as_a_client(sizes: list[int], extra: bytes) -> None:
    data = b"".join(AS_CLIENT) + extra
    parts, at = [], 0
    for size in sizes:
        parts.append(data[at : at + size])
        at += size
    taken, handshake = steps(Role.CLIENT, [*parts, data[at:]])
    assert taken == [Method.START, Method.TUNE, Method.OPEN_OK]
    assert handshake.state is State.DONE
    assert handshake.rest() == extra


@pytest.mark.parametrize(("state", "which"), list(itertools.product(WAITING, Method)))
def test_every_state_with_every_method(state: State, which: Method) -> None:
    """What the table has happens; all else is refused with a code and a sentence."""
    handshake = in_state(state)
    handshake.receive(spoken(which))
    rule = TABLE.get((state, which))
    if rule is not None:
        step = handshake.next_step()
        assert step is not None
        assert step.method is which
        assert handshake.state is rule.next
    elif state is State.HEADER:
        with pytest.raises(NotAmqp):
            handshake.next_step()
    elif which is Method.PROTOCOL_HEADER:
        with pytest.raises(AmqpFault, match="65 is no frame type") as caught:
            handshake.next_step()
        assert caught.value.reply == 501
    elif state is State.CLOSING:
        assert handshake.next_step() is None
        assert handshake.state is state
    else:
        with pytest.raises(AmqpFault) as caught:
            handshake.next_step()
        wanted = closing.NOT_IMPLEMENTED if which is Method.SECURE else closing.COMMAND_INVALID
        assert caught.value.reply == wanted
        if which is not Method.SECURE:
            assert str(caught.value) == f"COMMAND_INVALID - {which.name} instead of {state.value}"


def test_every_state_is_reached_and_left() -> None:
    assert {state for state, _ in TABLE} == set(WAITING)
    reached = {rule.next for rule in TABLE.values()} | set(FIRST.values()) | {State.CLOSING}
    assert reached == set(State)


@pytest.mark.parametrize("state", [state for state in WAITING if state is not State.HEADER])
def test_heartbeats_change_nothing(state: State) -> None:
    handshake = in_state(state)
    handshake.receive(closing.HEARTBEAT_FRAME * 3)
    assert handshake.next_step() is None
    assert handshake.state is state
    assert handshake.waiting == 0


@pytest.mark.parametrize(
    ("said", "reply", "sentence"),
    [
        (frame(3, 0, b"body"), 505, "UNEXPECTED_FRAME - a content frame instead of StartOk"),
        (method(11, channel=3), 504, "CHANNEL_ERROR - channel 3 is used before"),
        (method(10, of=20), 503, "COMMAND_INVALID - method 20.10 instead of StartOk"),
        (frame(1, 0, b"\0"), 503, "COMMAND_INVALID - method 0.0 instead of StartOk"),
        (frame(9, 0, b""), 501, "FRAME_ERROR - 9 is no frame type"),
        (b"\1\0\0\0\2\0\1\0", 501, "FRAME_ERROR - a frame of 131073 bytes"),
        (START_OK[:-1] + b"\0", 501, "FRAME_ERROR - a frame ends with byte 0"),
    ],
)
def test_hostile_frames_have_codes_and_sentences(said: bytes, reply: int, sentence: str) -> None:
    handshake = in_state(State.START_OK)
    handshake.receive(said)
    with pytest.raises(AmqpFault, match=sentence) as caught:
        handshake.next_step()
    assert caught.value.reply == reply


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (b"AMQP\x03\x01\x00\x00", "AMQP 3.1.0.0, not 0.9.1"),
        (b"AMQP\x01\x01\x00\x09", "AMQP 1.1.0.9, not 0.9.1"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01", "TLS, on a port that has none"),
        (b"GET / HTTP/1.1", "something that is not AMQP"),
        (b"\0", "something that is not AMQP"),
    ],
)
def test_what_is_not_amqp_is_said_so(said: bytes, sentence: str) -> None:
    handshake = Handshake(Role.BROKER)
    handshake.receive(said)
    with pytest.raises(NotAmqp, match=sentence):
        handshake.next_step()


def test_frames_for_the_broker_wait_while_the_client_is_held() -> None:
    handshake = in_state(State.HELD)
    pipelined = method(10, b"\0", channel=1, of=20)
    handshake.receive(closing.HEARTBEAT_FRAME + pipelined[:5])
    assert handshake.next_step() is None
    handshake.receive(pipelined[5:])
    assert handshake.next_step() is None
    assert handshake.rest() == pipelined


def test_a_long_token_among_the_credentials_is_taken() -> None:
    """A StartOk may be as long as the greatest frame: JSON web tokens are."""
    taken, _ = steps(
        Role.BROKER, [HEADER, start_ok(text(b"x", bytes(60_000)), response=bytes(60_000))]
    )
    assert taken == [Method.PROTOCOL_HEADER, Method.START_OK]


def test_after_close_only_the_answer_counts() -> None:
    handshake = in_state(State.CLOSING)
    handshake.receive(frame(3, 1, b"late") + TUNE_OK + method(51))
    step = handshake.next_step()
    assert step is not None
    assert step.method is Method.CLOSE_OK
    assert handshake.state is State.CLOSED
    handshake.receive(method(51))
    assert handshake.next_step() is None
