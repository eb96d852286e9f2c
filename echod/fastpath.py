"""The fast path: bytes go from socket to socket, past Twisted's buffers.

An epoll set is a descriptor that can itself be polled. So a single reader, in a reactor of any
kind, stands for all connections in the set. When the set is readable, its connections are echoed in
batches: received into one shared buffer, and sent from it. Every case that is not «bytes in, the
same bytes out» goes back to the connection's own transport: bytes that the kernel does not accept
at once, the end of the stream, an error. So no bytes are ever buffered here, and the rules of a
connection are in one place.
"""

from __future__ import annotations

import math
import select
import typing
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

SEGMENT: Final = 65_483
"""Bytes in loopback's largest TCP segment: an IPv4 packet of 65,535, less 52 of headers."""

SIZE: Final = 3 * SEGMENT
"""Bytes of the shared buffer, and so the most that a connection has to buffer when it goes back to
its transport. A multiple of the segment: with 64 KiB, each send ends in a segment of 53 bytes, and
1 MB messages take a third longer."""

BATCH: Final = 64
"""Connections in one round. The kernel lists every ready connection before it repeats one."""

ROUNDS: Final = 8
MAX_ECHOED: Final = 4 * 1024 * 1024
"""Limits of one turn of the reactor: the number of rounds, and the bytes after which no other round
begins. The reactor then handles its other events."""

UNCHECKED: Final = 32 * 1024
"""Bytes echoed since the last check, on one connection or on all together, above which the stall
timeout checks the kernel's send queue. A few short messages do not cost a check."""

FEW: Final = 2
LINGER: Final = 0.0002
"""With at most ``FEW`` connections, a round ends with a wait of up to ``LINGER`` seconds."""

CROWD: Final = 16
PATIENCE: Final = 1000
"""With more than ``CROWD`` descriptors in the reactor, do not linger. Count them again after
``PATIENCE`` rounds."""


class FastConnection(typing.Protocol):
    """The interface of a connection that the fast path serves.

    :ivar transport: a transport with a kernel socket (:func:`~echod.transport.kernel_socket`).
    """

    transport: Any

    @property
    def received(self) -> int:
        """Bytes received so far."""

    def leave_fast_path(self) -> None:
        """Call :meth:`FastPath.give_back`: the transport serves the connection again."""

    def send(self, data: bytes) -> None:
        """Send ``data``, buffered until the kernel accepts it."""

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""


@implementer(IReadDescriptor)
class FastPath:
    """Echoes the connections that were added.

    :param reactor: reports when the epoll set is readable.
    :param on_traffic: called when more than :data:`UNCHECKED` bytes have been echoed since the last
        call of :meth:`busy`.
    :raises OSError: if there is no file descriptor left.
    """

    def __init__(self, reactor: IReactorFDSet, on_traffic: Callable[[], object]) -> None:
        self._reactor = reactor
        self._on_traffic = on_traffic
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self._view = memoryview(bytearray(SIZE))
        self._served: dict[int, FastConnection] = {}
        # By descriptor, in few objects: with many connections, an object for each would not fit
        # into the CPU's caches.
        self._sockets: list[Any] = []
        self._received: array[int] = array("q")
        # The value in _received when busy() last returned the connection. At first it is minus the
        # bytes received before the connection was added, so that these count as new.
        self._checked: array[int] = array("q")
        self._echoed = 0.0  # by all connections since the last call of busy()
        self._all: tuple[list[int], list[int]] | None = None
        self._crowded = 0

    def add(self, connection: FastConnection, sock: Any) -> None:
        """Echo ``connection`` from now on. Its transport must have no unsent bytes.

        :param sock: its kernel socket.
        :raises OSError: if the kernel has no memory for it; then its transport still serves it.
        """
        descriptor = sock.fileno()
        # Extend these first: if memory is short, that raises an exception while the transport still
        # serves the connection.
        missing = descriptor + 1 - len(self._sockets)
        self._received.extend([0] * missing)
        self._checked.extend([0] * missing)
        self._sockets += [None] * missing
        if not self._served:
            self._reactor.addReader(self)
        self._epoll.register(sock, select.EPOLLIN)
        connection.transport.stopReading()
        self._checked[descriptor] = -connection.received
        self._sockets[descriptor] = sock
        self._served[descriptor] = connection

    def give_back(self, connection: FastConnection) -> None:
        """Let the connection's transport read again.

        Call this before its socket is closed: if another process has the socket open, too, it
        could not be removed from the set any more.
        """
        descriptor: int = connection.transport.fileno()
        self._epoll.unregister(descriptor)
        del self._served[descriptor]
        self._sockets[descriptor] = self._all = None
        self._received[descriptor] = 0
        if not self._served:
            self._echoed = 0
            self._reactor.removeReader(self)
        connection.transport.startReading()

    def received(self, connection: FastConnection) -> int:
        """Return the bytes of ``connection`` that were echoed here."""
        descriptor: int = connection.transport.fileno()
        return self._received[descriptor]

    def busy(self) -> list[FastConnection]:
        """Return the connections with more than :data:`UNCHECKED` new bytes since the last call.

        Their peers may not have read all bytes in the kernel's send queue.
        """
        self._echoed = 0
        busy, received, checked = [], self._received, self._checked
        for descriptor, connection in self._served.items():
            if received[descriptor] - checked[descriptor] > UNCHECKED:
                checked[descriptor] = received[descriptor]
                busy.append(connection)
        return busy

    def logPrefix(self) -> str:
        """Return the name of this reader in the log."""
        return "echod"

    def doRead(self) -> None:  # noqa: PLR0912 - another call would slow down each message
        """Echo the connections that are ready."""
        self._all = None
        served, sockets, received = self._served, self._sockets, self._received
        view, poll = self._view, self._epoll.poll
        size, part, left = SIZE, view, MAX_ECHOED
        # With a single connection, skip the epoll call.
        alone = [(descriptor, select.EPOLLIN) for descriptor in served] if len(served) == 1 else []
        descriptor = -1
        try:
            for _ in range(ROUNDS):
                # Poll: get a batch of ready connections, or linger for one.
                ready, alone = alone or poll(0, BATCH) or self._linger(), []
                if not ready:
                    return
                for descriptor, _ in ready:
                    # Receive: the transport handles the end of the stream and errors.
                    try:
                        sock = sockets[descriptor]
                        count = sock.recv_into(view)
                    except (AttributeError, BlockingIOError):
                        # An observer has ended the connection; or no bytes have arrived after all.
                        continue
                    except OSError:  # reported once (socket(7)): the transport would not get it
                        self._isolated(descriptor, self._lose, Failure(ConnectionLost()))
                        continue
                    if count != size:  # most messages are as long as the one before
                        if not count:
                            self._isolated(descriptor, self._leave)
                            continue
                        size, part = count, view[:count]
                    # Account, before the send: received bytes must be counted even if it fails.
                    received[descriptor] += count
                    left -= count
                    # Send: the transport buffers the bytes that the kernel does not accept.
                    try:  # as send_now, but another call takes 3 % longer
                        sent = sock.send(part)
                    except OSError:  # the transport sends again, and handles the error
                        sent = 0
                    if sent != count:
                        self._isolated(descriptor, self._leave, part[sent:])
                if left < 0:
                    return
                descriptor = -1
        except BaseException:  # such as MemoryError; the reactor would end all connections
            with suppress(BaseException):
                self._served[descriptor].fail()
        finally:
            # Report traffic, at most once between two calls of busy().
            self._echoed += MAX_ECHOED - left
            if served and self._echoed > UNCHECKED:
                self._echoed = -math.inf
                self._on_traffic()

    def _leave(self, connection: FastConnection, unsent: memoryview | None = None) -> None:
        """Give the connection back to its transport, with the ``unsent`` part of the buffer."""
        rest = b"" if unsent is None else bytes(unsent)
        connection.leave_fast_path()
        if rest:
            connection.send(rest)

    def _lose(self, connection: FastConnection, reason: Failure) -> None:
        connection.transport.connectionLost(reason)

    def _isolated(self, descriptor: int, act: Callable[..., None], *arguments: object) -> None:
        """Call ``act`` for one connection: an exception ends it, and no other."""
        connection = self._served[descriptor]
        try:
            act(connection, *arguments)
        except BaseException:  # Twisted's reactors catch the same
            with suppress(BaseException):
                connection.fail()

    def _linger(self) -> list[tuple[int, int]]:
        """Wait briefly for the next message of few connections, and return the ready ones.

        A message that arrives in time saves a turn of the reactor, which takes longer than the
        echo. Any other event for the reactor ends the wait, except timers.
        """
        if not 0 < len(self._served) <= FEW:
            return []
        if self._crowded:
            self._crowded -= 1
            return []
        if self._all is None:
            readers, writers = self._reactor.getReaders(), self._reactor.getWriters()
            self._all = ([each.fileno() for each in readers], [each.fileno() for each in writers])
        try:
            if sum(map(len, self._all)) > CROWD:
                raise ValueError
            # Not epoll or poll: their timeouts are whole milliseconds.
            select.select(*self._all, [], LINGER)
        except (OSError, ValueError):  # such as a descriptor above 1023, which select(2) rejects
            self._crowded = PATIENCE
            return []
        return self._epoll.poll(0, BATCH)

    def connectionLost(self, reason: Failure) -> None:
        """End all connections, as the reactor does with its own when it is stopped."""
        for descriptor in list(self._served):
            if descriptor in self._served:  # an observer of one ending may end others
                self._isolated(descriptor, self._lose, reason)
