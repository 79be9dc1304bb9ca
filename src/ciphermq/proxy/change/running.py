"""The proxy itself: its patience, what it tells of itself, and all of it at once."""

from __future__ import annotations

from typing import Literal

from msgspec.structs import replace

from ciphermq.proxy.change.parts import OneChange, with_member, without
from ciphermq.proxy.model import Configuration, Destination, Verbosity

LogSink = Literal["console", "file"]


class SetTimeout(OneChange, frozen=True):
    """How long one phase may take, in seconds; None: as long as it may by itself."""

    name: str
    seconds: float | None

    def apply(self, now: Configuration) -> Configuration:
        if self.seconds is None:
            return replace(now, timeouts=without(now.timeouts, self.name))
        return replace(now, timeouts=with_member(now.timeouts, self.name, self.seconds))


class SetStatsd(OneChange, frozen=True):
    """Where statistics are sent; None: nowhere."""

    destination: Destination | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, statsd=self.destination)


class SetPerSource(OneChange, frozen=True):
    """Whether statistics are also sent for every client's machine."""

    enabled: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, per_source=self.enabled)


class SetMetrics(OneChange, frozen=True):
    """Where the metrics page for Prometheus is served; None: nowhere."""

    destination: Destination | None

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, metrics=self.destination)


class SetHostnames(OneChange, frozen=True):
    """Whether clients are named by reverse DNS."""

    enabled: bool

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, hostnames=self.enabled)


class SetLog(OneChange, frozen=True):
    """How much is logged to one place: 0 fatal … 5 trace."""

    sink: LogSink
    level: Verbosity

    def apply(self, now: Configuration) -> Configuration:
        return replace(now, **{f"{self.sink}_level": self.level})


class ReplaceAll(OneChange, frozen=True):
    """Another configuration altogether (``CONFIG RELOAD``)."""

    rereads = True
    configuration: Configuration

    def apply(self, now: Configuration) -> Configuration:
        return self.configuration
