"""The cases of ``truth.py``: what the service does, which clients measure it, and the aims."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from math import isnan, nan
from typing import Final, NamedTuple

from truth_peers import c_client, irtt, peers_server, sockperf
from truth_runs import (
    IN_C,
    IRTT,
    OURS,
    SOCKPERF,
    Figures,
    Traffic,
    busy_loop,
    connect_ratio,
    false_alarms,
    highest_rate,
    ours,
    rate_limit,
    truth,
)


class Size(NamedTuple):
    """The amount of work."""

    rounds: int
    seconds: float  # of each run


FULL: Final = Size(rounds=5, seconds=2.0)
SHORT: Final = Size(rounds=1, seconds=0.2)

Both = tuple[Figures, Figures]
"""The figures of a client, and the log of the service."""
Turns = dict[str, Callable[[], Both]]
"""A function for each client."""


class Row(NamedTuple):
    """A figure, and its aim.

    :ivar name: of the figure.
    :ivar unit: ``%``, ``ms off`` or (for counts) ``off``: the difference from the truth; ``ms`` or
        ``x``, and ``%`` without a log: the figure itself.
    :ivar most: the aim: the figure of echod-client is at most this, without its sign. A count, or
        else the median of the rounds.
    :ivar beside: the client by whose figure, in the same round, that of echod-client is divided to
        compare it with ``most``.
    """

    title: str
    name: str
    unit: str
    most: float
    beside: str = ""

    def figure(self, both: Both) -> float:
        """Return the figure, in its unit."""
        found, log = both[0].get(self.name, nan), both[1].get(self.name, 0.0)
        if self.unit == "%" and log:
            return 100 * (found / log - 1)
        figures = {"off": found - log, "ms": found * 1000, "ms off": (found - log) * 1000}
        return figures.get(self.unit, found)

    def text(self, value: float) -> str:
        """Write a figure."""
        if isnan(value):  # this client does not have it
            return ""
        return f"{value:.0f}" if self.unit == "off" else f"{value:.2f}"


class Case(NamedTuple):
    """Rows that come from the same runs."""

    turns: Callable[[str, Size], Turns]
    rows: tuple[Row, ...]


def known(
    command: str,
    interval: float,
    *,
    where: str = "udp",
    peers: Sequence[str] = (IRTT, SOCKPERF),
    beside: Callable[[], AbstractContextManager[object]] = nullcontext,
    **options: int,
) -> Callable[[str, Size], Turns]:
    """Return the turns of a case in which the service has a known delay or fault.

    :param command: of echod-client.
    :param interval: seconds between two messages.
    :param where: ``udp``, ``tcp``, ``unix`` or ``tls``.
    :param beside: runs beside the clients.
    :param options: of ``truth.c``, in messages and microseconds.
    """

    def turns(tools: str, size: Size) -> Turns:
        traffic = Traffic(command, interval, size.seconds)
        scale = size.seconds / FULL.seconds
        scaled = {
            name: round(value * scale) if name.startswith("freeze") else value
            for name, value in options.items()
        }

        def measure() -> Both:
            with truth(tools, where, **scaled) as service, beside():
                return ours(service.target, traffic), service.end()

        def relayed(peer: str) -> Both:
            run = {IRTT: irtt, SOCKPERF: sockperf}[peer]
            with (
                peers_server(peer) as port,
                truth(tools, "udp", upstream=port, **scaled) as relay,
                beside(),
            ):
                found, log = run(relay.port, traffic), relay.end()
            if peer == IRTT and log["duplicated"] == log["replies"]:
                log["duplicated"] -= 1  # of the reply that opens the session
            return found, log

        return {OURS: measure, **{peer: partial(relayed, peer) for peer in peers}}

    return turns


def compared(
    command: str,
    interval: float,
    protocol: str = "udp",
    peers: Sequence[str] = (SOCKPERF,),
) -> Callable[[str, Size], Turns]:
    """Return the turns of a case without a delay: irtt and sockperf use their servers directly."""

    def turns(tools: str, size: Size) -> Turns:
        traffic = Traffic(command, interval, size.seconds)

        def measure(client: str) -> Both:
            with truth(tools, protocol) as service:
                if client == IN_C:
                    return c_client(tools, protocol, service.port, traffic), {}
                return ours(service.target, traffic), {}

        def direct(peer: str) -> Both:
            with peers_server(peer, protocol) as port:
                if peer == IRTT:
                    return irtt(port, traffic), {}
                return sockperf(port, traffic, protocol), {}

        return {
            **{client: partial(measure, client) for client in (OURS, IN_C)},
            **{peer: partial(direct, peer) for peer in peers},
        }

    return turns


def alone(run: Callable[[str, float], Figures]) -> Callable[[str, Size], Turns]:
    """Return the turns of a case that only echod-client has."""
    return lambda tools, size: {OURS: lambda: (run(tools, size.seconds), {})}


def delays(title: str, *names: str, most: float = 1.0) -> tuple[Row, ...]:
    return tuple(Row(f"{title}: {name}", name, "%", most) for name in names)


def counts(title: str, *names: str) -> tuple[Row, ...]:
    return tuple(Row(f"{title}: {name}", name, "off", 0) for name in names)


CONSTANT: Final = {"delay": 20_000}
FREEZE: Final = {"freeze": 1_000_000, "freeze_after": 500_000}
RAMP: Final = {"ramp": 1000, "ramp_count": 100}
TWO: Final = {"delay": 20_000, "slow": 5, "slow_delay": 80_000}
LOSSES: Final = ("lost", "unreported")
NONE: Final = ()

CASES: Final = {
    "constant-tcp": Case(
        known("ping", 0.01, where="tcp", peers=NONE, **CONSTANT), delays("20 ms, TCP", "p50")
    ),
    "constant-udp": Case(known("ping", 0.01, **CONSTANT), delays("20 ms, UDP", "p50")),
    "constant-unix": Case(
        known("ping", 0.01, where="unix", peers=NONE, **CONSTANT), delays("20 ms, UNIX", "p50")
    ),
    "constant-tls": Case(
        known("ping", 0.01, where="tls", peers=NONE, **CONSTANT),
        delays("20 ms, TLS", "p50", most=2.0),
    ),
    "bimodal": Case(known("ping", 0.01, **TWO), delays("20 or 80 ms", "p50", "p90", "max")),
    "ramp": Case(known("ping", 0.01, **RAMP), delays("1 to 100 ms", "p50", "p90", "max")),
    "freeze-slow": Case(
        known("load", 1e-3, peers=NONE, **FREEZE), counts("freeze of 1 s, 1,000/s", *LOSSES)
    ),
    "freeze": Case(
        known("load", 2.5e-4, **FREEZE),
        counts("freeze of 1 s, 4,000/s", *LOSSES) + delays("freeze of 1 s, 4,000/s", "max"),
    ),
    "freeze-fast": Case(
        known("load", 1e-4, peers=NONE, **FREEZE), counts("freeze of 1 s, 10,000/s", *LOSSES)
    ),
    "freeze-tcp": Case(
        known("load", 2.5e-4, where="tcp", peers=NONE, **FREEZE),
        counts("freeze of 1 s, 4,000/s, TCP", "lost"),
    ),
    "requests": Case(
        known("ping", 0.01, peers=[IRTT], drop_requests=10), counts("each 10th request", "lost")
    ),
    "replies": Case(
        known("ping", 0.01, peers=[IRTT], drop_replies=10), counts("each 10th reply", "lost")
    ),
    "duplicates": Case(
        known("ping", 0.01, peers=[IRTT], duplicate=1), counts("each reply twice", "duplicated")
    ),
    "reorder": Case(
        known("ping", 0.01, peers=[IRTT], slow=10, slow_delay=15_000),
        counts("each 10th overtaken", "reordered"),
    ),
    "damage": Case(
        known("ping", 0.01, peers=NONE, damage=10), counts("a bit of each 10th", "damaged")
    ),
    "damage-tcp": Case(
        known("ping", 0.01, where="tcp", peers=NONE, damage=10),
        counts("a bit of each 10th, TCP", "damaged"),
    ),
    "rate-10": Case(
        known("load", 1e-4),
        (*counts("10,000/s", *LOSSES), Row("10,000/s: lateness p99", "lateness", "ms", 1)),
    ),
    "rate-10-tcp": Case(
        known("load", 1e-4, where="tcp", peers=NONE),
        (Row("10,000/s, TCP: lateness p99", "lateness", "ms", 1),),
    ),
    "rate-20": Case(
        known("load", 5e-5),
        (*counts("20,000/s", *LOSSES), Row("20,000/s: lateness p99", "lateness", "ms", 1)),
    ),
    "rate-20-tcp": Case(
        known("load", 5e-5, where="tcp", peers=NONE),
        (
            *counts("20,000/s, TCP", "lost"),
            Row("20,000/s, TCP: lateness p99", "lateness", "ms", 1),
        ),
    ),
    "ping": Case(
        compared("ping", 0.01, peers=(IRTT, SOCKPERF)),
        (Row("ping -i 0.01: p50", "p50", "ms", 1.3, IN_C),),
    ),
    "ping-tcp": Case(
        compared("ping", 0.01, "tcp"), (Row("ping -i 0.01, TCP: p50", "p50", "ms", 1.3, IN_C),)
    ),
    "closed": Case(
        compared("load", 0), (Row("one message after another: p50", "p50", "ms", 1.3, SOCKPERF),)
    ),
    "closed-tcp": Case(
        compared("load", 0, "tcp"),
        (Row("one message after another, TCP: p50", "p50", "ms", 1.3, SOCKPERF),),
    ),
    "busy": Case(
        known("ping", 0.01, beside=busy_loop),
        (Row("beside a busy loop: p99", "p99", "ms off", 1.5),),
    ),
    "alarm": Case(
        alone(false_alarms), (Row("200/s beside a busy loop: false alarms", "wrong", "off", 0),)
    ),
    "connect": Case(
        alone(connect_ratio), (Row("tcp:host:port / host:port: connecting", "ratio", "x", 1.2),)
    ),
    "hint": Case(alone(rate_limit), (Row("limit of 100/s: the hint", "off", "%", 3),)),
    "find-rate": Case(alone(highest_rate), (Row("limit of 5,000/s: --find-rate", "off", "%", 3),)),
}
