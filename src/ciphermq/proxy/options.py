"""How a proxy is started."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ciphermq import limits
from ciphermq.proxy.change import Change


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line says."""

    control: Path
    config_file: Path | None = None
    workers: int = 1
    changes: tuple[Change, ...] = ()
    """Made to the configuration before anything starts."""
    take_over: bool = False
    console_level: int = 0
    file_level: int = 3
    log_as_json: bool = False
    period: float = limits.PROXY_STATISTICS_PERIOD
    handover_drain: float = limits.PROXY_HANDOVER_DRAIN
