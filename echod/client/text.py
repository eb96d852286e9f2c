"""Results as lines of text."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final

from echod.client import events
from echod.client.endpoint import short_name
from echod.client.report import Result, in_ms

PROTOCOLS: Final = {"unix": "a UNIX socket"}
"""Names of protocols in headings. Other protocols are written in capitals."""

STATES: Final = {
    events.PENDING: "no answer yet",
    events.LOST: "lost",
    events.NOT_SENT: "not sent: no connection",
}
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
    found = (f"{name} {in_ms(each)}" for name, each in times.items() if each is not None)
    return ", ".join(found) + " ms"


def times_lines(title: str, times: Result) -> Iterator[str]:
    """Yield the line for a summary of times and its title, if there are any."""
    if times.get("max") is not None:
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


def summary_lines(result: Result) -> Iterator[str]:
    """Yield the summary of a run, a search, or merged runs: a line for each part of the record."""
    command, value = result["command"], result.get
    yield from _heading(result).split("\n")
    if command == "load":
        yield from _connection_lines(result)
    if "sent" in result:
        yield counts_line(result)
    if value("skipped"):
        yield f"skipped: {plural(result['skipped'], 'message')}, due while this process was stopped"
    if outages := value("outages"):
        seconds = [each["seconds"] for each in outages]
        is_over = "" if outages[-1]["ended"] else "; the last one is not over"
        yield (
            f"outages: {len(outages):,}, {sum(seconds):.3f} s in all, "
            f"the longest {max(seconds):.3f} s{is_over}"
        )
    if errors := result["errors"]:
        each = (f"{word.replace('_', ' ')} {count:,}" for word, count in errors.items())
        yield "errors: " + ", ".join(each)
    if value("connections_silent"):
        yield f"silent: {plural(result['connections_silent'], 'connection')} without any reply"
    if command == "find-rate":
        yield from _highest_lines(result)
    if "messages_per_second" in result and value("duration_seconds") != 0:
        together = ", if at the same time" if command == "merge" else ""
        span = f", for {result['duration_seconds']:.1f} s" if command == "load" else ""
        yield (
            f"throughput{together}: {result['messages_per_second']:,.1f} messages a second, "
            f"{result['bytes_per_second'] / 1e6:,.3f} MB/s each way{span}"
        )
    if command == "load" and result["duration_seconds"]:
        yield from _loop_lines(result)
    for name, title in (("latency_seconds", "latency"), ("round_trip_seconds", "round trip")):
        for line in times_lines(title, value(name, {})):
            yield f"{line}; {result['clock']} clock"
    if result["client_bottleneck"]:
        yield f"limited by the client: {result['client_bottleneck']}"


def _heading(result: Result) -> str:
    name, heading = short_name(result["target"]), over(result["protocol"], result["size_bytes"])
    if result["command"] == "ping":
        return f"\n--- {name} ---"
    if result["command"] == "merge":
        return f"{plural(result['runs'], 'run')} of {result['merged_command']} on {name} {heading}"
    heading += f", {plural(result['connections'], 'connection')}"
    if result["command"] == "load":
        return f"load on {name} ({result['address']}) {heading}"
    return f"\n--- {name} {heading} ---"


def _connection_lines(result: Result) -> Iterator[str]:
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


def _loop_lines(result: Result) -> Iterator[str]:
    if result["loop"] == "closed":
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
        yield (
            f"open loop: {result['sent_messages_per_second']:,.1f} messages a second sent, of "
            f"{result['asked_messages_per_second']:,.1f} requested{ramp}; "
            f"late by {times_line(result['scheduling_error_seconds'])}"
        )
    if result["limit_messages_per_second"]:
        yield (
            f"replies stop at {result['limit_messages_per_second']:,.0f} a second: the service "
            "or a router probably limits the rate (echod: --udp-rate)"
        )


def _highest_lines(result: Result) -> Iterator[str]:
    bound = f"with {result['bound_percentile']} up to {in_ms(result['bound_seconds'])} ms"
    if not result["highest"]:
        yield f"no rate holds, {bound}"
    names = {"highest": f"highest rate that holds, {bound}", "failing": "lowest rate that fails"}
    for name, title in names.items():
        if rate := result[name]:
            yield (
                f"{title}: {rate['messages_per_second']:,.1f} messages a second; "
                f"held in {rate['held']} of {plural(rate['runs'], 'run')}"
            )


def step_line(step: Result) -> str:
    """Return the line for one step of a search."""
    verdict = "holds" if step["holds"] else f"fails: {step['excess']}"
    rate = f"{step['asked_messages_per_second']:,.1f} messages a second"
    p99 = step["latency_seconds"]["p99"]
    return f"{rate}: {verdict}" + ("" if p99 is None else f"; p99 {in_ms(p99)} ms")
