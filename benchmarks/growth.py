"""CPU time and memory of many connections: ``python benchmarks/growth.py``.

In each round, echod, a server in C and one on uvloop get the same loads in turns, with 1 to 19,000
connections: all of them talk, or 1 % of them, and the others are silent after their first message.
The servers share one core, and the load (``load.c``, in processes of its own) has another. The
benchmark also measures what a connection takes of the server's memory, and what one check of the
timeouts costs echod.
"""

from __future__ import annotations

import argparse
import os
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

from loads import Load, Scenario, figures, measured
from losses import give_up_after, table
from report import drawing, origin
from servers import LOAD_CORE, PEERS, Server, build, lack_of
from speed import SPARE, add_options, left_out, machine, order_of, show, versions
from units import Figures, Round, number, of, spread, unit

from echod.timeouts import CHECKS_PER_TIMEOUT

WHOLE: Final = 1800  # seconds after which the benchmark gives up
SERVERS: Final = ("echod", "uvloop", "c")
COUNTS: Final = (1, 10, 50, 100, 1000, 10_000, 19_000)  # connections
COLOURS: Final = {"echod": "#c8102e", "uvloop": "#446688", "c": "#777777"}
SHARES: Final = {"all": "all talk", "few": "1 % talk"}
FEW, MANY, GROWTH = 50, 10_000, 1.1  # between these, CPU time grows at most as C's, times 1.1
UNREAD: Final = 8 << 20  # bytes that a stalled peer sends at most
CHECKS: Final = 2  # of the timeouts, that are measured


class Size(NamedTuple):
    """The amount of work.

    :ivar most: connections.
    :ivar timeout: of the idle timeout and the stall timeout, in seconds.
    """

    rounds: int
    milliseconds: int
    most: int
    timeout: int


FULL: Final = Size(rounds=7, milliseconds=300, most=COUNTS[-1], timeout=8)
SHORT: Final = Size(rounds=1, milliseconds=20, most=100, timeout=4)


class Held(NamedTuple):
    """Connections that do nothing."""

    how: str  # argument HOW of load.c
    count: int
    title: str


MEMORY: Final = (
    Held("silent", 2050, "no byte"),
    Held("idle", 2050, "silent after 64 B"),
    Held("stall", 100, "stalled"),
)
CHECKED: Final = (
    Held("idle", 1000, "silent connections"),
    Held("idle", 10_000, "silent connections"),
    Held("stall", 100, "stalled connections"),
)


@contextmanager
def running(tools: str, name: str, *options: str) -> Iterator[Server]:
    server = Server(name, tools, *(("--quiet", *options) if name == "echod" else ()))
    try:
        server.ready()
        yield server
    finally:
        server.close()


@contextmanager
def loaded(tools: str, server: Server, scenario: Scenario) -> Iterator[Load]:
    """Connect a load. Wait, after its end too, until the server has nothing more to do."""
    load = Load(tools, server, scenario, scenario.connections)
    try:
        load.ready()
        settle(server)
        yield load
    finally:
        load.close()
        settle(server)


def settle(server: Server) -> None:
    """Wait until a server uses less than 1 ms of CPU time in 50 ms."""
    before = 0
    while server.cpu() - before > 1e6:
        before = server.cpu()
        time.sleep(0.05)


def held(one: Held, size: Size) -> Scenario:
    return Scenario(one.how, min(one.count, size.most), UNREAD if one.how == "stall" else 64)


def message(tools: str, server: Server, count: int, talking: int, size: Size) -> Figures:
    """Return the figures of the connections that talk."""
    scenario = Scenario("echo", talking, milliseconds=size.milliseconds)
    if talking == count:
        with loaded(tools, server, scenario) as load:
            return figures(scenario, [measured(load, server, scenario)])
    with loaded(tools, server, Scenario("idle", count - talking)) as silent:
        silent.run()
        return message(tools, server, talking, talking, size)


def memory(tools: str, name: str, one: Held, size: Size) -> Figures:
    """Return the memory of a connection in KiB."""
    with running(tools, name) as server, loaded(tools, server, held(one, size)) as load:
        before = server.memory()
        opened, *_ = load.run()
        settle(server)
        return {"kib": (server.memory() - before) / opened / 1024}


def check(tools: str, one: Held, size: Size) -> Figures:
    """Return the CPU time of one check of the timeouts in microseconds."""
    option = "--stall-timeout" if one.how == "stall" else "--idle-timeout"
    with (
        running(tools, "echod", option, f"{size.timeout}s") as server,
        loaded(tools, server, held(one, size)) as load,
    ):
        load.run()
        settle(server)
        before = server.cpu()
        time.sleep(CHECKS * size.timeout / CHECKS_PER_TIMEOUT)
        return {"cpu": (server.cpu() - before) / 1000 / CHECKS}


def round_of(order: Sequence[str], counts: Sequence[int], tools: str, size: Size) -> Round:
    """Return the figures of a round."""
    result: Round = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(running(tools, name)) for name in order]
        for count in counts:
            for share, talking in (("all", count), ("few", max(1, count // 100))):
                result[f"{share} {count}"] = {
                    server.name: message(tools, server, count, talking, size) for server in servers
                }
    for one in MEMORY:
        result[one.title] = {name: memory(tools, name, one, size) for name in order}
    for one in CHECKED:
        title = f"{held(one, size).connections:,} {one.title}"
        result[title] = {"echod": check(tools, one, size)}
    return result


def possible(size: Size) -> list[int]:
    """Return the numbers of connections that RLIMIT_NOFILE allows, after raising it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # for the servers and the load too
    return [count for count in COUNTS if count <= min(size.most, hard - SPARE)]


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the figures of all rounds, with the machine, the versions and the command."""
    if not shutil.which("cc"):
        raise RuntimeError("the load is a C program, and no cc is installed")
    size = SHORT if arguments.short else FULL
    number = arguments.rounds or size.rounds
    rounds = []
    with tempfile.TemporaryDirectory() as tools:
        build("load.c", f"{tools}/load")
        lacks = {name: lack_of(name, tools) for name in SERVERS}
        servers = [name for name, lack in lacks.items() if not lack]
        os.sched_setaffinity(0, LOAD_CORE)
        counts = possible(size)
        for count in range(number):
            print(f"round {count + 1} of {number}", file=sys.stderr)
            rounds.append(round_of(order_of(servers, count), counts, tools, size))
    return {
        "rounds": rounds,
        "left_out": left_out(lacks),
        "versions": versions(servers),
        "machine": machine(),
        "command": " ".join(["python benchmarks/growth.py", *sys.argv[1:]]),
    }


def counts_of(rounds: Sequence[Round]) -> list[int]:
    return [int(name.split()[1]) for name in rounds[0] if name.startswith("all ")]


def cells(rounds: Sequence[Round], names: Sequence[str], figure: str) -> list[list[str]]:
    """Return the rows of a table: a row for each server, a column for each name."""
    return [
        [PEERS[server].title]
        + [spread(of(rounds, name, server, figure)) + unit(name, figure)[1] for name in names]
        for server in SERVERS
        if server in rounds[0][names[0]]
    ]


def growth(rounds: Sequence[Round]) -> str:
    """Return the table of the growth from few connections to many, beside C's."""
    if MANY not in counts_of(rounds):
        return ""
    ratios = {}
    for server in rounds[0][f"all {MANY}"]:
        pairs = (of(rounds, f"all {count}", server, "cpu") for count in (MANY, FEW))
        ratios[server] = [many / few for many, few in zip(*pairs, strict=True)]
    rows = [[PEERS[name].title, spread(ratios[name]), "", ""] for name in SERVERS if name in ratios]
    if "c" in ratios:
        beside = [mine / other for mine, other in zip(ratios["echod"], ratios["c"], strict=True)]
        met = "met" if median(beside) <= GROWTH else "missed"
        title = f"{PEERS['echod'].title} / {PEERS['c'].title}"
        rows.append([title, spread(beside), f"at most {number(GROWTH)}", met])
    title = f"CPU time a message, {MANY:,} connections / {FEW}"
    return table([[title, "median (least..most)", "aim", ""]], rows)


def tables(result: dict[str, Any]) -> str:
    """Return the whole output: all tables, and the notes."""
    rounds = result["rounds"]
    counts = counts_of(rounds)
    parts = [growth(rounds)]
    for share, title in SHARES.items():
        head = [f"CPU time a message, {title}", *(f"{count:,}" for count in counts)]
        parts.append(table([head], cells(rounds, [f"{share} {count}" for count in counts], "cpu")))
    held = [one.title for one in MEMORY]
    parts.append(table([["memory a connection", *held]], cells(rounds, held, "kib")))
    checked = [name for name in rounds[0] if name.endswith(" connections")]
    parts.append(table([["a check of the timeouts", *checked]], cells(rounds, checked, "cpu")))
    return "\n\n".join([*filter(None, parts), "\n".join(notes(result))])


def notes(result: dict[str, Any]) -> list[str]:
    return [
        "CPU time and memory are the server's. Of fewer than 100 connections, one talks.",
        "A stalled peer sends 8 MiB, or what the server and the kernel accept, and does not read.",
        f"echod checks the timeouts {CHECKS_PER_TIMEOUT} times within the shortest of them.",
        *origin(result),
    ]


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw the CPU time of a message: medians, and lines from the least to the greatest."""
    plt = drawing()
    rounds, counts = result["rounds"], counts_of(result["rounds"])
    _, grid = plt.subplots(1, len(SHARES), figsize=(11, 4.5), sharey=True)
    for axes, (share, title) in zip(grid, SHARES.items(), strict=True):
        for server, colour in COLOURS.items():
            if server not in rounds[0][f"{share} {counts[0]}"]:
                continue
            times = [of(rounds, f"{share} {count}", server, "cpu") for count in counts]
            middles = [median(each) for each in times]
            axes.vlines(counts, [*map(min, times)], [*map(max, times)], color=colour, linewidth=1)
            axes.plot(counts, middles, "o-", color=colour, markersize=4, label=PEERS[server].title)
        axes.set(xscale="log", yscale="log", title=f"CPU time a message, {title}")
        axes.set_xticks(counts, [f"{count:,}" for count in counts], rotation=45)
        axes.set_xlabel("connections")
        axes.grid(color="#dddddd")
    grid[0].set_ylabel("µs (log), less is better")
    grid[0].yaxis.set_major_formatter(lambda value, _: number(value))
    grid[0].yaxis.set_minor_formatter(lambda value, _: number(value))
    grid[0].legend()
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the cost of many connections on 127.0.0.1, print reST tables."
    )
    add_options(parser)
    arguments = parser.parse_args()
    if arguments.read and arguments.rounds:
        parser.error("--read measures nothing: no --rounds")
    give_up_after(WHOLE)
    show(arguments, measure, tables, chart)


if __name__ == "__main__":
    main()
