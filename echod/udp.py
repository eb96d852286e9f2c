"""UDP echo (RFC 862): send each datagram back from the address that it was sent to.

A reply is the datagram itself, once: never more bytes go out than came in.
:mod:`echod.udprules` decides which datagrams get a reply; the others are counted by reason.
"""

from __future__ import annotations

import errno
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Final, TypeAlias

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import MessageLengthError
from twisted.internet.interfaces import (
    IListeningPort,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
)
from twisted.internet.protocol import DatagramProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.arguments import check_callable, check_provider, check_type, unless_none
from echod.clock import clock_of
from echod.events import Drop, Dropped, Observer, ignore, notify
from echod.turns import TURN
from echod.udporigin import IP_PKTINFO, Origin, ancillary_space
from echod.udprules import Rules
from echod.udpsocket import SIZE, BatchExchange, Exchange, SingleExchange, kernel_drop_counter

FEW: Final = 4
"""Datagrams in a turn of the reactor up to which the next turn receives them one by one. A lone
datagram takes 10 µs less than in a batch."""

RECEIVE_BUFFER: Final = 1024 * 1024
"""Bytes of SO_RCVBUF, unless it is larger already. The kernel caps it at net.core.rmem_max."""

Transmit: TypeAlias = Callable[[bytes, Any], object]
"""Sends a datagram to a socket address, or raises OSError or MessageLengthError."""


class EchoDatagrams:
    """The rules and counters that all UDP ports of one service share.

    :param clock: the source of time. A reactor that follows the time of day is replaced by its
        :class:`~echod.clock.MonotonicClock`.
    :param observer: is called with each :class:`~echod.events.Dropped`.
    :param rules: decide which datagrams get a reply; by default ``Rules()``.
    :raises TypeError: for an argument of another type.
    :ivar answered: the number of replies so far.
    :ivar bytes: the bytes in them.
    :ivar ports: the open ports, except the Twisted ports of :class:`DatagramEcho`.
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
        self._dropped_by_closed_ports = 0

    def opened(self, port: DatagramPort) -> None:
        """Add ``port``. :class:`DatagramPort` calls this."""
        self.ports.add(port)
        self.rules.own_ports[port.getHost().port] += 1

    def closed(self, port: DatagramPort) -> None:
        """Remove ``port``. :class:`DatagramPort` calls this."""
        self._dropped_by_closed_ports += port.kernel_dropped()
        self.ports.discard(port)
        self.rules.own_ports[port.getHost().port] -= 1

    def kernel_dropped(self) -> int:
        """Return how many datagrams the kernel has dropped because a receive buffer was full."""
        return self._dropped_by_closed_ports + sum(port.kernel_dropped() for port in self.ports)

    def admits(self, peer: Any, now: float) -> bool:
        """Return whether a datagram gets a reply; if not, notify the observer.

        :param peer: the source's socket address: host, port, and for IPv6 flow and scope.
        :param now: seconds, by :attr:`clock`.
        """
        drop = self.rules.drop(peer[0], peer[1], now)
        if drop is not None:
            self.dropped(drop, peer)
        return drop is None

    def send(self, datagram: bytes, peer: Any, transmit: Transmit) -> bool:
        """Send one reply, and count it; return whether the kernel accepted it.

        :param peer: the source's socket address.
        """
        try:
            transmit(datagram, peer)
        except (OSError, MessageLengthError) as error:
            self.send_failed(error, peer)
            return False
        self.answered += 1
        self.bytes += len(datagram)
        return True

    def send_failed(self, error: Exception, peer: Any) -> None:
        """Notify the observer that the kernel did not accept a reply.

        EACCES means that the source is a broadcast address (SO_BROADCAST in socket(7)). Only the
        kernel knows all broadcast addresses.
        """
        refused = isinstance(error, OSError) and error.errno == errno.EACCES
        self.dropped(Drop.BROADCAST if refused else Drop.NOT_SENT, peer)

    def dropped(self, drop: Drop, peer: Any) -> None:
        """Notify the observer of a datagram from ``peer`` that gets no reply."""
        notify(self.observer, Dropped(drop, udp_address(peer)))


class DatagramEcho(DatagramProtocol):
    """Echo the datagrams of one Twisted port: ``reactor.listenUDP(port, DatagramEcho(datagrams))``.

    On a host with several addresses, the kernel chooses the reply's source address. Use
    :class:`DatagramPort` where it must be the address that the datagram was sent to.
    """

    def __init__(self, datagrams: EchoDatagrams) -> None:
        check_type("datagrams", datagrams, EchoDatagrams, "EchoDatagrams")
        self._datagrams = datagrams

    def startProtocol(self) -> None:
        """Register the port, and accept datagrams of any size: Twisted cuts them at 8192 bytes."""
        transport: Any = self.transport
        transport.maxPacketSize = SIZE
        self._port = transport.getHost().port
        self._datagrams.rules.own_ports[self._port] += 1

    def stopProtocol(self) -> None:
        """Unregister the port."""
        self._datagrams.rules.own_ports[self._port] -= 1

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Send ``datagram`` back to ``addr`` if the rules admit it."""
        datagrams = self._datagrams
        if datagrams.admits(addr, datagrams.clock.seconds()):
            transport: Any = self.transport
            self._reply(datagram, addr, transport.write)

    def _reply(self, datagram: bytes, addr: Any, transmit: Transmit) -> None:
        self._datagrams.send(datagram, addr, transmit)


@implementer(IReadDescriptor, IListeningPort)
class DatagramPort:
    """A UDP port that replies from the address that each datagram was sent to.

    :param reactor: watches the socket.
    :param sock: a bound socket of family AF_INET or AF_INET6. The port closes it in the end.
    :param datagrams: the rules and counters.
    """

    def __init__(
        self, reactor: IReactorFDSet, sock: socket.socket, datagrams: EchoDatagrams
    ) -> None:
        check_type("datagrams", datagrams, EchoDatagrams, "EchoDatagrams")
        self._reactor = reactor
        self._socket = sock
        self._datagrams = datagrams
        name = sock.getsockname()
        host, _ = socket.getnameinfo(name, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        self._host = udp_address((host, *name[1:]))  # with the zone of a link-local address
        self._dropped_before = 0
        self._space = ancillary_space(sock)
        self._singles = SingleExchange(sock, self._space)
        self._batches: Exchange = self._singles
        self._exchange: Exchange = self._singles
        self.fileno = sock.fileno

    def startListening(self) -> None:
        """Set the socket's options, and start to read."""
        sock = self._socket
        sock.setblocking(False)
        # A systemd socket may have Broadcast=yes. The kernel must refuse replies to broadcast
        # addresses, because only the kernel knows all of these.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 0)
        # Never shrink a buffer that systemd's ReceiveBuffer= has made larger than rmem_max.
        if sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < RECEIVE_BUFFER:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        if self._space:
            if sock.family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
            # On IPv6 sockets, too: IPv4 datagrams arrive there as well, and only IP_PKTINFO shows
            # which of them were broadcast.
            sock.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        # A systemd socket outlives the process, and so does the kernel's count of its drops.
        self._dropped_before = kernel_drop_counter(sock)
        with suppress(ImportError, AttributeError, OSError, MemoryError):
            self._batches = BatchExchange(sock, self._space)
        self._datagrams.opened(self)
        self._reactor.addReader(self)

    def stopListening(self) -> Deferred[None]:
        """Close the port."""
        self.connectionLost(Failure(Exception()))
        return succeed(None)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Close the port, if it is open; the reactor calls this when it stops."""
        if self.fileno() == -1:
            return
        self._reactor.removeReader(self)
        self._datagrams.closed(self)
        self._socket.close()

    def getHost(self) -> IPv4Address | IPv6Address:
        """Return the address that the socket is bound to."""
        return self._host

    def logPrefix(self) -> str:
        """Return the prefix of the reactor's log lines."""
        return "echod"

    def kernel_dropped(self) -> int:
        """Return how many datagrams the kernel has dropped since the port was opened."""
        return (kernel_drop_counter(self._socket) - self._dropped_before) % 2**32

    def doRead(self) -> None:
        """Echo the datagrams that have arrived, until :data:`~echod.turns.TURN` is used up."""
        many = self._echo(self._exchange) > FEW
        self._exchange = self._batches if many else self._singles

    def _echo(self, exchange: Exchange) -> int:
        """Echo the datagrams that have arrived, and return how many were received."""
        datagrams = self._datagrams
        drop_from, seconds = datagrams.rules.drop_from, datagrams.clock.seconds
        total, more = 0, True
        now = seconds()
        end = now + TURN
        while more and now <= end:
            try:
                origins, sizes = exchange.receive()
            except OSError:  # there is none, or an ICMP error for an earlier reply (udp(7))
                break
            count = len(origins)
            first = 0  # of those that are not sent yet
            for index, origin in enumerate(origins):
                drop = drop_from(origin.sender, now)
                if drop is None and origin.source is None:
                    drop = Drop.SENT_TO_MANY
                if drop is not None:
                    self._reply(exchange, origins, sizes, first, index)
                    datagrams.dropped(drop, origin.peer)
                    first = index + 1
            self._reply(exchange, origins, sizes, first, count)
            total += count
            more = count == exchange.limit
            now = seconds()
        return total

    def _reply(
        self,
        exchange: Exchange,
        origins: Sequence[Origin],
        sizes: Sequence[int],
        first: int,
        end: int,
    ) -> None:
        """Send back the datagrams from the index ``first`` up to ``end``, excluding it."""
        datagrams = self._datagrams
        while first < end:
            try:
                sent = exchange.send_back(first, [each.source for each in origins[first:end]])
            except OSError as error:
                datagrams.send_failed(error, origins[first].peer)
                sent = 1
            else:
                datagrams.answered += sent
                datagrams.bytes += sum(sizes[first : first + sent])
            first += sent


def udp_address(peer: Any) -> IPv4Address | IPv6Address:
    """Return the Twisted address of a socket address.

    :param peer: host and port, and for IPv6 flow and scope, which Twisted's UDP port omits.
    """
    return (IPv6Address if ":" in peer[0] else IPv4Address)("UDP", *peer)
