"""A time budget for each turn of the reactor, shared by work that comes in small steps.

A reactor serves its connections in turns, and one that works for long in a turn holds up all
others. Where the work cannot be bounded in bytes, as for TLS records that are all overhead, it is
bounded in time: what does not fit into a turn waits for the next, in which every connection that
is ready is served, too.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

BUDGET: Final = 0.002
"""Seconds of work in one turn, exceeded by one step at most. With what else a turn does, a client
that does no such work waits well below 10 ms."""


class Worker(Protocol):
    """Something that works in steps of less than a millisecond."""

    def step(self) -> bool:
        """Do one step, and return whether there is more to do. It must not raise."""


class Turns:
    """Shares the time budget of each turn among workers, in order of their arrival.

    Within the budget a worker works at once. When the budget is used up, those that are not done
    do one step each in rotation, in the turns that follow.
    """

    def __init__(self) -> None:
        self._left = BUDGET
        self._waiting: deque[Worker] = deque()
        self._scheduled = False

    def begin(self, worker: Worker, clock: IReactorTime) -> None:
        """Have ``worker`` do all of its steps, now or later.

        :param worker: one that has no steps to do from an earlier call.
        :param clock: measures the time, and begins later turns (``callLater(0)``).
        """
        more = True
        if not self._waiting:
            began = clock.seconds()
            while more and self._left > 0:
                more = worker.step()
                now = clock.seconds()
                self._left -= now - began
                began = now
        if more:
            self._waiting.append(worker)
        # Not for each piece of work: to begin a turn costs a tenth of what a small one does.
        if more or self._left < BUDGET / 2:
            self._schedule(clock)

    def _run(self, clock: IReactorTime) -> None:
        """Work in a new turn."""
        self._scheduled = False
        self._left = BUDGET
        began = clock.seconds()
        try:
            while self._waiting and self._left > 0:
                worker = self._waiting.popleft()
                if worker.step():
                    self._waiting.append(worker)
                now = clock.seconds()
                self._left -= now - began
                began = now
        finally:  # an exception (MemoryError) must not keep the others waiting for ever
            if self._waiting:
                self._schedule(clock)

    def _schedule(self, clock: IReactorTime) -> None:
        if not self._scheduled:
            self._scheduled = True
            clock.callLater(0, self._run, clock)
