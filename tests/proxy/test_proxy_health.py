"""Passive health, against a model that keeps nothing but what happened."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ciphermq.proxy.health import Health

FIRST, LONGEST, TRIAL = 1.0, 60.0, 15.0


class HealthAgainstModel(RuleBasedStateMachine):
    """The model replays the whole story of one backend at every look."""

    def __init__(self) -> None:
        super().__init__()
        self.health = Health(FIRST, LONGEST, TRIAL)
        self.now = 0.0
        self.story: list[tuple[float, str]] = []

    @rule(seconds=st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0, 14.0, 15.0, 61.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def fails(self) -> None:
        self.health.failed("a", self.now, "refused")
        self.story.append((self.now, "failed"))

    @rule()
    def connects(self) -> None:
        self.health.connected("a")
        self.story.append((self.now, "connected"))

    @rule()
    def is_tried(self) -> None:
        self.health.trial("a", self.now)
        self.story.append((self.now, "trial"))

    @rule()
    def becomes_another(self) -> None:
        self.health.forget("a")
        self.story.append((self.now, "connected"))

    @invariant()
    def agrees(self) -> None:
        rests: list[float] = []  # when each rest ended, since the last success
        trial_ends = 0.0
        for at, what in self.story:
            if what == "connected":
                rests, trial_ends = [], 0.0
            elif what == "failed" and (not rests or at >= rests[-1]):
                rests.append(at + min(LONGEST, FIRST * 2 ** len(rests)))
                trial_ends = 0.0
            elif what == "trial" and rests and at >= rests[-1]:
                trial_ends = at + TRIAL
        if not rests:
            expected = "healthy"
        elif self.now < rests[-1]:
            expected = "resting"
        else:
            expected = "on trial" if self.now < trial_ends else "due"
        standing = self.health.standing("a", self.now)
        assert self.health.state("a", self.now) == standing.state == expected
        assert standing.failures == len(rests)
        assert standing.rest == max(0.0, rests[-1] - self.now if rests else 0.0)
        assert self.health.state("another", self.now) == "healthy"


TestHealth = HealthAgainstModel.TestCase
TestHealth.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def test_a_rest_doubles_up_to_a_minute() -> None:
    health, now, rests = Health(FIRST, LONGEST, TRIAL), 0.0, []
    for _ in range(9):
        health.failed("a", now)
        rests.append(health.standing("a", now).rest)
        now += rests[-1]
    assert rests == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_a_thousand_failures_do_not_overflow() -> None:
    health, now = Health(FIRST, LONGEST, TRIAL), 0.0
    for _ in range(2000):
        now += LONGEST
        health.failed("a", now)
    assert health.standing("a", now).rest == LONGEST
