"""Results of ping and load as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from echod.client import events
from echod.client.endpoint import short_name
from echod.client.report import Result, in_ms

PROTOCOLS: Final = {"unix": "a UNIX socket"}
"""Names of protocols in headings. Other protocols are written in capitals."""


STATES: Final = {"pending": "no answer yet", "lost": "lost", "not_sent": "not sent: no connection"}
"""Words for the states of a message without an answer."""


def plural(count: int, noun: str) -> str:
    """Return a count and its noun."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def over(protocol: str, size: int) -> str:
    """Return the protocol and the size of a message, for a heading."""
    name = PROTOCOLS.get(protocol, protocol.upper())
    return f"over {name}, {plural(size, 'byte')} a message"


def reply_line(reply: events.Reply) -> str:
    """Return the line for one reply of a ping."""
    wrong = reply.damaged_bytes
    marks = [f"{plural(wrong, 'byte')} wrong"] if wrong else []
    marks += ["late"] if reply.late else []
    return ", ".join([f"seq={reply.number} {in_ms(reply.seconds)} ms", *marks])


def reconnected_line(event: events.Reconnected) -> str:
    """Return the line for the end of an outage."""
    not_sent = f"; {plural(event.not_sent, 'message')} not sent" if event.not_sent else ""
    return f"connected again after an outage of {event.seconds:.3f} s{not_sent}"


EVENT_LINES: Final[dict[type, Callable[[Any], str]]] = {
    events.Reply: reply_line,
    events.Unanswered: lambda event: f"seq={event.number} {STATES[event.state]}",
    events.Moved: lambda event: f"{event.refusing} refused, trying {event.address}",
    events.Disconnected: lambda event: (
        f"connection lost ({event.error.replace('_', ' ')}): connecting again"
    ),
    events.Reconnected: reconnected_line,
}


def times_line(times: Result) -> str:
    """Return the line for a summary of times."""
    return ", ".join(f"{name} {in_ms(value)}" for name, value in times.items()) + " ms"


def times_lines(title: str, times: Result) -> Iterator[str]:
    """Yield the line for a summary of times and its title, if there are any."""
    if times["max"] is not None:
        yield f"{title}: {times_line(times)}"


def counts_line(result: Result) -> str:
    """Return the line of the counts: one for each outcome of a message."""
    names = ["sent", "received", "lost", "late", "damaged"]
    is_udp = result["protocol"] == "udp"
    names += ["dropped_here"] if result["dropped_here"] else []
    names += ["duplicated", "reordered"] if is_udp else []
    parts = {name: f"{result[name]:,} {name.replace('_', ' ')}" for name in names}
    if result["lost_fraction"]:
        parts["lost"] += f" ({100 * result['lost_fraction']:.3g} %)"
    if result["damaged"]:
        parts["damaged"] += f" ({plural(result['damaged_bytes'], 'byte')})"
    if result["unexpected"]:
        noun = "datagram" if is_udp else "byte"
        parts["unexpected"] = f"{plural(result['unexpected'], noun)} unexpected"
    if result["under_way"]:
        parts["under_way"] = f"{result['under_way']:,} in flight"
    return ", ".join(parts.values())


def bottleneck_lines(result: Result) -> Iterator[str]:
    """Yield the line that says why the client limited the run, if it did."""
    if result["client_bottleneck"]:
        yield f"limited by the client: {result['client_bottleneck']}"


def errors_lines(errors: dict[str, int]) -> Iterator[str]:
    """Yield the line for the errors, if there were any."""
    if errors:
        each = (f"{word.replace('_', ' ')} {count:,}" for word, count in errors.items())
        yield "errors: " + ", ".join(each)


def ping_lines(result: Result) -> Iterator[str]:
    """Yield the summary of a ping."""
    yield ""
    yield f"--- {short_name(result['target'])} ---"
    yield counts_line(result)
    if result["skipped"]:
        yield f"skipped: {plural(result['skipped'], 'message')}, due while this process was stopped"
    if outages := result["outages"]:
        seconds = [each["seconds"] for each in outages]
        is_over = "" if outages[-1]["ended"] else "; the last one is not over"
        yield (
            f"outages: {len(outages):,}, {sum(seconds):.3f} s in all, "
            f"the longest {max(seconds):.3f} s{is_over}"
        )
    times = dict(result["round_trip_seconds"])
    jitter = times.pop("jitter")
    if times["max"] is not None:
        more = "" if jitter is None else f"; jitter {in_ms(jitter)} ms"
        yield f"round trip: {times_line(times)}{more}; {result['clock']} clock"
    yield from errors_lines(result["errors"])
    yield from bottleneck_lines(result)


def load_lines(result: Result) -> Iterator[str]:
    """Yield the summary of a load."""
    asked, seconds = result["asked_messages_per_second"], result["duration_seconds"]
    connections = plural(result["connections"], "connection")
    name, address = short_name(result["target"]), result["address"]
    heading = over(result["protocol"], result["size_bytes"])
    yield f"load on {name} ({address}) {heading}, {connections}"
    made = f"{result['connections_made']:,} of {result['connections']:,}"
    if result["messages_per_connection"]:
        made = (
            f"{result['connections_made']:,}, {result['connections_per_second']:,.1f} a second, "
            f"{plural(result['messages_per_connection'], 'message')} each"
        )
    yield from times_lines(f"connected: {made}", result["connect_seconds"])
    yield from times_lines("TLS handshakes", result["tls_handshake_seconds"])
    if result["warm_up_seconds"]:
        messages = plural(result["warm_up_messages"], "message")
        yield f"warm-up: {result['warm_up_seconds']:g} s, {messages}, not counted"
    yield counts_line(result)
    yield from errors_lines(result["errors"])
    if result["connections_silent"]:
        yield f"silent: {plural(result['connections_silent'], 'connection')} without any reply"
    if not seconds:
        return
    yield (
        f"throughput: {result['messages_per_second']:,.1f} messages a second, "
        f"{result['bytes_per_second'] / 1e6:,.3f} MB/s each way, for {seconds:.1f} s"
    )
    if asked is None:
        yield (
            "closed loop: each message was sent when the reply to the one before had arrived; "
            "while the service stalled, nothing was sent"
        )
        if result["lost"] and result["protocol"] == "udp":
            yield (
                f"each lost datagram stopped its socket for {result['timeout_seconds']:g} s: "
                "set a --rate to avoid that"
            )
    else:
        limits = result["ramp_messages_per_second"]
        ramp = f" (a ramp from {limits[0]:,.1f} to {limits[1]:,.1f})" if limits else ""
        late = times_line(result["scheduling_error_seconds"])
        yield (
            f"open loop: {result['sent_messages_per_second']:,.1f} messages a second sent, of "
            f"{asked:,.1f} requested{ramp}; late by {late}"
        )
    if result["limit_messages_per_second"]:
        yield (
            f"replies stop at {result['limit_messages_per_second']:,.0f} a second: the service "
            "or a router probably limits the rate (echod: --udp-rate)"
        )
    for line in times_lines("latency", result["latency_seconds"]):
        yield f"{line}; {result['clock']} clock"
    yield from bottleneck_lines(result)


def step_line(step: Result) -> str:
    """Return the line for one step of a search."""
    verdict = "holds" if step["holds"] else f"fails: {step['excess']}"
    rate = f"{step['asked_messages_per_second']:,.1f} messages a second"
    p99 = step["latency_seconds"]["p99"]
    return f"{rate}: {verdict}" + ("" if p99 is None else f"; p99 {in_ms(p99)} ms")


def find_rate_lines(result: Result) -> Iterator[str]:
    """Yield the summary of a search."""
    over_what = over(result["protocol"], result["size_bytes"])
    yield ""
    yield (
        f"--- {short_name(result['target'])} {over_what}, "
        f"{plural(result['connections'], 'connection')} ---"
    )
    yield from errors_lines(result["errors"])
    highest, failing = (_runs_text(result[name]) for name in ("highest", "failing"))
    bound = f"{result['bound_percentile']} up to {in_ms(result['bound_seconds'])} ms"
    if highest:
        yield f"highest rate that holds, with {bound}: {highest}"
    else:
        yield f"no rate holds, with {bound}"
    if failing:
        yield f"lowest rate that fails: {failing}"
    yield from bottleneck_lines(result)


def _runs_text(rate: Result | None) -> str:
    if rate is None:
        return ""
    runs = plural(rate["runs"], "run")
    return f"{rate['messages_per_second']:,.1f} messages a second; held in {rate['held']} of {runs}"


def merge_lines(result: Result) -> Iterator[str]:
    """Yield the summary of merged runs."""
    over_what = over(result["protocol"], result["size_bytes"])
    runs = f"{plural(result['runs'], 'run')} of {result['merged_command']}"
    yield f"{runs} on {short_name(result['target'])} {over_what}"
    yield counts_line(result)
    yield from errors_lines(result["errors"])
    if "messages_per_second" in result:
        yield (
            f"throughput, if at the same time: {result['messages_per_second']:,.1f} messages a "
            f"second, {result['bytes_per_second'] / 1e6:,.3f} MB/s each way"
        )
    for name, title in (("latency_seconds", "latency"), ("round_trip_seconds", "round trip")):
        if name in result:
            yield from times_lines(title, result[name])
    yield from bottleneck_lines(result)
