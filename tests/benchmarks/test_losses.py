"""``benchmarks/losses.py`` runs, and echod's row agrees with the documentation."""

from __future__ import annotations

import re

import pytest

from tests.benchmarks.running import short_run


@pytest.fixture(scope="module")
def rows() -> dict[str, list[str]]:
    """Run the short form once, and return the cells of each server's row."""
    table = short_run("losses.py").partition("\n\n")[0].splitlines()
    return {name: cells for name, *cells in (re.split(" {2,}", line) for line in table)}


def test_echod_loses_nothing(rows: dict[str, list[str]]) -> None:
    """In no case does echod lose a byte, and its memory does not grow with the bytes sent."""
    half_close, large, memory, sigterm = rows["echod"]
    assert half_close == "0 of 20"
    assert large == "0, FIN"
    assert sigterm == "0, FIN"
    assert float(memory.removesuffix(" MiB")) < 8  # of 32


def test_cases_can_fail(rows: dict[str, list[str]]) -> None:
    """Each case finds the fault in wire.Echo."""
    half_close, large, memory, sigterm = rows["wire.Echo"]
    assert re.fullmatch(r"[1-9]\d* of 20 \(!\)", half_close)
    assert large.endswith("MiB, FIN (!)")
    assert float(memory.removesuffix(" MiB")) > 8
    assert sigterm.endswith("MiB, FIN (!)")
