"""An in-memory network: real Twisted transports over a kernel that is only pretended.

What a test double pretends, it can get wrong. This one pretends as little as it
can: the transports are Twisted's own :class:`twisted.internet.tcp.Connection`, so
that buffers, producers, half-close and abort are the real thing, and only the
system calls below them (send, recv, shutdown, close) and the polling are played
here. Time is a :class:`twisted.internet.task.Clock`. The conformance tests of echod
run over it and over real sockets alike, which is what shows that it tells the truth.

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
"""Turns of the loop after which :meth:`MemoryNetwork.settle` says that there is no end."""


P = TypeVar("P")
P_co = TypeVar("P_co", covariant=True)


class Builds(typing.Protocol[P_co]):
    """A protocol factory whose protocols have a known type; for the type checker."""

    def buildProtocol(self, addr: Any) -> P_co | None:
        """Return the protocol of a new connection."""


def check_ipv4(name: str, host: str) -> None:
    """Raise ValueError where ``host`` is not an IPv4 address, the one kind that is played here."""
    try:
        ipaddress.IPv4Address(host)
    except ValueError:
        raise ValueError(f"{name} takes an IPv4 address, not {host!r}") from None


class MemorySocket:
    """One end of a connected pair of stream sockets, as tcp(7) and RFC 9293 have them.

    Bytes go straight into the other end's receive buffer, ``capacity`` bytes at
    the most. A reset destroys what is still in there: the worst that TCP allows.
    """

    other: MemorySocket

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._incoming = bytearray()
        self._finished = False  # nothing comes after what is in _incoming
        self._reset = False
        self._told = False
        self._shut = False
        self._closed = False
        self.options: dict[tuple[int, int], Any] = {}

    def fileno(self) -> int:
        """Return -1: there is no descriptor."""
        return -1

    def setblocking(self, blocking: bool) -> None:
        """Do nothing: this never blocks."""

    def setsockopt(self, level: int, option: int, value: Any) -> None:
        """Remember an option; SO_LINGER of 0 seconds makes :meth:`close` a reset."""
        self.options[level, option] = value

    def getsockopt(self, level: int, option: int) -> Any:
        """Return what was set, or 0; for SO_ERROR, whether the connection was reset."""
        if (level, option) == (socket.SOL_SOCKET, socket.SO_ERROR):
            return errno.ECONNRESET if self._reset else 0
        return self.options.get((level, option), 0)

    @property
    def kernel_send_queue(self) -> int:
        """Bytes sent that the other end has not read: SIOCOUTQ, as unix(7) has it."""
        return len(self.other._incoming)

    def readable(self) -> bool:
        """Tell whether :meth:`recv` has something to say."""
        return bool(self._incoming) or self._finished or self._reset

    def writable(self) -> bool:
        """Tell whether :meth:`send` has something to do."""
        return self._reset or self.other._closed or self._room() > 0

    def recv(self, size: int, flags: int = 0) -> bytes:
        """Receive; ``b""`` when the other end has finished. MSG_PEEK leaves it there.

        A reset is told once, even to MSG_PEEK, as the kernel does (SO_ERROR in socket(7)).
        """
        if self._reset:
            if self._told:
                return b""
            self._told = True
            raise ConnectionResetError(errno.ECONNRESET, "reset by peer")
        if not self._incoming and not self._finished:
            raise BlockingIOError(errno.EWOULDBLOCK, "nothing there")
        data = bytes(self._incoming[:size])
        if not flags & socket.MSG_PEEK:
            del self._incoming[:size]
        return data

    def send(self, data: bytes) -> int:
        """Send what there is room for, and return how much that was."""
        if self._reset or self._shut:
            raise BrokenPipeError(errno.EPIPE, "cannot send any more")
        if self.other._closed:  # the other end answers with RST, and this end sees it next time
            self._get_reset()
            return len(data)
        if not self._room():
            raise BlockingIOError(errno.EWOULDBLOCK, "no room")
        taken = data[: self._room()]
        self.other._incoming += taken
        return len(taken)

    def shutdown(self, how: int) -> None:
        """Finish sending: FIN, once."""
        if how in (socket.SHUT_WR, socket.SHUT_RDWR):
            self._shut = True
            self.other._finished = True

    def close(self) -> None:
        """Close with FIN, or with RST where bytes lie unread or SO_LINGER says so."""
        linger = self.options.get((socket.SOL_SOCKET, socket.SO_LINGER))
        self._closed = True
        if self._incoming or linger == struct.pack("ii", 1, 0):
            self.other._get_reset()
        else:
            self.shutdown(socket.SHUT_WR)

    def _room(self) -> int:
        return self._capacity - len(self.other._incoming)

    def _get_reset(self) -> None:
        self._reset = True
        self._incoming.clear()


class MemoryTransport(Connection):
    """Twisted's own TCP transport, on a :class:`MemorySocket`."""

    def __init__(
        self,
        sock: MemorySocket,
        protocol: IProtocol,
        host: IPv4Address,
        peer: IPv4Address,
        network: MemoryNetwork,
    ) -> None:
        super().__init__(sock, protocol, network)  # type: ignore[arg-type]  # has what it uses
        self._host, self._peer = host, peer
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

    Nothing moves by itself: :meth:`settle` moves everything that can move now, and
    :meth:`advance` lets time pass.

    :param capacity: bytes that each direction of a connection holds, as the kernel's
        buffers do; a writer whose peer does not read waits when they are full.
    :raises TypeError: for a capacity that is not a whole number.
    :raises ValueError: for a capacity below 1.
    """

    def __init__(self, capacity: int = 64 * 1024) -> None:
        check_whole("capacity", capacity, 1)
        super().__init__()
        self._capacity = capacity
        self._ports = itertools.count(49152)  # the ephemeral ports of RFC 6335
        self._readers: dict[Any, None] = {}  # in order, so that a test is
        self._writers: dict[Any, None] = {}  # the same each time
        self._listening: dict[IPv4Address, IProtocolFactory] = {}

    # what a test calls

    def server_endpoint(self, port: int = 7, host: str = "192.0.2.1") -> MemoryServerEndpoint:
        """Return an endpoint to listen on, by default at an address from RFC 5737.

        :raises ValueError: for a port that is not from 1 to 65535, or no IPv4 address.
        """
        check_whole("port", port, 1, 65535)
        check_ipv4("host", host)
        return MemoryServerEndpoint(self, IPv4Address("TCP", host, port))

    def client_endpoint(
        self, port: int = 7, host: str = "192.0.2.1", source: str = "198.51.100.1"
    ) -> MemoryClientEndpoint:
        """Return an endpoint that connects there, coming from ``source``.

        :raises ValueError: for a port that is not from 1 to 65535, or no IPv4 address.
        """
        check_whole("port", port, 1, 65535)
        check_ipv4("host", host)
        check_ipv4("source", source)
        return MemoryClientEndpoint(self, IPv4Address("TCP", host, port), source)

    def settle(self) -> None:
        """Move bytes, and run what is due, until nothing moves any more.

        :raises AssertionError: when there is no end to it.
        """
        for _ in range(TURNS):
            due = [call for call in self.calls if call.getTime() <= self.seconds()]
            if due:
                super().advance(0)
            if not self._turn() and not due:
                return
        raise AssertionError(f"still moving after {TURNS} turns")

    def advance(self, amount: float) -> None:
        """Let ``amount`` seconds pass, call by call, and settle after each.

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

    # what the endpoints call

    def connect(self, server: IPv4Address, source: str, factory: Builds[P]) -> P:
        """Connect the protocol that ``factory`` builds to the listening ``server``.

        :raises twisted.internet.error.ConnectionRefusedError: where nothing listens.
        """
        if server not in self._listening:
            raise error.ConnectionRefusedError
        client = IPv4Address("TCP", source, next(self._ports))
        near, far = MemorySocket(self._capacity), MemorySocket(self._capacity)
        near.other, far.other = far, near
        answering = self._listening[server].buildProtocol(client)
        if answering is None:
            far.close()
        else:
            answering.makeConnection(MemoryTransport(far, answering, server, client, self))
        calling: Any = factory.buildProtocol(server)
        assert calling is not None, "this factory does not want to connect"
        calling.makeConnection(MemoryTransport(near, calling, client, server, self))
        return cast(P, calling)

    def listen(self, address: IPv4Address, factory: IProtocolFactory) -> MemoryPort:
        """Listen at ``address``.

        :raises twisted.internet.error.CannotListenError: where another factory listens.
        :raises ValueError: for a factory of echod's that serves on another reactor or network.
        """
        use_reactor = getattr(factory, "use_reactor", None)
        if use_reactor is not None:
            use_reactor(self)
        if address in self._listening:
            taken = OSError(errno.EADDRINUSE, "Address already in use")
            raise CannotListenError(address.host, address.port, taken)
        self._listening[address] = factory
        factory.doStart()
        return MemoryPort(self, address)

    def stop(self, address: IPv4Address) -> None:
        """Listen at ``address`` no more."""
        factory = self._listening.pop(address, None)
        if factory is not None:
            factory.doStop()

    # what the transports call: IReactorFDSet

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
        """Do one turn of polling; tell whether there was anything to do."""
        moved = False
        for transport in self.getReaders():
            if transport in self._readers and transport.socket.readable():
                moved = True
                self._do(transport, transport.doRead, reading=True)
        for transport in self.getWriters():
            if transport in self._writers and transport.socket.writable():
                moved = True
                self._do(transport, transport.doWrite, reading=False)
        return moved

    def _do(
        self, transport: MemoryTransport, act: Callable[[], Exception | None], reading: bool
    ) -> None:
        """Do as Twisted's reactors do when ``doRead`` or ``doWrite`` fails, or says it is over."""
        try:
            why = act()
        except Exception as error:  # of the protocol that is tested
            err()
            why = error
        if why is None:
            return
        self.removeReader(transport)
        if reading and isinstance(why, ConnectionDone):
            transport.readConnectionLost(Failure(why))
        else:
            self.removeWriter(transport)
            transport.connectionLost(Failure(why))


@implementer(IListeningPort)
class MemoryPort:
    """A port of a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address) -> None:
        self._network, self._address = network, address

    def startListening(self) -> None:
        """Do nothing: it listens from the beginning."""

    def stopListening(self) -> Deferred[None]:
        """Stop; connections go on."""
        self._network.stop(self._address)
        return succeed(None)

    def getHost(self) -> IPv4Address:
        """Return where it listens."""
        return self._address


@implementer(IStreamServerEndpoint)
class MemoryServerEndpoint:
    """Listens in a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address) -> None:
        self._network, self._address = network, address

    def listen(self, protocolFactory: IProtocolFactory) -> Deferred[IListeningPort]:
        """Listen; fails with CannotListenError where something listens already."""
        try:
            return succeed(self._network.listen(self._address, protocolFactory))
        except CannotListenError:
            return fail()


@implementer(IStreamClientEndpoint)
class MemoryClientEndpoint:
    """Connects in a :class:`MemoryNetwork`."""

    def __init__(self, network: MemoryNetwork, address: IPv4Address, source: str) -> None:
        self._network, self._address, self._source = network, address, source

    def connect(self, protocolFactory: Builds[P]) -> Deferred[P]:
        """Connect; fails with ConnectionRefusedError where nothing listens."""
        try:
            return succeed(self._network.connect(self._address, self._source, protocolFactory))
        except error.ConnectionRefusedError:
            return fail()


@implementer(IHalfCloseableProtocol)
class Peer(Protocol):
    """One end of a connection that a test drives by hand, in memory or on a socket.

    :ivar received: the bytes that came.
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
        """Finish sending, and go on receiving (half-close)."""
        self.transport.loseWriteConnection()

    def stall(self) -> None:
        """Stop reading."""
        self.transport.pauseProducing()

    def resume(self) -> None:
        """Read again."""
        self.transport.resumeProducing()

    def read(self, count: int) -> Deferred[Peer]:
        """Read ``count`` bytes more, or somewhat over, then stall.

        :return: fires with this peer when it has.
        """
        check_whole("count", count, 1)
        self._stall_at = len(self.received) + count
        self.resume()
        return self.when_received(self._stall_at)

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()

    def when_received(self, count: int) -> Deferred[Peer]:
        """Return a Deferred that fires with this peer when ``count`` bytes came, or the end."""
        check_whole("count", count, 0)
        return self._when(lambda: len(self.received) >= count or self.ended is not None)

    def when_ended(self) -> Deferred[Peer]:
        """Return a Deferred that fires with this peer when the other end finished or reset."""
        return self._when(lambda: self.ended is not None)

    def dataReceived(self, data: bytes) -> None:
        """Keep ``data``."""
        self.received += data
        if self._stall_at is not None and len(self.received) >= self._stall_at:
            self._stall_at = None
            self.stall()
        self._look()

    def readConnectionLost(self) -> None:
        """Note the other end's FIN, and close."""
        self.ended = "FIN"
        self._look()
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this end has finished sending."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note a reset."""
        if self.ended is None:
            self.ended = "RST" if reason.check(ConnectionLost) else "FIN"
        self._look()

    def _when(self, happened: Callable[[], bool]) -> Deferred[Peer]:
        waiting: Deferred[Peer] = Deferred()
        self._waiting.append((happened, waiting))
        self._look()
        return waiting

    def _look(self) -> None:
        waiting, self._waiting = self._waiting, []
        for happened, deferred in waiting:
            if happened():
                deferred.callback(self)
            else:
                self._waiting.append((happened, deferred))
