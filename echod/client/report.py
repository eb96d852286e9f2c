"""Results of pipe, ping and load: one record of each run, as JSON, and files of its intervals.

A record holds values by their names in JSON, each with its unit. A time that does not exist is
``None``: lost messages have no latency.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timezone
from typing import Any, Final

from echod.client.histogram import Histogram
from echod.client.load import Load
from echod.client.measurement import Measurement
from echod.client.ping import Ping
from echod.client.pipe import Pipe
from echod.client.search import WRONG_COUNTS, rate_limit
from echod.client.statistics import Interval

PERCENTILES: Final[dict[str, float]] = {"p50": 50, "p90": 90, "p99": 99}
LATENCY_PERCENTILES: Final[dict[str, float]] = {**PERCENTILES, "p99.9": 99.9, "p99.99": 99.99}

BUSY: Final = 0.9
"""Fraction of the time. If this process ran or waited for a processor for that much or more, it may
have limited a closed loop."""

LATE: Final = 0.001
"""Seconds by which one message in a hundred of an open loop may be late, in any case."""

WAITED: Final = 0.0001
"""Seconds a message for which a ping may wait for a processor, in any case."""

DELAY_PART: Final = 0.1
"""Part of the times that a delay of the client may be. A smaller one hardly changes the figures."""

SLOW: Final = 0.99
"""Fraction of the requested rate that an open loop has to reach."""

COUNTS: Final = (
    *("sent", "received", "lost", "dropped_here", "late", "damaged", "damaged_bytes"),
    *("duplicated", "reordered", "unexpected", "under_way"),
)
"""Attributes of the tally in JSON."""

DECIMALS: Final = {"second": 3, "fraction": 6, "time": 6}
"""Decimals in JSON, by the last word of a name: of a rate, a fraction, a time of day. Other numbers
have 9: nanoseconds, the resolution of the clock."""

Result = dict[str, Any]


def ping_result(run: Ping) -> Result:
    """Return the record of a ping."""
    result = {
        **common("ping", run, is_ok(run)),
        "interval_seconds": run.interval,
        "skipped": run.skipped,
        "outages": [vars(each) for each in run.outages],
        "connect_seconds": run.connected.connect_seconds,
        "tls_handshake_seconds": run.connected.tls_handshake_seconds,
        **_counts(run),
        "round_trip_seconds": {**latencies(run.tally.times, PERCENTILES), "jitter": run.jitter},
        "round_trip_hdrhistogram": run.tally.times.encode(),
        "scheduling_error_seconds": summary(run.scheduling, PERCENTILES),
    }
    return _with_bottleneck(result, _divide(run.waited, run.tally.times.count))


def load_result(run: Load) -> Result:
    """Return the record of a load."""
    statistics, seconds = run.statistics, run.statistics.sending_seconds
    rate = _divide(statistics.replies, seconds)
    result = {
        **common("load", run, is_ok(run)),
        "loop": "closed" if run.rate is None else "open",
        "connections": run.workload.connections,
        "connections_made": run.made,
        "connections_silent": run.silent,
        "messages_per_connection": run.workload.per_connection,
        "connections_per_second": (
            _divide(run.connect_times.count, seconds) if run.workload.per_connection else None
        ),
        "connect_seconds": summary(run.connect_times, PERCENTILES),
        "tls_handshake_seconds": summary(run.handshake_times, PERCENTILES),
        "duration_seconds": seconds,
        "warm_up_seconds": run.workload.warm_up,
        "warm_up_messages": run.warm_up_messages,
        **_counts(run),
        "asked_messages_per_second": run.workload.mean_rate(seconds),
        "ramp_messages_per_second": run.workload.ramp,
        "sent_messages_per_second": _divide(statistics.sent, seconds),
        "messages_per_second": rate,
        "bytes_per_second": rate * run.size,
        "latency_seconds": latencies(run.tally.times, LATENCY_PERCENTILES),
        "scheduling_error_seconds": summary(run.scheduling, PERCENTILES),
        "client_processor_fraction": _divide(statistics.used.cpu, seconds),
        "client_waited_fraction": _divide(statistics.used.waited, seconds),
        "latency_histogram": run.tally.times.buckets(),
        "latency_hdrhistogram": run.tally.times.encode(),
        "intervals": [each._asdict() for each in statistics.intervals],
    }
    result["limit_messages_per_second"] = rate_limit(result)
    return _with_bottleneck(result)


def pipe_result(run: Pipe) -> Result:
    """Return the record of a pipe."""
    return {
        **common("pipe", run, not run.failure),
        "sent_bytes": run.sent,
        "received_bytes": run.received,
        "duration_seconds": run.seconds,
        "bytes_per_second": _divide(run.received, run.seconds),
    }


def is_ok(run: Measurement) -> bool:
    """Return whether all messages came back right and in time; ``False`` without any reply."""
    tally = run.tally
    wrong = any(getattr(tally, name) for name in (*WRONG_COUNTS, "dropped_here"))
    return bool(tally.received) and not wrong and not run.errors


def summary(times: Histogram, percentiles: dict[str, float]) -> Result:
    """Return minimum, mean, percentiles and maximum; ``None`` for each if there is no time."""
    if not times.count:
        return dict.fromkeys(("min", "mean", *percentiles, "max"))
    found = {name: times.percentile(percent) for name, percent in percentiles.items()}
    return {"min": times.least, "mean": times.mean, **found, "max": times.most}


def latencies(times: Histogram, percentiles: dict[str, float]) -> Result:
    """Return the summary of round trips, with their standard deviation after the mean."""
    found = summary(times, percentiles)
    deviation = times.deviation if times.count else None
    return {"min": found.pop("min"), "mean": found.pop("mean"), "stdev": deviation, **found}


def _with_bottleneck(result: Result, waited: float = 0.0) -> Result:
    """Return the record with the reasons for which the client limited the run.

    :param waited: seconds a message for which a ping waited for a processor.
    """
    why = "; ".join(_bottlenecks(result, waited))
    return {**result, "client_was_bottleneck": bool(why), "client_bottleneck": why or None}


def _bottlenecks(result: Result, waited: float) -> Iterator[str]:
    if dropped := result["dropped_here"]:
        part = dropped / result["sent"]
        yield f"this machine dropped {dropped:,} messages or replies ({part:.2%})"
    if result["command"] == "ping":  # its replies are received late if this process has to wait
        mean = result["round_trip_seconds"]["mean"] or 0.0
        if result["clock"] == "user" and waited > max(WAITED, DELAY_PART * mean):
            yield f"it waited for a processor for {in_ms(waited)} ms a message"
        return
    if not result["duration_seconds"]:
        return
    asked, sent = result["asked_messages_per_second"], result["sent_messages_per_second"]
    slip = result["scheduling_error_seconds"]["p99"] or 0.0
    if asked is None:
        ran, waited = result["client_processor_fraction"], result["client_waited_fraction"]
        if ran + waited >= BUSY:
            yield f"it ran for {ran:.0%} of the time, and waited for a processor for {waited:.0%}"
    elif sent < SLOW * asked:
        yield f"only {sent:,.1f} of {asked:,.1f} messages a second could be sent"
    elif slip > max(LATE, DELAY_PART * (result["latency_seconds"]["p99"] or 0.0)):
        yield f"one message in a hundred was sent {in_ms(slip)} ms late"


def in_ms(seconds: float) -> str:
    """Return a time as text, in milliseconds."""
    return f"{seconds * 1000:.3f}"


def common(command: str, run: Any, ok: bool) -> Result:
    """Return the values that all records have.

    :param run: has a ``connector`` and a ``failure``.
    """
    connector = run.connector
    return {
        "command": command,
        "target": connector.target.text,
        "address": connector.address or None,
        "protocol": connector.protocol,
        "started_at": connector.started_at.isoformat(timespec="milliseconds"),
        "timeout_seconds": connector.timeout,
        "failure": run.failure or None,
        "errors": dict(connector.errors),
        "ok": ok,
    }


def _counts(run: Measurement) -> Result:
    tally = run.tally
    return {
        "clock": run.stamps,
        "size_bytes": run.size,
        **{name: getattr(tally, name) for name in COUNTS},
        "lost_fraction": tally.lost / tally.sent if tally.sent else None,
    }


def _divide(count: float, seconds: float) -> float:
    return count / seconds if seconds else 0.0


def to_json(result: Result) -> str:
    """Return the record as one line of JSON."""
    return json.dumps(rounded(result))


def rounded(value: Any, name: str = "") -> Any:
    """Return a value with the decimals of the JSON output; ``name`` is that of a number."""
    if isinstance(value, dict):
        return {name: rounded(each, name) for name, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(each) for each in value]
    decimals = DECIMALS.get(name.rpartition("_")[2], 9)
    return round(value, decimals) if isinstance(value, float) else value


class HistogramLog:
    """HdrHistogram's log, format 1.3: a line for each interval, with all its times.

    Times are in steps of 0.1 microseconds, and ``Interval_Max`` is in milliseconds.

    :param wall_clock: returns the UNIX time.
    """

    def __init__(self, wall_clock: Callable[[], float] = time.time) -> None:
        self._wall_clock = wall_clock
        self._lines: list[str] = []

    def add(self, start: float, seconds: float, times: Histogram) -> None:
        """Add an interval.

        :param start: in seconds since the beginning of the run.
        :param seconds: its length.
        """
        if not self._lines:  # the run began some time after this program: --start-at, --warm-up
            began = datetime.fromtimestamp(self._wall_clock() - start - seconds, timezone.utc)
            self._lines = [
                "#[Histogram log format version 1.3]",
                f"#[StartTime: {began.timestamp():.3f} (seconds since epoch), {began}]",
                '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
            ]
        self._lines.append(f"{start:.3f},{seconds:.3f},{times.most * 1000:.3f},{times.encode()}")

    def write(self, name: str) -> None:
        """Write the log to a file.

        :raises OSError: if it cannot be written.
        """
        with open(name, "w") as file:
            file.writelines(f"{line}\n" for line in self._lines)


def write_csv(intervals: Iterable[Interval], name: str) -> None:
    """Write intervals to a file of comma-separated values, with the names of the JSON output.

    :raises OSError: if it cannot be written.
    """
    with open(name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Interval._fields)
        writer.writerows(rounded(tuple(each)) for each in intervals)
