"""``benchmarks/truth.py`` runs, its service logs what it did, and its verdicts are right."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import ModuleType
from typing import Any

import pytest

from tests import ROOT, TIMEOUT
from tests.benchmarks.running import benchmark, needs_cc, short_run

truth = benchmark("truth")
truth_cases = benchmark("truth_cases")
truth_peers = benchmark("truth_peers")
truth_runs = benchmark("truth_runs")

PARTS = 8
"""Processes among which the cases are divided."""


def cells_of(output: str) -> list[list[str]]:
    """Return the cells of a table in reST, without the head."""
    rule, *lines = output.partition("\n\n")[0].splitlines()
    columns = [each.span() for each in re.finditer("=+", rule)]
    return [[line[start:end].strip() for start, end in columns] for line in lines[2:-1]]


@needs_cc
@pytest.mark.parametrize("part", range(PARTS))
def test_output(part: int, truth_cases: ModuleType, truth_runs: ModuleType) -> None:
    """Each case has its rows, with a figure of echod-client, an aim and a verdict."""
    names = list(truth_cases.CASES)[part::PARTS]
    output = short_run("truth.py", *names)
    left_out = truth_runs.missing()
    assert re.findall("Left out: (.*) is not installed", output) == left_out
    if "stunnel4" in left_out and "constant-tls" in names:
        names.remove("constant-tls")
    rows = cells_of(output)
    expected = [row.title for name in names for row in truth_cases.CASES[name].rows]
    assert [title for title, *_ in rows] == expected
    for _, _, mine, *_, aim, verdict in rows:
        assert re.fullmatch(r"-?\d+(\.\d\d)?", mine)
        assert (aim[:1], verdict) in [("≤", "met"), ("≤", "missed"), ("", "")]


@needs_cc
def test_without_peers(tmp_path: Path) -> None:
    """A program that is not installed is named, and its column is empty."""
    for name in ("cc", "as", "ld"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    output = short_run("truth.py", "replies", "closed", "constant-tls", PATH=str(tmp_path))
    replies, closed = cells_of(output)
    assert replies == ["each 10th reply: lost", "", "0", "", "", "", "≤ 0", "met"]
    assert closed[4:] == ["", "", "", ""]
    left_out = re.findall("Left out: (.*) is not installed", output)
    assert left_out == ["irtt", "sockperf", "stunnel4"]


@needs_cc
def test_unknown_case() -> None:
    """An unknown case is named, with the known ones."""
    command = [sys.executable, ROOT / "benchmarks" / "truth.py", "freeze", "thaw"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert "error: no such case: thaw; the cases are: constant-tcp, " in ended.stderr


def test_documented(truth_cases: ModuleType) -> None:
    """The table of the manual has all rows of the benchmark."""
    text = (ROOT / "docs" / "measuring.rst").read_text()
    table = text.partition("What the figures are worth\n")[2].partition("\n\n===")[2]
    expected = [row.title for case in truth_cases.CASES.values() for row in case.rows]
    assert [title for title, *_ in cells_of(f"==={table}")] == expected


# The service.


class Service:
    """``truth.c``, and a socket that is connected to it."""

    def __init__(self, program: Path, where: str, **options: int) -> None:
        self.process = subprocess.Popen(
            [program, where, *(f"{name}={value}" for name, value in options.items())],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        place = line.removeprefix(f"listening on {where}").strip()
        if where.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(where.removeprefix("unix:"))
        else:
            kind = socket.SOCK_DGRAM if where == "udp" else socket.SOCK_STREAM
            self.sock = socket.socket(socket.AF_INET, kind)
            host, port = place.split(":")
            self.port = int(port)
            self.sock.connect((host, self.port))
        self.sock.settimeout(TIMEOUT)

    def __enter__(self) -> Service:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()
        self.process.kill()
        self.process.communicate()

    def send(self, count: int) -> None:
        for number in range(count):
            self.sock.send(number.to_bytes(64, "big"))

    def replies(self, count: int) -> list[int]:
        """Return the numbers in ``count`` replies; a damaged reply has a high one."""
        found = [self.sock.recv(64, socket.MSG_WAITALL) for _ in range(count)]
        return [int.from_bytes(each, "big") for each in found]

    def log(self) -> dict[str, Any]:
        """End the service, and return its log; nothing else has come from it."""
        self.process.terminate()
        assert self.process.stdout is not None
        log: dict[str, Any] = json.loads(self.process.stdout.read())
        self.sock.settimeout(0)
        with suppress(BlockingIOError):  # of datagrams; a stream has ended
            assert self.sock.recv(64) == b""
        return log


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile the service, with all warnings."""
    target = tmp_path_factory.mktemp("truth") / "truth"
    source = ROOT / "benchmarks" / "truth.c"
    subprocess.run(["cc", "-O2", "-Wall", "-Wextra", "-Werror", "-o", target, source], check=True)
    return target


ALL = list(range(20))
COUNTS = ("dropped_requests", "dropped_replies", "duplicated", "damaged", "reordered", "waiting")


@needs_cc
@pytest.mark.parametrize(
    ("options", "expected", "counts"),
    [
        ({}, ALL, {}),
        ({"drop_requests": 7}, [n for n in ALL if n % 7 != 6], {"dropped_requests": 2}),
        ({"drop_replies": 7}, [n for n in ALL if n % 7 != 6], {"dropped_replies": 2}),
        ({"duplicate": 20}, [*ALL, 19], {"duplicated": 1}),
        ({"rate": 1}, [0], {"dropped_requests": 19}),
        ({"slow": 20, "slow_delay": 1000}, ALL, {}),
        ({"slow": 19, "slow_delay": 50_000}, [*ALL[:18], 19, 18], {"reordered": 1}),
        ({"freeze": 50_000, "freeze_after": 0}, ALL, {}),
    ],
)
def test_datagrams(
    program: Path, options: dict[str, int], expected: list[int], counts: dict[str, int]
) -> None:
    """The service drops, repeats and delays as its options say, also as a relay, and logs it."""
    for upstream in (False, True):
        with Service(program, "udp") as server:
            relayed = {"upstream": server.port} if upstream else {}
            with Service(program, "udp", **options, **relayed) as service:
                service.send(len(ALL))
                assert service.replies(len(expected)) == expected
                log = service.log()
        found = {name: log[name] for name in COUNTS if log[name]}
        assert found == counts
        assert log["requests"] == len(ALL)


@needs_cc
@pytest.mark.parametrize("where", ["tcp", "udp", "unix"])
def test_damage(program: Path, tmp_path: Path, where: str) -> None:
    """The service flips a bit of each Nth message."""
    place = f"unix:{tmp_path}/socket" if where == "unix" else where
    with Service(program, place, damage=10) as service:
        service.send(len(ALL))
        wrong = 1 << 8 * 31  # byte 32 of 64
        assert service.replies(len(ALL)) == [n ^ wrong if n % 10 == 9 else n for n in ALL]
        assert service.log()["damaged"] == 2


@needs_cc
@pytest.mark.parametrize("where", ["tcp", "udp", "unix"])
def test_delays(program: Path, tmp_path: Path, where: str) -> None:
    """Delays are as long as asked, and the log has the delays of the service alone."""
    place = f"unix:{tmp_path}/socket" if where == "unix" else where
    with Service(program, place, delay=5000, ramp=1000, ramp_count=2) as service:
        seen = []
        for _ in range(4):
            since = monotonic()
            service.send(1)
            service.replies(1)
            seen.append(monotonic() - since)
        times = service.log()["delay_seconds"]
    assert min(seen[0], seen[3]) > 0.006
    assert min(seen[1], seen[2]) > 0.007
    assert 0.006 <= times["min"] <= times["p50"] <= times["p90"] == times["max"]
    assert 0.007 <= times["max"] < max(seen)
    assert times["min"] < min(seen)


# The figures and the verdicts.


def test_figures_of_irtt(truth_peers: ModuleType) -> None:
    """The figures of irtt come from each message: lost ones have no time."""
    trips = [
        {
            "lost": lost,
            "delay": {"rtt": 1_000_000 * number},
            "timestamps": {"client": {"send": {"monotonic": moment}}},
        }
        for number, (lost, moment) in enumerate(
            [("false", 500), ("true_up", 10_000_500), ("false", 23_000_500), ("true_down", 0)]
        )
    ]
    stats = {"duplicates": 3, "late_packets": 2}
    figures = truth_peers.figures_of_irtt({"round_trips": trips, "stats": stats}, 0.01)
    assert figures == pytest.approx(
        {"p50": 0, "p90": 0.002, "p99": 0.002, "max": 0.002}
        | {"lost": 2, "duplicated": 3, "reordered": 2, "lateness": 0.003}
    )


def test_figures_of_sockperf(truth_peers: ModuleType) -> None:
    """The figures of sockperf come from its text, in microseconds."""
    text = (
        "sockperf: # dropped messages = 5; # duplicated messages = 0; # out-of-order messages = 0\n"
        "sockperf: ---> <MAX> observation = 23778.681\n"
        "sockperf: ---> percentile 99.990 = 23700.000\n"
        "sockperf: ---> percentile 99.000 = 23500.000\n"
        "sockperf: ---> percentile 90.000 = 20106.599\n"
        "sockperf: ---> percentile 50.000 =   77.339\n"
    )
    assert truth_peers.figures_of_sockperf(text) == pytest.approx(
        {"p50": 77.339e-6, "p90": 0.020106599, "p99": 0.0235, "max": 0.023778681, "lost": 5}
    )
    with pytest.raises(RuntimeError, match=r"no 'percentile 50\.000' in its output"):
        truth_peers.figures_of_sockperf("")


@pytest.mark.parametrize(
    ("unit", "beside", "mine", "expected"),
    [
        ("%", "", [1.005, 1.02, 0.998], "met"),  # the median is off by 0.5 %
        ("%", "", [0.98, 0.98, 1.0], "missed"),
        ("off", "", [1.0, 1.0, 1.0], "met"),
        ("off", "", [1.0, 1.0, 3.0], "missed"),  # a count is right in each round
        ("ms", "C", [0.5, 0.5, 9.0], "met"),
        ("ms", "C", [0.4, 1.2, 1.2], "missed"),
        ("ms", "irtt", [0.4, 0.4, 0.4], ""),  # it is not installed
    ],
)
def test_verdict(
    truth: ModuleType, unit: str, beside: str, mine: list[float], expected: str
) -> None:
    """The aim is met by the median of the rounds; a count meets it in every round."""
    row = truth.Row("a title", "p50", unit, 1.0, beside)
    log = {"p50": 1.0}
    rounds = [{"echod-client": ({"p50": each}, log), "C": ({"p50": 0.5}, log)} for each in mine]
    title, *_, verdict = truth.row_of(row, rounds)
    assert (title, verdict) == ("a title", expected)
