"""The engine is crashed on the same simulated disk as the journal: it lies among its tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "journal"))
