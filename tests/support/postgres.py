"""The PostgreSQL that tests start for themselves: the benchmark's own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bench.postgres import PASSWORD, USER, Postgres, binaries

__all__ = ["PASSWORD", "USER", "Postgres", "required_binaries"]


def required_binaries() -> Path:
    """Where PostgreSQL is; without it the test is skipped, or fails where none may be skipped."""
    found = binaries()
    if found is None:
        why = "PostgreSQL is not installed (on Debian: apt install postgresql)"
        if os.environ.get("CI") == "true":
            pytest.fail(why)
        pytest.skip(why)
    return found
