"""Search for the highest rate that a service holds, and notice a rate limit. No I/O.

The search doubles the rate until one fails, then halves the distance between the highest rate that
holds and the lowest that fails, down to :data:`PRECISION`. One run proves little: a disturbance
makes a rate fail, and a token bucket that was full lets a rate hold that is too high. So both rates
at the boundary are run again. A rate holds if :data:`NEEDED` of :data:`RUNS` runs have held; each
verdict that changes moves the boundary, and the search goes on from there.
"""

from __future__ import annotations

from math import sqrt
from statistics import fmean, stdev
from typing import Any, Final, NamedTuple

PRECISION: Final = 0.01
"""The distance of the two rates at the boundary, as a fraction of the lower one."""

RUNS: Final = 5
NEEDED: Final = 4

FIRST: Final = 1000.0
LEAST: Final = 1.0
"""Messages a second: where the search begins, and where it gives up."""

WRONG_COUNTS: Final = ("lost", "late", "damaged", "duplicated", "unexpected")
"""The counts of a load's record that have to be 0."""

MIN_INTERVALS: Final = 4
"""The number of full seconds, after the first, that are needed to notice a rate limit."""

LIMITED: Final = 0.95
"""A rate limit is noticed if less than this fraction of the messages comes back."""

STEADY: Final = 0.25
"""A limited rate is steady: the standard deviation of the replies a second is at most this fraction
of the one that random losses have (binomial). Over four seconds, one run in fifty with random
losses is as steady."""


class Bound(NamedTuple):
    """The latency that a rate has to keep.

    :ivar percentile: its name in the record of a load, such as ``p99``.
    :ivar seconds: its highest value.
    """

    percentile: str
    seconds: float

    def excess(self, record: dict[str, Any]) -> str:
        """Return the latency of the load of ``record`` if it is too high; otherwise ""."""
        seconds = record["latency_seconds"][self.percentile]
        if seconds is None or seconds <= self.seconds:
            return ""
        return f"{self.percentile} {seconds * 1000:.3f} ms"


def faults(record: dict[str, Any]) -> str:
    """Return what went wrong with messages and connections; "" if nothing did."""
    wrong = {name: record[name] for name in WRONG_COUNTS if record[name]} | record["errors"]
    return ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in wrong.items())


class RateSearch:
    """The highest rate that holds, from the runs so far.

    :param first: the first rate, in messages a second.
    :ivar runs: for each rate, whether each of its runs has held.
    """

    def __init__(self, first: float = FIRST) -> None:
        self.runs: dict[float, list[bool]] = {}
        self.first = first

    def add(self, rate: float, held: bool) -> None:
        """Add a run at ``rate``."""
        self.runs.setdefault(rate, []).append(held)

    @property
    def failing(self) -> float | None:
        """The lowest rate that fails."""
        return min((rate for rate in self.runs if not self._holds(rate)), default=None)

    @property
    def holding(self) -> float | None:
        """The highest rate that holds, below the one that fails."""
        limit = self.failing or float("inf")
        return max((rate for rate in self.runs if rate < limit), default=None)

    @property
    def next(self) -> float | None:
        """The rate of the next run; ``None`` at the end."""
        low, high = self.holding, self.failing
        if high is None:
            return self.first if low is None else 2 * low
        if low is None:
            return high / 2 if high >= 2 * LEAST else None
        if high - low > PRECISION * low:
            return (low + high) / 2
        return next((rate for rate in (low, high) if not self._is_certain(rate)), None)

    def _holds(self, rate: float) -> bool:
        runs = self.runs[rate]
        return sum(runs) * RUNS >= NEEDED * len(runs)

    def _is_certain(self, rate: float) -> bool:
        runs = self.runs[rate]
        return len(runs) >= RUNS or runs.count(False) > RUNS - NEEDED


def rate_limit(record: dict[str, Any]) -> float | None:
    """Return the steady rate of the replies in an open loop over UDP that loses the others.

    A rate limit lets the same number of replies through each second. The first second does not
    count: many limits save up what was not used.

    :return: replies a second; ``None`` if they are not steady, or nothing much is lost.
    """
    sent = record["sent_messages_per_second"]
    if record["protocol"] != "udp" or record["loop"] == "closed" or record["dropped_here"]:
        return None
    rates = [
        each["messages"] / each["seconds"]
        for each in record["intervals"][1:]
        if each["start_seconds"] + each["seconds"] <= record["duration_seconds"]
    ]
    if len(rates) < MIN_INTERVALS or not 0 < fmean(rates) < LIMITED * sent:
        return None
    at_random = sqrt(fmean(rates) * (1 - fmean(rates) / sent))
    return fmean(rates) if stdev(rates) <= STEADY * at_random else None
