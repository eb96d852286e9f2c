"""What ping and load have to say: as values for JSON, and as lines for people.

Each name of a value has its unit. Times that do not exist are ``null``: of no reply there is none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any, Final

from echod.client.histogram import Histogram
from echod.client.load import BUSY, LATE, SLOW, Load
from echod.client.measurement import Measurement
from echod.client.ping import Ping, Probe
from echod.client.pipe import Pipe

FEW: Final[dict[str, float]] = {"p50": 50, "p90": 90, "p99": 99}
MANY: Final[dict[str, float]] = {**FEW, "p99.9": 99.9, "p99.99": 99.99}

Values = dict[str, Any]


def digits(seconds: float) -> float:
    """Return a time without the digits that no clock here knows."""
    return round(seconds, 9)


def summary(times: Histogram, percentiles: dict[str, float]) -> Values:
    """Return what there is to say of some times."""
    names = ("min", "mean", *percentiles, "max")
    if not times.count:
        return dict.fromkeys(names)
    found = [times.percentile(percent) for percent in percentiles.values()]
    values = (times.least, times.mean, *found, times.most)
    return {name: digits(value) for name, value in zip(names, values, strict=True)}


def head(command: str, connector: Any, failure: str) -> Values:
    """Return what all have in common."""
    return {
        "command": command,
        "target": connector.target.text,
        "address": connector.address or None,
        "protocol": connector.protocol,
        "timeout_seconds": connector.timeout,
        "failure": failure or None,
        "errors": dict(connector.errors),
    }


def counts(run: Measurement) -> Values:
    """Return what became of the messages."""
    tally = run.tally
    return {
        "size_bytes": run.size,
        "sent": tally.sent,
        "received": tally.received,
        "lost": tally.lost,
        "late": tally.late,
        "damaged": tally.damaged,
        "damaged_bytes": tally.damaged_bytes,
        "duplicated": tally.duplicated,
        "reordered": tally.reordered,
        "unexpected": tally.unexpected,
        "under_way": tally.under_way,
    }


def is_right(run: Measurement) -> bool:
    """Tell whether all came back right, and in time. Where nothing did, none has."""
    tally = run.tally
    wrong = tally.lost + tally.late + tally.damaged + tally.duplicated + tally.unexpected
    return bool(tally.received) and not wrong and not run.errors


def of_ping(run: Ping) -> Values:
    """Return all of a ping."""
    channel = run.stream
    return {
        **head("ping", run.connector, run.failure),
        "ok": is_right(run),
        "interval_seconds": run.interval,
        "skipped": run.skipped,
        "connect_seconds": channel and digits(channel.connect_seconds),
        "tls_handshake_seconds": channel
        and channel.handshake_seconds
        and digits(channel.handshake_seconds),
        **counts(run),
        "round_trip_seconds": {
            **summary(run.tally.times, FEW),
            "jitter": None if run.jitter is None else digits(run.jitter),
        },
        "scheduling_error_seconds": summary(run.scheduling, FEW),
    }


def of_load(run: Load) -> Values:
    """Return all of a load."""
    sending = run.sending
    rate = run.in_time / sending if sending else 0.0
    return {
        **head("load", run.connector, run.failure),
        "ok": is_right(run),
        "loop": "closed" if run.rate is None else "open",
        "connections": run.connections,
        "connections_made": len(run.channels),
        "connections_silent": run.silent,
        "connect_seconds": summary(run.connecting, FEW),
        "tls_handshake_seconds": summary(run.handshakes, FEW),
        "duration_seconds": digits(sending),
        **counts(run),
        "asked_messages_per_second": run.rate,
        "sent_messages_per_second": round(run.sent_in_time / sending, 3) if sending else 0.0,
        "messages_per_second": round(rate, 3),
        "bytes_per_second": round(rate * run.size, 3),
        "latency_seconds": summary(run.tally.times, MANY),
        "scheduling_error_seconds": summary(run.scheduling, FEW),
        "client_processor_fraction": round(run.used.cpu / sending, 4) if sending else 0.0,
        "client_waited_fraction": round(run.used.waited / sending, 4) if sending else 0.0,
        "client_was_bottleneck": bool(bottleneck(run)),
        "latency_histogram": [
            [digits(seconds), count] for seconds, count in run.tally.times.buckets()
        ],
        "intervals": [
            {
                "start_seconds": digits(each.start),
                "seconds": digits(each.seconds),
                "messages": each.replies,
                "p50_seconds": digits(each.p50) if each.replies else None,
                "p99_seconds": digits(each.p99) if each.replies else None,
                "max_seconds": digits(each.most) if each.replies else None,
            }
            for each in run.intervals
        ],
    }


def of_pipe(run: Pipe) -> Values:
    """Return all of a pipe."""
    return {
        **head("pipe", run.connector, run.failure),
        "ok": not run.failure,
        "sent_bytes": run.sent,
        "received_bytes": run.received,
        "duration_seconds": digits(run.seconds),
        "bytes_per_second": round(run.received / run.seconds, 3) if run.seconds else 0.0,
    }


def bottleneck(run: Load) -> str:
    """Return why what was measured may have been this program and its machine, or ""."""
    if not run.sending:
        return ""
    if run.rate is not None:
        sent = run.sent_in_time / run.sending
        if sent < SLOW * run.rate:
            return f"only {sent:,.1f} of {run.rate:,.1f} messages a second could leave"
        slip = run.scheduling.percentile(99)
        return f"one message in a hundred left {in_ms(slip)} ms late" if slip > LATE else ""
    ran, waited = run.used.cpu / run.sending, run.used.waited / run.sending
    if ran + waited < BUSY:
        return ""
    return f"it ran for {ran:.0%} of the time, and waited for a processor for {waited:.0%}"


def in_ms(seconds: float) -> str:
    """Return a time as it is written, in milliseconds."""
    return f"{seconds * 1000:.3f}"


def line_of_times(times: Histogram, percentiles: dict[str, float]) -> str:
    """Return what there is to say of some times, for people."""
    told = summary(times, percentiles)
    return ", ".join(f"{name} {in_ms(value)}" for name, value in told.items()) + " ms"


def line_of_probe(probe: Probe) -> str:
    """Return what became of one message."""
    marks = [f"{plural(probe.damaged, 'byte')} wrong"] if probe.damaged else []
    marks += ["late"] if probe.late else []
    return ", ".join([f"seq={probe.number} {in_ms(probe.seconds)} ms", *marks])


def plural(count: int, what: str) -> str:
    """Return so many of something."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def line_of_counts(run: Measurement) -> str:
    """Return what became of the messages, for people."""
    tally = run.tally
    said = [f"{tally.sent:,} sent", f"{tally.received:,} received", f"{tally.lost:,} lost"]
    said += [f"{tally.late:,} late", f"{tally.damaged:,} damaged"]
    if tally.damaged:
        said[-1] += f" ({plural(tally.damaged_bytes, 'byte')})"
    is_udp = run.connector.protocol == "udp"
    if is_udp:
        said += [f"{tally.duplicated:,} duplicated", f"{tally.reordered:,} reordered"]
    if tally.unexpected:
        said.append(f"{plural(tally.unexpected, 'datagram' if is_udp else 'byte')} unexpected")
    if tally.under_way:
        said.append(f"{tally.under_way:,} still under way")
    return ", ".join(said)


def line_of_errors(errors: Counter[str]) -> str:
    """Return what went wrong, and how often."""
    return ", ".join(f"{word.replace('_', ' ')} {count:,}" for word, count in errors.items())


def lines_of_ping(run: Ping) -> Iterator[str]:
    """Yield the summary of a ping."""
    yield f"--- {run.connector.target.name} ---"
    yield line_of_counts(run)
    if run.skipped:
        yield f"skipped: {plural(run.skipped, 'message')}, since this program stood still"
    if run.tally.times.count:
        jitter = "" if run.jitter is None else f"; jitter {in_ms(run.jitter)} ms"
        yield "round trip: " + line_of_times(run.tally.times, FEW) + jitter
    if run.errors:
        yield "errors: " + line_of_errors(run.errors)


def lines_of_load(run: Load) -> Iterator[str]:
    """Yield the summary of a load."""
    connector = run.connector
    yield (
        f"load on {connector.target.name} ({connector.address}) by {connector.protocol}, "
        f"{plural(run.size, 'byte')} a message, {plural(run.connections, 'connection')}"
    )
    if run.connecting.count:
        made = f"connected: {len(run.channels):,} of {run.connections:,}: "
        yield made + line_of_times(run.connecting, FEW)
    if run.handshakes.count:
        yield "TLS handshakes: " + line_of_times(run.handshakes, FEW)
    yield line_of_counts(run)
    if run.errors:
        yield "errors: " + line_of_errors(run.errors)
    if run.silent:
        yield f"silent: {plural(run.silent, 'connection')}, on which nothing came back"
    if not run.sending:
        return
    rate = run.in_time / run.sending
    yield (
        f"throughput: {rate:,.1f} messages a second, {rate * run.size / 1e6:,.3f} MB/s each way, "
        f"for {run.sending:.1f} s"
    )
    if run.rate is None:
        yield (
            "closed loop: each message left when the reply to the last had come, so that while "
            "the service stood still, nothing was asked"
        )
        if run.tally.lost and connector.protocol == "udp":
            yield (
                f"each lost datagram has stopped its socket for {run.timeout:g} s: "
                "with --rate, none does"
            )
    else:
        yield (
            f"open loop: {run.sent_in_time / run.sending:,.1f} messages a second left, of "
            f"{run.rate:,.1f} asked for; late by " + line_of_times(run.scheduling, FEW)
        )
    if run.tally.times.count:
        yield "latency: " + line_of_times(run.tally.times, MANY)
    why = bottleneck(run)
    if why:
        yield f"the client itself may have been the bottleneck: {why}"
