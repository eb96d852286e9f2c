"""Plan what a load sends, and send each message at its time, whether or not replies come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf, sqrt
from statistics import fmean
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

TURN: Final = 0.001
"""Seconds that the calls for overdue moments may take before the reactor handles other events."""


class Schedule:
    """Moments at a fixed interval.

    :param start: the first moment, in seconds.
    :param interval: seconds between two moments.
    :param count: the number of moments; by default without limit.
    :ivar passed: the number of moments that have passed.
    """

    def __init__(self, start: float, interval: float, count: float = inf) -> None:
        self._start, self._interval, self._count = start, interval, count
        self.passed = 0

    @property
    def next(self) -> float | None:
        """The first moment that has not passed, in seconds, or ``None`` after the last."""
        if self.passed >= self._count:
            return None
        # A product: the rounding errors of a sum would add up to a drift.
        return self._start + self.passed * self._interval

    def due(self, now: float) -> Iterator[float]:
        """Yield the moments up to ``now``, each once."""
        while (moment := self.next) is not None and moment <= now:
            self.passed += 1
            yield moment


class Ramp(Schedule):
    """Moments at a rate that changes evenly.

    :param start: the first moment, in seconds.
    :param first: moments a second at the start.
    :param last: moments a second at the end.
    :param seconds: from the start to the end.
    """

    def __init__(self, start: float, first: float, last: float, seconds: float) -> None:
        super().__init__(start, 1 / first, moments((first + last) / 2, seconds))
        self._first = first
        self._growth = 2 * (last - first) / seconds

    @property
    def next(self) -> float | None:
        """The first moment that has not passed, in seconds, or ``None`` after the last."""
        if self.passed >= self._count:
            return None
        # The integral of the rate is the number of moments that have passed. This root of the
        # quadratic equation is exact for a constant rate, too.
        rate = sqrt(self._first**2 + self._growth * self.passed)
        return self._start + 2 * self.passed / (self._first + rate)


def moments(rate: float, seconds: float) -> float:
    """Return how many moments at ``rate`` a second there are in ``seconds``, from the first."""
    return ceil(round(rate * seconds, 6)) if seconds < inf else inf  # 0.1 * 3 is above 0.3


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


class Pacer:
    """Calls ``act`` with each moment of ``schedule`` when it is due.

    :ivar done: fires with ``None`` after the last moment, or after :meth:`stop`.
    """

    def __init__(
        self, clock: IReactorTime, schedule: Schedule, act: Callable[[float], None]
    ) -> None:
        self._clock, self._schedule, self._act = clock, schedule, act
        self._call: IDelayedCall | None = None
        self.done: Deferred[None] = Deferred()

    def run(self) -> None:
        """Call ``act`` for the moments that are due, and wait for the next one."""
        self._call = None
        now = self._clock.seconds()
        for moment in self._schedule.due(now):
            self._act(moment)
            if self.done.called:
                return
            if self._clock.seconds() - now > TURN:
                break
        following = self._schedule.next
        if following is None:
            self.stop()
        else:
            wait = max(0.0, following - self._clock.seconds())
            self._call = self._clock.callLater(wait, self.run)

    def stop(self) -> None:
        """Call ``act`` no more."""
        if not self.done.called:
            if self._call is not None:
                self._call.cancel()
            self.done.callback(None)
