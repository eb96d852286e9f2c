"""Histogram of durations: percentiles to three significant digits, in constant memory.

Percentiles are by nearest rank, without interpolation: the p90 of ten values is the ninth. A
percentile is too large by at most a thousandth of its value, and too small by at most half of
:data:`STEP`. Count, mean, minimum and maximum are exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Final

from hdrh.histogram import HdrHistogram

STEP: Final = 1e-7
"""Resolution in seconds: 0.1 microseconds, far below any round trip."""

HIGHEST: Final = round(24 * 3600 / STEP)
"""Steps in a day. A longer duration counts as a day, except in the mean and the maximum."""

DIGITS: Final = 3
"""Significant digits of the values."""


class Histogram:
    """Durations in seconds.

    :ivar count: the number of durations.
    :ivar total: their sum, in seconds.
    :ivar least: the minimum in seconds, or infinity if there is none.
    :ivar most: the maximum in seconds, or 0 if there is none.
    """

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST, DIGITS)
        self.count = 0
        self.total = 0.0
        self.least = float("inf")
        self.most = 0.0

    def record(self, seconds: Sequence[float]) -> None:
        """Add durations. One call for many is faster than many calls."""
        if not seconds:
            return
        self.count += len(seconds)
        self.total += sum(seconds)
        self.least = min(self.least, *seconds)
        self.most = max(self.most, *seconds)
        # To the nearest step: int() would round down, and understate durations.
        for steps, count in Counter([round(each / STEP) for each in seconds]).items():
            self._histogram.record_value(min(max(steps, 0), HIGHEST), count)

    def add(self, other: Histogram) -> None:
        """Add the durations of ``other``."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self._histogram.add(other._histogram)

    @property
    def mean(self) -> float:
        """The mean in seconds, or 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the nearest-rank percentile, in seconds.

        :param percent: above 0, up to 100.
        :return: 0 if there are no durations.
        """
        if not self.count:
            return 0.0
        # The library rounds the rank: for the p90 of six values it would return the fifth.
        rank = ceil(round(percent * self.count / 100, 6))
        steps = self._histogram.get_value_at_percentile(100 * rank / self.count)
        return float(min(max(steps * STEP, self.least), self.most))

    def buckets(self) -> list[tuple[float, int]]:
        """Return the values in ascending order, in seconds, with the count of each."""
        return [
            (each.value_iterated_to * STEP, each.count_at_value_iterated_to)
            for each in self._histogram.get_recorded_iterator()
        ]
