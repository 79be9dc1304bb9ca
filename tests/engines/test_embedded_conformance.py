from __future__ import annotations

from pathlib import Path

import pytest
from conformance import EngineConformance, Make

from ciphermq.engines.embedded import EmbeddedEngine


class TestEmbedded(EngineConformance):
    @pytest.fixture
    def make(self, tmp_path: Path) -> Make:
        return lambda: EmbeddedEngine(tmp_path / "journal")
