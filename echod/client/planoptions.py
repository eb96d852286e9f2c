"""The options of ``load`` that say when it sends messages."""

from __future__ import annotations

from argparse import ArgumentParser
from collections.abc import Iterator
from math import inf
from typing import Any, Final

from echod.client.parser import add_flag, add_option
from echod.client.target import Target
from echod.client.values import bound, duration, ramp, rate, start_time, time_to_run, whole

DURATION: Final = 10.0
"""Seconds of a load."""

RULES: Final = (
    ("compare", "plot", False, "--compare is for --plot FILE"),
    ("latency", "find_rate", False, "--latency is for --find-rate"),
    ("find_rate", "latency", False, "--find-rate needs a --latency, such as --latency p99=5ms"),
    ("find_rate", "compare", True, "--find-rate draws its own steps: leave out --compare"),
    ("find_rate", "hdr", True, "--hdr is for one rate: leave out --find-rate"),
    ("find_rate", "csv", True, "--csv is for one rate: leave out --find-rate"),
    ("ramp", "rate", True, "--ramp takes the place of --rate: leave one out"),
    ("ramp", "count", True, "--ramp ends after --duration: leave out --count"),
    ("ramp", "find_rate", True, "--find-rate chooses the rates itself: leave out --ramp"),
    ("find_rate", "start_at", True, "--start-at is for one load: leave out --find-rate"),
    ("find_rate", "count", True, "--find-rate ends each step after -d: leave out -n"),
)
"""An option, another, whether the two are refused if the other is given or if it is not,
and the error."""


def add_plan(load: ArgumentParser) -> None:
    """Add the options to the parser of load."""
    text = "how long to send messages, 0 until interrupted [default: 10s, or until --count]"
    add_option(load, "-d --duration", time_to_run, "TIME", text)
    text = "messages after which to stop sending"
    add_option(load, "-n --count", whole(least=1, most=1 << 62), "N", text)
    text = (
        "messages a second in all, whether or not replies come (open loop); by default each "
        "connection sends when the reply to its last message has come (closed loop)"
    )
    add_option(load, "-r --rate", rate, "N", text)
    text = "in place of --rate: from one rate to another, evenly over --duration"
    add_option(load, "--ramp", ramp, "FROM:TO", text)
    text = "replace a connection after this number of messages"
    add_option(load, "--per-connection", whole(least=1, most=1 << 62), "N", text)
    text = "connect, and begin at a time, as in 14:30:00 or 2030-01-31T14:30:00Z"
    add_option(load, "--start-at", start_time, "TIME", text)
    text = "send for this time before, without counting it"
    add_option(load, "--warm-up", duration, "TIME", text, default=0.0)
    text = "search for the highest rate that keeps --latency; each step takes --duration"
    add_flag(load, "--find-rate", text)
    text = "for --find-rate: the highest latency, such as p99=5ms or max=20ms"
    add_option(load, "--latency", bound, "P=TIME", text)


def complete_plan(options: Any) -> None:
    """Set the duration, whose default depends on the other options."""
    if options.duration is None:
        options.duration = inf if options.count else DURATION


def plan_conflicts(options: Any, target: Target) -> Iterator[str]:
    """Yield the reasons for which the options of load exclude each other."""
    if options.per_connection and target.udp:
        yield "--per-connection is for connections: leave it out for a udp: target"
    for option, other, is_given, why in RULES:
        if getattr(options, option) and bool(getattr(options, other)) is is_given:
            yield why
    for option in ("find_rate", "ramp"):
        if getattr(options, option) and options.duration == inf:
            yield f"--{option.replace('_', '-')} needs a --duration above 0"
