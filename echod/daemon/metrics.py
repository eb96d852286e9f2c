"""Metrics for Prometheus: count events as they happen, and sum them up on a scrape.

The counters are plain Python. prometheus_client, which the extra ``metrics`` installs, makes
metrics of them; a daemon without ``--metrics`` does not import it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

import twisted
from echod import __version__
from echod.events import Closed, Drop, Dropped, Ending, Event, Opened, Reason, Refused
from echod.factory import EchoFactory
from echod.faults import Faults
from echod.udp import EchoDatagrams

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

BUCKETS: Final = (
    *(0.001, 0.01, 0.1, 1.0, 10.0),
    *(MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY),
)
"""Upper bounds of the histogram of durations, in seconds: from an exchange on the same machine,
which takes a millisecond, to a keep-alive test, which takes days."""


HELP: Final = {
    "echod_connections_open": "Open connections.",
    "echod_connections_max": "Limit on open connections; more are refused.",
    "echod_connections_accepted": "Connections accepted and served, without refused ones.",
    "echod_connections_closed": "Closed connections, by ending.",
    "echod_connections_refused": "Connections reset unserved, by reason.",
    "echod_received_bytes": "Bytes received on closed and open connections.",
    "echod_sent_bytes": "Bytes sent on closed and open connections: those the kernel has accepted.",
    "echod_connection_duration_seconds": "Duration of closed connections, without unused ones.",
    "echod_datagrams_answered": "UDP datagrams sent back.",
    "echod_datagrams_answered_bytes": "Bytes of the UDP datagrams sent back.",
    "echod_datagrams_dropped": "UDP datagrams received and not answered, by reason.",
    "echod_datagrams_kernel_dropped": "UDP datagrams that found the receive queue full.",
    "echod_faulty_ports": "Ports with a fault plan.",
    "echod_faults_fired": "Faults that have fired, by port, rule and kind of fault.",
    "echod_build": "Versions of echod and Twisted.",
}


class Tally:
    """An observer that counts the events since the start.

    Bytes are counted when a connection closes, and not each time that bytes are echoed.
    :func:`transferred` adds the bytes of open connections.

    :ivar accepted: connections that were served; refused ones are not included.
    :ivar closed: closed connections, by ending.
    :ivar refused: refused connections, by reason.
    :ivar dropped: datagrams that were not answered, by reason.
    :ivar received: bytes that the closed connections have received.
    :ivar unsent: the part of these bytes that never reached the kernel for sending.
    :ivar sent: the highest number of sent bytes that :func:`transferred` has returned.
    :ivar seconds: the sum of the closed connections' durations, without unused ones.
    :ivar durations: the number of these connections for each of :data:`BUCKETS`, and of those that
        lasted longer.
    """

    def __init__(self) -> None:
        self.accepted = 0
        self.closed = dict.fromkeys(Ending, 0)
        self.refused = dict.fromkeys(Reason, 0)
        self.dropped = dict.fromkeys(Drop, 0)
        self.received = 0
        self.unsent = 0
        self.sent = 0
        self.seconds = 0.0
        self.durations = [0] * (len(BUCKETS) + 1)

    def __call__(self, event: Event) -> None:
        """Count ``event``."""
        if isinstance(event, Opened):
            self.accepted += 1
        elif isinstance(event, Refused):
            self.refused[event.reason] += 1
        elif isinstance(event, Dropped):
            self.dropped[event.drop] += 1
        elif isinstance(event, Closed):
            self.closed[event.ending] += 1
            self.received += event.bytes
            self.unsent += event.unsent
            if event.ending is not Ending.UNUSED:  # or health checks would outnumber the clients
                self.seconds += event.seconds
                self.durations[bisect_left(BUCKETS, event.seconds)] += 1


def transferred(tally: Tally, factory: EchoFactory) -> tuple[int, int]:
    """Return the bytes received and the bytes sent, over all connections since the start.

    Sent bytes are those that the kernel has accepted. Neither number decreases.
    """
    received, unsent = tally.received, tally.unsent
    for echo in factory.connections:
        received += echo.received
        unsent += echo.buffered
    # Over Twisted's own TLS, unsent bytes are encrypted, and can outnumber those received.
    tally.sent = max(tally.sent, received - unsent)
    return received, tally.sent


@dataclass(frozen=True, eq=False)
class EchoCollector(Collector):
    """Makes metrics of ``tally``, and of the state of ``factory``, ``datagrams`` and ``faults``."""

    tally: Tally
    factory: EchoFactory
    datagrams: EchoDatagrams
    faults: Sequence[Faults] = ()

    def collect(self) -> Iterator[Metric]:
        """Yield each metric of echod."""
        tally, factory, datagrams = self.tally, self.factory, self.datagrams
        received, sent = transferred(tally, factory)
        yield _gauge("echod_connections_open", len(factory.connections))
        yield _gauge("echod_connections_max", factory.limits.total)
        yield _counter("echod_connections_accepted", tally.accepted)
        yield _counters("echod_connections_closed", "ending", tally.closed)
        yield _counters("echod_connections_refused", "reason", tally.refused)
        yield _counter("echod_received_bytes", received, "bytes")
        yield _counter("echod_sent_bytes", sent, "bytes")
        yield _histogram("echod_connection_duration_seconds", tally.durations, tally.seconds)
        yield _counter("echod_datagrams_answered", datagrams.answered)
        yield _counter("echod_datagrams_answered_bytes", datagrams.bytes, "bytes")
        yield _counters("echod_datagrams_dropped", "reason", tally.dropped)
        yield _counter("echod_datagrams_kernel_dropped", datagrams.kernel_dropped())
        yield _gauge("echod_faulty_ports", len(self.faults))
        yield _fired(self.faults)
        versions = {"version": __version__, "twisted": twisted.__version__}
        yield InfoMetricFamily("echod_build", HELP["echod_build"], versions)


def registry(
    tally: Tally, factory: EchoFactory, datagrams: EchoDatagrams, faults: Sequence[Faults] = ()
) -> CollectorRegistry:
    """Return the metrics of echod, its process and its Python interpreter."""
    metrics = CollectorRegistry()
    metrics.register(EchoCollector(tally, factory, datagrams, faults))
    for collector in (ProcessCollector, PlatformCollector, GCCollector):
        collector(registry=metrics)
    return metrics


def _gauge(name: str, value: int) -> Metric:
    return GaugeMetricFamily(name, HELP[name], value)


def _counter(name: str, count: int, unit: str = "") -> Metric:
    return CounterMetricFamily(name, HELP[name], count, unit=unit)


def _counters(name: str, label: str, counts: Mapping[Any, int]) -> Metric:
    """Return a counter with a sample for each member of an enum, those at 0 included."""
    family = CounterMetricFamily(name, HELP[name], labels=[label])
    for member, count in counts.items():
        family.add_metric([member.value], count)
    return family


def _fired(faults: Sequence[Faults]) -> Metric:
    """Return a counter with a sample for each rule of each port.

    A plan can have the same rule twice, and Prometheus rejects a page with a sample twice.
    """
    name = "echod_faults_fired"
    counts: Counter[tuple[str, ...]] = Counter()
    for port in faults:
        for each in port.rules:
            counts[port.port, each.text, each.rule.fault.name] += each.fired
    family = CounterMetricFamily(name, HELP[name], labels=["port", "rule", "fault"])
    for labels, count in counts.items():
        family.add_metric(labels, count)
    return family


def _histogram(name: str, counts: Sequence[int], total: float) -> Metric:
    bounds = (*map(str, BUCKETS), "+Inf")
    samples = list(zip(bounds, accumulate(counts), strict=True))
    return HistogramMetricFamily(name, HELP[name], samples, total, unit="seconds")
