"""What happened, in numbers: counted as it is told, summed when somebody asks.

The numbers are plain Python. What makes metrics of them is prometheus_client, the
extra ``metrics``; nothing else of echod imports it, so that a
daemon without --metrics does not need it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import accumulate
from typing import Final

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from echod import __version__
from echod.events import Closed, Drop, Dropped, Ending, Event, Opened, Reason, Refused
from echod.factory import EchoFactory
from echod.transport import buffered
from echod.udp import EchoDatagrams

TWISTED: Final = version("twisted")

MINUTE: Final = 60.0
HOUR: Final = 60 * MINUTE
DAY: Final = 24 * HOUR

BUCKETS: Final = (
    *(0.001, 0.01, 0.1, 1.0, 10.0),
    *(MINUTE, 10 * MINUTE, HOUR, 6 * HOUR, DAY, 7 * DAY),
)
"""Seconds, the upper bounds of what the histogram of durations tells apart: an exchange
on the same machine takes a millisecond, a keep-alive test days."""


class Tally:
    """An observer that counts what happened since the start.

    Bytes are those of closed connections; :func:`transferred` adds the open ones. So
    no byte that is echoed costs a count here.

    :ivar accepted: connections that were served. Those refused are not among them.
    :ivar closed: connections that ended, by ending.
    :ivar refused: connections that were reset unserved, by reason.
    :ivar dropped: datagrams that were not answered, by reason.
    :ivar received: bytes that the closed ones received.
    :ivar unsent: of these, the bytes that never reached the kernel for sending.
    :ivar sent: the most bytes that :func:`transferred` has told as sent.
    :ivar seconds: the sum of the closed ones' durations, unused ones excluded.
    :ivar durations: how many of these lasted up to each of :data:`BUCKETS`, but not up to the
        one before; the last lasted longer than all.
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
            if event.ending is not Ending.UNUSED:  # health checks would hide all others
                self.seconds += event.seconds
                self.durations[bisect_left(BUCKETS, event.seconds)] += 1


def transferred(tally: Tally, factory: EchoFactory) -> tuple[int, int]:
    """Return how many bytes were received, and sent, over all connections until now.

    Sent is what the kernel has taken. Neither number ever goes back.
    """
    received, unsent = tally.received, tally.unsent
    for echo in factory.connections:
        received += echo.received
        unsent += buffered(echo.transport)
    # Below TLS that is not echod's own it is encrypted, and grows by more than what is received.
    tally.sent = max(tally.sent, received - unsent)
    return received, tally.sent


class EchoCollector(Collector):
    """Makes metrics of a :class:`Tally`, and of what ``factory`` and ``datagrams`` serve now."""

    def __init__(self, tally: Tally, factory: EchoFactory, datagrams: EchoDatagrams) -> None:
        self._tally = tally
        self._factory = factory
        self._datagrams = datagrams

    def collect(self) -> Iterator[Metric]:
        """Yield each metric of echod."""
        tally, factory = self._tally, self._factory
        received, sent = transferred(tally, factory)
        yield GaugeMetricFamily(
            "echod_connections_open",
            "Connections that are served now.",
            len(factory.connections),
        )
        yield GaugeMetricFamily(
            "echod_connections_max",
            "Connections that are served at once at the most; more are refused.",
            factory.max_connections,
        )
        yield CounterMetricFamily(
            "echod_connections_accepted",
            "Connections that were accepted and served. Those refused are not among them.",
            tally.accepted,
        )
        yield _by_label(
            "echod_connections_closed",
            "Connections that were accepted and have ended, by how.",
            "ending",
            ((ending.value, count) for ending, count in tally.closed.items()),
        )
        yield _by_label(
            "echod_connections_refused",
            "Connections that were reset and not served, by why.",
            "reason",
            ((reason.value, count) for reason, count in tally.refused.items()),
        )
        yield CounterMetricFamily(
            "echod_received_bytes",
            "Bytes received, of closed and open connections.",
            received,
            unit="bytes",
        )
        yield CounterMetricFamily(
            "echod_sent_bytes",
            "Bytes sent back, of closed and open connections: what the kernel has taken.",
            sent,
            unit="bytes",
        )
        bounds = (*(str(bound) for bound in BUCKETS), "+Inf")
        yield HistogramMetricFamily(
            "echod_connection_duration_seconds",
            "How long the connections lasted that have ended, unused ones excluded.",
            list(zip(bounds, accumulate(tally.durations), strict=True)),
            tally.seconds,
            unit="seconds",
        )
        yield CounterMetricFamily(
            "echod_datagrams_answered",
            "UDP datagrams that were sent back.",
            self._datagrams.answered,
        )
        yield CounterMetricFamily(
            "echod_datagrams_answered_bytes",
            "Bytes of the datagrams that were sent back.",
            self._datagrams.bytes,
            unit="bytes",
        )
        yield _by_label(
            "echod_datagrams_dropped",
            "UDP datagrams that were received and not answered, by why.",
            "reason",
            ((drop.value, count) for drop, count in tally.dropped.items()),
        )
        yield CounterMetricFamily(
            "echod_datagrams_kernel_dropped",
            "UDP datagrams that the kernel dropped, because it had no room for more.",
            self._datagrams.kernel_dropped(),
        )
        yield InfoMetricFamily(
            "echod_build",
            "The versions of echod and of Twisted.",
            {"version": __version__, "twisted": TWISTED},
        )


def registry(tally: Tally, factory: EchoFactory, datagrams: EchoDatagrams) -> CollectorRegistry:
    """Return the metrics of echod, and of its process and its Python, for an exposition."""
    metrics = CollectorRegistry()
    metrics.register(EchoCollector(tally, factory, datagrams))
    ProcessCollector(registry=metrics)
    PlatformCollector(registry=metrics)
    GCCollector(registry=metrics)
    return metrics


def _by_label(
    name: str, documentation: str, label: str, counts: Iterable[tuple[str, int]]
) -> CounterMetricFamily:
    """Return a counter that has a sample for each of ``counts``, those at 0 too."""
    family = CounterMetricFamily(name, documentation, labels=[label])
    for value, count in counts:
        family.add_metric([value], count)
    return family
