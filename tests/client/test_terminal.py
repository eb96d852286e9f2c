"""What is said of a run, and what is drawn in a terminal."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import re
import select
import struct
import termios
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import log
from pathlib import Path
from typing import Any, TextIO

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from echod.client.connector import Connector
from echod.client.histogram import Histogram
from echod.client.load import Interval, Load, Usage
from echod.client.ping import Ping, Probe
from echod.client.pipe import Pipe
from echod.client.report import (
    FEW,
    MANY,
    bottleneck,
    digits,
    in_ms,
    is_right,
    line_of_counts,
    line_of_errors,
    line_of_probe,
    line_of_times,
    lines_of_load,
    lines_of_ping,
    of_load,
    of_ping,
    of_pipe,
    plural,
    summary,
)
from echod.client.target import parse_target
from echod.client.terminal import (
    NARROW,
    ROWS,
    Live,
    columns,
    histogram,
    is_terminal,
    left_of,
    progress,
)
from tests import TIMEOUT

Buckets = list[tuple[float, int]]

# Histograms


def bars(lines: Sequence[str]) -> list[tuple[float, int, int]]:
    """Return of each line up to how many ms it goes, how many it counts, and how long it is."""
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
    """A histogram has the width asked for, in order, and counts each value once.

    No bar is there for more than its values; the longest is that of the most.
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
    """Each bar counts the values up to its own, each as much wider than the one before."""
    buckets = [(0.001 * 2**number, number + 1) for number in range(13)]
    found = bars(drawn(buckets))
    assert sum(count for _, count, _ in found) == 91
    ratios = [log(after[0] / before[0]) for before, after in pairwise(found)]
    assert ratios == pytest.approx([log(2)] * 11, rel=0.001)


def test_lengths() -> None:
    """The longest bar fills the line, but for a column, and the others are in proportion."""
    lines = drawn([(0.001, 50), (0.0012, 0), (1.0, 100)], width=80)
    (_, half, half_length), (_, whole, whole_length) = bars(lines)[0], bars(lines)[-1]
    assert (half, whole) == (50, 100)
    assert len(lines[-1]) == 79
    assert whole_length == pytest.approx(2 * half_length, abs=1)


def test_one_bucket() -> None:
    """One value is one bar, up to itself."""
    [line] = drawn([(0.0123456, 7)])
    assert line.startswith("<= 12.346 ms 7 ###")
    assert len(line) == 39


def test_alike() -> None:
    """Values between which there is nothing to see are one bar."""
    [line] = drawn([(0.1, 1), (0.101, 2)])
    assert line.startswith("<= 101.000 ms 3 #")
    assert len(drawn([(0.1, 1), (0.105, 2)])) == 3


def test_zero() -> None:
    """No time at all is the shortest that is told apart."""
    [line] = drawn([(0.0, 3)])
    assert line.startswith("<= 0.000 ms 3 #")
    found = bars(drawn([(0.0, 3), (0.001, 1)]))
    assert (found[0][1], found[-1][1]) == (3, 1)


def test_ascii() -> None:
    """In a terminal that knows nothing else, bars are of ASCII."""
    buckets = [(0.001, 50), (0.1, 100)]
    assert all(line.isascii() for line in drawn(buckets, is_ascii=True))
    blocks = drawn(buckets, is_ascii=False)
    assert [line.replace("█", "#") for line in blocks] == drawn(buckets)
    assert "█" in blocks[0]


def test_no_room() -> None:
    """Where there is no room, there is a bar of one column still, and no line ends in a space."""
    lines = list(histogram([(0.001, 999_999_999), (86_400.0, 1)], NARROW, True))
    assert lines[0].endswith(" #")
    assert all(line == line.rstrip() for line in lines)


# The terminal


@pytest.fixture(name="terminal")
def opened() -> Iterator[tuple[TextIO, int]]:
    """Return a terminal, and the other end of it."""
    other, descriptor = pty.openpty()
    fcntl.ioctl(descriptor, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with os.fdopen(descriptor, "w") as file:
        yield file, other
    os.close(other)


def shown(other: int, pattern: str) -> str:
    """Return what is shown, until there is what was looked for."""
    told = ""
    while not re.search(pattern, told):
        ready, _, _ = select.select([other], [], [], TIMEOUT)
        assert ready, told
        told += os.read(other, 1 << 16).decode()
    return told


def test_is_terminal(terminal: tuple[TextIO, int]) -> None:
    """A terminal is one, and a pipe is none."""
    assert is_terminal(terminal[0])
    assert not is_terminal(io.StringIO())


def test_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    """There are as many columns as the terminal has, but never too few to draw in."""
    monkeypatch.setenv("COLUMNS", "100")
    assert columns() == 100
    monkeypatch.setenv("COLUMNS", "3")
    assert columns() == NARROW


def test_left_of(tmp_path: Path) -> None:
    """A file knows how many bytes there are still to be read; a pipe does not."""
    file = tmp_path / "x"
    file.write_bytes(bytes(1000))
    with file.open("rb", buffering=0) as source:
        assert left_of(source.fileno()) == 1000
        source.read(300)
        assert left_of(source.fileno()) == 700
        source.seek(5000)
        assert left_of(source.fileno()) == 0
    ends = os.pipe()
    assert left_of(ends[0]) is None
    for end in ends:
        os.close(end)


@pytest.mark.parametrize("total", [None, 4000])
def test_progress(terminal: tuple[TextIO, int], total: int | None) -> None:
    """A bar counts bytes, and up to how many if that is known."""
    with progress(terminal[0], total) as bar:
        bar.update(2000)
        bar.refresh()
    told = shown(terminal[1], r"2\.00k.*\n")
    assert ("50%" in told) is (total is not None)


def test_progress_when_time_is_set(
    terminal: tuple[TextIO, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bar neither stands still nor counts an hour when the time of day is set."""
    time_of_day = [1e9]
    monkeypatch.setattr("tqdm.std.time", lambda: time_of_day[0])
    with progress(terminal[0], None) as bar:
        for step in (-30.0, 3600.0):
            time_of_day[0] += step
            bar.update(2000)
            assert 0 <= bar.format_dict["elapsed"] < TIMEOUT


def times(*seconds: float) -> Histogram:
    found = Histogram()
    found.record(seconds)
    return found


def test_live(terminal: tuple[TextIO, int]) -> None:
    """A line tells of each second how much came back, and leaves nothing behind at the end."""
    live = Live(terminal[0], 2.0)
    live.tell(Interval.of(0.0, 1.0, times(*[0.005] * 1500)))
    shown(terminal[1], r"1/2 s 1,500/s, p99 5\.000 ms")
    live.tell(Interval.of(1.0, 1.5, times(0.001)))  # which is longer than was meant
    shown(terminal[1], r"2/2 s 1/s, p99 1\.000 ms")
    live.tell(Interval.of(2.0, 0.0, Histogram()))
    shown(terminal[1], r"2/2 s 0/s, p99 0\.000 ms")
    live.close()
    assert "\n" not in shown(terminal[1], r"\r +\r\Z")


# Reports


def test_words() -> None:
    """Times are in milliseconds, and one of something is one."""
    assert in_ms(0.0012345) == "1.234"
    assert [plural(count, "byte") for count in (0, 1, 2000)] == ["0 bytes", "1 byte", "2,000 bytes"]
    assert digits(0.1 + 0.2) == 0.3
    assert line_of_errors(Counter(timed_out=2000, refused=1)) == "timed out 2,000, refused 1"


def test_summary() -> None:
    """A summary has least, mean, percentiles and most, in seconds; of no time, none of them."""
    found = summary(times(0.001, 0.002, 0.006), FEW)
    assert list(found) == ["min", "mean", "p50", "p90", "p99", "max"]
    assert (found["min"], found["mean"], found["max"]) == (0.001, 0.003, 0.006)
    assert found["p50"] == pytest.approx(0.002, rel=0.001)
    assert summary(Histogram(), MANY) == dict.fromkeys(
        ["min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    )


def test_line_of_times() -> None:
    """The same for people, in milliseconds."""
    assert line_of_times(times(0.001), FEW) == (
        "min 1.000, mean 1.000, p50 1.000, p90 1.000, p99 1.000, max 1.000 ms"
    )


@pytest.mark.parametrize(
    ("probe", "line"),
    [
        (Probe(0, 0.0012345, 0, False), "seq=0 1.234 ms"),
        (Probe(7, 2.0, 1, False), "seq=7 2000.000 ms, 1 byte wrong"),
        (Probe(7, 2.0, 0, True), "seq=7 2000.000 ms, late"),
        (Probe(7, 2.0, 3, True), "seq=7 2000.000 ms, 3 bytes wrong, late"),
    ],
)
def test_line_of_probe(probe: Probe, line: str) -> None:
    """What became of a message is in its line."""
    assert line_of_probe(probe) == line


def way_to(said: str) -> Connector:
    return Connector(Clock(), parse_target(said), 10.0)


def a_ping(said: str = "h:7", **tally: int) -> Ping:
    return counted(
        Ping(way_to(said), 64, interval=0.5, count=3, tell=lambda _: None), tally, replies=()
    )


def a_load(rate: float | None = None, replies: Sequence[float] = (0.001,), **tally: int) -> Load:
    load = Load(way_to("h:7"), 100, connections=1, duration=2.0, rate=rate, tell=lambda _: None)
    load.sending = 2.0
    load.sent_in_time = load.in_time = 1000
    return counted(load, tally, replies)


def counted(run: Any, tally: dict[str, int], replies: Sequence[float]) -> Any:
    for each in replies:
        run.tally.count(each)
    run.tally.sum_up()
    for name, value in tally.items():
        setattr(run.tally, name, value)
    return run


def test_line_of_counts() -> None:
    """Each thing that may become of a message is there, and none that cannot."""
    assert line_of_counts(a_ping(sent=2000, received=1990, late=3)) == (
        "2,000 sent, 1,990 received, 7 lost, 3 late, 0 damaged"
    )
    assert line_of_counts(a_ping(sent=3, damaged=3, damaged_bytes=1, under_way=1)) == (
        "3 sent, 0 received, -1 lost, 0 late, 3 damaged (1 byte), 1 still under way"
    )
    assert line_of_counts(a_ping(unexpected=2)).endswith("2 bytes unexpected")
    assert line_of_counts(a_ping("udp:h:7", duplicated=1, reordered=2, unexpected=1)).endswith(
        "0 damaged, 1 duplicated, 2 reordered, 1 datagram unexpected"
    )


def test_is_right() -> None:
    """All is right where all came back right, in time, and once; the order is not asked for."""
    assert is_right(a_ping(sent=2, received=2, reordered=1))
    assert is_right(a_ping(sent=2, received=1, under_way=1))
    assert not is_right(a_ping())
    assert not is_right(a_ping(sent=2, under_way=2))  # interrupted, of a service that is silent
    for wrong in ("lost", "late", "damaged", "duplicated", "unexpected"):
        tally = {"sent": 2, "received": 1, "under_way": int(wrong in ("duplicated", "unexpected"))}
        if wrong != "lost":
            tally[wrong] = 1
        assert not is_right(a_ping(**tally)), wrong
    run = a_ping(sent=2, received=2)
    run.errors["refused"] += 1
    assert not is_right(run)


def test_ping() -> None:
    """A ping of which nothing came back says so, and has no times."""
    run = a_ping(sent=2)
    assert list(lines_of_ping(run)) == [
        "--- h:7 ---",
        "2 sent, 0 received, 2 lost, 0 late, 0 damaged",
    ]
    told = of_ping(run)
    assert (told["ok"], told["lost"], told["interval_seconds"]) == (False, 2, 0.5)
    assert (told["connect_seconds"], told["address"], told["failure"]) == (None, None, None)
    assert set(told["round_trip_seconds"].values()) == {None}


def test_ping_with_replies() -> None:
    """A ping says how long replies took, and what went wrong."""
    run = counted(a_ping(), {"sent": 1, "received": 1}, [0.001])
    run.errors["refused"] += 2
    *_, round_trip, errors = lines_of_ping(run)
    assert round_trip.startswith("round trip: min 1.000, mean 1.000, p50")
    assert round_trip.endswith("max 1.000 ms")
    assert errors == "errors: refused 2"
    told = of_ping(run)
    assert (told["round_trip_seconds"]["jitter"], told["errors"]) == (None, {"refused": 2})


def test_closed_loop() -> None:
    """A closed loop says what it is worth."""
    run = a_load(sent=1000, received=1000)
    lines = list(lines_of_load(run))
    assert lines[0] == "load on h:7 () by tcp, 100 bytes a message, 1 connection"
    assert "throughput: 500.0 messages a second, 0.050 MB/s each way, for 2.0 s" in lines
    assert lines[-2].startswith("closed loop: each message left when the reply to the last")
    assert lines[-1].startswith("latency: min 1.000")
    told = of_load(run)
    assert told["ok"]
    assert (told["loop"], told["asked_messages_per_second"]) == ("closed", None)
    assert (told["messages_per_second"], told["bytes_per_second"]) == (500.0, 50000.0)
    assert told["latency_histogram"] == [[pytest.approx(0.001, rel=0.001), 1]]


def test_open_loop() -> None:
    """An open loop says what was asked for and what left, and by how much that was late."""
    run = a_load(500.0, (), sent=1000, received=1000)
    run.scheduling.record([0.0001])
    run.intervals = [Interval.of(0.0, 1.0, times(0.001)), Interval.of(1.0, 1.0, Histogram())]
    assert list(lines_of_load(run))[-1].startswith(
        "open loop: 500.0 messages a second left, of 500.0 asked for; late by min 0.100"
    )
    told = of_load(run)
    assert (told["loop"], told["sent_messages_per_second"]) == ("open", 500.0)
    first, second = told["intervals"]
    assert (first["messages"], first["max_seconds"]) == (1, 0.001)
    assert (second["messages"], second["p50_seconds"]) == (0, None)
    assert (second["p99_seconds"], second["max_seconds"]) == (None, None)


def test_what_went_wrong_in_a_load() -> None:
    """A load tells of errors, and of connections that stayed silent."""
    run = a_load(sent=2, received=1, late=1)
    run.errors["reset"] += 1
    run.connecting.record([0.01])
    run.handshakes.record([0.02])
    run.silent = 1
    lines = list(lines_of_load(run))
    assert lines[1].startswith("connected: 0 of 1: min 10.000")
    assert lines[2].startswith("TLS handshakes: min 20.000")
    assert lines[4:6] == [
        "errors: reset 1",
        "silent: 1 connection, on which nothing came back",
    ]
    assert not of_load(run)["ok"]
    assert not of_load(counted(a_load(sent=1, received=1), {}, ()))["connections_silent"]


def test_nothing_sent() -> None:
    """A load that has sent nothing has no throughput, and no bottleneck."""
    run = a_load(replies=())
    run.sending = 0.0
    assert len(list(lines_of_load(run))) == 2
    told = of_load(run)
    assert (told["messages_per_second"], told["client_processor_fraction"]) == (0.0, 0.0)
    assert told["client_was_bottleneck"] is False


def test_bottleneck_of_a_closed_loop() -> None:
    """A closed loop that ran, or waited to run, nearly always may have measured itself."""
    run = a_load()
    run.used = Usage(1.0, 0.5)
    assert bottleneck(run) == ""
    run.used = Usage(1.5, 0.4)
    assert bottleneck(run) == "it ran for 75% of the time, and waited for a processor for 20%"
    assert of_load(run)["client_was_bottleneck"] is True
    assert list(lines_of_load(run))[-1] == (
        "the client itself may have been the bottleneck: "
        "it ran for 75% of the time, and waited for a processor for 20%"
    )


def test_bottleneck_of_an_open_loop() -> None:
    """An open loop that could not send in time, or not all, has measured itself."""
    run = a_load(500.0)
    run.scheduling.record([0.0001] * 99 + [0.5])
    run.used = Usage(2.0, 0.0)  # busy, but in time
    assert bottleneck(run) == ""
    run.scheduling.record([0.5])
    assert bottleneck(run) == "one message in a hundred left 500.000 ms late"
    run.sent_in_time = 900
    assert bottleneck(run) == "only 450.0 of 500.0 messages a second could leave"


def test_pipe() -> None:
    """A pipe tells how much, and how fast."""
    run = Pipe(way_to("h:7"), 0, 1, lambda _: None)
    told = of_pipe(run)
    assert (told["ok"], told["sent_bytes"], told["bytes_per_second"]) == (True, 0, 0.0)
    run.received, run.sent, run.seconds, run.failure = 1000, 2000, 4.0, "no answer in time"
    told = of_pipe(run)
    assert (told["ok"], told["failure"]) == (False, "no answer in time")
    assert (told["received_bytes"], told["bytes_per_second"]) == (1000, 250.0)
