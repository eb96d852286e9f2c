"""Results of ``speed.py``: tables in reST, and a chart."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from textwrap import wrap
from typing import Any, Final

from aims import aims
from losses import table
from servers import BLOCKS, PEERS
from units import (
    LOADED,
    SCENARIOS,
    TITLES,
    Round,
    bound,
    cell,
    middle,
    number,
    of,
    unit,
)

DISTURBED: Final = 0.05  # share of the time in which other processes used the cores

# The columns of the first table, and the panels of the chart.
COLUMNS: Final = (
    ("message-50", "cpu", "CPU a message,", "50 connections"),
    ("message-500", "cpu", "CPU a message,", "500 connections"),
    ("bulk", "mb", "MB/s,", "1 MB messages"),
    ("message-1", "p50", "p50,", "1 connection"),
    ("short", "cpu", "CPU a connection,", "64 B"),
    ("idle", "kib", "an idle", "connection"),
    ("flood", "p99", "p99,", "beside a flood"),
)


def in_all(rounds: Sequence[Round]) -> list[str]:
    """Return the servers that took part in each scenario of the first table."""
    some = [rounds[0][column[0]] for column in COLUMNS if column[0] in rounds[0]]
    return [name for name in PEERS if all(name in servers for servers in some)]


def summary(rounds: Sequence[Round]) -> str:
    """Return the table of all servers, medians alone."""
    columns = [column for column in COLUMNS if column[0] in rounds[0]]
    if not columns:
        return ""
    head = [["server", *(column[2] for column in columns)], ["", *(one[3] for one in columns)]]
    rows = []
    for server in in_all(rounds):
        cells = (
            cell(rounds, scenario, server, figure, middle) + unit(scenario, figure)[1]
            for scenario, figure, *_ in columns
        )
        rows.append([PEERS[server].title, *cells])
    return table(head, rows)


def blocks(rounds: Sequence[Round]) -> str:
    """Return the table of the times of blocks of all sizes."""
    names = [name for name in BLOCKS if name in rounds[0]]
    if not names:
        return ""
    head = ["blocks, 1 connection: p50", *(f"{BLOCKS[name]} KiB" for name in names)]
    rows = [
        [PEERS[server].title, *(cell(rounds, name, server, "p50") + " µs" for name in names)]
        for server in PEERS
        if server in rounds[0][names[0]]
    ]
    return table([head], rows)


def details(rounds: Sequence[Round], scenario: str) -> str:
    """Return the table of all figures of a scenario."""
    title, figures = SCENARIOS[scenario]
    if scenario != "idle":
        figures = (*figures, "busy", "load")
    rows = []
    for name in PEERS:
        if name in rounds[0][scenario]:
            cells = (
                cell(rounds, scenario, name, figure) + unit(scenario, figure)[1]
                for figure in figures
            )
            rows.append([PEERS[name].title, *cells])
    return table([[title, *map(TITLES.__getitem__, figures)]], rows)


def quiet(rounds: Sequence[Round]) -> str:
    """Return the share of the time in which other processes used the cores of the benchmark."""
    cells = [cell for each in rounds for servers in each.values() for cell in servers.values()]
    waits = [cell["waited"] for cell in cells if "waited" in cell]
    if not waits:
        return ""
    share = mean(waits)
    used = (
        f"other processes used the cores for {share:.1%} of the time on average, "
        f"and for {max(waits):.0%} in the worst measurement"
    )
    if share > DISTURBED:
        return f"The machine was not quiet, and only the CPU times are right: {used}."
    return f"The machine was quiet: {used}."


def marks(rounds: Sequence[Round]) -> list[str]:
    """Return the meaning of the marks in the tables."""
    marked = {
        name in LOADED
        for name, servers in rounds[0].items()
        for server in servers
        if bound(rounds, name, server, "p99")
    }
    lines = {
        True: "≥, ≤: a bound, because the server was not always busy: it could do more, and "
        "sleeping and waking take CPU time, too.",
        False: "≤ beside a flood (a second connection sends all the time): a bound, because "
        "messages also wait in the load generator.",
    }
    return [line for loaded, line in lines.items() if loaded in marked]


def log(rounds: Sequence[Round]) -> list[str]:
    """Return which servers log short connections."""
    if "echod" not in rounds[0].get("short", {}):
        return []
    return ["With short connections, echod runs with ``--quiet``; of the others, only socat logs."]


def fast(rounds: Sequence[Round]) -> list[str]:
    """Return how fast the machine is: p50 of the server in C."""
    if "c" not in rounds[0].get("message-1", {}):
        return []
    p50 = number(median(of(rounds, "message-1", "c", "p50")))
    return [f"How fast the machine is: with one connection, p50 of the server in C is {p50} µs."]


def notes(result: dict[str, Any]) -> list[str]:
    """Return the notes below the tables: the method, the machine and the versions."""
    rounds = result["rounds"]
    return [
        "CPU time is the server's, for one message or connection.",
        *marks(rounds),
        *log(rounds),
        *fast(rounds),
        *origin(result),
    ]


def origin(result: dict[str, Any]) -> list[str]:
    """Return the notes on where the figures come from: rounds, servers, machine and command."""
    rounds = result["rounds"]
    return [
        f"Medians of {len(rounds)} rounds; (least..most) is the range of the rounds."
        if rounds[1:]
        else "One round.",
        *result["left_out"],
        *filter(None, [quiet(rounds)]),
        f"{result['machine']}.",
        f"{result['versions']}.",
        f"Measured with ``{result['command']}``.",
    ]


def tables(result: dict[str, Any]) -> str:
    """Return the whole output: all tables, and the notes."""
    rounds = result["rounds"]
    others = (details(rounds, name) for name in rounds[0] if name not in BLOCKS)
    parts = [summary(rounds), aims(rounds), *others, blocks(rounds)]
    return "\n\n".join([*filter(None, parts), "\n".join(notes(result))])


def drawing() -> Any:
    """Return the module that draws charts."""
    import matplotlib as mpl  # noqa: PLC0415 - needed only for a chart

    mpl.use("svg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "echod", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is set

    return plt


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw the columns of the first table: medians, and lines from the least to the greatest."""
    plt = drawing()
    rounds = result["rounds"]
    columns = [column for column in COLUMNS if column[0] in rounds[0]]
    servers = in_all(rounds)[::-1]
    _, grid = plt.subplots(2, len(columns) // 2 + 1, figsize=(11, 6), sharey=True, squeeze=False)
    for axes, (scenario, figure, *title) in zip(grid.flat, columns, strict=False):
        for at, server in enumerate(servers):
            values = of(rounds, scenario, server, figure)
            colour = "#c8102e" if server == "echod" else "#446688"
            half = median(values)
            axes.plot([min(values), max(values)], [at, at], color=colour, linewidth=1)
            axes.plot([half], [at], "o", color=colour, markersize=5)
            where = {"xytext": (0, 4), "textcoords": "offset points", "ha": "center"}
            text = cell(rounds, scenario, server, figure, middle)
            axes.annotate(text, (half, at), color=colour, fontsize=7, **where)
        axes.set_xscale("log")
        # Each point has its number beside it.
        axes.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
        axes.set_title(" ".join(title), fontsize=9)
        better = "more is better" if figure == "mb" else "less is better"
        axes.set_xlabel(f"{unit(scenario, figure)[1].strip() or TITLES[figure]} (log), {better}")
        axes.grid(axis="x", color="#dddddd")
        axes.margins(x=0.2, y=0.1)
    grid[0][0].set_yticks(range(len(servers)), [PEERS[server].title for server in servers])
    for axes in grid.flat[len(columns) :]:
        axes.set_axis_off()
    lines = [part for note in notes(result) for part in wrap(note.replace("``", ""), 44)]
    last = grid[-1][-1]
    notice = last.text(0, 1, "\n".join(lines), transform=last.transAxes, fontsize=7, va="top")
    notice.set_in_layout(False)  # it may be higher than its panel
    plt.tight_layout()
    plt.savefig(path, metadata={"Date": None})
