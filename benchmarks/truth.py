"""What the figures of ``echod-client`` are worth: ``python benchmarks/truth.py [CASE...]``.

A service in C, ``truth.c``, answers with known delays and faults, and logs what it did. The
benchmark compares the figures of ``echod-client`` with that log. irtt and sockperf measure their
own servers, through ``truth.c`` as a relay: the same delays and faults, and its log. ``client.c``
shows what a program in C measures. All take turns; the service and the clients have a core each.

The output is a table in reST: how far each client is from the truth, and which aims are met.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from statistics import median
from typing import Final

from losses import exit_in_one_line, give_up_after, table
from servers import LOAD_CORE, end_children
from truth_cases import CASES, FULL, SHORT, Both, Row, Size
from truth_runs import CLIENTS, IRTT, OURS, SOCKPERF, STUNNEL, build_tools, missing

WHOLE: Final = 1800  # seconds after which the benchmark gives up
TLS: Final = "constant-tls"
SHOWN: Final = {"off": "", "x": "", "ms off": "ms"}
"""Units that the table shows differently."""

Round = dict[str, dict[str, Both]]
"""The figures by case and client."""


def measure(
    tools: str, names: Sequence[str], left_out: Sequence[str], size: Size, number: int
) -> Round:
    """Run all clients in each case; their order is reversed in every second round."""
    found: Round = {}
    for name in names:
        turns = list(CASES[name].turns(tools, size).items())[:: (-1) ** number]
        found[name] = {client: run() for client, run in turns if client not in left_out}
    return found


def row_of(row: Row, rounds: Sequence[dict[str, Both]]) -> list[str]:
    """Return the cells of a row."""
    values = {
        client: [row.figure(each[client]) for each in rounds]
        for client in CLIENTS
        if client in rounds[0]
    }
    mine, *others = (
        row.text(median(values[client])) if client in values else "" for client in CLIENTS
    )
    if rounds[1:]:
        mine += f" ({row.text(min(values[OURS]))}..{row.text(max(values[OURS]))})"
    return [row.title, SHOWN.get(row.unit, row.unit), mine, *others, *aim_of(row, values)]


def aim_of(row: Row, values: dict[str, list[float]]) -> list[str]:
    """Return the aim, and whether it is met."""
    if row.beside and row.beside not in values:
        return ["", ""]
    mine = [abs(value) for value in values[OURS]]
    if row.beside:
        mine = [own / other for own, other in zip(mine, values[row.beside], strict=True)]
    met = (max if row.unit == "off" else median)(mine) <= row.most
    unit = f"x {row.beside}" if row.beside else SHOWN.get(row.unit, row.unit)
    return [f"≤ {row.most:g} {unit}".strip(), "met" if met else "missed"]


def peers_versions(left_out: Sequence[str]) -> list[str]:
    """Return the names and versions of the peers."""
    commands = {IRTT: ["irtt", "version"], SOCKPERF: ["sockperf", "--version"]}
    outputs = {
        name: subprocess.run(command, capture_output=True, text=True, check=False)
        for name, command in commands.items()
        if name not in left_out
    }
    found = {name: re.search(r"\d[\d.]+", run.stdout + run.stderr) for name, run in outputs.items()}
    return [f"{name} {number[0] if number else ''}".rstrip() for name, number in found.items()]


def report(rounds: Sequence[Round]) -> str:
    """Return the table of all rows."""
    head = ["figure", "", *CLIENTS, "aim", ""]
    rows = [
        row_of(row, [each[name] for each in rounds])
        for name in rounds[0]
        for row in CASES[name].rows
    ]
    return table([head], rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare echod-client with the truth on 127.0.0.1, print a reST table."
    )
    parser.add_argument("cases", nargs="*", metavar="CASE", help="all, or of: " + ", ".join(CASES))
    parser.add_argument("--short", action="store_true", help="run briefly, for CI: imprecise")
    arguments = parser.parse_args()
    names = arguments.cases or list(CASES)
    if unknown := sorted(set(names) - set(CASES)):
        parser.error(f"no such case: {', '.join(unknown)}; the cases are: {', '.join(CASES)}")
    size = SHORT if arguments.short else FULL
    give_up_after(WHOLE)
    os.sched_setaffinity(0, LOAD_CORE)
    left_out = missing()
    if STUNNEL in left_out and TLS in names:
        names.remove(TLS)
    with tempfile.TemporaryDirectory() as tools, exit_in_one_line():
        try:
            build_tools(tools)
            rounds = [
                measure(tools, names, left_out, size, number) for number in range(size.rounds)
            ]
        finally:
            end_children()
    print(report(rounds))
    print(
        *("", f"{size.rounds} rounds of {size.seconds:g} s; 64 B a message."),
        *(f"Left out: {name} is not installed." for name in left_out),
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"Twisted {version('twisted')}, {platform.system()} {platform.release()}"
        + "".join(f", {each}" for each in peers_versions(left_out))
        + ".",
        sep="\n",
    )


if __name__ == "__main__":
    main()
