"""``echod-client`` under long runs and large amounts of data. ``tox -e soak`` runs these."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from echod.peer import EchoPeer
from tests import TIMEOUT
from tests.client.memory import target_of
from tests.programs.daemon import Daemon
from tests.programs.test_echod_client import CLIENT, client

pytestmark = pytest.mark.soak

MIB = 1 << 20
RUNS = 1000


def peak(pid: int) -> int:
    """Return the peak resident memory of a process, in bytes (VmHWM in proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(
        int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")
    )


@pytest.mark.parametrize(
    ("mebibytes", "source"),
    [(10 * 1024, lambda: bytes(MIB)), (1024, lambda: os.urandom(MIB))],
    ids=["10 GiB of zeros", "1 GiB of noise"],
)
def test_pipe(mebibytes: int, source: Callable[[], bytes]) -> None:
    """A pipe returns gigabytes unchanged, in less than 64 MiB of memory."""
    parts = [source() for _ in range(16)]  # repeated
    with (
        Daemon("--port", "0", "--quiet") as daemon,
        subprocess.Popen(
            [CLIENT, "pipe", f"127.0.0.1:{daemon.port}"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process,
    ):
        feed, echoed = process.stdin, process.stdout
        assert feed is not None
        assert echoed is not None

        def write() -> None:
            for number in range(mebibytes):
                feed.write(parts[number % len(parts)])
            feed.flush()

        writer = threading.Thread(target=write)
        writer.start()
        for number in range(mebibytes):
            assert echoed.read(MIB) == parts[number % len(parts)], number
        writer.join()
        memory = peak(process.pid)
        feed.close()
        assert echoed.read() == b""
        assert process.wait(TIMEOUT) == 0
    print(f"\n{mebibytes} MiB through a pipe: {memory / MIB:.1f} MiB of memory")
    assert memory < 64 * MIB


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_delay(transport: str, echo_peer: EchoPeer) -> None:
    """A delay of 20 ms in the service adds 20 ms to the p50, within 1 ms."""
    medians = []
    peer = echo_peer(transport)
    for seconds in (0, 0.02):
        if seconds:
            peer.delay(seconds)
        run = client("ping", target_of(peer), "-c", 200, "-i", 0.005, "--json")
        assert run.returncode == 0
        medians.append(json.loads(run.stdout)["round_trip_seconds"]["p50"])
    own, with_delay = medians
    print(f"\np50 {own * 1000:.3f} ms without, {with_delay * 1000:.3f} ms with 20 ms")
    assert with_delay - own == pytest.approx(0.02, abs=0.001)


def frozen_load(*arguments: object) -> Any:
    """Load a service that freezes for 1 s every 10 s, for 11 s, over four connections."""
    with EchoPeer() as peer:
        peer.plan("message 1 of 64: freeze 1s; after 10s: freeze 1s")
        run = client("load", target_of(peer), "-d", 11, *arguments)
        assert peer.counts == {"freeze": 8}
    assert (run.returncode, run.stderr) == (0, "")
    return run.stdout


def test_freeze() -> None:
    """An open loop measures the freezes as computed; a closed loop does not, and says so.

    Of 11,000 messages 2,000 wait for the rest of a freeze: a tenth of all for at least 0.45 s, a
    hundredth for at least 0.945 s.
    """
    with ThreadPoolExecutor() as pool:
        opened = pool.submit(frozen_load, "-r", 1000, "-C", 4)
        closed = pool.submit(frozen_load, "-C", 4)
    percentiles = figures(opened.result())
    assert percentiles["p90"] == pytest.approx(450, rel=0.05)
    assert percentiles["p99"] == pytest.approx(945, rel=0.05)
    assert "open loop: 1,000" in opened.result() or "open loop: 99" in opened.result()
    assert figures(closed.result())["p99"] < 100
    assert "closed loop" in closed.result()
    print("\n", opened.result(), closed.result(), sep="")


def figures(printed: str) -> dict[str, float]:
    """Return the latencies of a load's summary, in milliseconds."""
    line = next(line for line in printed.splitlines() if line.startswith("latency: "))
    pairs = (each.split() for each in line[len("latency: ") : line.index(" ms")].split(", "))
    return {name: float(value) for name, value in pairs}


RUNS_IN_A_NETWORK_NAMESPACE = """
import os, subprocess, sys
from echod.client.options import parse
from echod.client.runner import run

peers = [sys.executable, "-c", sys.argv[2]]  # a process: a fork would lose their threads
os.dup2(os.open(os.devnull, os.O_RDWR), 0)
quiet = os.open(os.devnull, os.O_RDWR)
with subprocess.Popen(peers, stdin=-1, stdout=-1, text=True) as serving:
    tcp, udp = serving.stdout.readline().split()
    commands = [
        ["ping", tcp, "-c", "2", "-i", "0.001"],
        ["ping", udp, "-c", "2", "-i", "0.001"],
        ["load", tcp, "-d", "0.005", "-C", "3"],
        ["load", udp, "-d", "0.005", "-C", "3", "-r", "1000"],
        ["pipe", tcp],
        ["ping", "127.0.0.1:9", "-c", "1"],
    ]
    statuses, running = set(), {}
    for number in range(int(sys.argv[1]) + 2):
        if len(running) == 2 or number >= int(sys.argv[1]):
            pid, ended = os.wait()
            statuses.add((running.pop(pid), os.waitstatus_to_exitcode(ended)))
        if number >= int(sys.argv[1]):
            continue
        pid = os.fork()  # spares the imports
        if not pid:
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            status = 100
            try:
                status = run(parse(commands[number % len(commands)]))
            finally:
                os._exit(status)
        running[pid] = number % len(commands)
    serving.communicate()
print(sorted(statuses), flush=True)  # before the output of ss
subprocess.run(["ss", "-Hantu", "exclude", "time-wait"], check=True)
subprocess.run(["ss", "-s"], check=True)
"""

PEERS = """
import sys
from echod.peer import EchoPeer
with EchoPeer() as tcp, EchoPeer("udp") as udp:
    print(f"127.0.0.1:{tcp.port}", f"udp:127.0.0.1:{udp.port}", flush=True)
    sys.stdin.read()
"""


def test_no_socket_left() -> None:
    """After 1,000 runs no socket is left, except those in TIME_WAIT."""
    run = subprocess.run(
        [
            *("unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"),
            *(sys.executable, "-c", RUNS_IN_A_NETWORK_NAMESPACE, str(RUNS), PEERS),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    statuses, rest = run.stdout.split("\n", 1)
    assert statuses == "[(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 1)]"
    print(rest)
    assert rest.startswith("Total: ")  # the list of sockets before it is empty
