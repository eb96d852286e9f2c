"""docs/speed.rst tells the truth: its tables and its numbers are those of the figures and the code.

``python -m tests.docs.test_speed`` writes the tables into it, from docs/speed.json, which
``benchmarks/speed.py`` writes, and from docs/speed-flame.svg, which ``benchmarks/flame.py`` does.

How the document is read: what a command printed stands between the comments ``begin: TITLE`` and
``end``, a table under the first cell of its head. An ``sh`` block is the commands.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from statistics import median
from types import ModuleType
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from docutils import nodes

from echod import fastpath
from echod.daemon.listeners.base import BACKLOG
from echod.protocol import MAX_BUFFERED
from tests import ROOT, TIMEOUT
from tests.benchmarks.running import benchmark, needs_cc
from tests.docs.test_all import blocks, section, tree

PATH = ROOT / "docs" / "speed.rst"
README = ROOT / "README.rst"
FIGURES = ROOT / "docs" / "speed.json"
CHART = ROOT / "docs" / "speed.svg"
FLAME = ROOT / "docs" / "speed-flame.svg"

BLOCK = re.compile(r"(?ms)(?<=^\.\. begin: )([^\n]+)\n\n(?:(.*?)\n\n)??\.\. end$")
FLAME_TITLE = "Where the last microsecond goes"


MIB = 1024 * 1024


def run(name: str, *options: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a benchmark to its end, and return what it printed."""
    return subprocess.run(
        [sys.executable, ROOT / "benchmarks" / name, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        **more,
    )


def parts(name: str, figures: Path, notes: str) -> dict[str, str]:
    """Return what a benchmark prints of its figures, by the title that it has in the document."""
    ended = run(name, "--read", figures)
    assert (ended.returncode, ended.stderr) == (0, "")
    *tables, last = ended.stdout.rstrip("\n").split("\n\n")
    lines = "\n".join(f"| {line}" for line in last.splitlines())  # which reST would join
    return {re.split(" {2,}", table.splitlines()[1])[0]: table for table in tables} | {notes: lines}


def printed() -> dict[str, str]:
    return parts("speed.py", FIGURES, "notes") | parts("flame.py", FLAME, "flame notes")


def with_figures(document: str) -> str:
    """Return the document with what the benchmarks print."""
    texts = printed()
    return BLOCK.sub(lambda found: f"{found[1]}\n\n{texts[found[1]]}\n\n.. end", document)


@pytest.fixture(scope="module")
def figures() -> Any:
    return json.loads(FIGURES.read_text())


report = benchmark("report")
speed = benchmark("speed")
flame = benchmark("flame")


def prose(title: str) -> str:
    """Return the text of a section, without what a command printed."""
    part = section(tree(PATH), title).deepcopy()
    for kind in (nodes.table, nodes.line_block, nodes.comment):
        for found in list(part.findall(kind)):
            found.parent.remove(found)
    return " ".join(part.astext().split())


def numbers(text: str) -> set[str]:
    """Return the numbers of a text, but for those that are parts of names."""
    return set(re.findall(r"(?<![\w.(])\d[\d,.]*\d|(?<![\w.(])\d", text))


def test_figures() -> None:
    """Each table and each note is what the benchmark prints of the figures beside the document."""
    document = PATH.read_text()
    assert sorted(dict(BLOCK.findall(document))) == sorted(printed())
    for path in (PATH, README):
        text = path.read_text()
        assert text == with_figures(text), "`python -m tests.docs.test_speed` writes them anew"


def test_whole(figures: Any, speed: ModuleType) -> None:
    """The figures are of the whole benchmark, with no server and no scenario left out."""
    assert f"in each of the {len(figures['rounds'])} rounds" in prose("How it is measured")
    for each in figures["rounds"]:
        assert list(each) == list(speed.SCENARIOS)
        for scenario, servers in each.items():
            expected = [name for name in speed.USUAL if speed.takes_part(name, scenario)]
            assert sorted(servers) == sorted(expected)


def test_aims(figures: Any, report: ModuleType) -> None:
    """Each aim has its row, with what the figures say of it; and the prose says so too."""
    rows = dict(BLOCK.findall(PATH.read_text()))["figure"].splitlines()[3:-1]
    assert len(rows) == len(report.AIMS)
    verdicts = []
    for row, aim in zip(rows, report.AIMS, strict=True):
        values = [
            each[aim.scenario]["echod"][aim.figure]
            / (each[aim.scenario][aim.other][aim.figure] if aim.other else 1)
            for each in figures["rounds"]
        ]
        least = median(values) >= aim.least if aim.least is not None else True
        most = median(values) <= aim.most if aim.most is not None else True
        verdicts.append(least and most)
        assert row.endswith("  met" if verdicts[-1] else "  missed")
    assert ("All of them are met:" in prose("Aims")) == all(verdicts)


def annotations(path: Path) -> list[str]:
    """Return the texts of a chart that are numbers, marks and all."""
    texts = [element.text or "" for element in ET.parse(path).iter()]
    return sorted(text for text in texts if re.fullmatch(r"([≤≥] )?[\d.,]+", text))


def test_chart(figures: Any, report: ModuleType) -> None:
    """The chart has what the first table has: the median of each server in each column."""
    rounds = figures["rounds"]
    assert annotations(CHART) == sorted(
        report.cell(rounds, scenario, server, figure, report.middle)
        for scenario, figure, *_ in report.COLUMNS
        for server in report.in_all(rounds)
    )


@pytest.mark.soak
def test_chart_again(tmp_path: Path) -> None:
    """The chart is what the benchmark draws of the figures beside the document."""
    pytest.importorskip("matplotlib")
    again = tmp_path / "again.svg"
    ended = run("speed.py", "--read", FIGURES, "--chart", again)
    assert (ended.returncode, ended.stderr) == (0, "")
    if f"Matplotlib v{version('matplotlib')}," in CHART.read_text():
        assert again.read_bytes() == CHART.read_bytes()
    assert annotations(again) == annotations(CHART)


def test_readme(figures: Any) -> None:
    """What the README says of the table is there."""

    def ratio(scenario: str, other: str) -> float:
        rounds = [each[scenario] for each in figures["rounds"]]
        return median(each["echod"]["cpu"] / each[other]["cpu"] for each in rounds)

    text = " ".join(README.read_text().split())
    assert "takes hardly more CPU time for a message than an echo server in C, and about" in text
    for scenario in ("message-50", "message-500"):
        assert 1 < ratio(scenario, "c") < 1.5
        assert 2 / 3 < ratio(scenario, "uvloop") < 1.5
    assert "A short connection takes little more CPU time than with Twisted's" in text
    assert 2 / 3 < ratio("short", "twisted") < 1.25
    assert ratio("short", "c") > 2


def test_surroundings(figures: Any) -> None:
    """What the document says of connections that come and go is in their table."""

    def ratio(name: str) -> float:
        rounds = [each["short"] for each in figures["rounds"]]
        return median(each[name]["cpu"] / each["echod"]["cpu"] for each in rounds)

    text = prose("Connections and floods")
    assert "«echod, no fast path» is slower all the same" in text
    assert ratio("echod-slow") > 1
    assert "The log line of a connection costs about as much as everything else" in text
    assert 1.4 < ratio("echod-log") < 3


def test_fast_path() -> None:
    """The numbers of how it works are those of the code, all of them."""
    expected = {
        f"{fastpath.BATCH} connections",
        f"{fastpath.ROUNDS} rounds",
        f"{fastpath.SIZE:,} bytes",
        f"{fastpath.MAX_ECHOED // MIB} MiB",
        f"{MAX_BUFFERED // 1024} KiB",
        f"{fastpath.UNCHECKED // 1024} KiB",
        f"{fastpath.LINGER * 1000} ms",
        f"{fastpath.CROWD} descriptors",
    }
    text = prose("How the fast path works")
    assert {phrase for phrase in expected if phrase not in text} == set()
    assert numbers(text) == {phrase.split()[0] for phrase in expected}
    assert fastpath.SIZE < MAX_BUFFERED


def test_method(speed: ModuleType, report: ModuleType) -> None:
    """The numbers of how it is measured are those of the benchmark."""
    text = prose("How it is measured")
    scenario, short, idle, flood = (
        speed.SCENARIOS[name] for name in ("message-50", "short", "idle", "flood")
    )
    servers, echoes = import_module("servers"), import_module("echoes")
    load = (ROOT / "benchmarks" / "load.c").read_text()
    [warm] = re.findall(r"WARM = (\d+), +/\* milliseconds", load)
    [first] = map(int, re.findall(r"FIRST = (\d+),", load))
    assert (idle.runs, flood.runs) == (1, 1)
    for phrase in (
        f"{scenario.runs} runs of {scenario.milliseconds} ms each",
        f"after {warm} ms that do not count",
        f"{scenario.connections} connections are {scenario.connections} messages in flight",
        f"a run is {short.most:,} of them, after {short.most // 10} at most that do not count",
        f"The flood is one run of {flood.milliseconds:,} ms",
        f"the {idle.connections - first:,} idle connections come once",
        f"a process for each, {speed.FORKS['idle'] - first} tell as much",
        f"a backlog of {servers.BACKLOG:,}; echod's own is {BACKLOG:,}",
        f"busy for less than {report.SATURATED} % of it could have done more",
        f"busy for more than {report.SATURATED} %, messages wait in the load, too",
    ):
        assert phrase in text
    assert servers.BACKLOG == echoes.BACKLOG
    assert "receive into a buffer as large as echod's" in text
    assert echoes.BUFFER == fastpath.SIZE
    assert f"buffer[{fastpath.SIZE}];" in (ROOT / "benchmarks" / "echo.c").read_text()
    assert "blocks of 4 KiB (-b4096)" in text
    assert "-b4096" in servers.SOCAT


def test_commands(figures: Any, flame: ModuleType) -> None:
    """The commands are those that the figures came from, and the one that writes the tables."""
    [commands] = blocks(tree(PATH), "sh")
    assert commands.splitlines()[-3:] == [
        figures["command"],
        flame.drawn_from(FLAME)["command"],
        "python -m tests.docs.test_speed",
    ]


def test_flame_graph(flame: ModuleType, tmp_path: Path) -> None:
    """The flame graph is what its own figures draw, shows anywhere, and nothing of a machine."""
    text = FLAME.read_text()
    ended = run("flame.py", "--read", FLAME, "--svg", tmp_path / "again.svg")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert (tmp_path / "again.svg").read_text() == text
    assert len(text) < 150_000
    names = {element.tag.rpartition("}")[2] for element in ET.fromstring(text).iter()}
    assert names == {"svg", "metadata", "g", "title", "rect", "text"}
    assert re.findall(r"/tmp|/root|/work|/home|/usr|pyenv|site-packages|x86_64", text) == []
    assert f"{flame.drawn_from(FLAME)['rate']} times a second" in prose(FLAME_TITLE)


def test_flame_reading(flame: ModuleType) -> None:
    """What the document reads out of the flame graph is there."""
    text, result = prose(FLAME_TITLE), flame.drawn_from(FLAME)
    shares = flame.shares(result["stacks"])
    kernel = shares[flame.SEND] + shares[flame.RECEIVE] + shares[flame.EPOLL]
    assert "More than three quarters are the kernel's. Most of that is send" in text
    assert kernel > 3 / 4
    assert shares[flame.SEND] > kernel / 2
    assert "Less than a microsecond is left" in text
    assert (1 - kernel) * result["figures"]["cpu"] < 1
    assert "The reactor's turn" in text
    assert "less than a twentieth" in text
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
        (f"{LOOP};ReactorBase.runUntilCurrent (twisted/internet/base.py)", "REACTOR"),
        ("<module> (twistd)", "OTHER"),
    ],
)
def test_part(flame: ModuleType, stack: str, row: str) -> None:
    """Who was running when the server was stopped decides where a stack counts."""
    assert flame.part_of(stack) == getattr(flame, row)


def test_stacks(flame: ModuleType) -> None:
    """A stack begins with the reactor's loop; those that are then the same are one."""
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
    """A frame says which file of which package it is in, and not where that is."""
    assert flame.shortened(frame) == text


@pytest.fixture
def profiler(tmp_path: Path) -> Callable[[str], dict[str, str]]:
    """Return what makes a py-spy that ends so, and the environment in which it is found."""

    def make(ending: str) -> dict[str, str]:
        (tmp_path / "py-spy").write_text(f"#!/bin/sh\n{ending}\n")
        (tmp_path / "py-spy").chmod(0o755)
        return os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}

    return make


@needs_cc
@pytest.mark.skipif(os.geteuid() != 0, reason="to go before the server takes root")
def test_measures(profiler: Callable[[str], dict[str, str]], tmp_path: Path) -> None:
    """What py-spy has seen is made a table and a graph, with the time that a message took."""
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
    assert re.fullmatch(r"25\.0 % +[\d,]+ ns", rows["the interpreter in doRead"])
    assert re.fullmatch(r"100 % +[1-9][\d,]* ns", rows["a message"])
    assert "py-spy 1.2.3.\n" in ended.stdout
    assert run("flame.py", "--read", svg).stdout == ended.stdout


@needs_cc
@pytest.mark.skipif(os.geteuid() != 0, reason="to go before the server takes root")
def test_profiler_fails(profiler: Callable[[str], dict[str, str]]) -> None:
    """What py-spy complains of is told in a line."""
    ended = run("flame.py", env=profiler("echo Error: not today >&2; echo Reason: >&2; exit 1"))
    assert ended.returncode == 1
    assert ended.stderr == "flame.py: py-spy: Error: not today\n"
    assert ended.stdout == ""


def test_no_profiler(tmp_path: Path) -> None:
    """Without py-spy there is no flame graph, and a line says so."""
    if Path(sys.executable).with_name("py-spy").exists():
        pytest.skip("py-spy is installed")
    ended = run("flame.py", env={"PATH": str(tmp_path)})
    assert ended.returncode == 1
    assert ended.stderr == "flame.py: no py-spy is installed; `pip install py-spy` does it\n"
    assert ended.stdout == ""


def test_no_graph(tmp_path: Path) -> None:
    """A file that is no graph of its own is told in a line."""
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
    """What is wrong with an option is told in argparse's own line, and nothing is measured."""
    ended = run("flame.py", *options.split())
    assert (ended.returncode, ended.stdout) == (2, "")
    error = f"flame.py: error: argument {options.partition(' ')[0]}: "
    assert ended.stderr.splitlines()[-1].startswith(error)


if __name__ == "__main__":
    for written in (PATH, README):
        written.write_text(with_figures(written.read_text()))
