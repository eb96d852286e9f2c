"""What ``load`` sends, and when."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from statistics import fmean

from echod.client.pacing import Ramp, Schedule, moments


@dataclass(frozen=True)
class Plan:
    """What a load sends. The names are those of the options.

    :ivar connections: connections to make, or sockets over UDP.
    :ivar duration: seconds for which messages are sent; infinity: until :meth:`Load.stop`.
    :ivar rate: messages a second in all; ``None`` for a closed loop.
    :ivar count: messages after which sending ends; ``None``: any number.
    :ivar warm_up: seconds for which messages are sent before, which do not count.
    :ivar start_at: the UNIX time at which sending begins; ``None``: when all are connected.
    :ivar per_connection: messages after which a connection is replaced; ``None``: never.
    :ivar ramp: the rates at the beginning and at the end, in place of a rate.
    """

    connections: int
    duration: float
    rate: float | None
    count: int | None = None
    warm_up: float = 0.0
    ramp: tuple[float, float] | None = None
    per_connection: int | None = None
    start_at: float | None = None

    @property
    def mean_rate(self) -> float | None:
        """Messages a second in all; ``None`` for a closed loop."""
        return fmean(self.ramp) if self.ramp else self.rate

    @property
    def seconds(self) -> float:
        """Seconds for which messages are sent, if sending is not stopped before."""
        rate = self.mean_rate
        return min(self.duration, (self.count or inf) / rate) if rate else self.duration

    def schedule(self, start: float) -> Schedule:
        """Return the moments of the messages of an open loop that begins at ``start``."""
        if self.ramp:
            return Ramp(start, *self.ramp, self.seconds)
        assert self.rate is not None
        return Schedule(start, 1 / self.rate, moments(self.rate, self.seconds))

    def warm_up_schedule(self, start: float) -> Schedule:
        """Return the moments of the warm-up, at the rate at which the run begins."""
        rate = self.ramp[0] if self.ramp else self.rate
        assert rate is not None
        return Schedule(start, 1 / rate)
