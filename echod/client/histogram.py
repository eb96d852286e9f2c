"""How long each of many things took: all counted, to three digits, in constant memory.

Percentiles are by nearest rank: the p90 of ten is the ninth in order, or up to a thousandth more,
and never less by more than half a step. Nothing is interpolated. Count, mean, least and most are
exact.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from math import ceil
from typing import Final

from hdrh.histogram import HdrHistogram

STEP: Final = 1e-7
"""Seconds between two values that are told apart, at the least: finer than any clock here."""

HIGHEST: Final = round(24 * 3600 / STEP)
"""Steps in a day: what took longer counts as that, but in mean and most."""

DIGITS: Final = 3
"""Significant digits of what is told apart."""


class Histogram:
    """Durations, in seconds.

    :ivar count: how many.
    :ivar total: seconds; their sum.
    :ivar least: seconds, or infinity where there is none.
    :ivar most: seconds, or 0 where there is none.
    """

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST, DIGITS)
        self.count = 0
        self.total = 0.0
        self.least = float("inf")
        self.most = 0.0

    def record(self, seconds: Sequence[float]) -> None:
        """Count these. Many at once cost less."""
        if not seconds:
            return
        self.count += len(seconds)
        self.total += sum(seconds)
        self.least = min(self.least, *seconds)
        self.most = max(self.most, *seconds)
        # To the nearest step, since int() would flatter.
        for steps, count in Counter([round(each / STEP) for each in seconds]).items():
            self._histogram.record_value(min(max(steps, 0), HIGHEST), count)

    def add(self, other: Histogram) -> None:
        """Count what ``other`` has counted, too."""
        self.count += other.count
        self.total += other.total
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self._histogram.add(other._histogram)

    @property
    def mean(self) -> float:
        """Seconds; 0 where there is none."""
        return self.total / self.count if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the least of them, in seconds, than which so many per cent are not longer.

        :param percent: above 0, and 100 at the most.
        :return: 0 where there is none.
        """
        if not self.count:
            return 0.0
        # The library rounds the rank to the nearest, which of six would give the fifth for p90.
        rank = ceil(round(percent * self.count / 100, 6))
        steps = self._histogram.get_value_at_percentile(100 * rank / self.count)
        return float(min(max(steps * STEP, self.least), self.most))

    def buckets(self) -> list[tuple[float, int]]:
        """Return in order which values there are, in seconds, and how many of each."""
        return [
            (each.value_iterated_to * STEP, each.count_at_value_iterated_to)
            for each in self._histogram.get_recorded_iterator()
        ]
