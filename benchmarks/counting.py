"""CPU time of the metrics: ``python benchmarks/counting.py``.

Each round starts three daemons on 127.0.0.1: ``twistd -n echod --quiet``, the same again, and the
same with ``--metrics``. They get the same load in turns. The benchmark compares the CPU time of
their processes, which other work on the machine disturbs less than elapsed time. Ratios are taken
within a round. The ratio of the two equal daemons shows the measurement error.

Every byte that comes back is compared, and the counters of ``/metrics`` are checked at the end. The
output is a table in reST, a verdict on each row, and the versions of the software.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import platform
import random
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from http.client import HTTPConnection
from importlib.metadata import version
from itertools import cycle, islice, permutations
from math import comb
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from losses import HOST, exit_in_one_line, give_up_after, table

WHOLE: Final = 300  # seconds after which the benchmark gives up
PEERS: Final = 50  # connections that stay open
SIZE: Final = 64  # bytes of a message
MESSAGES: Final = [random.Random(862).randbytes(SIZE) for _ in range(PEERS)]
CORES: Final = sorted(os.sched_getaffinity(0))

TWISTD: Final = str(Path(sys.executable).with_name("twistd"))
COMMAND: Final = (TWISTD, "-n", "--pidfile=", "echod", "--port", "0", "--quiet")
PLAIN, AGAIN, COUNTING = "--quiet", "the same again", "--metrics"
DAEMONS: Final = {PLAIN: COMMAND, AGAIN: COMMAND, COUNTING: (*COMMAND, "--metrics", "tcp:0")}


class Size(NamedTuple):
    """The amount of work."""

    rounds: int
    turns: int  # of each daemon in a round
    messages: int  # on each of the connections, in a turn
    connections: int  # successive, in a turn
    scrapes: int  # successive, in a round


FULL: Final = Size(rounds=12, turns=30, messages=16, connections=50, scrapes=50)
SHORT: Final = Size(rounds=2, turns=2, messages=10, connections=20, scrapes=5)


class Daemon:
    """A daemon process, and its peers. :meth:`close` ends both.

    The peers' sockets block; the alarm of the whole benchmark bounds their time.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.process = subprocess.Popen(
            DAEMONS[name], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self._closing = ExitStack()
        self._closing.callback(self.process.communicate)
        self._closing.callback(self.process.kill)
        self._sent = 0
        self._opened = 0

    def ready(self) -> None:
        """Wait until it listens, and open the permanent connections.

        The rest of its log is not read: with ``--quiet`` it logs no connection.
        """
        self._port = self._listens("listening")
        if self.name == COUNTING:
            self._http = HTTPConnection(HOST, self._listens("metrics"))
            self._closing.callback(self._http.close)
        self._clock = cpu_clock(self.process.pid)
        self._peers = [self._closing.enter_context(self._connect()) for _ in range(PEERS)]

    def close(self) -> None:
        self._closing.close()

    def cpu(self) -> int:
        """Return the CPU time of the process so far, in nanoseconds.

        Work that remains after the last reply of a load counts for the next load.
        """
        return time.clock_gettime_ns(self._clock)

    def echo(self, messages: int) -> None:
        """Send ``messages`` messages on each of the connections, and receive them.

        When one half of the connections has its replies, it sends again. So the daemon is always
        busy, and the figures do not depend on how often it wakes up.
        """
        halves = self._peers[::2], self._peers[1::2]
        for peers, first in zip(halves, texts(0), strict=True):
            send(peers, first)
        for turn in range(messages):
            pairs = zip(texts(turn), texts(turn + 1), strict=True)
            for peers, (expected, following) in zip(halves, pairs, strict=True):
                for peer, message in zip(peers, expected, strict=True):
                    check(receive(peer), message)
                if turn + 1 < messages:
                    send(peers, following)
        self._sent += messages * PEERS * SIZE

    def come_and_go(self, connections: int) -> None:
        """Open ``connections`` connections in turn, exchange a message on each, and close it."""
        for message in islice(cycle(MESSAGES), connections):
            with self._connect() as peer:
                peer.sendall(message)
                check(receive(peer), message)
                # Wait until the daemon has closed the connection, too.
                peer.shutdown(socket.SHUT_WR)
                check(receive(peer), b"")
        self._sent += connections * SIZE

    def scrape(self, scrapes: int) -> None:
        """Request the metrics ``scrapes`` times, and check their counters."""
        for _ in range(scrapes):
            self._http.request("GET", "/metrics")
            metrics = self._http.getresponse().read().decode()
            for name, expected in (
                ("echod_connections_open", PEERS),
                ("echod_connections_accepted_total", self._opened),
                ("echod_received_bytes_total", self._sent),
                ("echod_sent_bytes_total", self._sent),
            ):
                found = re.search(rf"^{name} (\S+)$", metrics, re.MULTILINE)
                if found is None or float(found[1]) != expected:
                    raise RuntimeError(f"{name} is {found and found[1]}, not {expected}")

    def _connect(self) -> socket.socket:
        self._opened += 1
        peer = socket.create_connection((HOST, self._port))
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return peer

    def _listens(self, how: str) -> int:
        """Return the port from the log line of a listener."""
        assert self.process.stdout is not None
        line = "no output"
        for line in self.process.stdout:
            if f"{how} on tcp {HOST}:" in line:
                return int(line.rpartition(":")[2])
        raise RuntimeError(f"{self.name}: {line.rstrip()}")


def cpu_clock(pid: int) -> int:
    """Return the clock of a process's CPU time, all threads (clock_getcpuclockid(3)).

    ``utime`` and ``stime`` of proc(5) have only a resolution of 10 ms.
    """
    clock = ctypes.c_int()
    error = ctypes.CDLL(None).clock_getcpuclockid(pid, ctypes.byref(clock))
    if error:
        raise OSError(error, os.strerror(error))
    return clock.value


def texts(turn: int) -> tuple[list[bytes], list[bytes]]:
    """Return the messages of a turn, one for each connection, in two halves.

    Each differs from the messages of the other connections, and from those of turns before and
    after.
    """
    start = turn % PEERS
    messages = MESSAGES[start:] + MESSAGES[:start]
    return messages[::2], messages[1::2]


def send(peers: Sequence[socket.socket], messages: Sequence[bytes]) -> None:
    for peer, message in zip(peers, messages, strict=True):
        peer.sendall(message)


def receive(peer: socket.socket) -> bytes:
    """Receive a message, or less at the end."""
    received = b""
    while len(received) < SIZE and (part := peer.recv(SIZE - len(received))):
        received += part
    return received


def check(received: bytes, expected: bytes) -> None:
    if received != expected:
        raise RuntimeError(f"{expected.hex()} was sent, and {received.hex()} came back")


# The measurements: CPU time of each daemon in a round, in microseconds.

MESSAGE, CONNECTION, SCRAPE = "a message", "a connection", "a scrape"

Round = dict[str, dict[str, float]]


def measure(order: Sequence[str], size: Size) -> Round:
    """Run a round, in which the daemons take their turns in this order.

    The order is never reversed within a round: the load before a turn, and the time since the
    daemon's last turn, change a figure by some per cent. In a fixed order, both stay the same.
    """
    with ExitStack() as stack:
        os.sched_setaffinity(0, CORES)  # during their start
        daemons = []
        for name in order:
            daemons.append(Daemon(name))
            stack.callback(daemons[-1].close)
        for daemon in daemons:
            daemon.ready()
            os.sched_setaffinity(daemon.process.pid, CORES[-1:])
        os.sched_setaffinity(0, CORES[:1])

        def each(load: Callable[[Daemon, int], None], amount: int, per: int) -> dict[str, float]:
            for daemon in daemons:
                load(daemon, amount)  # warm up
            spent: dict[str, list[int]] = {name: [] for name in order}
            for daemon in daemons * size.turns:
                before = daemon.cpu()
                load(daemon, amount)
                spent[daemon.name].append(daemon.cpu() - before)
            return {name: median(times) / 1000 / per for name, times in spent.items()}

        result = {
            MESSAGE: each(Daemon.echo, size.messages, size.messages * PEERS),
            CONNECTION: each(Daemon.come_and_go, size.connections, size.connections),
        }
        counting = daemons[order.index(COUNTING)]
        counting.scrape(1)
        before = counting.cpu()
        counting.scrape(size.scrapes)
        result[SCRAPE] = {COUNTING: (counting.cpu() - before) / 1000 / size.scrapes}
        return result


def ratios(rounds: Sequence[Round], what: str, name: str) -> list[float]:
    """Return a daemon's CPU time in each round, relative to the plain daemon's."""
    return [each[what][name] / each[what][PLAIN] for each in rounds]


def row(rounds: Sequence[Round], what: str) -> list[str]:
    """Return the row of the table for one kind of work."""
    times = [f"{median(each[what][name] for each in rounds):.1f} µs" for name in DAEMONS]
    return [what, *times, *(spread(ratios(rounds, what, name)) for name in (AGAIN, COUNTING))]


def spread(numbers: Sequence[float]) -> str:
    return f"{median(numbers):.3f} ({min(numbers):.3f}..{max(numbers):.3f})"


def verdict(what: str, equal: Sequence[float], counting: Sequence[float]) -> str:
    """Return whether the metrics make a difference, from the ratios of each round.

    A ratio within the range of the equal daemons is a difference, too, if it is on the same side
    of 1 in nearly all rounds.
    """
    ratio, rounds = median(counting), len(counting)
    more = sum(each > 1 for each in counting)
    # Sign test: of 2**rounds equally likely sequences, count those at least as one-sided.
    one_sided = 2 * sum(comb(rounds, number) for number in range(min(more, rounds - more) + 1))
    if not min(equal) <= ratio <= max(equal):
        seen = "a difference above the measurement error"
    elif one_sided < 2**rounds / 100:
        seen = "a small but steady difference"
    else:
        seen = "no difference"
    return (
        f"{what.capitalize()}: {seen}. With {COUNTING} it takes {ratio:.3f} times as much, more in "
        f"{more} of {rounds} rounds; equal daemons take {min(equal):.3f}..{max(equal):.3f} times."
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the CPU time of the metrics on 127.0.0.1, print a reST table."
    )
    parser.add_argument("--short", action="store_true", help="too little to mean much, for CI")
    size = SHORT if parser.parse_args().short else FULL
    give_up_after(WHOLE)
    with exit_in_one_line():
        # Over all permutations, each daemon is equally often first, and equally often follows
        # each of the others.
        orders = islice(cycle(permutations(DAEMONS)), size.rounds)
        rounds = [measure(order, size) for order in orders]
    head = [
        ["CPU time of", *DAEMONS, f"{AGAIN} / {PLAIN}", f"{COUNTING} / {PLAIN}"],
        ["", *["median"] * 3, *["median (min..max)"] * 2],
    ]
    print(table(head, [row(rounds, what) for what in (MESSAGE, CONNECTION)]))
    scrape = median(each[SCRAPE][COUNTING] for each in rounds) / 1e6  # seconds
    print(
        "",
        *(
            verdict(what, ratios(rounds, what, AGAIN), ratios(rounds, what, COUNTING))
            for what in (MESSAGE, CONNECTION)
        ),
        f"A scrape of /metrics: {scrape * 1e3:.2f} ms of CPU time; one a second is "
        f"{scrape:.2%} of a core.",
        f"{size.rounds} rounds; {PEERS} connections open, {SIZE} bytes a message; daemon and "
        f"load on {'a core each' if CORES[1:] else 'one core'}.",
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"Twisted {version('twisted')}, prometheus_client {version('prometheus_client')}, "
        f"{platform.system()} {platform.release()}.",
        sep="\n",
    )


if __name__ == "__main__":
    main()
