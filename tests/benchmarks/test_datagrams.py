"""``benchmarks/datagrams.py`` runs, and its output has the figures of all rounds."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.benchmarks.running import benchmark, short_run

datagrams = benchmark("datagrams")


def test_output() -> None:
    """The output has a row for each server, one for their ratio, and the versions."""
    table, _, rest = short_run("datagrams.py").partition("\n\n")
    rows = dict(re.split(" {2,}", line, maxsplit=1) for line in table.splitlines()[3:-1])
    assert list(rows) == ["asyncio DatagramProtocol", "echod", "echod / asyncio"]
    for row in rows.values():
        match = re.fullmatch(r"(\d+\.\d\d) \((\d+\.\d\d)\.\.(\d+\.\d\d)\)", row)
        assert match
        middle, least, most = map(float, match.groups())
        assert 0 < least <= middle <= most
    what, _, versions = rest.splitlines()
    assert what == "1 rounds; 50 sockets, 64 bytes a datagram."
    assert re.match(r"CPython \S+, Twisted \S+, Linux ", versions)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [([0.25], "0.25 (0.25..0.25)"), ([0.3, 0.1, 0.2], "0.20 (0.10..0.30)")],
)
def test_spread(datagrams: ModuleType, figures: list[float], expected: str) -> None:
    """A figure is the median of the rounds, with the minimum and the maximum."""
    assert datagrams.spread(figures) == expected
