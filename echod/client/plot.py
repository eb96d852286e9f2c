"""``load --plot``: latency by percentile, and over time, of one run or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from echod.client.endpoint import short_name
from echod.client.report import Result

PERCENTILES: Final = (50, 90, 99, 99.9, 99.99, 99.999)
MILLISECONDS: Final = 1000

SHOWN: Final = {"p50_seconds": "-", "p99_seconds": "--", "max_seconds": ":"}
"""Of each interval, and how its line is drawn."""


def load_run(name: str) -> Result:
    """Return what ``load --json`` has written to a file.

    :raises OSError: where it cannot be read.
    :raises ValueError: where it is something else.
    """
    with open(name, "rb") as file:
        written = file.read()
    try:
        run = json.loads(written)
        points(run)
        for each in SHOWN:
            over_time(run, each)
        label(run)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError("not the output of load --json") from error
    return {**run, "file": name}


def points(run: Result) -> tuple[list[float], list[float]]:
    """Return x and y: of how many replies one took longer, and the latency in milliseconds."""
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
    """Return x and y: seconds, and a figure of each interval in milliseconds."""
    told = [each for each in run["intervals"] if each[name] is not None]
    x = [each["start_seconds"] + each["seconds"] / 2 for each in told]
    return x, [each[name] * MILLISECONDS for each in told]


def label(run: Result) -> str:
    """Return what a run is called; where it comes from a file, by that too."""
    rate = run["asked_messages_per_second"]
    loop = "closed loop" if rate is None else f"open loop, {rate:,g}/s"
    called = f"{short_name(run['target'])}, {run['connections']} x {run['size_bytes']} B, {loop}"
    called = f"{run['file']}: {called}" if "file" in run else called
    return called.encode(errors="backslashreplace").decode()  # bytes that are no UTF-8


def draw(runs: Sequence[Result], name: str) -> None:
    """Draw ``runs`` over each other to a file.

    :param name: ends in .svg or .png.
    :raises OSError: where it cannot be written.
    """
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes: Any = figure.subplots(2, 1)
    for number, run in enumerate(runs):
        color = f"C{number}"
        # One that begins with an underscore would be left out of the legend.
        called = label(run).replace("$", r"\$")
        called = f" {called}" if called.startswith("_") else called
        axes[0].plot(*points(run), color=color, label=called)
        for name_of_figure, style in SHOWN.items():
            axes[1].plot(
                *over_time(run, name_of_figure),
                style,
                color=color,
                marker=".",
                label=name_of_figure.partition("_")[0] if number == 0 else None,
            )
    axes[0].set_xscale("log")
    axes[0].set_xticks(
        [100 / (100 - each) for each in PERCENTILES], [f"{each:g} %" for each in PERCENTILES]
    )
    axes[0].minorticks_off()
    axes[0].set_xlabel("replies that came sooner")
    axes[1].set_xlim(left=0)
    axes[1].set_xlabel("seconds since the beginning")
    for each in axes:
        each.set_ylabel("latency, ms")
        # Of nothing, where all is lost, there is no logarithm.
        if any(value > 0 for line in each.lines for value in line.get_ydata()):
            each.set_yscale("log")
        each.grid(visible=True, alpha=0.3)
        each.legend()
    figure.savefig(name, format=name[-3:].lower())
