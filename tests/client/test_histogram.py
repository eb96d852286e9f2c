"""Histogram: percentiles compared with those of the sorted samples."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Sequence
from fractions import Fraction
from math import inf

import pytest
from hdrh.histogram import HdrHistogram
from hypothesis import given, settings
from hypothesis import strategies as st

from echod.client.histogram import STEP, Batch, Histogram

DAY = 24 * 3600.0

PERCENTS = (0.001, 0.1, 1, 10, 25, 50, 75, 90, 95, 99, 99.9, 99.99, 99.999, 100)

random_ = random.Random(862)

# In seconds. Typical causes: a cache with hits and misses, a queue, a coarse clock.
RECORDED = {
    "one": [0.00123],
    "two": [0.001, 0.1],
    "six": [0.001, 0.002, 0.003, 0.004, 0.005, 0.006],
    "all equal": [0.000_25] * 1000,
    "bimodal": [random_.gauss(at, at / 20) for at in [0.000_05] * 900 + [0.04] * 100],
    "exponential": [random_.expovariate(1000) for _ in range(10_000)],
    "heavy tail": [0.0001 * random_.paretovariate(0.7) for _ in range(10_000)],
    "by the step": [STEP * number for number in range(3000)],
    "one outlier": [0.0001] * 9_999 + [60.0],
}


def of(samples: Sequence[float]) -> Histogram:
    times = Histogram()
    times.record(samples)
    return times


def nearest_rank(samples: Sequence[float], percent: float) -> float:
    """Return the nearest-rank percentile by its definition, without rounding errors."""
    rank = math.ceil(Fraction(repr(percent)) * len(samples) / 100)
    return sorted(samples)[rank - 1]


def check(times: Histogram, samples: Sequence[float], percent: float) -> None:
    exact, found = nearest_rank(samples, percent), times.percentile(percent)
    assert exact - 0.51 * STEP <= found <= exact * 1.001 + STEP, (percent, exact, found)


@pytest.mark.parametrize("samples", RECORDED.values(), ids=RECORDED)
def test_percentiles(samples: list[float]) -> None:
    """A percentile is at most a thousandth above the nearest-rank sample."""
    times = of(samples)
    for percent in PERCENTS:
        check(times, samples, percent)


DURATION = st.one_of(
    st.floats(0, DAY),
    st.floats(0, 0.01),
    st.integers(0, 20).map(lambda steps: steps * STEP),  # so that some are equal
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(DURATION, min_size=1, max_size=100),
    st.lists(st.integers(1, 100_000).map(lambda each: each / 1000), min_size=1, max_size=5),
)
def test_percentiles_of_anything(samples: list[float], percents: list[float]) -> None:
    """Percentiles are right and ascending for any samples."""
    times = of(samples)
    for percent in percents:
        check(times, samples, percent)
    found = [times.percentile(percent) for percent in sorted(percents)]
    assert found == sorted(found)
    assert times.least <= found[0]
    assert found[-1] <= times.percentile(100) <= times.most


def test_few() -> None:
    """Percentiles are not interpolated: the median of two is the first, of six the third."""
    assert of([1.0, 3.0]).percentile(50) == pytest.approx(1.0, rel=0.001)
    assert of([1.0, 3.0]).percentile(50.1) == 3.0
    six = of([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    assert six.percentile(50) == pytest.approx(3.0, rel=0.001)
    assert six.percentile(90) == 6.0


@given(st.lists(DURATION, min_size=1))
def test_exact(samples: list[float]) -> None:
    """Count, mean, minimum and maximum are exact."""
    times = of(samples)
    assert times.count == len(samples)
    assert times.mean == pytest.approx(math.fsum(samples) / len(samples), rel=1e-12)
    assert (times.least, times.most) == (min(samples), max(samples))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(DURATION, max_size=20), max_size=5))
def test_together(parts: list[list[float]]) -> None:
    """Recording in parts, or adding histograms, gives the same result as recording at once."""
    at_once = of([each for part in parts for each in part])
    in_parts, added = Histogram(), Histogram()
    for part in parts:
        in_parts.record(part)
        apart = of(part)
        added.add(apart)
        assert apart.count == len(part)  # unchanged
    for times in (in_parts, added):
        assert (times.count, times.least, times.most) == (
            at_once.count,
            at_once.least,
            at_once.most,
        )
        assert times.total == pytest.approx(at_once.total)
        for percent in (1, 50, 99):
            assert times.percentile(percent) == at_once.percentile(percent)


def test_buckets_together() -> None:
    """Added histograms have the buckets of one that recorded everything."""
    samples = RECORDED["bimodal"]
    added = of(samples[:300])
    added.add(of(samples[300:]))
    assert added.buckets() == of(samples).buckets()


def test_none() -> None:
    """An empty histogram has no count, mean, percentile or bucket."""
    times = Histogram()
    times.record([])
    times.add(Histogram())
    assert (times.count, times.total, times.mean, times.most) == (0, 0, 0, 0)
    assert times.least == inf
    assert times.percentile(50) == 0
    assert times.buckets() == []


def test_beyond_a_day() -> None:
    """A duration above a day counts as a day, except in mean, minimum and maximum."""
    times = of([3 * DAY])
    assert times.mean == times.least == times.most == times.percentile(50) == 3 * DAY
    times.record([1.0, 5 * DAY, 7 * DAY])
    assert times.percentile(75) == pytest.approx(DAY, rel=0.001)
    assert times.percentile(25) == pytest.approx(1.0, rel=0.001)
    assert (times.count, times.most) == (4, 7 * DAY)
    assert times.buckets()[-1] == (pytest.approx(DAY, rel=0.001), 3)


def test_below_zero() -> None:
    """A negative duration counts as zero, except in mean and minimum."""
    times = of([-1.0, 2.0])
    assert times.percentile(50) == 0
    assert (times.mean, times.least, times.most) == (0.5, -1.0, 2.0)
    assert times.buckets()[0] == (0.0, 1)


def test_zero() -> None:
    """A duration of zero is counted."""
    times = of([0.0, 0.0])
    assert (times.count, times.percentile(99), times.buckets()) == (2, 0.0, [(0.0, 2)])


def test_nearest_step() -> None:
    """Durations are rounded to the nearest tenth of a microsecond."""
    [(seconds, count)] = of([0.99 * STEP, 1.01 * STEP]).buckets()
    assert (seconds, count) == (STEP, 2)


@settings(max_examples=10, deadline=None)  # reading all buckets is slow
@given(st.lists(DURATION))
def test_buckets(samples: list[float]) -> None:
    """Buckets are in order and not empty, and contain each sample once."""
    buckets = of(samples).buckets()
    assert [seconds for seconds, _ in buckets] == sorted({seconds for seconds, _ in buckets})
    assert all(count > 0 for _, count in buckets)
    assert sum(count for _, count in buckets) == len(samples)
    every = [seconds for seconds, count in buckets for _ in range(count)]
    for seconds, sample in zip(every, sorted(samples), strict=True):
        assert sample - 0.51 * STEP <= seconds <= sample * 1.001 + STEP


@given(st.lists(st.floats(0, 3600), min_size=1))
def test_deviation(samples: list[float]) -> None:
    """The standard deviation is that of all durations, without a correction for a sample."""
    assert of(samples).deviation == pytest.approx(statistics.pstdev(samples), rel=1e-6, abs=1e-4)
    assert Histogram().deviation == 0


@settings(max_examples=30, deadline=None)
@given(st.lists(DURATION))
def test_encoding(samples: list[float]) -> None:
    """The encoding is read back with all buckets, by the library and by decode()."""
    times = of(samples)
    figures = {
        "min": times.least,
        "mean": times.mean,
        "stdev": times.deviation,
        "max": times.most,
    }
    found = Histogram.decode(times.encode(), figures)
    assert found.buckets() == times.buckets()
    assert found.count == times.count
    assert found.mean == pytest.approx(times.mean)
    for percent in (50, 99, 100):
        expected = times.percentile(percent)
        assert found.percentile(percent) == pytest.approx(expected, rel=0.001, abs=STEP)
    library = HdrHistogram.decode(times.encode())
    assert library.get_total_count() == len(samples)
    assert library.get_value_at_percentile(50) * STEP == pytest.approx(
        times.percentile(50), rel=0.001, abs=STEP
    )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "not an encoded"),
        ("HISTFAAA", "not an encoded"),
        ("not base64", "not an encoded"),
        (HdrHistogram(1, 1000, 2).encode().decode(), "other steps"),
        (HdrHistogram(1000, 10**9, 3).encode().decode(), "other steps"),
    ],
)
def test_other_encoding(text: str, why: str) -> None:
    """Text that is no histogram, or one with other steps, is refused."""
    with pytest.raises(ValueError, match=why):
        Histogram.decode(text, {})


def test_batch() -> None:
    """Durations are recorded 128 at a time, and the rest by flush()."""
    times = Histogram()
    batch = Batch(times.record)
    for _ in range(300):
        batch.add(0.001)
    assert times.count == 256
    batch.flush()
    batch.flush()
    assert (times.count, times.least) == (300, 0.001)
