"""``--plot``: draw latency by percentile, latency and faults over time, and latency by rate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from echod.client.endpoint import short_name
from echod.client.report import Result

PERCENTILES: Final = (50, 90, 99, 99.9, 99.99, 99.999)
MILLISECONDS: Final = 1000

STYLES: Final = {"p50_seconds": "-", "p99_seconds": "--", "max_seconds": ":"}
"""The figures of each interval that are drawn, and their line styles."""

FAULTS: Final = {"lost": "-", "late": "--", "damaged": ":", "dropped_here": "-."}
"""The counts of each interval that are drawn, and their line styles."""

WIDE: Final = 5.0
"""Ratio between the highest and the lowest time from which on the axis is logarithmic."""

DPI: Final = 200


def load_run(name: str) -> Result:
    """Read the output of ``load --json`` from a file.

    :raises OSError: if the file cannot be read.
    :raises ValueError: for any other contents.
    """
    with open(name, "rb") as file:
        written = file.read()
    try:
        run = json.loads(written)
        points(run)
        for each in (*STYLES, *FAULTS):
            over_time(run, each)
        label(run)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError("not the output of load --json") from error
    return {**run, "command": "load", "file": name}


def points(run: Result) -> tuple[list[float], list[float]]:
    """Return the curve of percentiles.

    :return: x and y: one reply in x took longer than y milliseconds.
    """
    buckets = run["latency_histogram"]
    total = sum(count for _, count in buckets)
    x: list[float] = []
    y: list[float] = []
    below = 0
    for seconds, count in buckets:
        x += [total / (total - below), total / max(total - below - count, 0.5)]
        y += [seconds * MILLISECONDS] * 2
        below += count
    return x, y


def over_time(run: Result, name: str) -> tuple[list[float], list[float]]:
    """Return x and y of one figure of the intervals: seconds, and milliseconds or a count."""
    scale = MILLISECONDS if name in STYLES else 1
    intervals = [each for each in run["intervals"] if each.get(name) is not None]
    x = [each["start_seconds"] + each["seconds"] / 2 for each in intervals]
    return x, [each[name] * scale for each in intervals]


def label(run: Result) -> str:
    """Return the name of a run in the title or the legend; it begins with the file, if any."""
    rate, lost = run["asked_messages_per_second"], run.get("lost_fraction")
    loop = "closed loop" if rate is None else f"open loop, {rate:,g}/s"
    text = f"{short_name(run['target'])}, {run['connections']} x {run['size_bytes']} B, {loop}"
    text += "" if lost is None else f", {100 * lost:.2g} % lost"
    text += f", {_date(run)}".rstrip(", ")
    text = f"{run['file']}: {text}" if "file" in run else text
    return text.encode(errors="backslashreplace").decode()  # a name may be invalid UTF-8


def draw(runs: Sequence[Result], name: str) -> None:
    """Draw ``runs`` over each other to a file; of a search, the latency by rate.

    :param name: ends in .svg or .png.
    :raises OSError: if the file cannot be written.
    """
    if runs[-1]["command"] == "find-rate":
        draw_rates(runs[-1], name)
        return
    figure = Figure(figsize=(8, 10), layout="constrained")
    axes: Any = figure.subplots(3, 1, height_ratios=(3, 3, 2))
    most = 0.0
    for number, run in enumerate(runs):
        color = f"C{number}"
        text = _literal(label(run)) if len(runs) > 1 else None  # the title says it
        curve = points(run)
        most = max(most, *curve[0][-1:], 0.0)
        axes[0].plot(*curve, color=color, label=text)
        for panel, styles in ((axes[1], STYLES), (axes[2], FAULTS)):
            for each, style in styles.items():
                word = each.removesuffix("_seconds").replace("_", " ") if number == 0 else None
                panel.plot(*over_time(run, each), style, color=color, marker=".", label=word)
    shown = [each for each in PERCENTILES if round(100 / (100 - each), 3) <= most / 2]
    axes[0].set_xscale("log")
    axes[0].set_xticks([100 / (100 - each) for each in shown], [f"{each:g} %" for each in shown])
    axes[0].minorticks_off()
    axes[0].set_xlabel("percentile of the replies")
    for each in axes[1:]:
        each.set_xlim(left=0)
        each.set_xlabel("seconds since the beginning")
    axes[2].set_ylim(bottom=0)
    axes[2].set_ylabel("messages in each second")
    _finish(figure, name, label(runs[-1]), latency=axes[:2], others=axes[2:])


def draw_rates(run: Result, name: str) -> None:
    """Draw the latency at each rate of a search to a file.

    :param run: the output of ``load --find-rate --json``.
    """
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    bound = run["bound_percentile"]
    steps = [each for each in run["steps"] if each["latency_seconds"]["max"] is not None]
    steps.sort(key=lambda each: float(each["asked_messages_per_second"]))
    failing = [each for each in steps if not each["holds"]]
    series = [(each, steps, "-o", each) for each in dict.fromkeys(("p50", "p99", bound))]
    for percentile, some, style, text in (*series, (bound, failing, "kx", "fails")):
        y = [each["latency_seconds"][percentile] * MILLISECONDS for each in some]
        axes.plot([each["asked_messages_per_second"] for each in some], y, style, label=text)
    axes.axhline(run["bound_seconds"] * MILLISECONDS, color="black", linewidth=0.8, label="bound")
    axes.set_xlabel("messages a second")
    highest = run["highest"]
    rate = f"{highest['messages_per_second']:,.0f}/s" if highest else "no rate"
    text = f"{short_name(run['target'])}, {run['size_bytes']} B, {_date(run)}: {rate} holds"
    _finish(figure, name, text, latency=[axes])


def _date(run: Result) -> str:
    """Return the day and the minute of the start; "" for a run of an earlier version."""
    return str(run.get("started_at", ""))[:16].replace("T", " ")


def _literal(text: str) -> str:
    """Return a text that matplotlib shows as it is: no formula, and not left out of the legend."""
    text = text.replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def _finish(figure: Any, name: str, title: str, latency: Any, others: Any = ()) -> None:
    figure.suptitle(_literal(title), fontsize="medium")
    for each in latency:
        each.set_ylabel("latency, ms")
        values = [value for line in each.lines for value in line.get_ydata() if value > 0]
        # A logarithmic axis needs a positive value; a narrow one would have no tick.
        if values and max(values) > WIDE * min(values):
            each.set_yscale("log")
            each.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            each.yaxis.set_minor_formatter(NullFormatter())
        each.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    for each in (*latency, *others):
        each.grid(visible=True, alpha=0.3)
        if any(each.get_legend_handles_labels()):
            each.legend(fontsize="small")
    figure.savefig(name, format=name[-3:].lower(), dpi=DPI)
