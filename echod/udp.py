"""UDP: each datagram back to who sent it, or no answer at all.

A source address is easily forged, so whoever answers datagrams can be made to send to
others, and two who answer each other never end. The rules that this file keeps:

- An answer is the datagram itself, once, from the address that it was sent to (RFC 862).
  Never more bytes go out than came in.
- What could be answered in turn gets no answer: a source port where services listen, or
  one of our own (CVE-1999-0103, CVE-2024-2169). Neither does what would reach many.
- One source, and all together, are answered at a bounded rate. So a loop ends: where it is
  faster than that, one datagram comes too early, and was the last; where it is slower, the
  port it comes from is not answered any more once it has not paused for very long.
- What is kept of sources is bounded, whatever number of them is forged.
- Each datagram that is not answered is counted, under its reason.
"""

from __future__ import annotations

import errno
import functools
import ipaddress
import socket
import struct
from collections import Counter, OrderedDict
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from echod import durations
from echod.addresses import network_of
from echod.arguments import (
    check_callable,
    check_number,
    check_provider,
    check_type,
    unless_none,
)
from echod.clock import clock_of
from echod.durations import SHORTEST
from echod.events import Drop, Dropped, Observer, ignore, notify

RATE: Final = 100.0
TOTAL_RATE: Final = 10_000.0
"""Datagrams a second that one source, and all together, are answered; see :class:`Rules`."""

LEAST_RATE: Final = 0.001
MOST_RATE: Final = 1e9
"""Datagrams a second, the bounds of both rates."""

BURST: Final = 1.0
"""Seconds of its rate that a source, which has been silent, may use up at once."""

LONGEST: Final = 3600.0
"""Seconds after which a port of a source that has never paused is not answered any more."""

PAUSE: Final = 0.5
"""Seconds without a datagram that make a pause. Who asks once a second makes one each
time, and a loop that is as slow as that costs as little."""

SOURCES: Final = 16_384
"""Sources that are remembered, and ports of sources, those that came last. With forged ones,
each answered once, it takes more than a second to push one out, at the rate of all together."""

BATCH: Final = 64
"""Datagrams in one turn of the reactor."""

SIZE: Final = 65_536
"""Bytes of the buffer. A datagram has 65,507 at most, over IPv6 20 more (RFC 768, RFC 8200)."""

RECEIVE_BUFFER: Final = 1024 * 1024
"""Bytes that the kernel is asked to hold for us, where it is less, and cuts down to
net.core.rmem_max."""

NFS: Final = 2049
LOW: Final = 1024

SO_MEMINFO: Final = 55
SK_MEMINFO_DROPS: Final = 8


@functools.lru_cache(SOURCES)
def source_of(host: str) -> tuple[str, Drop | None]:
    """Return what counts as one source, and why it is never answered, if so.

    :param host: an IP address, with a scope (RFC 4007 11) or without.
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


class Flow:
    """How long datagrams have come from one port of a source without a pause.

    :ivar since: seconds; when one came first, or first after a pause.
    :ivar last: seconds; when one came last.
    """

    __slots__ = ("last", "since")

    def __init__(self, now: float) -> None:
        self.since = self.last = now

    def lasts(self, now: float) -> float:
        """Return for how many seconds it has come without a pause, and note that it comes."""
        if now - self.last >= PAUSE:
            self.since = now
        self.last = now
        return now - self.since


class Rules:
    """Who is answered.

    Rates are kept by a virtual schedule (GCRA in ITU-T I.371), the same as a bucket of
    tokens: for an answer that comes early, the next has to wait longer.

    :param rate: datagrams a second that one source, an IPv4 address or an IPv6 /64, is
        answered in the long run; and so many at once if it has been silent.
    :param total_rate: the same for all together. Sources that are not known yet have half of
        it, so that ever new ones, if forged, do not use up what those that are known need.
    :param longest: seconds for which one port of a source is answered that never pauses.
    :raises TypeError: for a rate or time that is not a number.
    :raises ValueError: for a rate that is not from 0.001 to 1,000,000,000 a second, or a time that
        is not from 1 ms to 250,000 h.
    """

    def __init__(
        self, rate: float = RATE, total_rate: float = TOTAL_RATE, longest: float = LONGEST
    ) -> None:
        for name, value in (("rate", rate), ("total_rate", total_rate)):
            check_number(name, value, LEAST_RATE, MOST_RATE, "datagrams a second")
        check_number("longest", longest, SHORTEST, durations.LONGEST)
        self._step, self._total_step = 1 / rate, 1 / total_rate
        self._span, self._total_span = max(BURST, self._step), max(BURST, self._total_step)
        self._longest = longest
        self._total_due = 0.0
        # When each would have used up what it was answered, at its rate.
        self._sources: OrderedDict[str, float] = OrderedDict()
        self._flows: OrderedDict[tuple[str, int], Flow] = OrderedDict()
        self.own_ports: Counter[int] = Counter()

    def drop(self, host: str, port: int, now: float) -> Drop | None:
        """Return why a datagram is not to be answered; ``None``: it is, and is paid for.

        :param host: the IP address, and
        :param port: the port that it came from.
        :param now: seconds, by any monotonic clock.
        """
        drop = self._of_port(port)
        if drop is None:
            name, drop = source_of(host)
            if drop is None:
                drop = self._too_often(name, port, now)
        return drop

    def _of_port(self, port: int) -> Drop | None:
        if port in self.own_ports:
            return Drop.OWN_PORT
        if port == NFS:
            return Drop.NFS_PORT
        if port < LOW:
            return Drop.LOW_PORT if port else Drop.NO_PORT
        return None

    def _too_often(self, name: str, port: int, now: float) -> Drop | None:
        self._total_due = max(self._total_due, now)
        used = self._total_due - now
        due = self._sources.get(name)
        if due is None:
            if used > self._total_span / 2:
                return Drop.TOTAL_RATE
            due = now
        due = max(due, now)
        keep(self._sources, name, due)
        drop = None
        if due - now > self._span - self._step / 2:
            drop = Drop.SOURCE_RATE  # half a step, because these are sums of fractions
        elif used > self._total_span - self._total_step / 2:
            drop = Drop.TOTAL_RATE
        elif self._flow(name, port, now).lasts(now) > self._longest:
            drop = Drop.NO_PAUSE
        else:
            self._sources[name] = due + self._step
            self._total_due += self._total_step
        return drop

    def _flow(self, name: str, port: int, now: float) -> Flow:
        # By port, because a loop has one, but clients that share an address have one each. Where
        # a datagram is dropped for another reason, a loop is over anyway.
        flow = self._flows.get((name, port)) or Flow(now)
        keep(self._flows, (name, port), flow)
        return flow


def keep(table: OrderedDict[Any, Any], key: object, value: object) -> None:
    """Put it last into ``table``, of :data:`SOURCES` at most."""
    table[key] = value
    table.move_to_end(key)
    if len(table) > SOURCES:
        table.popitem(last=False)


class EchoDatagrams:
    """What is answered and counted over all ports of one service.

    :param clock: tells the time. Where it is a reactor that follows the time of day, its
        :class:`~echod.clock.MonotonicClock` takes its place.
    :param observer: is told of each datagram that is not answered.
    :param rules: which sources are answered; by default the usual :class:`Rules`.
    :raises TypeError: for an argument of another type.
    :ivar answered: datagrams that were sent back so far.
    :ivar bytes: bytes of these.
    """

    def __init__(
        self, clock: IReactorTime, observer: Observer = ignore, rules: Rules | None = None
    ) -> None:
        check_provider("clock", clock, IReactorTime)
        check_callable("observer", observer, "a callable that takes one event")
        unless_none(check_type, "rules", rules, Rules, "Rules")
        self.clock = clock_of(clock)
        self.observer = observer
        self.rules = Rules() if rules is None else rules
        self.answered = 0
        self.bytes = 0
        self.ports: set[DatagramPort] = set()
        self._dropped_before = 0

    def opened(self, port: DatagramPort) -> None:
        """Answer on ``port``. :class:`DatagramPort` calls this."""
        self.ports.add(port)
        self.listens(port.getHost().port, 1)

    def closed(self, port: DatagramPort) -> None:
        """Forget ``port``. :class:`DatagramPort` calls this."""
        self._dropped_before += port.kernel_dropped()
        self.ports.discard(port)
        self.listens(port.getHost().port, -1)

    def listens(self, number: int, more: int) -> None:
        """Note that there are so many ``more`` ports of this number, or less."""
        own = self.rules.own_ports
        own[number] += more
        if not own[number]:
            del own[number]

    def kernel_dropped(self) -> int:
        """Return how many datagrams the kernel has dropped, for want of room (socket(7))."""
        return self._dropped_before + sum(port.kernel_dropped() for port in self.ports)

    def admits(self, peer: Any, now: float) -> bool:
        """Tell whether a datagram from ``peer`` is to be answered, and count it if not.

        :param peer: a socket address: host, port, and what else there is.
        """
        drop = self.rules.drop(peer[0], peer[1], now)
        if drop is not None:
            self.dropped(drop, peer)
        return drop is None

    def not_sent(self, error: OSError, peer: Any) -> None:
        """Count an answer that the kernel does not take.

        It refuses a broadcast with EACCES (socket(7), SO_BROADCAST), since it alone knows
        which addresses are one.
        """
        drop = Drop.BROADCAST if error.errno == errno.EACCES else Drop.NOT_SENT
        self.dropped(drop, peer)

    def dropped(self, drop: Drop, peer: Any) -> None:
        """Tell that a datagram from ``peer`` is not answered."""
        notify(self.observer, Dropped(drop, address_of(peer)))


class DatagramEcho(DatagramProtocol):
    """Answer datagrams on one port: ``reactor.listenUDP(port, DatagramEcho(datagrams))``.

    On a port of several addresses the kernel chooses which of them an answer comes from;
    :class:`DatagramPort` does not leave that to it.
    """

    def __init__(self, datagrams: EchoDatagrams) -> None:
        check_type("datagrams", datagrams, EchoDatagrams, "EchoDatagrams")
        self._datagrams = datagrams

    def startProtocol(self) -> None:
        """Take note of the port, and of every byte: by default Twisted drops those after 8192."""
        transport: Any = self.transport
        transport.maxPacketSize = SIZE
        self._port = transport.getHost().port
        self._datagrams.listens(self._port, 1)

    def stopProtocol(self) -> None:
        """Forget the port."""
        self._datagrams.listens(self._port, -1)

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Answer ``datagram``, or do not."""
        datagrams = self._datagrams
        if datagrams.admits(addr, datagrams.clock.seconds()):
            transport: Any = self.transport
            try:
                transport.write(datagram, addr)
            except OSError as error:
                datagrams.not_sent(error, addr)
            else:
                datagrams.answered += 1
                datagrams.bytes += len(datagram)


@implementer(IReadDescriptor, IListeningPort)
class DatagramPort:
    """A UDP port whose answers come from the address that was asked, also where it has many.

    :param reactor: tells when there is something to receive.
    :param sock: bound, of family AF_INET or AF_INET6. It is closed in the end.
    :param datagrams: what is answered and counted.
    """

    def __init__(
        self, reactor: IReactorFDSet, sock: socket.socket, datagrams: EchoDatagrams
    ) -> None:
        check_type("datagrams", datagrams, EchoDatagrams, "EchoDatagrams")
        self._reactor = reactor
        self._socket = sock
        self._datagrams = datagrams
        self._view = memoryview(bytearray(SIZE))
        name = sock.getsockname()
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        self._host = address_of((host, *name[1:]))  # with the zone of a link-local address
        self._dropped_before = 0
        self.fileno = sock.fileno

    def startListening(self) -> None:
        """Begin to answer."""
        sock = self._socket
        sock.setblocking(False)
        # Whatever Broadcast= says: the kernel alone knows, and so has to refuse them.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        # Not what ReceiveBuffer= has made larger than we may: it would be cut down.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < RECEIVE_BUFFER:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if sock.family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
        # Over IPv6 too, because IPv4 may come there, and only this tells what is a broadcast.
        sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        # Before us: systemd's socket outlives who serves it, and so does what it counts.
        self._dropped_before = self._ever_dropped()
        self._datagrams.opened(self)
        self._reactor.addReader(self)

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self.connectionLost(Failure(Exception()))
        return succeed(None)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Close the port, as the reactor does when it is stopped; again does nothing."""
        if self.fileno() == -1:
            return
        self._reactor.removeReader(self)
        self._datagrams.closed(self)
        self._socket.close()

    def getHost(self) -> IPv4Address | IPv6Address:
        """Return the address that it listens on."""
        return self._host

    def logPrefix(self) -> str:
        """Return what the log calls it."""
        return "echod"

    def kernel_dropped(self) -> int:
        """Return how many datagrams the kernel has dropped here since it was opened."""
        return (self._ever_dropped() - self._dropped_before) % 2**32

    def _ever_dropped(self) -> int:
        try:
            size = 4 * (SK_MEMINFO_DROPS + 1)
            told = self._socket.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, size)
        except OSError:  # of a kernel that does not tell, as that of some containers
            return 0
        return int(struct.unpack("9I", told)[SK_MEMINFO_DROPS])

    def doRead(self) -> None:
        """Answer what has come."""
        datagrams, sock, view = self._datagrams, self._socket, self._view
        now = datagrams.clock.seconds()
        buffers = [view]
        for _ in range(BATCH):
            try:
                count, told, _flags, peer = sock.recvmsg_into(buffers, SPACE)
            except BlockingIOError:
                return
            except OSError:  # of an answer before, which did not arrive (udp(7))
                continue
            if not datagrams.admits(peer, now):
                continue
            source = asked(told)
            if source is None:
                datagrams.dropped(Drop.SENT_TO_MANY, peer)
                continue
            try:
                sock.sendmsg((view[:count],), source, 0, peer)
            except OSError as error:
                datagrams.not_sent(error, peer)
            else:
                datagrams.answered += 1
                datagrams.bytes += count


IP_PKTINFO: Final = 8
WAY: Final = (socket.IPPROTO_IP, IP_PKTINFO)
WAY6: Final = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
PKTINFO: Final = struct.Struct("4s4s4s")  # in_pktinfo in ip(7)
PKTINFO6: Final = struct.Struct("16s4s")  # in6_pktinfo in RFC 3542 6.1
SPACE: Final = 256
"""Bytes for what comes along with a datagram: that, and what who made the socket has asked for,
as systemd does for Timestamping=."""

NONE: Final = bytes(4)
"""No interface, and no IPv4 address."""

Ancillary = list[tuple[int, int, bytes]]


def asked(told: Ancillary) -> Ancillary | None:
    """Return what has the kernel send from the address that a datagram was sent to.

    ``None``: it was sent to many, and all of them could answer (RFC 1122 3.2.2).

    :param told: what came along with it: IP_PKTINFO or IPV6_PKTINFO, and for IPv4 at a port for
        both kinds both.
    """
    found = {(level, kind): data for level, kind, data in told}
    data = found.get(WAY)
    if data is not None:
        _, local, destination = PKTINFO.unpack(data)
        # What came to a socket before it was asked for this, as to one from systemd, has no
        # local address. From an address of many, the kernel sends nothing.
        if local not in (destination, NONE):
            return None
        # The way back is the routing table's to choose.
        return [(*WAY, PKTINFO.pack(NONE, destination, NONE))]
    destination, interface = PKTINFO6.unpack(found[WAY6])
    if destination[0] == 0xFF:
        return None
    link_local = destination[:2] == b"\xfe\x80"  # which is on one interface alone
    return [(*WAY6, PKTINFO6.pack(destination, interface if link_local else NONE))]


def address_of(peer: Any) -> IPv4Address | IPv6Address:
    """Return a socket address as Twisted writes it.

    :param peer: host and port, and for IPv6 also flow and scope, which Twisted's UDP port drops.
    """
    return (IPv6Address if ":" in peer[0] else IPv4Address)("UDP", *peer)
