"""Capacity of ``echod-client``, compared with tools in C: ``python benchmarks/client.py``.

All tools use the same server, ``echo.c``, on its own core, in turns:

load   50 connections, 64 B messages: messages a second, compared with ``load.c``
pipe   zeros through the service: MB/s, compared with socat(1), which does not check them
rate   1,000 messages a second: the number of messages sent, and their delay
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from counting import spread
from losses import HOST, give_up_after, table
from servers import CORES, LOAD_CORE, Server, build

WHOLE: Final = 300  # seconds after which the benchmark gives up
CLIENT: Final = str(Path(sys.executable).with_name("echod-client"))
CONNECTIONS: Final = 50
SIZE: Final = 64  # bytes of a message
RATE: Final = 1000  # messages a second
HALF: Final = 0.5  # aim: at least this part of the figure of the tool in C
OFF: Final = 0.01  # aim: at most this part of the rate missing
LATE: Final = 0.001  # aim: at most one message in a hundred later than this, in seconds


class Size(NamedTuple):
    """The amount of work."""

    rounds: int
    seconds: float  # of each load
    megabytes: int  # through each pipe


FULL: Final = Size(rounds=5, seconds=3.0, megabytes=2000)
SHORT: Final = Size(rounds=1, seconds=0.2, megabytes=20)


class Round(NamedTuple):
    """The figures of a round.

    :ivar loads: messages a second, of the client and of ``load.c``.
    :ivar pipes: MB/s, of the client and of socat.
    :ivar rate: messages sent a second, of :data:`RATE`.
    :ivar late: the 99th percentile of their delay, in seconds.
    """

    loads: tuple[float, float]
    pipes: tuple[float, float]
    rate: float
    late: float


def output_of(command: Sequence[object], statuses: Sequence[int] = (0,)) -> str:
    """Return the standard output of a command; raise if its status is not one of ``statuses``."""
    run = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    if run.returncode not in statuses:
        lines = (run.stderr.strip() or run.stdout.strip()).splitlines()
        raise RuntimeError(f"{command[0]}: {lines[-1] if lines else f'status {run.returncode}'}")
    return run.stdout


def result_of(*arguments: object) -> Any:
    """Run the client, and return its JSON."""
    return json.loads(output_of([CLIENT, *arguments, "--json"]))


def load_of_c(tools: str, port: int, seconds: float) -> float:
    """Return the messages a second of ``load.c``."""
    words = [port, "echo", CONNECTIONS, SIZE, round(seconds * 1000), 0]
    run = subprocess.run(
        [f"{tools}/load", *map(str, words)], input="\n", capture_output=True, text=True, check=True
    )
    count, nanoseconds = run.stdout.splitlines()[1].split()[:2]
    return int(count) / int(nanoseconds) * 1e9


def through(command: list[str], megabytes: int) -> float:
    """Return the MB/s at which zeros come out of ``command``; raise if a byte is missing."""
    count = megabytes * 1_000_000
    began = time.perf_counter()
    with (
        subprocess.Popen(["head", "-c", str(count), "/dev/zero"], stdout=subprocess.PIPE) as source,
        subprocess.Popen(command, stdin=source.stdout, stdout=subprocess.PIPE) as pipe,
    ):
        assert source.stdout is not None
        source.stdout.close()
        counting = subprocess.run(
            ["wc", "-c"], stdin=pipe.stdout, capture_output=True, text=True, check=True
        )
    if int(counting.stdout) != count or pipe.returncode:
        raise RuntimeError(f"{command[0]}: {counting.stdout.strip()} of {count} bytes came out")
    return megabytes / (time.perf_counter() - began)


def measure(tools: str, number: int, size: Size) -> Round:
    with ExitStack() as closing:
        server = Server("c", tools)
        closing.callback(server.close)
        server.ready()
        target = f"{HOST}:{server.port}"

        def load() -> float:
            figures = result_of("load", target, "-C", CONNECTIONS, "-s", SIZE, "-d", size.seconds)
            return float(figures["messages_per_second"])

        def pipe() -> float:
            return through([CLIENT, "pipe", target], size.megabytes)

        def socat() -> float:
            return through(["socat", "-t", "30", "-", f"TCP:{target}"], size.megabytes)

        # The order is reversed in every second round.
        turns = {
            "load": load,
            "c": lambda: load_of_c(tools, server.port, size.seconds),
            "pipe": pipe,
            "socat": socat,
        }
        names = list(turns) if number % 2 else list(reversed(turns))
        found = {name: turns[name]() for name in names}
        paced = result_of("load", target, "-C", 10, "-s", SIZE, "-d", size.seconds, "-r", RATE)
        return Round(
            (found["load"], found["c"]),
            (found["pipe"], found["socat"]),
            paced["sent_messages_per_second"],
            paced["scheduling_error_seconds"]["p99"],
        )


def verdict(is_met: bool) -> str:
    return "met" if is_met else "not met"


def report(rounds: list[Round]) -> str:
    """Return the table, the ratios, and a verdict for each aim."""

    def middle(name: str, which: int) -> str:
        return f"{median(getattr(each, name)[which] for each in rounds):,.0f}"

    rows = [
        ["echod-client load", middle("loads", 0), ""],
        ["load.c", middle("loads", 1), ""],
        ["echod-client pipe", "", middle("pipes", 0)],
        ["socat", "", middle("pipes", 1)],
    ]
    loads = [ours / other for ours, other in (each.loads for each in rounds)]
    pipes = [ours / other for ours, other in (each.pipes for each in rounds)]
    rate = median(each.rate for each in rounds)
    late = median(each.late for each in rounds)
    return "\n".join(
        (
            table([["client", "messages a second", "MB/s"]], rows),
            "",
            f"Messages a second, echod-client / load.c: {spread(loads)}; "
            f"aim: at least {HALF}: {verdict(median(loads) >= HALF)}.",
            f"MB/s, echod-client / socat: {spread(pipes)}; "
            f"aim: at least {HALF}: {verdict(median(pipes) >= HALF)}.",
            f"Of {RATE:,} messages a second, {rate:,.1f} were sent; "
            f"aim: within 1 %: {verdict(abs(rate - RATE) <= OFF * RATE)}.",
            f"One in a hundred of these was sent {late * 1000:.3f} ms late or more; "
            f"aim: below 1 ms: {verdict(late < LATE)}.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare echod-client with tools in C on 127.0.0.1, print a reST table."
    )
    parser.add_argument("--short", action="store_true", help="run briefly, for CI: imprecise")
    size = SHORT if parser.parse_args().short else FULL
    for needed in ("cc", "socat"):
        if not shutil.which(needed):
            sys.exit(f"client.py: no {needed} is installed")
    give_up_after(WHOLE)
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    os.sched_setaffinity(0, LOAD_CORE)
    with tempfile.TemporaryDirectory() as tools:
        try:
            build("echo.c", f"{tools}/echo-c")
            build("load.c", f"{tools}/load")
            rounds = [measure(tools, number, size) for number in range(size.rounds)]
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            sys.exit(f"client.py: {error}")
    print(report(rounds))
    print(
        f"{size.rounds} rounds; {CONNECTIONS} connections, {SIZE} B a message; server and client "
        f"on {'a core each' if CORES[1:] else 'one core'}.\n"
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"Twisted {version('twisted')}, {platform.system()} {platform.release()}."
    )


if __name__ == "__main__":
    main()
