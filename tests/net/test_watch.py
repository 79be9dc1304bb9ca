"""The clocks of a link, without a clock."""

from __future__ import annotations

import pytest

from ciphermq.errors import ConnectionLost, TransportError, WaitTimeout
from ciphermq.net.options import LinkOptions
from ciphermq.net.watch import Watch

OPTIONS = LinkOptions(handshake_timeout=8, frame_timeout=16, heartbeat=4, write_stall_timeout=20)


def check(
    watch: Watch, until: float, *, start: float = 0, **state: object
) -> TransportError | None:
    """Tick every second until something is wrong."""
    seen = {"greeted": True, "taken": 0, "untaken": 0} | state
    now = start
    while now < until:
        now += 1
        error = watch.check(now, **seen)  # type: ignore[arg-type]
        if error is not None:
            return error
    return None


@pytest.fixture
def watch() -> Watch:
    return Watch(OPTIONS, "the client at 1.2.3.4:5", 0.0)


def test_a_peer_that_never_greets(watch: Watch) -> None:
    assert check(watch, 8, greeted=False) is None
    error = check(watch, 10, start=8, greeted=False)
    assert isinstance(error, WaitTimeout)
    assert "the client at 1.2.3.4:5 sent no HELLO within 8 s" in str(error)


def test_a_silent_peer_is_asked_and_then_given_up(watch: Watch) -> None:
    asked = [now for now in range(1, 13) if watch.ping_due(now)]
    assert asked == [4, 8, 12]
    assert check(watch, 12) is None
    error = check(watch, 14, start=12)
    assert isinstance(error, ConnectionLost)
    assert "silent for 12 s" in str(error)


def test_any_byte_is_a_sign_of_life(watch: Watch) -> None:
    for now in range(1, 100):
        watch.heard(now, frames=True, mid_frame=False)
        assert watch.check(now, greeted=True, taken=0, untaken=0) is None
        assert not watch.ping_due(now)


def test_a_frame_that_drips_in_is_cut_off(watch: Watch) -> None:
    errors = []
    for now in range(1, 20):
        watch.heard(now, frames=False, mid_frame=True)
        errors.append(watch.check(now, greeted=True, taken=0, untaken=0))
    late = [now for now, error in enumerate(errors, 1) if error is not None]
    assert late[0] == 18  # begun at 1, ended by 17
    assert "began a frame and did not end it within 16 s" in str(errors[17])


def test_every_frame_has_its_own_time(watch: Watch) -> None:
    for now in range(1, 100):
        watch.heard(now, frames=now % 15 == 0, mid_frame=True)
        assert watch.check(now, greeted=True, taken=0, untaken=0) is None


def test_a_peer_that_takes_nothing(watch: Watch) -> None:
    errors = []
    for now in range(1, 24):
        watch.heard(now, frames=True, mid_frame=False)  # it talks, but doesn't read
        errors.append(watch.check(now, greeted=True, taken=100, untaken=5000))
    assert next(now for now, error in enumerate(errors, 1) if error is not None) == 22
    assert "took none of the 5000 bytes that wait for it in 20 s" in str(errors[21])


def test_a_slow_reader_is_no_dead_one(watch: Watch) -> None:
    for now in range(1, 100):
        watch.heard(now, frames=True, mid_frame=False)
        assert watch.check(now, greeted=True, taken=now // 10, untaken=10**6) is None


def test_nothing_to_take_is_no_stall(watch: Watch) -> None:
    for now in range(1, 100):
        watch.heard(now, frames=True, mid_frame=False)
        assert watch.check(now, greeted=True, taken=7, untaken=0) is None


def test_who_does_not_read_blames_nobody(watch: Watch) -> None:
    watch.heard(1, frames=False, mid_frame=True)
    watch.reading(1, on=False)
    assert check(watch, 200) is None
    assert watch.ping_due(200)  # it still says that it lives
    watch.reading(200, on=True)
    assert check(watch, 212, start=200) is None
    assert check(watch, 214, start=212) is not None


def test_a_loop_that_was_blocked_blames_no_peer(watch: Watch) -> None:
    assert check(watch, 5) is None
    # An hour passes without a tick: what the peer sent meanwhile was not read.
    assert watch.check(3600, greeted=True, taken=0, untaken=0) is None
    error = check(watch, 3620, start=3600)
    assert error is not None
    assert "silent" in str(error)


def test_the_tick_is_often_enough_and_not_more() -> None:
    assert OPTIONS.tick == 1
    assert 1 <= LinkOptions().tick <= 5
