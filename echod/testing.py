"""In-memory network for tests: real Twisted transports over simulated sockets.

A test double can simulate wrongly, so this one simulates as little as possible. The transports are
Twisted's own :class:`twisted.internet.tcp.Connection`: buffers, producers, half-close and abort
are real. Only the system calls below them (send, recv, shutdown, close) and the polling are
simulated. Time is a :class:`twisted.internet.task.Clock`. The conformance tests of echod run over
this network and over real sockets alike, which shows that both behave the same.

See ``docs/testing.rst`` for how to use it.
"""

from __future__ import annotations

import errno
import ipaddress
import itertools
import math
import socket
import struct
import typing
from collections.abc import Callable
from typing import Any, Final, TypeVar, cast

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import (
    CannotListenError,
    ConnectionDone,
    ConnectionLost,
)
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IListeningPort,
    IProtocol,
    IProtocolFactory,
    IReactorFDSet,
    IReadDescriptor,
    IStreamClientEndpoint,
    IStreamServerEndpoint,
    IWriteDescriptor,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.python.failure import Failure
from twisted.python.log import err
from zope.interface import implementer

from echod.arguments import check_number, check_whole
from echod.transport import IStreamTransport

TURNS: Final = 1_000_000
"""Turns of the loop after which :meth:`MemoryNetwork.settle` fails: the traffic never ends."""


P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Builds(typing.Protocol[P_co]):
    """A protocol factory whose protocols have a known type, for type checkers."""

    def buildProtocol(self, addr: Any) -> P_co | None:
        """Return the protocol for a new connection."""


def check_ipv4(name: str, host: str) -> None:
    """Raise ValueError if ``host`` is not an IPv4 address, the only kind that is simulated."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{name} takes an IPv4 address, not {host!r}") from None


def ipv4_address(host: str, port: int) -> IPv4Address:
    """Return the address of a listener, or raise ValueError."""
    check_whole("port", port, 1, 65535)
    check_ipv4("host", host)
    return IPv4Address("TCP", host, port)


class MemorySocket:
    """One end of a connected pair of stream sockets, after tcp(7) and RFC 9293.

    Bytes go straight into the other end's receive buffer. A reset destroys the bytes in it, which
    is the worst case that TCP allows.

    :param address: its own address.
    :param capacity: bytes that the receive buffer holds.
    """

    other: MemorySocket

    def __init__(self, address: IPv4Address, capacity: int) -> None:
        self.address = address
        self._capacity = capacity
        self._incoming = bytearray()
        self._finished = False  # the other end sends nothing more
        self._reset = False
        self._reset_reported = False
        self._shut = False
        self._closed = False
        self.options: dict[tuple[int, int], Any] = {}

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def setblocking(self, blocking: bool) -> None:
        """Do nothing: a call never blocks."""

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Store an option. SO_LINGER of 0 seconds makes :meth:`close` a reset."""
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int) -> Any:
        """Return the stored value, or 0; for SO_ERROR, ECONNRESET if the connection was reset."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return errno.ECONNRESET if self._reset else 0
        return self.options.get((level, option), 0)

    @property
    def kernel_send_queue(self) -> int:
        """Bytes sent that the other end has not read (SIOCOUTQ in unix(7))."""
        return len(self.other._incoming)

    def readable(self) -> bool:
        """Return whether :meth:`recv` would not block."""
        return bool(self._incoming) or self._finished or self._reset

    def writable(self) -> bool:
        """Return whether :meth:`send` would not block."""
        return self._reset or self.other._closed or self._space() > 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive at most ``size`` bytes; ``b""`` after the other end has finished.

        MSG_PEEK leaves the bytes in the buffer. A reset is reported once, even to MSG_PEEK, as the
        kernel does (SO_ERROR in socket(7)).
        """
        if self._reset:
            if self._reset_reported:
                return b""
            self._reset_reported = True
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
        if not self._incoming and not self._finished:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing to read")
        data = bytes(self._incoming[:size])
        if not flags & socket.MSG_PEEK:
            del self._incoming[:size]
        return data

    def send(self, data: bytes) -> int:
        """Send as many bytes as the buffer has space for, and return their number."""
        if self._reset or self._shut:
            raise BrokenPipeError(errno.EPIPE, "sending is over")
        if self.other._closed:  # RST comes back, and the next call reports it
            self._get_reset()
            return len(data)
        if not self._space():
            raise BlockingIOError(errno.EWOULDBLOCK, "no space")
        part = data[: self._space()]
        self.other._incoming += part
        return len(part)

    def shutdown(self, how: int) -> None:
        """Finish sending (FIN)."""
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._shut = True
            self.other._finished = True

    def close(self) -> None:
        """Close with FIN, or with RST if bytes are unread or SO_LINGER is 0 seconds."""
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        self._closed = True
        if self._incoming or linger == struct.pack("ii", 1, 0):
            self.other._get_reset()
        else:
            self.shutdown(socket.SHUT_WR)

    def _space(self) -> int:
        return self._capacity - len(self.other._incoming)

    def _get_reset(self) -> None:
        self._reset = True
        self._incoming.clear()


class MemoryTransport(Connection):
    """Twisted's own TCP transport, on a :class:`MemorySocket`."""

    def __init__(self, sock: MemorySocket, protocol: IProtocol, network: MemoryNetwork) -> None:
        super().__init__(cast(Any, sock), protocol, network)
        self._host, self._peer = sock.address, sock.other.address
        self.connected = 1
        self.startReading()  # type: ignore[no-untyped-call]

    def getHost(self) -> IPv4Address:
        """Return this end's address."""
        return self._host

    def getPeer(self) -> IPv4Address:
        """Return the other end's address."""
        return self._peer


@implementer(IReactorFDSet)
class MemoryNetwork(Clock):
    """A network, its clock, and the part of a reactor that moves the bytes.

    Nothing moves by itself: :meth:`settle` moves all bytes that can move now, and
    :meth:`advance` lets time pass.

    :param capacity: bytes that the buffer of each direction of a connection holds. A writer whose
        peer does not read waits when it is full.
    :raises TypeError: for a capacity that is not a whole number.
    :raises ValueError: for a capacity below 1.
    """

    def __init__(self, capacity: int = 64 * 1024) -> None:
        check_whole("capacity", capacity, 1)
        super().__init__()
        self._capacity = capacity
        self._ports = itertools.count(49152)  # the ephemeral ports of RFC 6335
        # In order, so that a test runs the same each time.
        self._readers: dict[Any, None] = {}
        self._writers: dict[Any, None] = {}
        self._listening: dict[IPv4Address, IProtocolFactory] = {}

    # called by tests

    def server_endpoint(self, port: int = 7, host: str = "192.0.2.1") -> MemoryServerEndpoint:
        """Return an endpoint to listen on; the default address is from RFC 5737.

        :raises ValueError: for a port that is not from 1 to 65535, or no IPv4 address.
        """
        return MemoryServerEndpoint(self, ipv4_address(host, port))

    def client_endpoint(
        self, port: int = 7, host: str = "192.0.2.1", source: str = "198.51.100.1"
    ) -> MemoryClientEndpoint:
        """Return an endpoint that connects from the address ``source``.

        :raises ValueError: for a port that is not from 1 to 65535, or no IPv4 address.
        """
        check_ipv4("source", source)
        return MemoryClientEndpoint(self, ipv4_address(host, port), source)

    def settle(self) -> None:
        """Move bytes and run the calls that are due, until nothing moves any more.

        :raises AssertionError: if the traffic never ends.
        """
        for _ in range(TURNS):
            due = [call for call in self.calls if call.getTime() <= self.seconds()]
            if due:
                super().advance(0)
            if not self._turn() and not due:
                return
        raise AssertionError(f"still moving after {TURNS} turns")

    def advance(self, amount: float) -> None:
        """Let ``amount`` seconds pass, from one delayed call to the next, and settle after each.

        :raises TypeError: for an amount that is not a number.
        :raises ValueError: for an amount below 0.
        """
        check_number("amount", amount, 0, math.inf)
        end = self.seconds() + amount
        self.settle()
        while self.calls and (due := min(call.getTime() for call in self.calls)) <= end:
            super().advance(due - self.seconds())
            self.settle()
        super().advance(max(0, end - self.seconds()))

    # called by the endpoints

    def connect(self, server: IPv4Address, source: str, factory: Builds[P]) -> P:
        """Connect the protocol that ``factory`` builds to the address ``server``.

        :raises twisted.internet.error.ConnectionRefusedError: if nothing listens there.
        """
        if server not in self._listening:
            raise error.ConnectionRefusedError
        client = IPv4Address("TCP", source, next(self._ports))
        near, far = MemorySocket(client, self._capacity), MemorySocket(server, self._capacity)
        near.other, far.other = far, near
        accepting = self._listening[server].buildProtocol(client)
        if accepting is None:
            far.close()
        else:
            accepting.makeConnection(MemoryTransport(far, accepting, self))
        connecting: Any = factory.buildProtocol(server)
        assert connecting is not None, "the client's factory builds no protocol"
        connecting.makeConnection(MemoryTransport(near, connecting, self))
        return cast(P, connecting)

    def listen(self, address: IPv4Address, factory: IProtocolFactory) -> MemoryPort:
        """Listen at ``address``.

        :raises twisted.internet.error.CannotListenError: if another factory listens there.
        :raises ValueError: for an echod factory that serves on another reactor or network.
        """
        use_reactor = getattr(factory, "use_reactor", None)
        if use_reactor is not None:
            use_reactor(self)
        if address in self._listening:
            in_use = OSError(errno.EADDRINUSE, "Address already in use")
            raise CannotListenError(address.host, address.port, in_use)
        self._listening[address] = factory
        factory.doStart()
        return MemoryPort(self, address)

    def stop(self, address: IPv4Address) -> None:
        """Stop listening at ``address``."""
        factory = self._listening.pop(address, None)
        if factory is not None:
            factory.doStop()

    # called by the transports: IReactorFDSet

    def addReader(self, reader: IReadDescriptor) -> None:
        """See IReactorFDSet."""
        self._readers[reader] = None

    def addWriter(self, writer: IWriteDescriptor) -> None:
        """See IReactorFDSet."""
        self._writers[writer] = None

    def removeReader(self, reader: IReadDescriptor) -> None:
        """See IReactorFDSet."""
        self._readers.pop(reader, None)

    def removeWriter(self, writer: IWriteDescriptor) -> None:
        """See IReactorFDSet."""
        self._writers.pop(writer, None)

    def removeAll(self) -> list[Any]:
        """See IReactorFDSet."""
        removed = [*self.getReaders(), *self.getWriters()]
        self._readers.clear()
        self._writers.clear()
        return removed

    def getReaders(self) -> list[Any]:
        """See IReactorFDSet."""
        return list(self._readers)

    def getWriters(self) -> list[Any]:
        """See IReactorFDSet."""
        return list(self._writers)

    def _turn(self) -> bool:
        """Poll once, and return whether any transport was ready."""
        moved = False
        for transport in self.getReaders():
            if transport in self._readers and transport.socket.readable():
                moved = True
                self._call(transport, transport.doRead)
        for transport in self.getWriters():
            if transport in self._writers and transport.socket.writable():
                moved = True
                self._call(transport, transport.doWrite)
        return moved

    def _call(self, transport: Any, act: Callable[[], Exception | None]) -> None:
        """Call doRead or doWrite, and end the connection on an error, as Twisted's reactors do."""
        try:
            why = act()
        except Exception as error:  # from the protocol under test
            err()
            why = error
        if why is None:
            return
        self.removeReader(transport)
        if act == transport.doRead and isinstance(why, ConnectionDone):
            transport.readConnectionLost(Failure(why))
        else:
            self.removeWriter(transport)
            transport.connectionLost(Failure(why))


@implementer(IListeningPort)
class MemoryPort:
    """A listening port of a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address) -> None:
        self._network, self._address = network, address

    def startListening(self) -> None:
        """Do nothing: the port listens already."""

    def stopListening(self) -> Deferred[None]:
        """Stop listening; connections stay open."""
        self._network.stop(self._address)
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """Return the address of the port."""
        return self._address


@implementer(IStreamServerEndpoint)
class MemoryServerEndpoint:
    """An endpoint to listen on in a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address) -> None:
        self._network, self._address = network, address

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; the Deferred fails with CannotListenError if the address is in use."""
        try:
            return succeed(self._network.listen(self._address, protocolFactory))
        except CannotListenError:
            return fail()


@implementer(IStreamClientEndpoint)
class MemoryClientEndpoint:
    """An endpoint to connect to in a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address, source: str) -> None:
        self._network, self._address, self._source = network, address, source

    def connect(self, protocolFactory: Builds[P]) -> Deferred[P]:
        """Connect; the Deferred fails with ConnectionRefusedError if nothing listens there."""
        try:
            return succeed(self._network.connect(self._address, self._source, protocolFactory))
        except error.ConnectionRefusedError:
            return fail()


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """One end of a connection that a test drives step by step, in memory or on a socket.

    :ivar received: the bytes received so far.
    :ivar ended: ``None`` while the other end may still send, then ``"FIN"`` or ``"RST"``.
    """

    transport: IStreamTransport

    def __init__(self) -> None:
        self.received = bytearray()
        self.ended: str | None = None
        self._stall_at: int | None = None
        self._waiting: list[tuple[Callable[[], bool], Deferred[Peer]]] = []

    def send(self, data: bytes) -> None:
        """Send ``data``."""
        self.transport.write(data)

    def finish(self) -> None:
        """Finish sending, and continue to receive (half-close)."""
        self.transport.loseWriteConnection()

    def stall(self) -> None:
        """Stop reading."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    def read(self, count: int) -> Deferred[Peer]:
        """Read ``count`` more bytes, or slightly more than that, then stall.

        :return: fires with this peer when the bytes have been received.
        """
        check_whole("count", count, 1)
        self._stall_at = len(self.received) + count
        self.resume()
        return self.when_received(self._stall_at)

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()

    def when_received(self, count: int) -> Deferred[Peer]:
        """Return a Deferred that fires with this peer after ``count`` bytes, or at the end."""
        check_whole("count", count, 0)
        return self._when(lambda: len(self.received) >= count or self.ended is not None)

    def when_ended(self) -> Deferred[Peer]:
        """Return a Deferred that fires with this peer at the other end's FIN or RST."""
        return self._when(lambda: self.ended is not None)

    def dataReceived(self, data: bytes) -> None:
        """Append ``data`` to :attr:`received`."""
        self.received += data
        if self._stall_at is not None and len(self.received) >= self._stall_at:
            self._stall_at = None
            self.stall()
        self._fire()

    def readConnectionLost(self) -> None:
        """Record the other end's FIN, and close."""
        self.ended = "FIN"
        self._fire()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end has finished sending."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Record a reset."""
        if self.ended is None:
            self.ended = "RST" if reason.check(ConnectionLost) else "FIN"
        self._fire()

    def _when(self, condition: Callable[[], bool]) -> Deferred[Peer]:
        waiting: Deferred[Peer] = Deferred()
        self._waiting.append((condition, waiting))
        self._fire()
        return waiting

    def _fire(self) -> None:
        waiting, self._waiting = self._waiting, []
        for condition, deferred in waiting:
            if condition():
                deferred.callback(self)
            else:
                self._waiting.append((condition, deferred))
