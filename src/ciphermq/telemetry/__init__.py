"""Logging and counters, usable from every room above.

A process that wants the logs written calls `ciphermq.telemetry.logs.start_logging`.
"""

from __future__ import annotations

from ciphermq.telemetry.counters import Counters
from ciphermq.telemetry.logger import Logger, get_logger

__all__ = ["Counters", "Logger", "get_logger"]
