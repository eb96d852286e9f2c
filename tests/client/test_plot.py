"""``load --plot``: the files that are drawn, from runs that ``--json`` has written."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from twisted.internet.task import Clock

from echod.client.connector import Connector
from echod.client.histogram import Histogram
from echod.client.load import Load
from echod.client.plot import draw, label, load_run, over_time, points
from echod.client.report import load_result, to_json
from echod.client.statistics import Interval
from echod.client.target import parse_target

SVG = "{http://www.w3.org/2000/svg}"


def an_interval(start: float, **times: float | None) -> dict[str, Any]:
    found: dict[str, Any] = {"start_seconds": start, "seconds": 1.0}
    for name in ("p50", "p99", "max"):
        found[f"{name}_seconds"] = times.get(name)
    return {**found, "late": 0, "damaged": 0, "dropped_here": 0, "lost": 1}


RUN: dict[str, Any] = {
    "command": "load",
    "target": "echo.example:7",
    "connections": 2,
    "size_bytes": 64,
    "started_at": "2026-11-30T12:34:56.789+00:00",
    "lost_fraction": 0.0345,
    "asked_messages_per_second": None,
    "latency_histogram": [[0.001, 90], [0.002, 9], [0.01, 1]],
    "intervals": [
        an_interval(0.0, p50=0.001, p99=0.002, max=0.01),
        an_interval(1.0),
        an_interval(2.0, p50=0.002, p99=0.003, max=0.004),
    ],
}

LOST = {**RUN, "latency_histogram": [], "intervals": [an_interval(0.0)]}


def comments(file: Path) -> list[str]:
    """Return the texts of a plot, which matplotlib writes as comments beside the glyphs."""
    parser = ElementTree.XMLParser(target=ElementTree.TreeBuilder(insert_comments=True))
    root = ElementTree.parse(file, parser).getroot()
    assert root.tag == f"{SVG}svg"
    comment: Any = ElementTree.Comment
    return [str(each.text).strip() for each in root.iter(comment)]


def test_svg(tmp_path: Path) -> None:
    """An SVG has the percentiles, the figures of each second, and the label of the run."""
    file = tmp_path / "a.svg"
    draw([RUN], str(file))
    result = comments(file)
    assert label(RUN) in result
    for each in (
        *("p50", "p99", "max", "lost", "late", "damaged", "dropped here"),
        *("latency, ms", "seconds since the beginning", "messages in each second"),
        *("50 %", "90 %", "99 %", "1", "2", "5", "10"),  # 100 replies, from 1 to 10 ms
    ):
        assert each in result, each
    assert "99.9 %" not in result


@pytest.mark.parametrize(("replies", "shown"), [(999, False), (1000, True)])
def test_percentiles_of_few_replies(tmp_path: Path, replies: int, shown: bool) -> None:
    """The axis ends at the highest percentile that at least one reply exceeds."""
    file = tmp_path / "a.svg"
    draw([{**RUN, "latency_histogram": [[0.001, replies]]}], str(file))
    assert ("99.9 %" in comments(file)) is shown


def test_several(tmp_path: Path) -> None:
    """Several runs are drawn over each other, each with its label, even one without replies."""
    other = {**RUN, "asked_messages_per_second": 1234.5, "target": "unix:/a$b$"}
    file = tmp_path / "a.svg"
    draw([RUN, other, {**LOST, "target": "lost.example:7"}], str(file))
    result = comments(file)
    for each in ("echo.example:7", "unix:/a$b$", "lost.example:7"):
        assert any(line.startswith(each) for line in result), each
    assert sum(line.startswith("lost.example:7") for line in result) == 2  # in the title, too
    assert result.count("p50") == 1


def test_short_label() -> None:
    """A label omits the files that the TARGET names."""
    run = {**RUN, "target": "tls:echo.example:7:trustRoots=/etc/ssl/ours"}
    assert label(run).startswith("tls:echo.example:7, 2 x 64 B, closed loop, ")


def test_png(tmp_path: Path) -> None:
    """A name in capitals, or without a stem, yields a PNG too."""
    for name in ("a.PNG", ".png"):
        file = tmp_path / name
        draw([RUN], str(file))
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        width, height = struct.unpack(">LL", file.read_bytes()[16:24])
        assert (width, height) == (1600, 2000)


@pytest.mark.parametrize(
    "run", [LOST, {**LOST, "intervals": []}, {**LOST, "latency_histogram": [[0.0, 3]]}]
)
def test_nothing_to_draw(tmp_path: Path, run: dict[str, Any]) -> None:
    """A run without replies, or with times of 0, yields an empty plot."""
    file = tmp_path / "a.svg"
    draw([run], str(file))
    assert label(run) in comments(file)


def test_missing_directory(tmp_path: Path) -> None:
    """A missing directory raises the kernel's error."""
    with pytest.raises(FileNotFoundError):
        draw([LOST], str(tmp_path / "no" / "a.svg"))


def test_points() -> None:
    """A point of the curve is a latency and N, where one reply in N took longer.

    The longest latency is drawn as if half a reply had taken longer: N would be infinite.
    """
    x, y = points(RUN)
    assert x == [1.0, 10.0, 10.0, 100.0, 100.0, 200.0]
    assert y == [1.0, 1.0, 2.0, 2.0, 10.0, 10.0]
    assert points(LOST) == ([], [])


def test_over_time() -> None:
    """The figure of an interval is drawn in its middle; intervals without a reply are left out."""
    assert over_time(RUN, "max_seconds") == ([0.5, 2.5], [10.0, 4.0])
    assert over_time(LOST, "max_seconds") == ([], [])


def test_label() -> None:
    """A label has the target and the kind of loop."""
    end = "3.5 % lost, 2026-11-30 12:34"
    assert label(RUN) == f"echo.example:7, 2 x 64 B, closed loop, {end}"
    open_loop = {**RUN, "asked_messages_per_second": 12500.0}
    assert label(open_loop) == f"echo.example:7, 2 x 64 B, open loop, 12,500/s, {end}"


def test_earlier_version() -> None:
    """The output of an earlier version, without dates and losses, can be drawn."""
    new = ("started_at", "lost_fraction", "intervals")
    run = {name: value for name, value in RUN.items() if name not in new}
    assert label(run) == "echo.example:7, 2 x 64 B, closed loop"
    run["intervals"] = [{"start_seconds": 0.0, "seconds": 1.0, "max_seconds": 0.5}]
    assert over_time(run, "lost") == ([], [])


def test_narrow_range(tmp_path: Path) -> None:
    """Latencies that hardly differ have a linear axis: a logarithmic one would have no tick."""
    times = an_interval(0.0, p50=0.0201, p99=0.0202, max=0.0203)
    run = {**RUN, "latency_histogram": [[0.0201, 5], [0.0203, 5]], "intervals": [times]}
    draw([run], str(tmp_path / "a.svg"))
    assert {"20.1", "20.15", "20.2", "20.25", "20.3"} <= set(comments(tmp_path / "a.svg"))


def test_no_exponents(tmp_path: Path) -> None:
    """The ticks of a wide logarithmic axis are plain numbers."""
    run = {**RUN, "latency_histogram": [[0.000_05, 5], [0.2, 5]]}
    draw([run], str(tmp_path / "a.svg"))
    assert {"0.05", "0.1", "1", "100"} <= set(comments(tmp_path / "a.svg"))


def a_step(rate: float, p99: float | None, holds: bool) -> dict[str, Any]:
    latency = dict.fromkeys(("p50", "p99", "max"), p99)
    return {"asked_messages_per_second": rate, "latency_seconds": latency, "holds": holds}


def test_search(tmp_path: Path) -> None:
    """The plot of a search has the latencies by rate, and the bound."""
    steps = [a_step(100.0, 0.001, True), a_step(200.0, 0.1, False), a_step(400.0, None, False)]
    search = {
        **RUN,
        "command": "find-rate",
        "steps": steps,
        "highest": {"messages_per_second": 100.0},
        "bound_percentile": "max",
        "bound_seconds": 0.01,
    }
    file = tmp_path / "a.svg"
    draw([search], str(file))
    result = comments(file)
    for each in ("p50", "p99", "max", "fails", "bound", "messages a second", "latency, ms"):
        assert each in result, each
    assert "echo.example:7, 64 B, 2026-11-30 12:34: 100/s holds" in result
    draw([{**search, "steps": [], "highest": None}], str(file))
    assert "echo.example:7, 64 B, 2026-11-30 12:34: no rate holds" in comments(file)


def test_invalid_utf8(tmp_path: Path) -> None:
    """A name that is not valid UTF-8 is drawn."""
    file = tmp_path / "a.svg"
    draw([{**RUN, "target": "unix:/\udcff", "file": "\udcfe.json"}], str(file))
    assert any(line.startswith(r"\udcfe.json: unix:/\udcff, 2 x") for line in comments(file))


def test_underscore(tmp_path: Path) -> None:
    """A file whose name begins with an underscore is in the legend."""
    file = tmp_path / "a.svg"
    draw([{**RUN, "file": "_a.json"}, RUN], str(file))
    assert any(line.startswith("_a.json: echo.example:7, ") for line in comments(file))


def test_load_run(tmp_path: Path) -> None:
    """The output of ``--json`` can be read and drawn."""
    connector = Connector(Clock(), parse_target("h:7"), 1.0)
    load = Load(connector, 64, connections=1, duration=1.0, rate=None, on_interval=lambda _: None)
    times = Histogram()
    times.record([0.001, 0.002])
    load.tally.times.add(times)
    load.statistics.intervals = [Interval.of(0.0, 1.0, times), Interval.of(1.0, 1.0, Histogram())]
    written = to_json(load_result(load))
    file = tmp_path / "run.json"
    file.write_text(written)
    assert load_run(str(file)) == {**json.loads(written), "file": str(file)}
    assert label(load_run(str(file))).startswith(f"{file}: h:7, ")
    draw([load_run(str(file))], str(tmp_path / "a.svg"))


@pytest.mark.parametrize(
    "written",
    [
        "[]",
        "{}",
        "3",
        "null",
        '"latency_histogram"',
        "",
        "{",
        "{}\n{}",
        "[" * 100_000,
        "\udcff\udcfe",
        "\udc89PNG",
        json.dumps({**RUN, "latency_histogram": [[1]]}),
        json.dumps({**RUN, "latency_histogram": [[0.1, 0]]}),
        json.dumps({**RUN, "latency_histogram": [[0.1, "x"]]}),
        json.dumps({**RUN, "intervals": [{"max_seconds": 1}]}),
        json.dumps({**RUN, "intervals": [{**an_interval(0.0, max=1.0), "p50_seconds": {}}]}),
        json.dumps({**RUN, "asked_messages_per_second": "x"}),
        json.dumps({name: value for name, value in RUN.items() if name != "target"}),
    ],
)
def test_other_files(tmp_path: Path, written: str) -> None:
    """Other files are refused, such as the output of ``ping --json``, or an image."""
    file = tmp_path / "run.json"
    file.write_bytes(written.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match="not the output of load --json"):
        load_run(str(file))


def test_missing_file(tmp_path: Path) -> None:
    """A missing file, or a directory, raises the kernel's error."""
    with pytest.raises(FileNotFoundError):
        load_run(str(tmp_path / "no.json"))
    with pytest.raises(IsADirectoryError):
        load_run(str(tmp_path))
