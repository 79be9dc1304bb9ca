"""The rig's fixtures."""

from __future__ import annotations

from server_rig import deployment, pytest_asyncio_loop_factories, rig, start

__all__ = ["deployment", "pytest_asyncio_loop_factories", "rig", "start"]
