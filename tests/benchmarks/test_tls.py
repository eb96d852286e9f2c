"""``benchmarks/tls.py`` runs, and its sentences agree with its figures, whatever these are."""

from __future__ import annotations

import re
from types import ModuleType

import pytest

from tests.benchmarks.running import benchmark, short_run

tls = benchmark("tls")


def test_output() -> None:
    """The output has a row for each server, then the ratios, and whether the aim is met."""
    table, _, rest = short_run("tls.py").partition("\n\n")
    rows = [re.split(" {2,}", line) for line in table.splitlines()[3:-1]]
    assert [row[0] for row in rows] == ["echod", "asyncio"]
    for _, cpu, *speeds in rows:
        assert len(speeds) == 2
        assert all(int(speed) > 0 for speed in speeds)
        assert re.fullmatch(r"[1-9]\d*\.\d µs", cpu)
    ratio = r"\d+\.\d{3} \(\d+\.\d{3}\.\.\d+\.\d{3}\)"
    cpu, clock, *_ = rest.splitlines()
    assert re.fullmatch(
        rf"MB/s of CPU time, echod / asyncio: {ratio}; aim: at least 0\.800: (not )?met\.", cpu
    )
    assert re.fullmatch(rf"MB/s by the clock, echod / asyncio: {ratio}\.", clock)


@pytest.mark.parametrize(("times", "met"), [([125, 90, 150], "met"), ([126, 90, 150], "not met")])
def test_aim(tls: ModuleType, times: list[float], met: str) -> None:
    """The aim is met if the median of the rounds' ratios is at least 0.8."""
    rounds = [{"echod": (300, cpu), "asyncio": (200, 100.0)} for cpu in times]
    report = tls.report(rounds)
    assert f"aim: at least 0.800: {met}.\n" in report
    assert "by the clock, echod / asyncio: 1.500 (1.500..1.500)." in report
