"""The intervals of a load, and the files that hold them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogReader

from echod.client.histogram import DIGITS, HIGHEST, STEP, Histogram
from echod.client.replies import MessageTally
from echod.client.report import HistogramLog
from echod.client.statistics import Interval, Statistics
from echod.peer import EchoPeer
from tests.client.memory import Outcome, echod_client, target_of


class Run:
    """Statistics of messages that the test counts."""

    def __init__(self) -> None:
        self.tally = MessageTally(1.0)
        self.dropped = 0
        self.printed: list[Interval] = []
        self.statistics = Statistics(self.tally, self.printed.append, dropped=lambda: self.dropped)
        self.statistics.begin(100.0)

    def second(self, end: float, *, replies: int = 1, late: int = 0, damaged: int = 0) -> None:
        for _ in range(replies):
            self.tally.reply(0.0, 0.5, 0)
        for _ in range(late):
            self.tally.reply(0.0, 2.0, 0)
        for _ in range(damaged):
            self.tally.reply(0.0, 0.5, 3)
        self.statistics.add_interval(end)

    def named(self, name: str) -> list[int]:
        return [getattr(each, name) for each in self.statistics.intervals]


def test_counts_of_an_interval() -> None:
    """Each interval counts its own replies, and a short one at the end extends the one before."""
    run = Run()
    run.second(101.0, replies=3, late=2)
    run.dropped = 4
    run.second(102.0, damaged=5)
    run.dropped = 5
    run.second(102.25, late=1)
    assert [each.seconds for each in run.statistics.intervals] == [1.0, 1.25]
    assert run.named("messages") == [5, 3]
    assert run.named("late") == [2, 1]
    assert run.named("damaged") == [0, 5]
    assert run.named("dropped_here") == [0, 5]
    assert [each.lost for each in run.printed] == [None, None, None]


def test_lost_messages() -> None:
    """A lost message counts in the interval in which it was due."""
    run = Run()
    for end in (101.0, 102.0, 103.0):
        run.second(end)
    run.statistics.count_lost([100.0, 100.5, 102.0, 107.0, 99.0])
    assert run.named("lost") == [3, 0, 2]
    run.statistics.count_lost([])
    assert run.named("lost") == [0, 0, 0]


def test_messages_dropped_here_are_not_lost() -> None:
    """A reply that this machine dropped belongs to a message of that second, or before it."""
    run = Run()
    run.second(101.0)
    run.second(102.0)
    run.dropped = 3
    run.second(103.0)
    run.statistics.count_lost([100.5, 101.1, 101.2, 101.3, 102.5])
    assert run.named("lost") == [1, 1, 0]
    assert run.named("dropped_here") == [0, 0, 3]


def test_nothing_sent() -> None:
    """Without an interval, no message is lost."""
    run = Run()
    run.statistics.count_lost([])
    assert run.statistics.intervals == []


@pytest.fixture
def outcome(tmp_path: Path, echo_peer: EchoPeer) -> Outcome:
    return echod_client(
        *("load", target_of(echo_peer), "-r", 100, "-d", 1.2, "--json"),
        *("--hdr", tmp_path / "a.hlog", "--csv", tmp_path / "a.csv"),
    )


def test_files(outcome: Outcome, tmp_path: Path) -> None:
    """The log has all times for HdrHistogram's own reader, and the CSV has the intervals."""
    empty = HdrHistogram(1, HIGHEST, DIGITS)
    reader = HistogramLogReader(str(tmp_path / "a.hlog"), empty)
    first = reader.get_next_interval_histogram()
    assert first.get_start_time_stamp() == pytest.approx(reader.get_start_time_sec() * 1000)
    assert first.get_end_time_stamp() - first.get_start_time_stamp() == pytest.approx(1000, abs=50)
    total = first.get_total_count()
    while (following := reader.get_next_interval_histogram()) is not None:
        total += following.get_total_count()
        empty.add(following)
    empty.add(first)
    reader.close()
    assert total == outcome.result["received"] > 100
    p50 = outcome.result["latency_seconds"]["p50"]
    assert empty.get_value_at_percentile(50) * STEP == pytest.approx(p50, rel=0.001)
    with open(tmp_path / "a.csv") as file:
        rows = list(csv.DictReader(file))
    assert [{name: json.loads(value) for name, value in row.items()} for row in rows] == (
        outcome.result["intervals"]
    )


def test_beginning_of_the_log(tmp_path: Path) -> None:
    """The times of the log count from the first message, which --start-at and --warm-up delay."""
    log = HistogramLog(iter([1_800_000_001.0]).__next__)
    for start in (0.0, 1.0):
        log.add(start, 1.0, Histogram())
    log.write(str(tmp_path / "a.hlog"))
    lines = (tmp_path / "a.hlog").read_text().splitlines()
    assert lines[1].startswith("#[StartTime: 1800000000.000 (seconds since epoch), 2027-01-15 08:")
    assert [line.split(",")[0] for line in lines[3:]] == ["0.000", "1.000"]


@pytest.mark.parametrize("option", ["--hdr", "--csv", "--plot"])
def test_file_that_cannot_be_written(option: str, tmp_path: Path, echo_peer: EchoPeer) -> None:
    """A file that cannot be written is named before the run, or after it if the disk is full."""
    name = tmp_path / "none" / "a.svg"
    outcome = echod_client("load", "127.0.0.1:7", option, name)
    expected = f"echod-client load: {option} {name}: no file can be written there\n"
    assert outcome == (2, "", expected)
    full = tmp_path / "full.svg"
    full.symlink_to("/dev/full")
    outcome = echod_client("load", target_of(echo_peer), "-r", 10, "-d", 0.1, option, full)
    assert outcome.status == 1
    assert outcome.err == f"echod-client load: {option} {full}: no space left on device\n"
