"""Histogram of durations: percentiles to three significant digits, in constant memory.

Percentiles are by nearest rank, without interpolation: the p90 of ten values is the ninth. A
percentile is too large by at most a thousandth of its value, and too small by at most half of
:data:`STEP`. Count, mean, standard deviation, minimum and maximum are exact.

The layout is that of HdrHistogram, whose encoding other programs read. The counts are sparse:
HdrHistogram's own array has 31,744 counters, which take milliseconds to walk through.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import ceil, sqrt
from typing import Final

from hdrh.histogram import HdrHistogram

STEP: Final = 1e-7
"""Resolution in seconds: 0.1 microseconds, far below any round trip."""

HIGHEST: Final = round(24 * 3600 / STEP)
"""Steps in a day. A longer duration counts as a day, except in the mean and the maximum."""

DIGITS: Final = 3
"""Significant digits of the values."""

BITS: Final = 11
"""Bits of a bucket's number of steps: 2**11 is the lowest power above 2 * 10**DIGITS."""

BATCH: Final = 128
"""Durations that are recorded together. One at a time takes ten times as long. 128 take 40
microseconds, which delays the next message less than the reactor does."""


class Histogram:
    """Durations in seconds.

    :ivar count: the number of durations.
    :ivar total: their sum, in seconds.
    :ivar squares: the sum of their squares.
    :ivar least: the minimum in seconds, or infinity if there is none.
    :ivar most: the maximum in seconds, or 0 if there is none.
    """

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()  # by the lowest number of steps in the bucket
        self._ranks: tuple[list[int], list[int]] | None = None  # see _ranked()
        self.count = 0
        self.total = self.squares = 0.0
        self.least = float("inf")
        self.most = 0.0

    def record(self, seconds: Sequence[float]) -> None:
        """Add durations. One call for many is faster than many calls."""
        if not seconds:
            return
        self.count += len(seconds)
        self.total += sum(seconds)
        self.squares += sum([each * each for each in seconds])
        least, most = min(seconds), max(seconds)
        self.least, self.most = min(self.least, least), max(self.most, most)
        # To the nearest step: int() would round down, and understate durations.
        steps = [round(each / STEP) for each in seconds]
        if least < 0 or most > HIGHEST * STEP:
            steps = [min(max(each, 0), HIGHEST) for each in steps]
        self._counts.update(
            [
                each >> extra << extra if (extra := each.bit_length() - BITS) > 0 else each
                for each in steps
            ]
        )
        self._ranks = None

    def add(self, other: Histogram) -> None:
        """Add the durations of ``other``."""
        self.count += other.count
        self.total += other.total
        self.squares += other.squares
        self.least = min(self.least, other.least)
        self.most = max(self.most, other.most)
        self._counts.update(other._counts)
        self._ranks = None

    @property
    def mean(self) -> float:
        """The mean in seconds, or 0 if there is none."""
        return self.total / self.count if self.count else 0.0

    @property
    def deviation(self) -> float:
        """The standard deviation of the durations in seconds, or 0 if there are none."""
        return sqrt(max(0.0, self.squares / self.count - self.mean**2)) if self.count else 0.0

    def percentile(self, percent: float) -> float:
        """Return the nearest-rank percentile, in seconds.

        :param percent: above 0, up to 100.
        :return: 0 if there are no durations.
        """
        if not self.count:
            return 0.0
        steps, ranks = self._ranked()
        rank = ceil(round(percent * self.count / 100, 6))
        return min(max(_highest(steps[bisect_left(ranks, rank)]), self.least), self.most)

    def buckets(self) -> list[tuple[float, int]]:
        """Return the values in ascending order, in seconds, with the count of each."""
        return [(_highest(steps), count) for steps, count in sorted(self._counts.items())]

    def encode(self) -> str:
        """Return the durations in HdrHistogram's V2 compressed encoding, in base64.

        Values are in steps of :data:`STEP`.
        """
        full = HdrHistogram(1, HIGHEST, DIGITS)
        for steps, count in self._counts.items():  # record_value() takes ten times as long
            extra = max(steps.bit_length() - BITS, 0)
            full.counts[(extra << BITS - 1) + (steps >> extra)] = count
        full.total_count, full.max_value = self.count, max(self._counts, default=0)
        encoded: bytes = full.encode()
        return encoded.decode()

    @classmethod
    def decode(cls, encoded: str, figures: Mapping[str, float]) -> Histogram:
        """Return the histogram that :meth:`encode` has encoded.

        :param figures: what the buckets do not tell: ``min``, ``mean``, ``stdev`` and ``max`` in
            seconds, if there are durations.
        :raises ValueError: for any other text, and for other steps.
        """
        try:
            full = HdrHistogram.decode(encoded)
        except Exception as error:  # of base64, zlib, struct or the library
            raise ValueError("is not an encoded HdrHistogram") from error
        if (full.lowest_trackable_value, full.significant_figures) != (1, DIGITS):
            raise ValueError("is an HdrHistogram with other steps")
        self = cls()
        for each in full.get_recorded_iterator():
            steps = full.get_lowest_equivalent_value(each.value_iterated_to)
            self._counts[steps] = each.count_at_value_iterated_to
        self.count = self._counts.total()
        if self.count:
            self.least, self.most = figures["min"], figures["max"]
            self.total = figures["mean"] * self.count
            self.squares = (figures["stdev"] ** 2 + figures["mean"] ** 2) * self.count
        return self

    def _ranked(self) -> tuple[list[int], list[int]]:
        """Return the buckets in ascending order, and the rank of the last duration in each."""
        if self._ranks is None:
            steps = sorted(self._counts)
            self._ranks = steps, list(accumulate(map(self._counts.__getitem__, steps)))
        return self._ranks


def _highest(steps: int) -> float:
    """Return the longest duration of the bucket that begins at ``steps``, in seconds."""
    return (steps + (1 << max(steps.bit_length() - BITS, 0)) - 1) * STEP


class Batch:
    """Durations that come one at a time, and are recorded :data:`BATCH` at a time.

    :param record: called with the durations in seconds.
    """

    def __init__(self, record: Callable[[Sequence[float]], None]) -> None:
        self._record = record
        self._pending: list[float] = []

    def add(self, seconds: float) -> None:
        """Add a duration."""
        self._pending.append(seconds)
        if len(self._pending) >= BATCH:
            self.flush()

    def flush(self) -> None:
        """Record the pending durations now."""
        self._record(self._pending)
        self._pending.clear()
