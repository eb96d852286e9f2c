"""``load --plot``: draw latency by percentile, and latency over time, of one run or several."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Final

from matplotlib.figure import Figure

from echod.client.endpoint import short_name
from echod.client.report import Result

PERCENTILES: Final = (50, 90, 99, 99.9, 99.99, 99.999)
MILLISECONDS: Final = 1000

STYLES: Final = {"p50_seconds": "-", "p99_seconds": "--", "max_seconds": ":"}
"""The figures of each interval that are drawn, and their line styles."""


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
        for each in STYLES:
            over_time(run, each)
        label(run)
    except (KeyError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        raise ValueError("not the output of load --json") from error
    return {**run, "file": name}


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
    """Return x and y of one figure of the intervals: seconds and milliseconds."""
    intervals = [each for each in run["intervals"] if each[name] is not None]
    x = [each["start_seconds"] + each["seconds"] / 2 for each in intervals]
    return x, [each[name] * MILLISECONDS for each in intervals]


def label(run: Result) -> str:
    """Return the name of a run in the legend; it begins with the file that the run is from."""
    rate = run["asked_messages_per_second"]
    loop = "closed loop" if rate is None else f"open loop, {rate:,g}/s"
    text = f"{short_name(run['target'])}, {run['connections']} x {run['size_bytes']} B, {loop}"
    text = f"{run['file']}: {text}" if "file" in run else text
    return text.encode(errors="backslashreplace").decode()  # a name may be invalid UTF-8


def draw(runs: Sequence[Result], name: str) -> None:
    """Draw ``runs`` over each other to a file.

    :param name: ends in .svg or .png.
    :raises OSError: if the file cannot be written.
    """
    figure = Figure(figsize=(8, 8), layout="constrained")
    axes: Any = figure.subplots(2, 1)
    for number, run in enumerate(runs):
        color = f"C{number}"
        text = label(run).replace("$", r"\$")
        # matplotlib leaves a label out of the legend if it begins with an underscore.
        text = f" {text}" if text.startswith("_") else text
        axes[0].plot(*points(run), color=color, label=text)
        for figure_name, style in STYLES.items():
            axes[1].plot(
                *over_time(run, figure_name),
                style,
                color=color,
                marker=".",
                label=figure_name.partition("_")[0] if number == 0 else None,
            )
    axes[0].set_xscale("log")
    axes[0].set_xticks(
        [100 / (100 - each) for each in PERCENTILES], [f"{each:g} %" for each in PERCENTILES]
    )
    axes[0].minorticks_off()
    axes[0].set_xlabel("percentile of the replies")
    axes[1].set_xlim(left=0)
    axes[1].set_xlabel("seconds since the beginning")
    for each in axes:
        each.set_ylabel("latency, ms")
        # A logarithmic axis needs a positive value; if all messages are lost, there is none.
        if any(value > 0 for line in each.lines for value in line.get_ydata()):
            each.set_yscale("log")
        each.grid(visible=True, alpha=0.3)
        each.legend()
    figure.savefig(name, format=name[-3:].lower())
