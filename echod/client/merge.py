"""``echod-client merge``: add the runs of several machines, or of several times, exactly."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Final

from echod.client.errors import os_error_line
from echod.client.histogram import Histogram
from echod.client.report import (
    COUNTS,
    LATENCY_PERCENTILES,
    PERCENTILES,
    Result,
    latencies,
    to_json,
)
from echod.client.terminal import Console
from echod.client.text import summary_lines

TIMES: Final = {"load": ("latency", LATENCY_PERCENTILES), "ping": ("round_trip", PERCENTILES)}
"""By command, the name of its times, and their percentiles."""

LONGEST_LINE: Final = 1 << 27
"""Maximum bytes of a run. Other files, such as /dev/zero, may have no lines."""

NOT_A_RUN: Final = (
    *(ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError),
)
"""The errors that follow from other contents of a file."""

SAME: Final = ("merged_command", "protocol", "size_bytes", "timeout_seconds", "clock", "loop")
"""Names whose values have to be the same in all runs."""

SUMS: Final = (
    *COUNTS,
    *("connections", "connections_made", "connections_silent", "asked_messages_per_second"),
    *("sent_messages_per_second", "messages_per_second", "bytes_per_second"),
)
"""Names whose values are added; the rates of runs at the same time are."""


def read_runs(name: str) -> list[Result]:
    """Return the runs in a file that ``--json`` or ``--json-lines`` has written.

    :raises OSError: if the file cannot be read.
    :raises ValueError: for any other contents.
    """
    runs = []
    try:
        with open(name, "rb") as file:
            for line in iter(lambda: file.readline(LONGEST_LINE), b""):
                run = json.loads(line, parse_constant=int)  # int() refuses NaN and Infinity
                if run.get("event", "summary") == "summary":
                    runs.append({"merged_command": run["command"], **run, "file": name})
                    "".join((run["target"], run["started_at"], *run["errors"]))
                    list(summary_lines(merge(runs[-1:])))
        _ = runs[0]
    except NOT_A_RUN as error:
        raise ValueError("not the output of ping --json or load --json") from error
    return runs


def merge(runs: Sequence[Result]) -> Result:
    """Return the record of all runs together.

    :param runs: those that :func:`read_runs` yields, at least one.
    :raises ValueError: if they differ in what makes their times comparable: one line.
    """
    first = runs[0]
    for run in runs:
        for name in SAME:
            mine, its = run.get(name), first.get(name)
            if mine != its:
                raise ValueError(
                    f"{run['file']} and {first['file']} cannot be added: {name.replace('_', ' ')} "
                    f"is {mine} and {its}"
                )
    times, errors = Histogram(), Counter[str]()
    for run in runs:
        times.add(_times(run))
        errors.update(run["errors"])
    name, percentiles = TIMES[first["merged_command"]]
    sums = {
        name: sum(run[name] for run in runs)
        for name in SUMS
        if all(run.get(name) is not None for run in runs)
    }
    reasons = [f"{run['file']}: {why}" for run in runs if (why := run["client_bottleneck"])]
    return {
        "command": "merge",
        "runs": sum(run.get("runs", 1) for run in runs),
        "target": ", ".join(dict.fromkeys(run["target"] for run in runs)),
        **{name: first[name] for name in SAME if name in first or name != "loop"},
        "started_at": min(run["started_at"] for run in runs),
        "errors": dict(errors),
        "ok": all(run["ok"] for run in runs),
        **sums,
        "lost_fraction": sums["lost"] / sums["sent"] if sums["sent"] else None,
        f"{name}_seconds": latencies(times, percentiles),
        f"{name}_hdrhistogram": times.encode(),
        "client_was_bottleneck": bool(reasons),
        "client_bottleneck": "; ".join(reasons) or None,
    }


def merge_files(names: Iterable[str], is_json: bool, console: Console) -> int:
    """Print the sum of the runs in files, and return the exit status."""
    runs: list[Result] = []
    try:
        for name in names:
            if any(run["file"] == name for run in runs):
                raise ValueError("is given twice: name each run once")
            runs += read_runs(name)
        name = ""
        result = merge(runs)
    except (OSError, ValueError) as error:
        why = os_error_line(error) if isinstance(error, OSError) else error
        console.print_error(f"{name}: {why}" if name else str(why))
        return 2
    console.print(*([to_json(result)] if is_json else summary_lines(result)))
    return 0 if result["ok"] and not console.is_broken else 1


def _times(run: Result) -> Histogram:
    name, _ = TIMES[run["merged_command"]]
    return Histogram.decode(run[f"{name}_hdrhistogram"], run[f"{name}_seconds"])
