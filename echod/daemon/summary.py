"""Rate-limited summaries: events of one kind in at most one log line per second."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime

INTERVAL: Final = 1.0
"""Seconds between two lines of a :class:`RateLimitedSummary`."""


class RateLimitedSummary:
    """Events of one kind in at most one line per :data:`INTERVAL`, so that a flood of clients
    does not become a flood of lines.

    The first event is logged at once. Further events within the interval are counted, and logged
    together at its end.

    :param clock: schedules the end of the interval.
    :param write: logs one line, given the number of events, the number of events for each reason,
        and the peer of the last event.
    """

    def __init__(self, clock: IReactorTime, write: Callable[[int, Reasons, str], None]) -> None:
        self._clock = clock
        self._write = write
        self._reasons = Reasons()
        self._last = ""
        self._pending = False

    def add(self, reason: str, peer: str) -> None:
        """Log one event, or count it for the next line."""
        self._reasons[reason] += 1
        self._last = peer
        if not self._pending:
            self.flush()

    def flush(self) -> None:
        """Log the counted events now, and begin a new interval if there were any."""
        self._pending = bool(self._reasons)
        if self._pending:
            reasons, self._reasons = self._reasons, Reasons()
            self._write(reasons.total(), reasons, self._last)
            self._clock.callLater(INTERVAL, self.flush)


class Reasons(Counter[str]):
    """The number of events for each reason; as text, «draining 1, max-connections 2».

    A reason of several words, the rule of a fault, is in quotes.
    """

    def __str__(self) -> str:
        return ", ".join(
            f"{repr(reason) if ' ' in reason else reason} {count}" for reason, count in self.items()
        )
