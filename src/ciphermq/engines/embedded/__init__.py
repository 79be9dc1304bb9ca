"""The default engine: this process's broker over this directory's journal."""

from __future__ import annotations

from ciphermq.engines.embedded.engine import EmbeddedEngine, EmbeddedOptions
from ciphermq.engines.embedded.store import StoreOptions

__all__ = ["EmbeddedEngine", "EmbeddedOptions", "StoreOptions"]
