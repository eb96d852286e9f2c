"""``benchmarks/counting.py`` runs, and says what its figures say; how large they are is open."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.benchmarks.running import benchmark, short_run


@pytest.fixture(scope="module")
def output() -> str:
    """Run ``--short``."""
    return short_run("counting.py")


counting = benchmark("counting")


def test_table(output: str) -> None:
    """There is a row for a message and one for a connection: three times and two ratios."""
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
    """Below the table stands what it shows of each row, and what a scrape costs."""
    message, connection, scrape, *_ = output.partition("\n\n")[2].splitlines()
    assert message.startswith("A message: ")
    assert connection.startswith("A connection: ")
    assert re.match(r"A scrape of /metrics: \d+\.\d\d ms of CPU time; ", scrape)


@pytest.mark.parametrize(
    ("ratios", "seen"),
    [
        ([0.98, 1.0, 1.02] * 4, "no difference is seen"),
        ([1.02] * 10 + [0.99] * 2, "no difference is seen"),
        ([1.02] * 11 + [0.99], "a difference that equals make too, but not as steadily"),
        ([0.98] * 12, "a difference that equals make too, but not as steadily"),
        ([1.04] * 12, "a difference that equals do not make"),
        ([0.96] * 12, "a difference that equals do not make"),
    ],
)
def test_verdict(counting: ModuleType, ratios: list[float], seen: str) -> None:
    """A difference is seen, in either direction, if it is large, and also if it is steady."""
    said = counting.verdict("a message", [0.97, 1.0, 1.03] * 4, ratios)
    assert said.startswith(f"A message: {seen}. ")


def test_wrong_byte(counting: ModuleType) -> None:
    """A byte that is not the one that was sent ends it."""
    with pytest.raises(RuntimeError, match="61 was sent, and 62 came back"):
        counting.check(b"b", b"a")
