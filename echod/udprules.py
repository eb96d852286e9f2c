"""UDP echo rules, no I/O: which datagrams get a reply, by source address, port, rate and pauses.

A source address is easily forged, so an echo service can be made to send to a victim, and two
echo services that reply to each other never stop. The rules:

- A datagram gets no reply if a service could reply in turn: its source port is below 1024, or is
  one of echod's own (CVE-1999-0103, CVE-2024-2169). A datagram from a multicast or broadcast
  address gets no reply either.
- Each source, and all sources together, get replies at a bounded rate. This ends a loop that is
  faster than the rate: the first datagram above the rate is its last one. A slower loop ends when
  its port has sent for an hour without a pause.
- The state for each source is bounded, however many source addresses are forged.
"""

from __future__ import annotations

import functools
import ipaddress
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from echod.addresses import network_of
from echod.arguments import check_number
from echod.durations import LONGEST, SHORTEST
from echod.events import Drop

RATE: Final = 100.0
TOTAL_RATE: Final = 10_000.0
"""Replies a second, to one source and to all sources together; see :class:`Rules`."""

MIN_RATE: Final = 0.001
MAX_RATE: Final = 1e9
"""Replies a second: the bounds of both rates."""

BURST: Final = 1.0
"""Seconds. A source that was idle for this long may get the replies of that time at once."""

LONGEST_FLOW: Final = 3600.0
"""Seconds after which a source port that has never paused gets no more replies."""

PAUSE: Final = 0.5
"""Seconds without a datagram that make a pause. A client that sends once a second pauses each
time, and a loop as slow as that costs no more than such a client."""

MAX_SOURCES: Final = 16_384
"""The number of sources, and of source ports, that are remembered: the most recent ones. To push
one out with forged addresses takes more than a second, at the default total rate."""

UNSAFE_PORTS: Final = {
    0: Drop.NO_PORT,
    **dict.fromkeys(range(1, 1024), Drop.LOW_PORT),
    2049: Drop.NFS_PORT,
}
"""Source ports that get no reply, and why."""


def source_of(host: str) -> tuple[str, Drop | None]:
    """Return the network that counts as one source, and why it gets no reply, if it gets none.

    :param host: an IP address, with or without a scope (RFC 4007 11).
    """
    address = ipaddress.ip_address(host)
    address = getattr(address, "ipv4_mapped", None) or address
    drop = None
    if address.is_unspecified:
        drop = Drop.UNSPECIFIED
    elif address.is_multicast:
        drop = Drop.MULTICAST
    elif address == ipaddress.IPv4Address(0xFFFFFFFF):
        drop = Drop.BROADCAST
    return network_of(host), drop


@dataclass(frozen=True, slots=True)
class Sender:
    """A source address and port, as the rules see it.

    :ivar port: the source port.
    :ivar source: the network that counts as one source.
    :ivar flow: source and port, which have a time without a pause.
    :ivar drop: why no datagram from there gets a reply; ``None``: it depends on the rates.
    """

    port: int
    source: str
    flow: tuple[str, int]
    drop: Drop | None


@functools.lru_cache(MAX_SOURCES)
def sender_of(host: str, port: int) -> Sender:
    """Return the sender of a datagram.

    :param host: the source IP address.
    :param port: the source port.
    """
    source, drop = source_of(host)
    return Sender(port, source, (source, port), UNSAFE_PORTS.get(port, drop))


class GCRA:
    """A rate limit by virtual scheduling (GCRA, ITU-T I.371): a token bucket without a timer.

    The state of one sender is a single number, its *due time*: the time of its next event if its
    events came exactly at the rate. The caller keeps that number. A sender that is faster than the
    rate moves it into the future, and the rate is exceeded when it is further ahead than a burst.

    :param rate: events a second in the long run; also the number of events in a burst, at least 1.
    :ivar burst: seconds by which the due time may be in the future.
    """

    __slots__ = ("_interval", "_most", "burst")

    def __init__(self, rate: float) -> None:
        self._interval = 1 / rate
        self.burst = max(BURST, self._interval)
        # Due times are sums of fractions: half an interval is the tolerance for rounding.
        self._most = self.burst - self._interval / 2

    def charge(self, due: float, now: float) -> float | None:
        """Return the new due time after one more event at ``now``; ``None``: above the rate."""
        if due < now:
            return now + self._interval
        if due - now > self._most:
            return None
        return due + self._interval


class Flow:
    """The time for which one source port has sent datagrams without a pause.

    :ivar since: seconds: the time of its first datagram, or the first after a pause.
    :ivar last: seconds: the time of its latest datagram.
    """

    __slots__ = ("last", "since")

    def __init__(self, now: float) -> None:
        self.since = self.last = now

    def duration(self, now: float) -> float:
        """Record a datagram at ``now``, and return the seconds since the flow last paused."""
        if now - self.last >= PAUSE:
            self.since = now
        self.last = now
        return now - self.since


class Rules:
    """Decide whether a datagram gets a reply.

    :param rate: replies a second to one source (an IPv4 address or an IPv6 /64) in the long run.
        After a second of silence, a source gets as many at once.
    :param total_rate: replies a second to all sources together. New sources get at most half of it,
        so that forged addresses cannot use up the share of known sources.
    :param longest: seconds after which a source port that has never paused gets no more replies.
    :raises TypeError: for a rate or time that is not a number.
    :raises ValueError: for a rate that is not from 0.001 to 1,000,000,000 a second, or a time that
        is not from 1 ms to 250,000 h.
    :ivar own_ports: how many of the service's own sockets are bound to each port.
    """

    def __init__(
        self, rate: float = RATE, total_rate: float = TOTAL_RATE, longest: float = LONGEST_FLOW
    ) -> None:
        for name, value in (("rate", rate), ("total_rate", total_rate)):
            check_number(name, value, MIN_RATE, MAX_RATE, "datagrams a second")
        check_number("longest", longest, SHORTEST, LONGEST)
        self._limit, self._total_limit = GCRA(rate), GCRA(total_rate)
        self._longest = longest
        self._total_due = 0.0
        self._due: OrderedDict[str, float] = OrderedDict()  # by source
        self._flows: OrderedDict[tuple[str, int], Flow] = OrderedDict()  # by source and port
        self.own_ports: Counter[int] = Counter()

    def drop(self, host: str, port: int, now: float) -> Drop | None:
        """Return why a datagram gets no reply; ``None``: it gets one, and is charged for it.

        :param host: the source IP address.
        :param port: the source port.
        :param now: seconds, by any monotonic clock.
        """
        return self.drop_from(sender_of(host, port), now)

    def drop_from(self, sender: Sender, now: float) -> Drop | None:
        """Do the same as :meth:`drop`, in less time, for a sender that the caller keeps."""
        drop = Drop.OWN_PORT if self.own_ports.get(sender.port) else sender.drop
        if drop is not None:
            return drop
        source = sender.source
        due = self._due.get(source)
        if due is not None:
            self._due.move_to_end(source)
        elif self._total_due - now > self._total_limit.burst / 2:
            return Drop.TOTAL_RATE
        else:
            due = now
            remember(self._due, source, due)
        charged = self._limit.charge(due, now)
        if charged is None:
            return Drop.SOURCE_RATE
        total_charged = self._total_limit.charge(self._total_due, now)
        if total_charged is None:
            return Drop.TOTAL_RATE
        # By port: a loop has one port, but several clients may share one address. A datagram that
        # is dropped above has ended its loop already.
        flow = self._flows.get(sender.flow)
        if flow is not None:
            self._flows.move_to_end(sender.flow)
        else:
            flow = Flow(now)
            remember(self._flows, sender.flow, flow)
        if flow.duration(now) > self._longest:
            return Drop.NO_PAUSE
        self._due[source] = charged
        self._total_due = total_charged
        return None


def remember(table: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Add ``key`` to ``table``, which keeps the :data:`MAX_SOURCES` most recent keys."""
    table[key] = value
    if len(table) > MAX_SOURCES:
        table.popitem(last=False)
