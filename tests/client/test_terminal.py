"""Histograms, progress bars and the live line of a load, in a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import termios
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf, log
from pathlib import Path
from typing import TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.client.histogram import Histogram
from echod.client.statistics import Interval
from echod.client.terminal import (
    MIN_COLUMNS,
    ROWS,
    bytes_left,
    columns,
    histogram,
    progress_bar,
    rate_line,
    show_interval,
)
from tests import TIMEOUT

Buckets = list[tuple[float, int]]

# Histograms


def bars(lines: Sequence[str]) -> list[tuple[float, int, int]]:
    """Return the limit in ms, the count and the length of each bar."""
    found = []
    for line in lines:
        least, upto, unit, count, *bar = line.split()
        assert (least, unit) == ("<=", "ms")
        found.append((float(upto), int(count.replace(",", "")), len("".join(bar))))
    return found


def drawn(buckets: Buckets, width: int = 40, is_ascii: bool = True) -> list[str]:
    lines = list(histogram(buckets, width, is_ascii))
    assert all(len(line) <= width for line in lines)
    assert 1 <= len(lines) <= ROWS
    return lines


TIMES = st.floats(0, 86_400).map(lambda seconds: round(seconds, 7))
COUNTS = st.integers(1, 999_999_999)


@given(
    st.dictionaries(TIMES, COUNTS, min_size=1, max_size=50).map(lambda each: sorted(each.items()))
)
def test_histogram(buckets: Buckets) -> None:
    """A histogram fits the width, is in order, and counts each value once.

    No bar is longer than that of the largest count.
    """
    found = bars(drawn(buckets))
    upto = [each for each, *_ in found]
    assert upto == sorted(upto)
    assert upto[-1] == pytest.approx(max(buckets[-1][0] * 1000, 0.0001), rel=1e-4, abs=0.001)
    assert sum(count for _, count, _ in found) == sum(count for _, count in buckets)
    most = max(found, key=lambda each: each[1])
    assert all(length <= most[2] for *_, length in found)
    assert most[2] > 0


def test_rows() -> None:
    """The limits of the bars grow by a constant ratio."""
    buckets = [(0.001 * 2**number, number + 1) for number in range(13)]
    found = bars(drawn(buckets))
    assert sum(count for _, count, _ in found) == 91
    ratios = [log(after[0] / before[0]) for before, after in pairwise(found)]
    assert ratios == pytest.approx([log(2)] * 11, rel=0.001)


def test_lengths() -> None:
    """The longest bar fills the line except one column; the others are in proportion."""
    lines = drawn([(0.001, 50), (0.0012, 0), (1.0, 100)], width=80)
    (_, half, half_length), (_, whole, whole_length) = bars(lines)[0], bars(lines)[-1]
    assert (half, whole) == (50, 100)
    assert len(lines[-1]) == 79
    assert whole_length == pytest.approx(2 * half_length, abs=1)


def test_one_bucket() -> None:
    """A single value has a single bar."""
    [line] = drawn([(0.0123456, 7)])
    assert line.startswith("<= 12.346 ms 7 ###")
    assert len(line) == 39


def test_close_values() -> None:
    """Values that are closer than the least ratio share a bar."""
    [line] = drawn([(0.1, 1), (0.101, 2)])
    assert line.startswith("<= 101.000 ms 3 #")
    assert len(drawn([(0.1, 1), (0.105, 2)])) == 3


def test_zero() -> None:
    """A time of 0 counts as the shortest one."""
    [line] = drawn([(0.0, 3)])
    assert line.startswith("<= 0.000 ms 3 #")
    found = bars(drawn([(0.0, 3), (0.001, 1)]))
    assert (found[0][1], found[-1][1]) == (3, 1)


def test_ascii() -> None:
    """In a terminal without Unicode, bars are ASCII."""
    buckets = [(0.001, 50), (0.1, 100)]
    assert all(line.isascii() for line in drawn(buckets, is_ascii=True))
    blocks = drawn(buckets, is_ascii=False)
    assert [line.replace("█", "#") for line in blocks] == drawn(buckets)
    assert "█" in blocks[0]


def test_narrow() -> None:
    """In a narrow terminal, a bar has at least one column, and no line ends in a space."""
    lines = list(histogram([(0.001, 999_999_999), (86_400.0, 1)], MIN_COLUMNS, True))
    assert lines[0].endswith(" #")
    assert all(line == line.rstrip() for line in lines)


# The terminal


@pytest.fixture(name="terminal")
def opened() -> Iterator[tuple[TextIO, int]]:
    """Return a terminal, and its other end."""
    other, descriptor = pty.openpty()
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(descriptor, "w") as file:
        yield file, other
    os.close(other)


def shown(other: int, pattern: str) -> str:
    """Read from a terminal until the pattern matches, and return what was read."""
    result = ""
    while not re.search(pattern, result):
        ready, _, _ = select.select([other], [], [], TIMEOUT)
        assert ready, result
        result += os.read(other, 1 << 16).decode()
    return result


def test_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """The width is that of the terminal, with a minimum."""
    monkeypatch.setenv("COLUMNS", "100")
    assert columns() == 100
    monkeypatch.setenv("COLUMNS", "3")
    assert columns() == MIN_COLUMNS


def test_bytes_left(tmp_path: Path) -> None:
    """A regular file has a known number of bytes left; a pipe does not."""
    file = tmp_path / "x"
    file.write_bytes(bytes(1000))
    with file.open("rb", buffering=0) as source:
        assert bytes_left(source.fileno()) == 1000
        source.read(300)
        assert bytes_left(source.fileno()) == 700
        source.seek(5000)
        assert bytes_left(source.fileno()) == 0
    ends = os.pipe()
    assert bytes_left(ends[0]) is None
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("total", [None, 4000])
def test_progress(terminal: tuple[TextIO, int], total: int | None) -> None:
    """A progress bar counts bytes, and shows the percentage where the total is known."""
    with progress_bar(terminal[0], total) as bar:
        bar.update(2000)
        bar.refresh()
    result = shown(terminal[1], r"2\.00k.*\n")
    assert ("50%" in result) is (total is not None)


def test_progress_when_time_is_set(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A change of the time of day does not affect a progress bar."""
    time_of_day = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: time_of_day[0])
    with progress_bar(terminal[0], None) as bar:
        for step in (-30.0, 3600.0):
            time_of_day[0] += step
            bar.update(2000)
            assert 0 <= bar.format_dict["elapsed"] < TIMEOUT


def times(*seconds: float) -> Histogram:
    found = Histogram()
    found.record(seconds)
    return found


def test_rate_line(terminal: tuple[TextIO, int]) -> None:
    """The line shows the rate of each second, and is removed at the end."""
    line = rate_line(terminal[0], 2.0)
    show_interval(line, Interval.of(0.0, 1.0, times(*[0.005] * 1500)))
    shown(terminal[1], r"1/2 s 1,500/s, p99 5\.000 ms")
    show_interval(line, Interval.of(1.0, 1.5, times(0.001)))  # after the end of the load
    shown(terminal[1], r"2/2 s 1/s, p99 1\.000 ms")
    show_interval(line, Interval.of(2.0, 0.0, Histogram()))
    shown(terminal[1], r"2/2 s 0/s, p99 0\.000 ms")
    line.close()
    assert "\n" not in shown(terminal[1], r"\r +\r\Z")


def test_rate_line_without_an_end(terminal: tuple[TextIO, int]) -> None:
    """A load until Ctrl-C has no bar."""
    line = rate_line(terminal[0], inf)
    show_interval(line, Interval.of(0.0, 1.0, times(*[0.005] * 1500)))
    shown(terminal[1], r"1 s 1,500/s, p99 5\.000 ms")
    line.close()
