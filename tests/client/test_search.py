"""The search for the highest rate, against a token bucket whose runs are computed exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.client.search import LEAST, RUNS, Bound, RateSearch, faults, rate_limit


class TokenBucket:
    """A service that answers ``rate`` messages a second, and saves up the answers of ``burst``.

    :param burst: seconds.
    :param wait: seconds between a run with losses and the next one.
    """

    def __init__(self, rate: float, burst: float = 0.01, wait: float = 1.0) -> None:
        self.rate, self.wait = rate, wait
        self.size = self.tokens = rate * burst

    def holds(self, rate: float, seconds: float = 10.0) -> bool:
        """Return whether each message of a run at ``rate`` is answered."""
        self.tokens = min(self.size, self.tokens + (self.rate - rate) * seconds)
        if self.tokens >= 0:
            return True
        self.tokens = min(self.size, self.rate * self.wait)
        return False


def searched(holds: Callable[[float], bool], first: float = 1000.0) -> RateSearch:
    search = RateSearch(first)
    while (rate := search.next) is not None:
        search.add(rate, holds(rate))
        assert len(search.runs) < 200
    return search


def test_exact_rate() -> None:
    """The rate of a token bucket is found; the two rates at the boundary have several runs."""
    search = searched(TokenBucket(5000).holds)
    assert search.holding == pytest.approx(5000, rel=0.01)
    assert search.failing == pytest.approx(5000, rel=0.02)
    assert search.runs[search.holding] == [True] * RUNS
    assert search.runs[search.failing] == [False, False]


def test_burst() -> None:
    """The rate of a bucket that holds a second's tokens is found within 3 %: the runs drain it."""
    search = searched(TokenBucket(5000, burst=1.0).holds)
    assert search.holding == pytest.approx(5000, rel=0.03)


@given(st.floats(2.0, 1e6), st.floats(1.0, 1e6))
def test_any_rate(rate: float, first: float) -> None:
    """Any rate is found within 3 %, wherever the search begins."""
    assert searched(TokenBucket(rate).holds, first).holding == pytest.approx(rate, rel=0.03)


@given(st.data(), st.floats(100.0, 1e5))
def test_disturbances(data: st.DataObject, rate: float) -> None:
    """Whatever the runs show, the search ends, and a rate that holds is below one that fails."""
    bucket = TokenBucket(rate)
    search = searched(lambda each: bucket.holds(each) and data.draw(st.booleans()))
    assert search.holding is None or search.failing is None or search.holding < search.failing


def test_one_disturbance() -> None:
    """A run that fails below the highest rate does not end the search there."""
    bucket, disturbed = TokenBucket(5000), [2000.0]

    def holds(rate: float) -> bool:
        held = bucket.holds(rate)
        if rate in disturbed:
            disturbed.remove(rate)
            return False
        return held

    search = searched(holds)
    assert search.runs[2000.0] == [False, True, True, True, True]
    assert search.holding == pytest.approx(5000, rel=0.01)


def test_nothing_holds() -> None:
    """If no rate holds, the search ends at the least rate."""
    search = searched(lambda _: False)
    assert search.holding is None
    assert search.failing is not None
    assert LEAST <= search.failing < 2 * LEAST


def record(latency: float | None = 0.004, **values: Any) -> dict[str, Any]:
    counts = dict.fromkeys(["lost", "late", "damaged", "duplicated", "unexpected"], 0)
    return {**counts, "errors": {}, "latency_seconds": {"p99": latency}, **values}


@pytest.mark.parametrize(
    ("found", "wrong"),
    [
        (record(), ""),
        (record(lost=1200), "1,200 lost"),
        (record(late=1, errors={"timed_out": 2}), "1 late, 2 timed out"),
    ],
)
def test_faults(found: dict[str, Any], wrong: str) -> None:
    """What went wrong in a run is named with its counts."""
    assert faults(found) == wrong


@pytest.mark.parametrize(("latency", "excess"), [(None, ""), (0.005, ""), (0.0051, "p99 5.100 ms")])
def test_bound(latency: float | None, excess: str) -> None:
    """A latency above the bound is named."""
    assert Bound("p99", 0.005).excess(record(latency)) == excess


def a_load(messages: Sequence[int], **values: Any) -> dict[str, Any]:
    """Return the record of 10 s at 1,000 messages a second, with 2 s of waiting for replies."""
    intervals = [
        {"start_seconds": float(number), "seconds": 1.0, "messages": count}
        for number, count in enumerate([*messages, 0, 0])
    ]
    return {
        "protocol": "udp",
        "loop": "open",
        "dropped_here": 0,
        "sent_messages_per_second": 1000.0,
        "duration_seconds": float(len(messages)),
        "intervals": intervals,
        **values,
    }


LIMITED = [200, 100, 100, 99, 101, 100, 100, 100, 100, 100]


@pytest.mark.parametrize(
    ("found", "rate"),
    [
        (a_load(LIMITED), 100.0),
        (a_load(LIMITED, protocol="tcp"), None),
        (a_load(LIMITED, loop="closed"), None),
        (a_load(LIMITED, dropped_here=1), None),
        (a_load(LIMITED[:4]), None),  # too short
        (a_load([1000] * 10), None),  # nothing is lost
        (a_load([990, 980] * 5), None),  # hardly anything is lost
        (a_load([0] * 10), None),
        (a_load([100, 90, 110, 100, 115, 95, 100, 103, 88, 99]), None),  # not steady
    ],
)
def test_rate_limit(found: dict[str, Any], rate: float | None) -> None:
    """Replies over UDP that stop at a steady rate show a rate limit; other losses do not."""
    limit = rate_limit(found)
    assert limit == rate if rate is None else limit == pytest.approx(rate, rel=0.01)


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_random_losses(part: float) -> None:
    """Random losses are not reported as a rate limit."""
    source = random.Random(1)
    runs = [
        [sum(source.random() < part for _ in range(1000)) for _ in range(10)] for _ in range(50)
    ]
    assert sum(rate_limit(a_load(run)) is not None for run in runs) <= 1
