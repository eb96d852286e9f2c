"""Fairness: a time budget for each turn of the reactor, shared by work that has small steps.

A reactor serves its connections in turns, and a connection that works for long in one turn delays
all others. Work that cannot be bounded in bytes, such as TLS records that are all overhead, is
bounded in time. Steps beyond the budget wait for the next turn, which serves every other
connection too.
"""

from __future__ import annotations

from collections import deque
from typing import Final, Protocol

from twisted.internet.interfaces import IReactorTime

TURN: Final = 0.0005
"""Seconds of work in one turn of the reactor, for each of its parts: all TLS connections, all
connections on the fast path, and each UDP port. The last step may exceed it. Including the other
work of a turn, a client on another connection waits well below 10 ms."""


class Worker(Protocol):
    """An object that works in steps of less than a millisecond."""

    def step(self) -> bool:
        """Do one step, and return whether more work is left. It must not raise."""


class Turns:
    """Share the time budget of each turn among workers.

    Within the budget, a worker does its steps at once. When the budget is used up, the remaining
    workers do one step each in rotation (round robin), in later turns.
    """

    def __init__(self) -> None:
        self._left = TURN
        self._waiting: deque[Worker] = deque()
        self._scheduled = False

    def begin(self, worker: Worker, clock: IReactorTime) -> None:
        """Let ``worker`` do all of its steps, now or in later turns.

        :param worker: a worker that has finished all steps of an earlier call.
        :param clock: measures the steps, and begins later turns (``callLater(0)``).
        """
        more = True
        if not self._waiting:
            while more and self._left > 0:
                more = self._step(worker, clock)
        if more:
            self._waiting.append(worker)
        # Do not schedule a turn after every call: a small piece of work would take a tenth longer.
        if more or self._left < TURN / 2:
            self._schedule(clock)

    def _step(self, worker: Worker, clock: IReactorTime) -> bool:
        began = clock.seconds()
        more = worker.step()
        self._left -= clock.seconds() - began
        return more

    def _run(self, clock: IReactorTime) -> None:
        """Do the waiting workers' steps in a new turn."""
        self._scheduled = False
        self._left = TURN
        try:
            while self._waiting and self._left > 0:
                worker = self._waiting.popleft()
                if self._step(worker, clock):
                    self._waiting.append(worker)
        finally:  # after an exception (MemoryError), the other workers must still get their turns
            if self._waiting:
                self._schedule(clock)

    def _schedule(self, clock: IReactorTime) -> None:
        if not self._scheduled:
            self._scheduled = True
            clock.callLater(0, self._run, clock)
