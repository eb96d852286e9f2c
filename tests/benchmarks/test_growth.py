"""``benchmarks/growth.py`` runs, and its tables and its verdict follow from its figures."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests import ROOT
from tests.benchmarks.running import benchmark, needs_cc

growth = benchmark("growth")
servers = benchmark("servers")


@pytest.fixture
def cores() -> Iterator[None]:
    """Restore the affinity that starting a server changes."""
    usable = os.sched_getaffinity(0)
    yield
    os.sched_setaffinity(0, usable)


def bench(*options: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "growth.py", *options],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )


def rows(output: str, title: str) -> dict[str, list[str]]:
    """Return the cells of a table, by the name in the first column."""
    [table] = [part for part in output.split("\n\n") if f"\n{title}  " in part]
    lines = [re.split(" {2,}", line) for line in table.splitlines()[1:-1]]
    return {name: cells for name, *cells in lines if not name.startswith("=")}


@needs_cc
@pytest.mark.soak
def test_short(tmp_path: Path) -> None:
    """The short form measures all servers, and --read prints its tables again."""
    file = tmp_path / "growth.json"
    ended = bench("--short", "--json", file)
    assert ended.returncode == 0
    for share in ("all talk", "1 % talk"):
        cells = rows(ended.stdout, f"CPU time a message, {share}")
        assert cells.pop(f"CPU time a message, {share}") == ["1", "10", "50", "100"]
        assert {"echod", "C, epoll"} <= set(cells)
        assert all(re.fullmatch(r"[\d.]+ µs", cell) for row in cells.values() for cell in row)
    cells = rows(ended.stdout, "memory a connection")
    assert all(cell.endswith(" KiB") for cell in cells["echod"])
    [times] = [row for name, row in rows(ended.stdout, "a check of the timeouts").items()][1:]
    assert all(float(cell.removesuffix(" µs").replace(",", "")) > 0 for cell in times)
    assert (bench("--read", file).returncode, bench("--read", file).stdout) == (0, ended.stdout)


@needs_cc
def test_stalled(growth: ModuleType, servers: ModuleType, tmp_path: Path, cores: None) -> None:
    """A stalled connection takes the memory of its unsent bytes; a silent one takes hardly any."""
    servers.build("load.c", str(tmp_path / "load"))
    assert servers.lack_of("c", str(tmp_path)) == ""
    silent, idle, stalled = (
        growth.memory(str(tmp_path), "c", one, growth.SHORT)["kib"] for one in growth.MEMORY
    )
    assert max(silent, idle) < 2
    assert 10 < stalled < 300  # KiB; the server buffers at most 192


@needs_cc
def test_few_talk(growth: ModuleType, servers: ModuleType, tmp_path: Path, cores: None) -> None:
    """Only messages of the connections that talk are counted."""
    servers.build("load.c", str(tmp_path / "load"))
    assert servers.lack_of("c", str(tmp_path)) == ""
    with growth.running(str(tmp_path), "c") as server:
        figures = growth.message(str(tmp_path), server, 100, 1, growth.SHORT)
    assert figures["cpu"] > 0
    assert figures["rate"] > 0


def result(growth: ModuleType, *rounds: dict[str, tuple[float, float]]) -> dict[str, Any]:
    """Return a result; each round has the CPU times of servers with few and with many."""
    made = []
    for each in rounds:
        one = {
            f"{share} {count}": {name: {"cpu": times[at]} for name, times in each.items()}
            for share in growth.SHARES
            for at, count in enumerate((growth.FEW, growth.MANY))
        }
        one |= {held.title: {name: {"kib": 1.0} for name in each} for held in growth.MEMORY}
        one["100 silent connections"] = {"echod": {"cpu": 1.0}}
        made.append(one)
    return {"rounds": made, "left_out": [], "machine": "M", "versions": "V", "command": "C"}


@pytest.mark.parametrize(("many", "verdict"), [(8.8, "met"), (8.9, "missed")])
def test_aim(growth: ModuleType, many: float, verdict: str) -> None:
    """The growth of echod's CPU time is compared with that of C in the same round."""
    rounds = [{"echod": (4 * n, many * n), "c": (2 * n, 4 * n)} for n in (1.0, 2.0)]
    cells = rows(
        growth.tables(result(growth, *rounds)), "CPU time a message, 10,000 connections / 50"
    )
    assert cells["C, epoll"][0] == "2.00 (2.00..2.00)"
    assert cells["echod / C, epoll"][1:] == ["at most 1.10", verdict]


def test_chart(growth: ModuleType, tmp_path: Path) -> None:
    """The chart is the same for the same figures, and has a line for each server."""
    pytest.importorskip("matplotlib")
    made = result(growth, {"echod": (4, 5), "c": (3, 4)})
    for name in ("one.svg", "other.svg"):
        growth.chart(made, tmp_path / name)
    text = (tmp_path / "one.svg").read_text()
    assert text == (tmp_path / "other.svg").read_text()
    assert all(f">{title}<" in text for title in ("echod", "C, epoll", "10,000", "connections"))


def test_foreign_file(tmp_path: Path) -> None:
    """A file that growth.py has not written gets one error line."""
    file = tmp_path / "none.json"
    file.write_text(json.dumps({"rounds": [{}]}))
    ended = bench("--read", file)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"growth.py: {file} was not written by growth.py\n"


def test_wrong_option() -> None:
    """--read measures nothing."""
    ended = bench("--read", "x", "--rounds", "2")
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.endswith("growth.py: error: --read measures nothing: no --rounds\n")
