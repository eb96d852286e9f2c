"""docs/speed.rst: its tables have the recorded figures, and the figures support its claims.

``python -m tests.docs.test_speed`` writes the tables into the document, from docs/speed.json by
``benchmarks/speed.py``, from docs/speed-flame.svg by ``benchmarks/flame.py``, and from
docs/growth.json by ``benchmarks/growth.py``.

The output of a command is between the comments ``begin: TITLE`` and ``end``, where TITLE is the
first cell of a table. The ``sh`` block has the commands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from echod import fastpath
from tests import ROOT, TIMEOUT
from tests.benchmarks.running import benchmark, needs_cc
from tests.docs.test_all import blocks, tree

PATH = ROOT / "docs" / "speed.rst"
README = ROOT / "README.rst"
FIGURES = ROOT / "docs" / "speed.json"
CHART = ROOT / "docs" / "speed.svg"
FLAME = ROOT / "docs" / "speed-flame.svg"
GROWTH = ROOT / "docs" / "growth.json"
GROWTH_CHART = ROOT / "docs" / "growth.svg"

BLOCK = re.compile(r"(?ms)(?<=^\.\. begin: )([^\n]+)\n\n(?:(.*?)\n\n)??\.\. end$")
FLAME_TITLE = "Where the last microsecond goes"


MIB = 1024 * 1024


def run(name: str, *options: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a benchmark, and return its output and status."""
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        **more,
    )


def parts(name: str, figures: Path, notes: str) -> dict[str, str]:
    """Return the output of the benchmarks for the recorded figures, by title."""
    ended = run(name, "--read", figures)
    assert (ended.returncode, ended.stderr) == (0, "")
    *tables, last = ended.stdout.rstrip("\n").split("\n\n")
    lines = "\n".join(
        f"| {line}" for line in last.splitlines()
    )  # line blocks, because reST joins plain lines
    return {re.split(" {2,}", table.splitlines()[1])[0]: table for table in tables} | {notes: lines}


def printed() -> dict[str, str]:
    return (
        parts("speed.py", FIGURES, "notes")
        | parts("flame.py", FLAME, "flame notes")
        | parts("growth.py", GROWTH, "growth notes")
    )


def with_figures(document: str) -> str:
    """Return the document with the tables and notes of the benchmarks.

    A block stays empty until its table is recorded.
    """
    texts = {title: f"{text}\n\n" for title, text in printed().items()}
    return BLOCK.sub(lambda found: f"{found[1]}\n\n{texts.get(found[1], '')}.. end", document)


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads(FIGURES.read_text())


aims = benchmark("aims")
report = benchmark("report")
speed = benchmark("speed")
flame = benchmark("flame")
growth = benchmark("growth")
servers = benchmark("servers")
echoes = benchmark("echoes")


def test_figures() -> None:
    """Each table and each note is the benchmark's output for the recorded figures."""
    document = PATH.read_text()
    assert sorted(dict(BLOCK.findall(document))) == sorted(printed())
    for path in (PATH, README):
        text = path.read_text()
        assert text == with_figures(text), "`python -m tests.docs.test_speed` writes them anew"


def test_whole(figures: Any, speed: ModuleType) -> None:
    """The figures are complete: every server in every scenario."""
    for each in figures["rounds"]:
        assert list(each) == list(speed.SCENARIOS)
        for scenario, servers in each.items():
            expected = [name for name in speed.USUAL if speed.takes_part(name, scenario)]
            assert sorted(servers) == sorted(expected)


def test_aims(figures: Any, aims: ModuleType) -> None:
    """Each aim has a row, whose verdict follows from the figures."""
    rows = dict(BLOCK.findall(PATH.read_text()))["figure"].splitlines()[3:-1]
    assert len(rows) == len(aims.AIMS)
    for row, aim in zip(rows, aims.AIMS, strict=True):
        values = [
            each[aim.scenario][aim.server][aim.figure]
            / (each[aim.scenario][aim.other][aim.figure] if aim.other else 1)
            for each in figures["rounds"]
        ]
        least = median(values) >= aim.least if aim.least is not None else True
        most = median(values) <= aim.most if aim.most is not None else True
        unknown = row.endswith(("  the machine is too slow", "  the load is the limit"))
        assert unknown or row.endswith("  met" if least and most else "  missed")


def annotations(path: Path) -> list[str]:
    """Return the numbers of a chart, with their marks."""
    texts = [element.text or "" for element in ET.parse(path).iter()]
    return sorted(text for text in texts if re.fullmatch(r"([≤≥] )?[\d.,]+", text))


def test_chart(figures: Any, report: ModuleType) -> None:
    """The chart has the figures of the first table."""
    rounds = figures["rounds"]
    assert annotations(CHART) == sorted(
        report.cell(rounds, scenario, server, figure, report.middle)
        for scenario, figure, *_ in report.COLUMNS
        for server in report.in_all(rounds)
    )


@pytest.mark.soak
@pytest.mark.parametrize(
    ("name", "recorded", "drawn"),
    [("speed.py", FIGURES, CHART), ("growth.py", GROWTH, GROWTH_CHART)],
)
def test_chart_again(name: str, recorded: Path, drawn: Path, tmp_path: Path) -> None:
    """The charts are the benchmarks' for the recorded figures."""
    pytest.importorskip("matplotlib")
    again = tmp_path / "again.svg"
    ended = run(name, "--read", recorded, "--chart", again)
    assert (ended.returncode, ended.stderr) == (0, "")
    if f"Matplotlib v{version('matplotlib')}," in drawn.read_text():
        assert again.read_bytes() == drawn.read_bytes()
    assert annotations(again) == annotations(drawn)


def test_readme(figures: Any) -> None:
    """The figures support the README: messages cost little more than in C, connections more."""

    def ratio(scenario: str, other: str) -> float:
        rounds = [each[scenario] for each in figures["rounds"]]
        return median(each["echod"]["cpu"] / each[other]["cpu"] for each in rounds)

    for scenario in ("message-50", "message-500"):
        assert 1 < ratio(scenario, "c") < 1.5
        assert 2 / 3 < ratio(scenario, "uvloop") < 1.5
    assert ratio("short", "twisted") < 3 / 4
    assert 1.5 < ratio("short", "c") < 2.5


def test_cheaper_connections(figures: Any) -> None:
    """The figures support the page: the fast path and --quiet make short connections cheaper."""

    def ratio(name: str) -> float:
        rounds = [each["short"] for each in figures["rounds"]]
        return median(each[name]["cpu"] / each["echod"]["cpu"] for each in rounds)

    assert ratio("echod-slow") > 1
    assert 1.4 < ratio("echod-log") < 3


def test_equal_conditions(servers: ModuleType, echoes: ModuleType) -> None:
    """The peers have the same backlog and the same buffer sizes as echod."""
    assert servers.BACKLOG == echoes.BACKLOG
    assert echoes.BUFFER == fastpath.SIZE
    assert f"buffer[{fastpath.SIZE}];" in (ROOT / "benchmarks" / "echo.c").read_text()
    assert "-b4096" in servers.SOCAT


def test_commands(figures: Any, flame: ModuleType) -> None:
    """The commands are those of the figures, and the one that writes the tables."""
    [commands] = blocks(tree(PATH), "sh")
    assert commands.splitlines()[-4:] == [
        figures["command"],
        flame.drawn_from(FLAME)["command"],
        json.loads(GROWTH.read_text())["command"],
        "python -m tests.docs.test_speed",
    ]


def test_growth(growth: ModuleType) -> None:
    """The figures of many connections are complete: every server with every number of them."""
    for each in json.loads(GROWTH.read_text())["rounds"]:
        for share in growth.SHARES:
            for count in growth.COUNTS:
                assert sorted(each[f"{share} {count}"]) == sorted(growth.SERVERS)
        assert len([name for name in each if name.endswith(" connections")]) == 3


def test_flame_graph(flame: ModuleType, tmp_path: Path) -> None:
    """The flame graph can be drawn again from its data, has plain SVG, and names no path."""
    text = FLAME.read_text()
    ended = run("flame.py", "--read", FLAME, "--svg", tmp_path / "again.svg")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "again.svg").read_text() == text
    assert len(text) < 150_000
    names = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}
    assert names == {"svg", "metadata", "g", "title", "rect", "text"}
    assert re.findall(r"/tmp|/root|/work|/home|/usr|pyenv|site-packages|x86_64", text) == []


def test_flame_reading(flame: ModuleType) -> None:
    """The flame graph supports the page: most of the time is in the kernel, in send above all."""
    result = flame.drawn_from(FLAME)
    shares = flame.shares(result["stacks"])
    kernel = shares[flame.SEND] + shares[flame.RECEIVE] + shares[flame.EPOLL]
    assert kernel > 3 / 4
    assert shares[flame.SEND] > kernel / 2
    assert (1 - kernel) * result["figures"]["cpu"] < 1
    assert shares[flame.REACTOR] < 1 / 20


LOOP = "ReactorBase.mainLoop (twisted/internet/base.py)"
READ = f"{LOOP};FastPath.doRead (echod/fastpath.py)"


@pytest.mark.parametrize(
    ("stack", "row"),
    [
        (f"{READ};send_now (echod/fastpath.py);sock_send (socketmodule.c);send (libc)", "SEND"),
        (f"{READ};sock_recv_into (socketmodule.c);__libc_recv (libc)", "RECEIVE"),
        (f"{LOOP};select_epoll_poll (selectmodule.c.h);epoll_wait (libc)", "EPOLL"),
        (f"{READ};sock_recv_into (socketmodule.c);pthread_mutex_lock (libc)", "MODULES"),
        (READ, "PYTHON"),
        (f"{READ};send_now (echod/fastpath.py)", "PYTHON"),
        (f"{LOOP};turn (echod/engine.py)", "PYTHON"),
        (f"{LOOP};turn (echod/engine.py);select_poll_poll (selectmodule.c.h);poll (libc)", "EPOLL"),
        (f"{LOOP};ReactorBase.runUntilCurrent (twisted/internet/base.py)", "REACTOR"),
        ("<module> (twistd)", "OTHER"),
    ],
)
def test_part(flame: ModuleType, stack: str, row: str) -> None:
    """The innermost frames decide in which row a stack counts."""
    assert flame.part_of(stack) == getattr(flame, row)


def test_stacks(flame: ModuleType) -> None:
    """Stacks are cut above the reactor's loop, and equal ones are merged."""
    raw = f"<module> (twistd);{LOOP};0x7f01 (?) 2\n0x7f (libc.so.6);{LOOP};0x7f02 (?) 3\n"
    assert flame.stacks_of(raw) == {f"{LOOP};? (?)": 5}


@pytest.mark.parametrize(
    ("frame", "text"),
    [
        ("doRead (/x/y/echod/fastpath.py)", "doRead (echod/fastpath.py)"),
        ("mainLoop (twisted/internet/base.py)", "mainLoop (twisted/internet/base.py)"),
        (
            "mainLoop (/x/lib/python3.11/site-packages/twisted/internet/base.py)",
            "mainLoop (twisted/internet/base.py)",
        ),
        ("sock_send (_socket.cpython-311-x86_64-linux-gnu.so)", "sock_send (_socket)"),
        ("__send (libc-2.36.so)", "__send (libc)"),
        ("send (/lib/x86_64-linux-gnu/libc.so.6)", "send (libc)"),
        ("start", "start"),
    ],
)
def test_shortened(flame: ModuleType, frame: str, text: str) -> None:
    """A frame has the package and the file, without the directory."""
    assert flame.shortened(frame) == text


@pytest.fixture
def profiler(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return a function that makes a fake py-spy, and returns an environment with it."""

    def make(ending: str) -> dict[str, str]:
        (tmp_path / "py-spy").write_text(f"#!/bin/sh\n{ending}\n")
        (tmp_path / "py-spy").chmod(0o755)
        return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


@needs_cc
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to profile another process")
def test_measures(profiler: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """The samples of py-spy become a table and a graph, with the time of a message."""
    svg = tmp_path / "flame.svg"
    environment = profiler(
        '[ "$1" = --version ] && echo py-spy 1.2.3 && exit\n'
        'while [ "$1" != --output ]; do shift; done\n'
        f"echo '{READ};send_now (echod/fastpath.py);send (libc.so.6) 3' >$2\n"
        f"echo '{READ} 1' >>$2"
    )
    ended = run("flame.py", "--svg", svg, env=environment)
    assert (ended.returncode, ended.stderr) == (0, "")
    rows = dict(re.split(" {2,}", line, maxsplit=1) for line in ended.stdout.splitlines()[3:11])
    assert re.fullmatch(r"75\.0 % +[\d,]+ ns", rows["kernel, send"])
    assert re.fullmatch(r"25\.0 % +[\d,]+ ns", rows["the interpreter in echod"])
    assert re.fullmatch(r"100 % +[1-9][\d,]* ns", rows["a message"])
    assert "py-spy 1.2.3.\n" in ended.stdout
    assert run("flame.py", "--read", svg).stdout == ended.stdout


@needs_cc
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to profile another process")
def test_profiler_fails(profiler: Callable[[str], dict[str, str]]) -> None:
    """An error of py-spy becomes one error line."""
    ended = run("flame.py", env=profiler("echo Error: not today >&2; echo Reason: >&2; exit 1"))
    assert ended.returncode == 1
    assert ended.stderr == "flame.py: py-spy: Error: not today\n"
    assert ended.stdout == ""


def test_no_profiler(flame: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without py-spy on the PATH or beside the interpreter, nothing is measured."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(RuntimeError, match="no py-spy is installed; `pip install py-spy` does it"):
        flame.measure(1)


def test_no_graph(tmp_path: Path) -> None:
    """A file that flame.py has not drawn gets one error line."""
    file = tmp_path / "none.svg"
    svg = '<svg xmlns="http://www.w3.org/2000/svg"><metadata>{}</metadata></svg>'
    written = ("", "{}", "[]", "1", '{"stacks": {}}', '{"stacks": {}, "figures": {"cpu": 1}}')
    for text in ("", "{}", "<svg/>", *map(svg.format, written)):
        file.write_text(text)
        ended = run("flame.py", "--read", file)
        assert (ended.returncode, ended.stdout) == (1, "")
        assert ended.stderr == f"flame.py: {file} was not drawn by flame.py\n"


@pytest.mark.parametrize("options", ["--seconds 0", "--svg /none/x.svg"])
def test_wrong_option(options: str) -> None:
    """A wrong option gets argparse's error line, and nothing is measured."""
    ended = run("flame.py", *options.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    error = f"flame.py: error: argument {options.partition(' ')[0]}: "
    assert ended.stderr.splitlines()[-1].startswith(error)


if __name__ == "__main__":
    for written in (PATH, README):
        written.write_text(with_figures(written.read_text()))
