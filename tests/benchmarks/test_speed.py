"""``benchmarks/speed.py`` runs, detects wrong bytes, and reports its figures correctly."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from tests import ROOT, TIMEOUT
from tests.benchmarks.running import benchmark, needs_cc

HOST = "127.0.0.1"
MIB = 1 << 20
COMMAND = [sys.executable, str(ROOT / "benchmarks" / "speed.py")]


def bench(*options: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run the short form, which has a limit of 100 s."""
    with subprocess.Popen(
        [*COMMAND, "--short", *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    ) as process:
        try:
            output, errors = process.communicate(timeout=110)
        except BaseException:
            process.terminate()  # on SIGTERM it stops its servers
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, output, errors)


loads = benchmark("loads")
report = benchmark("report")
servers = benchmark("servers")
speed = benchmark("speed")


def rows(output: str, title: str) -> dict[str, list[str]]:
    """Return the rows of the table ``title``: the cells by the name in the first column."""
    [table] = [part for part in output.split("\n\n") if f"\n{title}  " in part]
    lines = [re.split(" {2,}", line) for line in table.splitlines()]
    rules = [at for at, line in enumerate(lines) if line[0].startswith("==")]
    return {name: cells for name, *cells in lines[rules[1] + 1 : rules[2]]}


@needs_cc
def test_selection(tmp_path: Path) -> None:
    """The output has the chosen servers and scenarios, and --read prints it again."""
    file = tmp_path / "figures.json"
    ended = bench(
        *("--servers", "echod,c,asyncio", "--scenarios", "message-50,short,idle"),
        *("--json", str(file)),
    )
    assert ended.returncode == 0
    assert ended.stderr.splitlines() == [
        f"round 1 of 1: {name}" for name in ("message-50", "short", "idle")
    ]
    names = ["echod", "asyncio Protocol", "C, epoll"]
    summary = rows(ended.stdout, "server")
    assert list(summary) == names
    for message, connection, idle in summary.values():
        assert re.fullmatch(r"(≤ )?[\d.,]+ µs", message)
        assert re.fullmatch(r"(≤ )?[\d.,]+ µs", connection)
        assert re.fullmatch(r"[\d.,]+ KiB", idle)
    for title in ("64 B messages, 50 connections", "connect, 64 B, close; 10 at once"):
        assert list(rows(ended.stdout, title)) == names

    again = bench("--read", str(file))
    assert (again.returncode, again.stdout) == (0, ended.stdout)


@needs_cc
def test_wrong_byte() -> None:
    """One wrong byte ends the benchmark."""
    ended = bench("--servers", "asyncio,liar", "--scenarios", "message-50")
    assert ended.returncode == 1
    last = ended.stderr.splitlines()[-1]
    assert re.fullmatch(r"speed\.py: liar: a wrong byte came back after byte \d+", last)
    assert ended.stdout == ""


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """Make a directory for PATH that has only a C compiler."""
    for name in ("cc", "as", "ld"):
        found = shutil.which(name)
        if found:
            (tmp_path / name).symlink_to(found)
    return tmp_path


@needs_cc
def test_log() -> None:
    """The row of echod with its log is in the table of short connections only."""
    ended = bench("--servers", "echod,echod-log", "--scenarios", "message-1,short")
    assert ended.returncode == 0
    short = rows(ended.stdout, "connect, 64 B, close; 10 at once")
    assert list(short) == ["echod", "echod, with its log"]
    assert list(rows(ended.stdout, "64 B messages, 1 connection")) == ["echod"]
    assert list(rows(ended.stdout, "server")) == ["echod"]
    assert "\nWith short connections, echod runs with ``--quiet``; " in ended.stdout

    ended = bench("--servers", "echod-log", "--scenarios", "message-1,idle")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "speed.py: echod-log takes no part in message-1, idle\n"


@needs_cc
def test_datagrams() -> None:
    """Over UDP there are servers of its own, and an aim for echod's CPU time beside C's."""
    ended = bench("--servers", "echod,echod-udp,asyncio-udp,c-udp", "--scenarios", "udp")
    assert ended.returncode == 0
    names = ["echod, UDP", "asyncio, UDP", "C, UDP"]
    assert list(rows(ended.stdout, "64 B datagrams, 50 sockets")) == names
    assert re.search(r"echod, UDP / C, UDP +[\d.]+ +at most 1\.60 +(met|missed)\n", ended.stdout)


@needs_cc
def test_tls_peers() -> None:
    """A message of a plain connection is timed while TLS peers send to the same daemon."""
    ended = bench("--servers", "echod,echod-tls", "--scenarios", "tls")
    assert ended.returncode == 0
    cells = rows(ended.stdout, "64 B every 5 ms, beside 40 TLS peers")["echod, TCP and TLS"]
    assert all(re.fullmatch(r"(≤ )?[\d.,]+ ms", cell) for cell in cells[:2])
    assert float(cells[2].split()[0]) > 10  # the peers keep the server busy, and not the message


def test_tls_peers_end(loads: ModuleType, tmp_path: Path) -> None:
    """TLS peers that cannot connect end the benchmark."""
    records = loads.Records(str(tmp_path), SimpleNamespace(ports=[0, 1]))
    records.ready()
    with pytest.raises(RuntimeError, match=r"^records\.py: .*No such file"):
        records.close()


@needs_cc
@pytest.mark.parametrize("name", ["c", "c-splice"])
def test_c_loses_nothing(servers: ModuleType, cores: set[int], tmp_path: Path, name: str) -> None:
    """The servers in C return every byte to a peer that reads late, in messages of any size."""
    assert servers.lack_of(name, str(tmp_path)) == ""
    data = random.Random(862).randbytes(32 * MIB)
    with closing(servers.Server(name, str(tmp_path))) as server:
        server.ready()
        for _ in range(3):  # these peers reset while the server has bytes for them
            with socket.create_connection((HOST, server.port)) as peer:
                fill(peer, data)
        with socket.create_connection((HOST, server.port)) as peer:
            peer.settimeout(TIMEOUT)
            for size in (1, 200_000, MIB, 64, 3 * MIB, MIB, 70_000, 70_000, 1):
                exchange(peer, data[-size:])
            begun = fill(peer, data)
            peer.settimeout(TIMEOUT)
            exchange(peer, data, begun)
            exchange(peer, data[:MIB])
            peer.shutdown(socket.SHUT_WR)
            assert peer.recv(1) == b""


def fill(peer: socket.socket, data: bytes) -> int:
    """Send until the kernel accepts no more, and return the number of bytes."""
    peer.setblocking(False)
    sent = 0
    with suppress(BlockingIOError):
        while sent < len(data):
            sent += peer.send(data[sent : sent + MIB])
    return sent


def exchange(peer: socket.socket, data: bytes, sent: int = 0) -> None:
    """Send what follows the first ``sent`` bytes, and compare all that comes back."""
    with ThreadPoolExecutor() as pool:
        sending = pool.submit(peer.sendall, data[sent:])
        received = bytearray()
        while len(received) < len(data):
            part = peer.recv(len(data) - len(received))
            assert part
            received += part
        assert received == data
        sending.result()


@needs_cc
def test_left_out(bare: Path) -> None:
    """A server that cannot run is left out, and a line gives the reason."""
    ended = bench("--servers", "go,socat,c", "--scenarios", "message-1", PATH=str(bare))
    assert ended.returncode == 0
    assert "Left out: Go, io.Copy: no go is installed.\n" in ended.stdout
    assert "Left out: socat, fork: no socat is installed.\n" in ended.stdout
    assert list(rows(ended.stdout, "64 B messages, 1 connection")) == ["C, epoll"]


@needs_cc
def test_does_not_compile(bare: Path) -> None:
    """A server that does not compile is left out; a load that does not compile is an error."""
    (bare / "go").write_text("#!/bin/sh\necho '# package' >&2; echo no cache >&2; exit 1\n")
    (bare / "go").chmod(0o755)
    ended = bench("--servers", "go,c", "--scenarios", "message-1", PATH=str(bare))
    assert ended.returncode == 0
    assert "Left out: Go, io.Copy: echo.go does not compile: no cache.\n" in ended.stdout
    assert list(rows(ended.stdout, "64 B messages, 1 connection")) == ["C, epoll"]

    (bare / "cc").unlink()
    (bare / "cc").write_text(
        "#!/bin/sh\n(echo In main:; echo error: 1; echo error: 2) >&2; exit 1\n"
    )
    (bare / "cc").chmod(0o755)
    ended = bench(PATH=str(bare))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == "speed.py: load.c does not compile: error: 1\n"


@needs_cc
def test_few_descriptors() -> None:
    """With too few descriptors for the connections, nothing is measured."""
    ended = subprocess.run(
        ["sh", "-c", 'ulimit -n 300; exec "$@"', "sh", *COMMAND, "--scenarios", "message-500"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    needed = "RLIMIT_NOFILE leaves room for 250 connections, and 500 are needed (ulimit -n)"
    assert ended.stderr == f"speed.py: {needed}\n"


def test_no_compiler(tmp_path: Path) -> None:
    """Without a C compiler for the load, the benchmark ends with one error line."""
    ended = bench(PATH=str(tmp_path))
    assert ended.returncode == 1
    assert ended.stderr == "speed.py: the load is a C program, and no cc is installed\n"


@needs_cc
def test_interrupt() -> None:
    """Ctrl-C leaves no process behind."""
    mark = f"ECHOD_BENCH={os.getpid()}"
    name, _, value = mark.partition("=")
    with subprocess.Popen(
        [*COMMAND, "--servers", "asyncio,c", "--scenarios", "message-1,message-50"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {name: value},
    ) as process:
        assert process.stderr is not None
        # The second line follows the end of the first servers.
        assert process.stderr.readline() == "round 1 of 7: message-1\n"
        assert process.stderr.readline() == "round 1 of 7: message-50\n"
        until = time.monotonic() + TIMEOUT
        while len(marked(mark)) < 2:  # the benchmark and a server
            assert time.monotonic() < until
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (130, "")
    assert marked(mark) == []


def marked(mark: str) -> list[int]:
    """Return the processes that have ``mark`` in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue  # the process has ended
    return found


@pytest.mark.soak
@needs_cc
def test_short(servers: ModuleType, report: ModuleType, speed: ModuleType) -> None:
    """The short form runs every scenario on every server that this machine can run."""
    ended = bench()
    assert ended.returncode == 0
    there = [name for name in servers.USUAL if not servers.missing(name)]
    assert len(there) >= 6  # the servers that need no further package
    assert list(report.SCENARIOS) == list(speed.SCENARIOS) == list(speed.SHORT)
    for scenario, (title, _) in report.SCENARIOS.items():
        shared = "blocks, 1 connection: p50" if scenario in servers.BLOCKS else title
        assert list(rows(ended.stdout, shared)) == [
            servers.PEERS[name].title for name in there if servers.takes_part(name, scenario)
        ]
    print(ended.stdout)


def figures(**changed: float) -> dict[str, float]:
    """Return the figures of one server in one round."""
    usual = {"cpu": 4.0, "rate": 1e5, "mb": 6.4, "p50": 50, "p99": 90}
    return usual | {"busy": 0.99, "load": 0.7, "waited": 0.01} | changed


def result(*rounds: Any, scenario: str = "message-50") -> dict[str, Any]:
    """Return the result of rounds of one scenario."""
    head = {"left_out": [], "versions": "V 1", "machine": "M", "command": "C"}
    return {"rounds": [{scenario: each} for each in rounds], **head}


def test_figures(speed: ModuleType) -> None:
    """Figures combine all runs, in the units of the tables."""
    first = {"memory": 0, "waited": 2e6, "cpu": 3e6, "done": 400, "wall": 5e6, "own": 1e6}
    second = {"memory": 0, "waited": 0, "cpu": 2e6, "done": 600, "wall": 5e6, "own": 4e6}
    runs = [first | {"p50": 7000, "p99": 8000}, second | {"p50": 9000, "p99": 11_000}]
    assert speed.figures(speed.Scenario("echo", 1, size=50), runs) == {
        "cpu": 5,  # µs: 5 ms for 1,000
        "rate": 100_000,  # 1,000 in 10 ms
        "mb": 5,  # 50 kB in 10 ms
        "p50": 9,  # µs
        "p99": 11,
        "busy": 0.5,
        "load": 0.5,
        "waited": 0.1,  # 2 ms of 10 on each of two cores
    }
    idle = [second | {"memory": 600 * 2048, "p50": 0, "p99": 0}]
    assert speed.figures(speed.Scenario("idle", 1), idle) == {"kib": 2}


@pytest.mark.parametrize("count", [2, 3, 4, 11])
def test_order(speed: ModuleType, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """No two consecutive rounds have the same order of servers."""
    usual = speed.USUAL[:count]
    scenarios = {name: speed.SCENARIOS[name] for name in ("message-1", "short")}
    orders: dict[str, list[tuple[str, ...]]] = {name: [] for name in scenarios}

    def run_round(name: str, scenario: object, servers: list[str], tools: str) -> dict[str, Any]:
        orders[name].append(tuple(servers))
        return {}

    monkeypatch.setattr(speed, "run_round", run_round)
    list(speed.rounds_of(7, scenarios, usual, ""))
    for name, found in orders.items():
        some = [server for server in usual if speed.takes_part(server, name)]
        assert len(found) == 7
        assert {tuple(sorted(order)) for order in found} == {tuple(sorted(some))}
        if len(some) > 1:
            assert all(one != other for one, other in pairwise(found))
        if some == speed.USUAL:
            assert len(set(found)) == 7


@pytest.fixture
def cores() -> Iterator[set[int]]:
    """Return the usable cores, and restore the affinity that starting a server changes."""
    usable = os.sched_getaffinity(0)
    yield usable
    os.sched_setaffinity(0, usable)


@needs_cc
def test_cores(speed: ModuleType, servers: ModuleType, cores: set[int], tmp_path: Path) -> None:
    """The server and the load run on different cores."""
    if len(cores) == 1:
        pytest.skip("needs two cores")
    servers.build("load.c", str(tmp_path / "load"))
    with closing(servers.Server("asyncio", str(tmp_path))) as server:
        server.ready()
        scenario = speed.SHORT["message-1"]
        with closing(speed.Load(str(tmp_path), server, scenario, 1)) as load:
            load.ready()
            of_server, of_load = map(os.sched_getaffinity, (server.process.pid, load.process.pid))
    assert (len(of_server), len(of_load)) == (1, 1)
    assert of_server != of_load


def test_waited(servers: ModuleType) -> None:
    """The time that a process waits for its core includes all its threads."""
    with subprocess.Popen(
        [sys.executable, "-c", SPINNERS], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "done\n"
        assert servers.waited(process.pid) > 20e6
        main = Path(f"/proc/{process.pid}/schedstat").read_text().split()[1]
        assert servers.waited(process.pid) > int(main)
        process.kill()
    assert servers.waited(process.pid) == 0


# Two threads that compete for a core without holding the GIL, while the main thread sleeps.
SPINNERS = """
import hashlib, os, threading, time
os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])
def spin():
    until = time.monotonic() + 0.3
    while time.monotonic() < until:
        hashlib.sha256(bytes(10**6))
    ready.wait()
ready = threading.Barrier(3)
for _ in range(2):
    threading.Thread(target=spin, daemon=True).start()
time.sleep(0.35)
print("done", flush=True)
time.sleep(60)
"""


def test_aims(report: ModuleType) -> None:
    """Ratios are taken within a round, because a slow round is slow for both servers."""
    slow = [{"echod": figures(cpu=n), "uvloop": figures(cpu=n / 0.94)} for n in (4, 8, 16)]
    output = report.tables(result(*slow))
    assert "echod / uvloop Protocol  0.940 (0.940..0.940)  at most 0.950  met" in output
    slow[1]["uvloop"]["cpu"] = slow[2]["uvloop"]["cpu"] = 4
    assert "2.00 (0.940..4.00)    at most 0.950  missed" in report.tables(result(*slow))


@pytest.mark.parametrize(
    ("scenario", "echod", "uvloop", "verdict"),
    [
        ("message-1", figures(p50=47), figures(p50=45), "met"),
        ("message-1", figures(p50=48), figures(p50=45), "missed"),
        ("message-1", figures(p50=47), figures(p50=46), "the machine is too slow"),
        ("bulk", figures(mb=4000), figures(mb=4000), "met"),
        ("bulk", figures(mb=3999, load=0.95), figures(mb=4000), "missed"),
        ("bulk", figures(mb=3999, load=0.96), figures(mb=4000), "the load is the limit"),
    ],
)
def test_verdict(
    report: ModuleType,
    scenario: str,
    echod: dict[str, float],
    uvloop: dict[str, float],
    verdict: str,
) -> None:
    """An aim is met or missed, or the figures cannot show it, for a reason."""
    output = report.tables(result({"echod": echod, "uvloop": uvloop}, scenario=scenario))
    [line] = re.findall("(?m)^(?:p50|MB/s): .*", output)
    assert line.endswith(f"  {verdict}")


def test_units_of_aims(report: ModuleType) -> None:
    """An aim is in the unit of its figure in the tables."""
    output = report.tables(result({"echod": figures(p99=990)}, scenario="flood"))
    assert re.search(r"echod +0\.990 ms +at most 1\.00 ms +met\n", output)


def test_blocks(report: ModuleType) -> None:
    """Blocks of all sizes have one table."""
    times = {"block-1": 40.0, "block-64": 60.0}
    rounds = {name: {"c": figures(p50=p50)} for name, p50 in times.items()}
    output = report.tables(result() | {"rounds": [rounds]})
    assert "blocks, 1 connection: p50  1 KiB    64 KiB\n" in output
    assert rows(output, "blocks, 1 connection: p50") == {"C, epoll": ["40.0 µs", "60.0 µs"]}
    assert "blocks of" not in output


def test_speed_of_machine(report: ModuleType) -> None:
    """A note says how fast the machine is, by the server in C."""
    output = report.tables(result({"c": figures(p50=31)}, scenario="message-1"))
    assert "with one connection, p50 of the server in C is 31.0 µs." in output
    assert "How fast" not in report.tables(result({"echod": figures()}, scenario="message-1"))


@pytest.mark.parametrize("scenario", ["message-50", "message-500", "bulk", "short"])
def test_not_busy(report: ModuleType, scenario: str) -> None:
    """The figures of a server that was not busy are bounds: ≥ for rates, ≤ for times."""
    output = report.tables(result({"c": figures(busy=0.94)}, scenario=scenario))
    cells = rows(output, report.SCENARIOS[scenario][0])["C, epoll"]
    assert [cell[:2] for cell in cells] == ["≤ ", "≥ ", "≤ ", "≤ ", "94", "70"]
    assert re.fullmatch("[≤≥] .*", rows(output, "server")["C, epoll"][0])
    assert "\n≥, ≤: a bound, because the server was not always busy" in output
    assert "flood" not in output
    busy = report.tables(result({"c": figures(busy=0.96, load=0.99)}, scenario=scenario))
    assert re.findall("[≤≥]", busy) == []


def test_flood(report: ModuleType) -> None:
    """Beside a flood, latency is an upper bound if the load was always busy."""
    output = report.tables(result({"c": figures(busy=0.5, load=0.96)}, scenario="flood"))
    cells = rows(output, report.SCENARIOS["flood"][0])["C, epoll"]
    assert [cell[:2] for cell in cells] == ["≤ ", "≤ ", "50", "96"]
    assert "\n≤ beside a flood (" in output
    assert "≥" not in output
    for busy in (0.5, 0.99):
        found = report.tables(result({"c": figures(busy=busy, load=0.9)}, scenario="flood"))
        assert "≤" not in found


def test_one_connection(report: ModuleType) -> None:
    """With one connection no side is always busy, and no figure is a bound."""
    output = report.tables(result({"c": figures(busy=0.4, load=0.99)}, scenario="message-1"))
    assert re.findall("[≤≥]", output) == []


def test_quiet(report: ModuleType) -> None:
    """The notes say whether other processes used the machine, and how much at worst."""
    assert "The machine was quiet" in report.tables(result({"c": figures()}))
    assert "The machine was not quiet" in report.tables(result({"c": figures(waited=0.2)}))
    shares = [
        {"c": figures(waited=one), "go": figures(waited=other)}
        for one, other in ((0, 0), (0, 0.16), (0, 0))
    ]
    used = "for 2.7% of the time on average, and for 16% in the worst measurement."
    assert used in report.tables(result(*shares))


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (0.0412, "0.0412"), (1.055, "1.05"), (54.321, "54.3"), (123456.7, "123,457")],
)
def test_number(report: ModuleType, value: float, text: str) -> None:
    """Numbers have three significant digits, and all digits before the decimal point."""
    assert report.number(value) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "{", "{}", "[]", "1", "null", '"rounds"', "\0"),
        *('{"rounds": []}', '{"rounds": 3}', '{"rounds": [{"message-50": {}}]}'),
        json.dumps(result({"echod": {}})),
        json.dumps(result({"echod": figures(cpu=float("inf"))})),
    ],
)
def test_foreign_file(tmp_path: Path, text: str) -> None:
    """A file that speed.py has not written gets one error line."""
    file = tmp_path / "none.json"
    file.write_text(text)
    ended = bench("--read", str(file))
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr == f"speed.py: {file} was not written by speed.py\n"


def test_no_file(tmp_path: Path) -> None:
    """A missing file gets one error line."""
    ended = bench("--read", str(tmp_path / "none.json"))
    assert ended.returncode == 1
    assert re.fullmatch(r"speed\.py: .*No such file.*\n", ended.stderr)


def test_full(tmp_path: Path) -> None:
    """A failed write gets one error line after the tables."""
    file = tmp_path / "figures.json"
    file.write_text(json.dumps(result({"echod": figures()})))
    ended = bench("--read", str(file), "--json", "/dev/full")
    assert ended.returncode == 1
    assert list(rows(ended.stdout, "64 B messages, 50 connections")) == ["echod"]
    assert re.fullmatch(r"speed\.py: .*No space left.*\n", ended.stderr)


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ("--servers nobody", "argument --servers: no 'nobody'; there are echod, "),
        ("--rounds 0", "argument --rounds: '0' is no whole number of 1 or more\n"),
        ("--rounds -1", "argument --rounds: '-1' is no whole number of 1 or more\n"),
        ("--rounds 1.5", "argument --rounds: '1.5' is no whole number of 1 or more\n"),
        ("--json /none/x.json", "argument --json: '/none/x.json' cannot be written\n"),
        ("--json /dev", "argument --json: '/dev' cannot be written\n"),
        ("--json /dev/null/x", "argument --json: '/dev/null/x' cannot be written\n"),
        ("--chart x.png", "argument --chart: 'x.png' does not end in .svg\n"),
        ("--read x --servers c", "--read measures nothing: "),
        ("--read x --scenarios idle", "--read measures nothing: "),
        ("--read x --rounds 1", "--read measures nothing: "),
    ],
)
def test_wrong_option(options: str, error: str) -> None:
    """A wrong option gets argparse's error line, and nothing is measured."""
    ended = bench(*options.split())
    assert ended.returncode == 2
    assert f"speed.py: error: {error}" in ended.stderr
    assert ended.stderr.count("\n") == ended.stderr.count("\n ") + 2  # the usage, and the line
    assert ended.stdout == ""
