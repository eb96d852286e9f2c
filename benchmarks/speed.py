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
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import report
from loads import Load, Records, Scenario, figures, measured
from losses import exit_in_one_line, give_up_after
from servers import (
    BLOCKS,
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
)
from units import Figures, Round

WHOLE: Final = 1800  # seconds after which the benchmark gives up
WHOLE_SHORT: Final = 100
SPARE: Final = 50  # descriptors that are not connections


SCENARIOS: Final = {
    "message-1": Scenario("echo", 1),
    "message-50": Scenario("echo", 50),
    "message-500": Scenario("echo", 500),
    "bulk-1": Scenario("echo", 1, size=10**6),
    "bulk": Scenario("echo", 10, size=10**6),
    **{name: Scenario("echo", 1, size=kib * 1024) for name, kib in BLOCKS.items()},
    # Not more, because each connection stays in TIME-WAIT for a minute, and uses one of 28,000
    # ports.
    "short": Scenario("short", 10, most=1500),
    "idle": Scenario("idle", 5050, runs=1),
    # The first connection is measured, and the second one floods.
    "flood": Scenario("flood", 2, milliseconds=1500, runs=1),
    "tls": Scenario("flood", 1, milliseconds=1500, runs=1, records=True),
    "udp": Scenario("udp", 50),
}
# The same for CI: imprecise.
SHORT: Final = {
    name: replace(
        scenario,
        connections=min(scenario.connections, 500 if scenario.how == "echo" else 150),
        milliseconds=100 if scenario.how == "flood" else 20,
        most=min(scenario.most, 50),
        runs=1,
    )
    for name, scenario in SCENARIOS.items()
}
# Connections of a server with a process for each: a hundred show its memory use as well.
FORKS: Final = {"idle": 150}


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
                    if scenario.records:
                        records = Records(tools, server)
                        stack.callback(records.close)
                        records.ready()
                    connections = connections_of(name, scenario, server.name)
                    loads[server.name] = load = Load(tools, server, scenario, connections)
                    stack.callback(load.close)
                    load.ready()
                totals[server.name].append(measured(loads[server.name], server, scenario))
                if number + 1 == scenario.runs:
                    loads[server.name].close()
        return {server: figures(scenario, runs) for server, runs in totals.items()}


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
        if "echod-tls" in servers:
            from tls import write_files  # noqa: PLC0415 - needs what this server needs

            write_files(Path(tools))
        os.sched_setaffinity(0, LOAD_CORE)
        rounds = list(rounds_of(number, scenarios, servers, tools))
    return {
        "rounds": rounds,
        "left_out": left_out(lacks),
        "versions": versions(servers),
        "machine": machine(),
        "command": " ".join(["python benchmarks/speed.py", *sys.argv[1:]]),
    }


def left_out(lacks: dict[str, str]) -> list[str]:
    """Return the notes on the servers that cannot run here."""
    return [f"Left out: {PEERS[name].title}: {lack}." for name, lack in lacks.items() if lack]


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


def read(path: Path, tables: Callable[[Any], str]) -> tuple[dict[str, Any], str]:
    """Return the figures of a file, and their tables."""
    try:
        result = json.loads(path.read_text())
        return result, tables(result)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise RuntimeError(f"{path} was not written by {Path(sys.argv[0]).name}") from None


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--short", action="store_true", help="run briefly, for CI: imprecise")
    parser.add_argument("--rounds", type=whole, metavar="N", help="7 by default")
    parser.add_argument("--json", type=target, metavar="FILE", help="write all figures to it")
    parser.add_argument("--chart", type=picture, metavar="FILE", help="draw a chart, in SVG")
    parser.add_argument("--read", type=Path, metavar="FILE", help="read figures, measure nothing")


def show(
    arguments: argparse.Namespace,
    measure: Callable[[argparse.Namespace], dict[str, Any]],
    tables: Callable[[Any], str],
    chart: Callable[[Any, Path], None],
) -> None:
    """Measure or read, print the tables, and write the files that the options name."""
    with exit_in_one_line(), ExitStack() as stack:
        stack.callback(end_children)
        if arguments.read:
            result, output = read(arguments.read, tables)
        else:
            result = measure(arguments)
            output = tables(result)
        print(output, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(result, indent=1) + "\n")
        if arguments.chart:
            chart(result, arguments.chart)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the speed of echo servers on 127.0.0.1, print reST tables."
    )
    add_options(parser)
    parser.add_argument("--servers", type=names(list(PEERS)), metavar="A,B", help=", ".join(USUAL))
    parser.add_argument(
        "--scenarios",
        type=names(list(SCENARIOS)),
        metavar="A,B",
        help=", ".join(SCENARIOS),
    )
    arguments = parser.parse_args()
    if arguments.read and (arguments.servers or arguments.scenarios or arguments.rounds):
        parser.error("--read measures nothing: no --servers, --scenarios or --rounds")
    give_up_after(WHOLE_SHORT if arguments.short else WHOLE)
    show(arguments, measure, report.tables, report.chart)


if __name__ == "__main__":
    main()
