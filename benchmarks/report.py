"""Results of ``speed.py``: tables in reST, and a chart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log10
from pathlib import Path
from statistics import mean, median
from textwrap import wrap
from typing import Any, Final, NamedTuple

from losses import table
from servers import PEERS

Figures = dict[str, float]
Round = dict[str, dict[str, Figures]]  # by scenario and server

SATURATED: Final = 95  # per cent of a core; a server below this is not always busy
# Scenarios in which the load keeps the server busy all the time.
LOADED: Final = ("message-50", "message-500", "bulk", "short", "udp")
DISTURBED: Final = 0.05  # share of the time in which other processes used the cores


TITLES: Final = {
    "cpu": "CPU time",
    "rate": "a second",
    "mb": "MB/s",
    "p50": "p50",
    "p99": "p99",
    "kib": "memory",
    "busy": "server's core",
    "load": "load's core",
}

# For each scenario: its title, and the figures that are meaningful.
SCENARIOS: Final = {
    "message-1": ("64 B messages, 1 connection", ("cpu", "rate", "p50", "p99")),
    "message-50": ("64 B messages, 50 connections", ("cpu", "rate", "p50", "p99")),
    "message-500": ("64 B messages, 500 connections", ("cpu", "rate", "p50", "p99")),
    "bulk": ("1 MB messages, 10 connections", ("cpu", "mb", "p50", "p99")),
    "short": ("connect, 64 B, close; 10 at once", ("cpu", "rate", "p50", "p99")),
    "idle": ("idle connections, after 64 B each", ("kib",)),
    "flood": ("64 B every 5 ms, beside a flood", ("p50", "p99")),
    "udp": ("64 B datagrams, 50 sockets", ("cpu", "rate", "p50", "p99")),
}

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


IN_MILLISECONDS: Final = ("message-500", "bulk", "flood")


class Aim(NamedTuple):
    """A bound on a figure of a server, or on its ratio to that of another server."""

    scenario: str
    figure: str
    other: str
    least: float | None = None
    most: float | None = None
    server: str = "echod"


AIMS: Final = (
    Aim("message-50", "cpu", "uvloop", most=1.05),
    Aim("message-50", "cpu", "c", most=1.25),
    Aim("message-50", "cpu", "twisted", most=0.5),
    Aim("message-500", "cpu", "uvloop", most=1.05),
    Aim("message-500", "cpu", "c", most=1.25),
    Aim("message-500", "cpu", "twisted", most=0.5),
    Aim("bulk", "mb", "uvloop", least=1.0),
    Aim("message-1", "p50", "uvloop", most=1.05),
    Aim("short", "cpu", "twisted", most=1.2),
    Aim("idle", "kib", "", most=1.5),
    Aim("flood", "p99", "", most=5000),  # microseconds
    Aim("udp", "cpu", "c-udp", most=1.6, server="echod-udp"),
)


def number(value: float) -> str:
    """Return a number with three significant digits, and with all digits before the point."""
    digits = 2 - floor(log10(abs(value))) if value else 0
    return f"{value:,.{max(0, digits)}f}"


def spread(values: Sequence[float]) -> str:
    """Return the median, and the least and the greatest of several values."""
    if len(values) == 1:
        return number(values[0])
    return f"{number(median(values))} ({number(min(values))}..{number(max(values))})"


def unit(scenario: str, figure: str) -> tuple[float, str]:
    """Return the factor that converts a figure to the unit shown, and that unit."""
    if figure in ("busy", "load"):
        return 100, " %"
    if figure in ("p50", "p99") and scenario in IN_MILLISECONDS:
        return 0.001, " ms"
    return 1, {"kib": " KiB", "rate": "", "mb": ""}.get(figure, " µs")


def of(rounds: Sequence[Round], scenario: str, server: str, figure: str) -> list[float]:
    """Return a figure of each round, in the unit shown."""
    factor, _ = unit(scenario, figure)
    return [each[scenario][server][figure] * factor for each in rounds]


def bound(rounds: Sequence[Round], scenario: str, server: str, figure: str) -> str:
    """Return "≥ " or "≤ " if a figure is only a bound, or else an empty string.

    A server that is not always busy could have done more, and spends some of its CPU time on
    sleeping and waking. Beside a flood, latency includes a delay in the load, if the load is
    always busy.
    """
    if scenario in LOADED and median(of(rounds, scenario, server, "busy")) < SATURATED:
        return {"rate": "≥ ", "mb": "≥ ", "cpu": "≤ ", "p50": "≤ ", "p99": "≤ "}.get(figure, "")
    if scenario == "flood" and figure in ("p50", "p99"):
        return "≤ " if median(of(rounds, scenario, server, "load")) > SATURATED else ""
    return ""


def cell(
    rounds: Sequence[Round],
    scenario: str,
    server: str,
    figure: str,
    write: Callable[[Sequence[float]], str] = spread,
) -> str:
    """Return a figure without its unit."""
    mark = bound(rounds, scenario, server, figure)
    return mark + write(of(rounds, scenario, server, figure))


def middle(values: Sequence[float]) -> str:
    return number(median(values))


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


def aims(rounds: Sequence[Round]) -> str:
    """Return the table of the aims, and of the figures that meet or miss them."""
    rows = []
    for aim in AIMS:
        servers = rounds[0].get(aim.scenario, {})
        if aim.server not in servers or (aim.other and aim.other not in servers):
            continue
        values = of(rounds, aim.scenario, aim.server, aim.figure)
        (factor, suffix), subject = unit(aim.scenario, aim.figure), PEERS[aim.server].title
        if aim.other:
            others = of(rounds, aim.scenario, aim.other, aim.figure)
            values = [mine / other for mine, other in zip(values, others, strict=True)]
            factor, suffix, subject = 1, "", f"{subject} / {PEERS[aim.other].title}"
        if aim.most is not None:
            bound, how = aim.most * factor, "at most"
            met = median(values) <= bound
        else:
            assert aim.least is not None
            bound, how = aim.least * factor, "at least"
            met = median(values) >= bound
        title = f"{TITLES[aim.figure]}: {SCENARIOS[aim.scenario][0]}"
        aimed = f"{how} {number(bound)}{suffix}"
        rows.append([title, subject, spread(values) + suffix, aimed, "met" if met else "missed"])
    return table([["figure", "", "median (least..most)", "aim", ""]], rows) if rows else ""


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


def notes(result: dict[str, Any]) -> list[str]:
    """Return the notes below the tables: the method, the machine and the versions."""
    rounds = result["rounds"]
    return [
        "CPU time is the server's, for one message or connection.",
        f"Medians of {len(rounds)} rounds; (least..most) is the range of the rounds."
        if rounds[1:]
        else "One round.",
        *marks(rounds),
        *log(rounds),
        *result["left_out"],
        *filter(None, [quiet(rounds)]),
        f"{result['machine']}.",
        f"{result['versions']}.",
        f"Measured with ``{result['command']}``.",
    ]


def tables(result: dict[str, Any]) -> str:
    """Return the whole output: all tables, and the notes."""
    rounds = result["rounds"]
    parts = [summary(rounds), aims(rounds), *(details(rounds, name) for name in rounds[0])]
    return "\n\n".join([*filter(None, parts), "\n".join(notes(result))])


def chart(result: dict[str, Any], path: Path) -> None:
    """Draw the columns of the first table: medians, and lines from the least to the greatest."""
    import matplotlib as mpl  # noqa: PLC0415 - needed only for a chart

    mpl.use("svg")
    # Text stays text, and the same figures give the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "echod", "font.size": 9})
    from matplotlib import pyplot as plt  # noqa: PLC0415 - after the backend is set

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
