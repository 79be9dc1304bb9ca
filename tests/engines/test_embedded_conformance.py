from __future__ import annotations

from pathlib import Path

import pytest
from conformance import EngineConformance, Make

from ciphermq import limits
from ciphermq.engines.embedded import EmbeddedEngine, EmbeddedOptions
from ciphermq.engines.embedded.store import StoreOptions


class TestEmbedded(EngineConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        # A reserve is real disk space, and pytest keeps what tests leave behind.
        options = EmbeddedOptions(store=StoreOptions(reserve=limits.MIB))
        return lambda: EmbeddedEngine(tmp_path / "journal", options=options)
