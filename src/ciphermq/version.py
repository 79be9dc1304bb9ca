"""The version, where every room can read it without importing the rooms above."""

from __future__ import annotations

from typing import Final

__version__: Final = "2.0.0.dev0"
"""As in ``pyproject.toml``."""

SOFTWARE: Final = f"ciphermq/{__version__}"
"""What both sides call themselves in HELLO."""
