"""What every test shares: how hard hypothesis looks, ports nobody else has, no writes to nobody.

`HYPOTHESIS_PROFILE=thorough make test` looks a hundred times as hard, with fresh randomness.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator

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


class _WritesToNobody(logging.Handler):
    """Counts what asyncio says, and forgets, of writes to a connection that is lost."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += record.getMessage().startswith("socket.send() raised exception")


@pytest.fixture(autouse=True)
def nobody_is_written_to() -> Iterator[None]:
    """Neither the program nor its tests may go on writing to a connection that is lost."""
    handler = _WritesToNobody()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    yield
    logger.removeHandler(handler)
    assert not handler.count, f"{handler.count} writes to a connection that was lost"
