"""``benchmarks/counting.py`` runs, and its sentences agree with its figures, whatever these are."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.benchmarks.running import benchmark, short_run


@pytest.fixture(scope="module")
def output() -> str:
    """Run the short form once for all tests."""
    return short_run("counting.py")


counting = benchmark("counting")


def test_table(output: str) -> None:
    """The rows for a message and for a connection have three times and two ratios."""
    table = output.partition("\n\n")[0].splitlines()
    rows = dict(line.split("  ", 1) for line in table[4:-1])
    assert rows.keys() == {"a message", "a connection"}
    for row in rows.values():
        *times, equal, counting = re.split(" {2,}", row.strip())
        assert len(times) == 3
        assert all(re.fullmatch(r"[1-9]\d*\.\d µs", time) for time in times)
        for ratio in (equal, counting):
            match = re.fullmatch(r"(\d\.\d{3}) \((\d\.\d{3})\.\.(\d\.\d{3})\)", ratio)
            assert match
            middle, least, most = map(float, match.groups())
            assert 0 < least <= middle <= most


def test_sentences(output: str) -> None:
    """Below the table, there is a sentence about each row, and one about the cost of a scrape."""
    message, connection, scrape, *_ = output.partition("\n\n")[2].splitlines()
    assert message.startswith("A message: ")
    assert connection.startswith("A connection: ")
    assert re.match(r"A scrape of /metrics: \d+\.\d\d ms of CPU time; ", scrape)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ([0.98, 1.0, 1.02] * 4, "no difference"),
        ([1.02] * 10 + [0.99] * 2, "no difference"),
        ([1.02] * 11 + [0.99], "a small but steady difference"),
        ([0.98] * 12, "a small but steady difference"),
        ([1.04] * 12, "a difference above the measurement error"),
        ([0.96] * 12, "a difference above the measurement error"),
    ],
)
def test_verdict(counting: ModuleType, ratios: list[float], expected: str) -> None:
    """The verdict reports a difference, up or down, that is large or steady."""
    verdict = counting.verdict("a message", [0.97, 1.0, 1.03] * 4, ratios)
    assert verdict.startswith(f"A message: {expected}. ")


def test_wrong_byte(counting: ModuleType) -> None:
    """A wrong byte ends the benchmark."""
    with pytest.raises(RuntimeError, match="61 was sent, and 62 came back"):
        counting.check(b"b", b"a")
