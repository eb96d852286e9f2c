"""Pace messages: each is sent at its scheduled time, whether or not replies come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import ceil, inf, sqrt
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
