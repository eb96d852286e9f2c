"""Plan what a load sends, and send each message at its time, whether or not replies come."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil, inf, sqrt
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

TURN: Final = 0.001
"""Seconds that the calls for overdue moments may take before the reactor handles other events."""


class Schedule:
    """Moments at a fixed interval, or at a rate that changes evenly.

    :param start: the first moment, in seconds.
    :param interval: seconds between two moments, at the start.
    :param count: the number of moments; by default without limit.
    :param growth: change of the rate in one second: moments a second.
    :ivar passed: the number of moments that have passed.
    """

    def __init__(
        self, start: float, interval: float, count: float = inf, growth: float = 0.0
    ) -> None:
        self._start, self._interval, self._count = start, interval, count
        self._growth = growth
        self.passed = 0

    @property
    def next(self) -> float | None:
        """The first moment that has not passed, in seconds, or ``None`` after the last."""
        passed = self.passed
        if passed >= self._count:
            return None
        if not self._growth:
            # A product: the rounding errors of a sum would add up to a drift.
            return self._start + passed * self._interval
        # The integral of the rate is the number of moments that have passed. This root of the
        # quadratic equation also holds for little growth.
        first = 1 / self._interval
        return self._start + 2 * passed / (first + sqrt(first**2 + 2 * self._growth * passed))

    def due(self, now: float) -> Iterator[float]:
        """Yield the moments up to ``now``, each once."""
        while (moment := self.next) is not None and moment <= now:
            self.passed += 1
            yield moment


@dataclass(frozen=True)
class Workload:
    """What a load sends. The names are those of the options.

    :ivar connections: connections to make, or sockets over UDP.
    :ivar duration: seconds for which messages are sent; infinity: until :meth:`Load.stop`.
    :ivar rate: messages a second in all; ``None`` for a closed loop.
    :ivar count: messages after which sending ends; ``None``: any number.
    :ivar warm_up: seconds for which messages are sent first, and do not count.
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

    def mean_rate(self, seconds: float = inf) -> float | None:
        """Return the messages a second in the first ``seconds``; ``None`` for a closed loop."""
        if not self.ramp:
            return self.rate
        first, last = self.ramp
        return first + (last - first) * min(seconds / self.duration, 1.0) / 2

    @property
    def ends_by_count(self) -> bool:
        """Whether nothing but the number of messages ends a load."""
        return self.count is not None and self.duration == inf

    @property
    def seconds(self) -> float:
        """Seconds for which messages are sent, if sending is not stopped before."""
        rate = self.mean_rate()
        return min(self.duration, (self.count or inf) / rate) if rate else self.duration

    def schedule(self, start: float, is_warm_up: bool = False) -> Schedule:
        """Return the moments of an open loop that begins at ``start``.

        :param is_warm_up: return those of the warm-up: at the first rate, without end.
        """
        first, last = self.ramp or (self.rate, self.rate)
        assert first is not None
        assert last is not None
        if is_warm_up:
            return Schedule(start, 1 / first)
        seconds = self.seconds
        count = ceil(round((first + last) / 2 * seconds, 6)) if seconds < inf else inf
        return Schedule(start, 1 / first, count, (last - first) / seconds)


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
