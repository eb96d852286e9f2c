"""Figures of ``speed.py``: scenarios, units, and numbers as text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import floor, log10
from statistics import median
from typing import Final

from servers import BLOCKS

Figures = dict[str, float]
Round = dict[str, dict[str, Figures]]  # by scenario and server

SATURATED: Final = 95  # per cent of a core; a server below this is not always busy
# Scenarios in which the load keeps the server busy all the time.
LOADED: Final = ("message-50", "message-500", "bulk", "short", "udp")

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
    "bulk-1": ("1 MB messages, 1 connection", ("cpu", "mb", "p50", "p99")),
    "bulk": ("1 MB messages, 10 connections", ("cpu", "mb", "p50", "p99")),
    **{name: (f"blocks of {kib} KiB, 1 connection", ()) for name, kib in BLOCKS.items()},
    "short": ("connect, 64 B, close; 10 at once", ("cpu", "rate", "p50", "p99")),
    "idle": ("idle connections, after 64 B each", ("kib",)),
    "flood": ("64 B every 5 ms, beside a flood", ("p50", "p99")),
    "tls": ("64 B every 5 ms, beside 40 TLS peers", ("p50", "p99")),
    "udp": ("64 B datagrams, 50 sockets", ("cpu", "rate", "p50", "p99")),
}

IN_MILLISECONDS: Final = ("message-500", "bulk", "flood", "tls")


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
