"""Speed of echod, compared with other echo servers: ``python benchmarks/speed.py``.

In each round, and for each scenario, every server starts in its own process on 127.0.0.1. The
servers get the load in turns, each several times. The servers share one core, and the load has
another. The load is a C program (``load.c``) that compares every byte that comes back, and measures
its own CPU time: the table marks the figures of a server that had to wait for the load. Ratios are
taken within a round, because the speed of a machine changes from round to round.

CPU time is that of the server's process, its threads and its children, including the kernel's.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import report
from losses import exit_in_one_line, give_up_after
from report import Figures, Round
from servers import (
    CORES,
    LOAD_CORE,
    PEERS,
    SERVER_CORE,
    USUAL,
    Server,
    build,
    end_children,
    lack_of,
    takes_part,
    version_of,
    waited,
)

WHOLE: Final = 1800  # seconds after which the benchmark gives up
WHOLE_SHORT: Final = 100
SPARE: Final = 50  # descriptors that are not connections


@dataclass(frozen=True)
class Scenario:
    """A kind of load, and its amount."""

    how: str  # argument HOW of load.c
    connections: int
    size: int = 64  # bytes of a message
    milliseconds: int = 250  # of a run
    most: int = 0  # messages or connections of a run; 0: any number
    runs: int = 3  # of each server in a round; the servers take turns


SCENARIOS: Final = {
    "message-1": Scenario("echo", 1),
    "message-50": Scenario("echo", 50),
    "message-500": Scenario("echo", 500),
    "bulk": Scenario("echo", 10, size=10**6),
    # Not more, because each connection stays in TIME-WAIT for a minute, and uses one of 28,000
    # ports.
    "short": Scenario("short", 10, most=1500),
    "idle": Scenario("idle", 5050, runs=1),
    # The first connection is measured, and the second one floods.
    "flood": Scenario("flood", 2, milliseconds=1500, runs=1),
    "udp": Scenario("udp", 50),
}
SHORT: Final = {
    "message-1": Scenario("echo", 1, milliseconds=20, runs=1),
    "message-50": Scenario("echo", 50, milliseconds=20, runs=1),
    "message-500": Scenario("echo", 500, milliseconds=20, runs=1),
    "bulk": Scenario("echo", 10, size=10**6, milliseconds=20, runs=1),
    "short": Scenario("short", 10, most=50, runs=1),
    "idle": Scenario("idle", 150, runs=1),
    "flood": Scenario("flood", 2, milliseconds=100, runs=1),
    "udp": Scenario("udp", 50, milliseconds=20, runs=1),
}
# Connections of a server with a process for each: a hundred show its memory use as well.
FORKS: Final = {"idle": 150}


class Load:
    """A process of ``load.c``, connected to a server and warmed up. :meth:`close` ends it."""

    def __init__(self, tools: str, server: Server, scenario: Scenario, connections: int) -> None:
        numbers = (connections, scenario.size, scenario.milliseconds, scenario.most)
        self._server = server
        self.process = subprocess.Popen(
            [f"{tools}/load", str(server.port), scenario.how, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        self._line()

    def run(self) -> list[int]:
        """Run once, and return the numbers that ``load.c`` prints."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [int(word) for word in self._line().split()]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            error = self.process.stderr.read().strip()
            raise RuntimeError(f"{self._server.name}: {error or 'the load has died'}")
        return line


def connections_of(name: str, scenario: Scenario, server: str) -> int:
    """Return the number of connections that a server gets."""
    most = FORKS.get(name, scenario.connections) if PEERS[server].forks else scenario.connections
    return min(most, scenario.connections)


def check_descriptors(scenarios: dict[str, Scenario], servers: Sequence[str]) -> None:
    """Raise an error if RLIMIT_NOFILE is too low for the connections."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    available = hard - SPARE
    needed = max(
        connections_of(name, scenario, server)
        for name, scenario in scenarios.items()
        for server in servers
    )
    if needed > available:
        raise RuntimeError(
            f"RLIMIT_NOFILE leaves room for {max(0, available):,} connections, "
            f"and {needed:,} are needed (ulimit -n)"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the servers and the load too


def run_round(
    name: str, scenario: Scenario, servers: Sequence[str], tools: str
) -> dict[str, Figures]:
    """Return the figures of each server for one scenario in one round."""
    with ExitStack() as stack:
        running: list[Server] = []
        for server_name in servers:
            # Measure the connection, without its log line.
            quiet = ["--quiet"] if (name, server_name) == ("short", "echod") else []
            running.append(Server(server_name, tools, *quiet))
            stack.callback(running[-1].close)
        totals: dict[str, list[Figures]] = {server: [] for server in servers}
        loads: dict[str, Load] = {}
        for number in range(scenario.runs):
            for server in running:
                if number == 0:
                    server.ready()
                    connections = connections_of(name, scenario, server.name)
                    loads[server.name] = load = Load(tools, server, scenario, connections)
                    stack.callback(load.close)
                    load.ready()
                totals[server.name].append(measured(loads[server.name], server, scenario))
                if number + 1 == scenario.runs:
                    loads[server.name].close()
        return {server: figures(scenario, runs) for server, runs in totals.items()}


def measured(load: Load, server: Server, scenario: Scenario) -> Figures:
    """Return the raw figures of one run, in nanoseconds and bytes."""

    def until_now() -> dict[str, float]:
        return {
            "memory": server.memory() if scenario.how == "idle" else 0,
            "waited": waited(load.process.pid) + server.waited(),
            "cpu": server.cpu(),
        }

    before = until_now()
    numbers = load.run()
    spent = {name: value - before[name] for name, value in until_now().items()}
    return spent | dict(zip(("done", "wall", "own", "p50", "p99"), numbers, strict=True))


def figures(scenario: Scenario, runs: Sequence[Figures]) -> Figures:
    """Return the figures of all runs of a server, in the units of the tables."""
    total = {name: sum(run[name] for run in runs) for name in runs[0]}
    done, wall = total["done"], total["wall"]
    if not done:
        raise RuntimeError("nothing was done in the time of a run")
    if scenario.how == "idle":
        return {"kib": total["memory"] / 1024 / done}
    return {
        "cpu": total["cpu"] / 1000 / done,
        "rate": done / wall * 1e9,
        "mb": done * scenario.size / wall * 1e3,
        # The percentiles of the last run include all runs before it.
        "p50": runs[-1]["p50"] / 1000,
        "p99": runs[-1]["p99"] / 1000,
        "busy": total["cpu"] / wall,
        "load": total["own"] / wall,
        # Divided by two cores; several threads can wait for one core at the same time.
        "waited": min(1, total["waited"] / wall / 2),
    }


def order_of(servers: Sequence[str], count: int) -> list[str]:
    """Return the servers in their order for a round, after ``count`` rounds."""
    start = count % len(servers)
    order = [*servers[start:], *servers[:start]]
    if count % 2 and len(servers) > 2:  # reversing two would undo the rotation
        order.reverse()
    return order


def rounds_of(
    number: int, scenarios: dict[str, Scenario], servers: Sequence[str], tools: str
) -> Iterator[Round]:
    """Yield the rounds; the order of the servers changes from round to round."""
    for count in range(number):
        figures_of = {}
        for name, scenario in scenarios.items():
            print(f"round {count + 1} of {number}: {name}", file=sys.stderr)
            some = [server for server in servers if takes_part(server, name)]
            figures_of[name] = run_round(name, scenario, order_of(some, count), tools)
        yield figures_of


def machine() -> str:
    """Return the processor, the number of usable cores, and the hypervisor."""
    found = re.search(r"(?m)^model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    cores = f"{len(CORES)} core{'s' if len(CORES) > 1 else ''}"
    parts = [found[1] if found else platform.machine(), cores, *filter(None, [hypervisor()])]
    how = "a core each" if SERVER_CORE != LOAD_CORE else "one core"
    return f"{', '.join(parts)}; servers and load on {how}"


def hypervisor() -> str:
    """Return the name of the hypervisor, or an empty string."""
    if not shutil.which("lscpu"):
        return ""
    output = subprocess.run(
        ["lscpu"], capture_output=True, text=True, env=os.environ | {"LC_ALL": "C"}, check=False
    ).stdout
    found = re.search(r"Hypervisor vendor: +(.*)", output)
    return found[1] if found else ""


def kernel() -> str:
    """Return the kernel's name and release, without what its builder appended."""
    found = re.match(r"\d+([.]\d+)*", platform.release())
    return f"{platform.system()} {found[0] if found else platform.release()}"


def versions(servers: Sequence[str]) -> str:
    return ", ".join(
        filter(
            None,
            [
                f"{platform.python_implementation()} {platform.python_version()}",
                f"Twisted {version('twisted')}",
                *map(version_of, servers),
                kernel(),
            ],
        )
    )


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all rounds, with the machine, the versions and the command."""
    if not shutil.which("cc"):
        raise RuntimeError("the load is a C program, and no cc is installed")
    sizes = SHORT if arguments.short else SCENARIOS
    asked = arguments.scenarios or list(SCENARIOS)
    number = arguments.rounds or (1 if arguments.short else 7)
    with tempfile.TemporaryDirectory() as tools:
        build("load.c", f"{tools}/load")
        lacks = {name: lack_of(name, tools) for name in arguments.servers or USUAL}
        servers = [name for name, lack in lacks.items() if not lack]
        if not servers:
            raise RuntimeError(f"no server can be run: {', '.join(lacks.values())}")
        scenarios = {
            name: sizes[name] for name in asked if any(takes_part(one, name) for one in servers)
        }
        if not scenarios:
            raise RuntimeError(f"{', '.join(servers)} takes no part in {', '.join(asked)}")
        check_descriptors(scenarios, servers)
        os.sched_setaffinity(0, LOAD_CORE)
        rounds = list(rounds_of(number, scenarios, servers, tools))
    return {
        "rounds": rounds,
        "left_out": [
            f"Left out: {PEERS[name].title}: {lacks[name]}." for name in lacks if lacks[name]
        ],
        "versions": versions(servers),
        "machine": machine(),
        "command": " ".join(["python benchmarks/speed.py", *sys.argv[1:]]),
    }


def names(known: Sequence[str]) -> Any:
    """Return a parser of a comma-separated list of names, for argparse."""

    def parse(text: str) -> list[str]:
        given = text.split(",")
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"no {name!r}; there are {', '.join(known)}")
        return given

    return parse


def whole(text: str) -> int:
    """Return an integer of at least 1, for argparse."""
    if not re.fullmatch("[0-9]*[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number of 1 or more")
    return int(text)


def target(text: str) -> Path:
    """Return the path of a writable file, for argparse."""
    path = Path(text)
    parent = os.path.isdir(path.parent) and os.access(path.parent, os.W_OK)
    if os.path.isdir(path) or not (os.access(path, os.W_OK) if os.path.exists(path) else parent):
        raise argparse.ArgumentTypeError(f"{text!r} cannot be written")
    return path


def picture(text: str) -> Path:
    """Return the path of a writable SVG file, for argparse."""
    if not text.endswith(".svg"):
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .svg")
    if not find_spec("matplotlib"):
        raise argparse.ArgumentTypeError("it needs matplotlib")
    return target(text)


def read(path: Path) -> tuple[dict[str, Any], str]:
    """Return the figures of a file, and their tables."""
    try:
        result = json.loads(path.read_text())
        return result, report.tables(result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise RuntimeError(f"{path} was not written by speed.py") from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the speed of echo servers on 127.0.0.1, print reST tables."
    )
    parser.add_argument("--short", action="store_true", help="run briefly, for CI: imprecise")
    parser.add_argument("--rounds", type=whole, metavar="N", help="7 by default")
    parser.add_argument("--servers", type=names(list(PEERS)), metavar="A,B", help=", ".join(USUAL))
    parser.add_argument(
        "--scenarios",
        type=names(list(SCENARIOS)),
        metavar="A,B",
        help=", ".join(SCENARIOS),
    )
    parser.add_argument("--json", type=target, metavar="FILE", help="write all figures to it")
    parser.add_argument("--chart", type=picture, metavar="FILE", help="draw a chart, in SVG")
    parser.add_argument("--read", type=Path, metavar="FILE", help="read figures, measure nothing")
    arguments = parser.parse_args()
    if arguments.read and (arguments.servers or arguments.scenarios or arguments.rounds):
        parser.error("--read measures nothing: no --servers, --scenarios or --rounds")
    give_up_after(WHOLE_SHORT if arguments.short else WHOLE)
    with exit_in_one_line(), ExitStack() as stack:
        stack.callback(end_children)
        if arguments.read:
            result, output = read(arguments.read)
        else:
            result = measure(arguments)
            output = report.tables(result)
        print(output, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        if arguments.chart:
            report.chart(result, arguments.chart)


if __name__ == "__main__":
    main()
