"""What every test shares: how hard hypothesis looks, and ports nobody else has.

`HYPOTHESIS_PROFILE=thorough make test` looks a hundred times as hard, with fresh randomness.
"""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from ciphermq.cli.processes import free_port as find_free_port

# The suite must give one answer for one tree, on a busy machine as on an idle one: the same
# examples every time, and no verdict from a clock.
settings.register_profile(
    "ci",
    max_examples=60,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile(
    "thorough",
    max_examples=6000,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


# Nor may it depend on what is set for somebody's own deployment.
for name in [each for each in os.environ if each.startswith("CIPHERMQ_")]:
    del os.environ[name]


@pytest.fixture
def free_port() -> int:
    """A loopback port that stays free for this test: a killed server can come back on it."""
    return find_free_port()
