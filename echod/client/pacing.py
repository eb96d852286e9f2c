"""When messages are to leave: at times that no reply, and no lack of one, changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import inf
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorTime

TURN: Final = 0.001
"""Seconds after which, where more moments are due than can be acted for, others have their turn."""


class Schedule:
    """So many moments, each the same time after the one before.

    :param start: seconds; the first.
    :param interval: seconds between two.
    :param count: how many there are; by default without end.
    :ivar passed: how many of them have passed.
    """

    def __init__(self, start: float, interval: float, count: float = inf) -> None:
        self._start, self._interval, self._count = start, interval, count
        self.passed = 0

    @property
    def next(self) -> float | None:
        """Seconds; the first moment that has not passed, or ``None`` where there is none."""
        if self.passed >= self._count:
            return None
        # Multiplied, since a sum of so many intervals would drift.
        return self._start + self.passed * self._interval

    def due(self, now: float) -> Iterator[float]:
        """Yield the moments that have come, each once."""
        while (moment := self.next) is not None and moment <= now:
            self.passed += 1
            yield moment


class Pacer:
    """Calls ``act`` with each moment of ``schedule``, when it has come.

    :ivar done: fires with ``None`` when there are no more, or after :meth:`stop`.
    """

    def __init__(
        self, clock: IReactorTime, schedule: Schedule, act: Callable[[float], None]
    ) -> None:
        self._clock, self._schedule, self._act = clock, schedule, act
        self._call: IDelayedCall | None = None
        self._stopped = False
        self.done: Deferred[None] = Deferred()

    def run(self) -> None:
        """Act for those that are due, and wait for the next."""
        self._call = None
        now = self._clock.seconds()
        for moment in self._schedule.due(now):
            self._act(moment)
            if self._stopped:
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
        """Act no more."""
        if not self._stopped:
            self._stopped = True
            if self._call is not None:
                self._call.cancel()
            self.done.callback(None)
