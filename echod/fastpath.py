"""The fast path: bytes go from socket to socket, past Twisted's buffers.

An epoll set is a descriptor that can itself be polled. So one reader in the reactor, of
whatever kind that is, stands for all connections in the set. When it is ready they
are echoed in batches, received into one shared buffer and sent from it. Whatever is not
«bytes in, the same bytes out» goes back to the connection's own transport: what the
kernel does not take at once, the end of the peer's sending, an error. So nothing is ever
owed here, and :class:`~echod.protocol.Echo` keeps its rules where it always does.
"""

from __future__ import annotations

import math
import select
import socket
from array import array
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

if TYPE_CHECKING:
    from echod.protocol import Echo

SEGMENT: Final = 65_483
"""Bytes in the largest segment of loopback: the most of an IPv4 packet, less 52 of headers."""

SIZE: Final = 3 * SEGMENT
"""Bytes of the shared buffer, and so the most that can be owed by a connection that goes
back to its transport. Whole segments, because with 64 KiB each send ends in one of 53
bytes, and 1 MB messages take a third longer."""

BATCH: Final = 64
"""Connections in one round. The kernel gives each its turn before one comes again."""

ROUNDS: Final = 8
MOST: Final = 4 * 1024 * 1024
"""Rounds in one turn of the reactor, and bytes after which it begins no other round: then it
looks after everything else."""

UNCHECKED: Final = 32 * 1024
"""Bytes of one connection, and of all, after which the stall timeout looks at what the kernel has
taken for a peer and the peer has not: no message costs that look, nor does a short connection."""

FEW: Final = 2
LINGER: Final = 0.0002
"""Connections, and seconds for which a round waits for the next message of so few."""

CROWD: Final = 16
PATIENCE: Final = 1000
"""Descriptors besides which nobody waits so, and how often that is then not asked again."""


@implementer(IReadDescriptor)
class FastPath:
    """Echoes the connections that it has been given.

    :param reactor: tells when there is something to do.
    :param on_traffic: called when more than :data:`UNCHECKED` bytes have been echoed since
        :meth:`busy` was last called.
    :raises OSError: where there is no descriptor left.
    """

    def __init__(self, reactor: IReactorFDSet, on_traffic: Callable[[], object]) -> None:
        self._reactor = reactor
        self._on_traffic = on_traffic
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self._view = memoryview(bytearray(SIZE))
        self._served: dict[int, Echo] = {}
        # By descriptor, with little to fetch for a message: there may be so many connections
        # that the caches do not hold what each of them has.
        self._sockets: list[socket.socket | None] = []
        self._received: array[int] = array("q")
        self._checked: array[int] = array("q")  # what was received when busy() returned it
        self._echoed = 0.0  # since busy() was last called, by all of them
        self._all: tuple[list[int], list[int]] | None = None
        self._crowded = 0

    def take(self, echo: Echo, sock: socket.socket) -> None:
        """Take over the bytes of ``echo``, to whose peer nothing is owed.

        :raises OSError: where the kernel has no room for it; it is where it was then.
        """
        if not self._served:
            self._reactor.addReader(self)
        self._epoll.register(sock, select.EPOLLIN)
        cast(Any, echo.transport).stopReading()
        echo.fast_path = self
        descriptor = sock.fileno()
        self._served[descriptor] = echo
        missing = descriptor + 1 - len(self._sockets)
        self._sockets += [None] * missing
        self._received.extend([0] * missing)
        self._checked.extend([0] * missing)
        self._checked[descriptor] = -echo.counted
        self._sockets[descriptor] = sock

    def give_back(self, echo: Echo) -> None:
        """Let the transport of ``echo`` read again.

        Before its socket is closed: for as long as another process holds that too, it could
        not be taken out of the set any more.
        """
        transport: Any = echo.transport
        descriptor = transport.fileno()
        self._epoll.unregister(descriptor)
        echo.counted = echo.received
        echo.fast_path = None
        del self._served[descriptor]
        self._sockets[descriptor] = self._all = None
        self._received[descriptor] = 0
        if not self._served:
            self._echoed = 0
            self._reactor.removeReader(self)
        transport.startReading()

    def received(self, echo: Echo) -> int:
        """Return how many bytes ``echo`` has received here."""
        descriptor: int = cast(Any, echo.transport).fileno()
        return self._received[descriptor]

    def busy(self) -> list[Echo]:
        """Return the connections that have received more than :data:`UNCHECKED` bytes since this
        was last called: their peers may not have read all that the kernel has taken for them.
        """
        self._echoed = 0
        busy, received, checked = [], self._received, self._checked
        for descriptor, echo in self._served.items():
            if received[descriptor] - checked[descriptor] > UNCHECKED:
                checked[descriptor] = received[descriptor]
                busy.append(echo)
        return busy

    def logPrefix(self) -> str:
        """Return what the log calls it."""
        return "echod"

    def doRead(self) -> None:  # noqa: PLR0912 - a call more would cost each message
        """Echo who is ready."""
        self._all = None
        served, sockets, received = self._served, self._sockets, self._received
        view, poll = self._view, self._epoll.poll
        size, part, left = SIZE, view, MOST
        # Who is alone need not be asked for.
        alone = [(descriptor, select.EPOLLIN) for descriptor in served] if len(served) == 1 else []
        descriptor = -1
        try:
            for _ in range(ROUNDS):
                ready, alone = alone or poll(0, BATCH) or self._linger(), []
                if not ready:
                    return
                for descriptor, _ in ready:
                    try:
                        sock: Any = sockets[descriptor]
                        count = sock.recv_into(view)
                    except (AttributeError, BlockingIOError):  # just ended by an observer; no alarm
                        continue
                    except OSError:  # which the socket tells once, and so not to the transport
                        self._apart(descriptor, self._lose, Failure(ConnectionLost()))
                        continue
                    if count != size:  # most messages are as long as the one before
                        if not count:
                            self._apart(descriptor, self.give_back)
                            continue
                        size, part = count, view[:count]
                    received[descriptor] += count
                    left -= count
                    try:  # as send_now, but a call more takes 3 % longer
                        sent = sock.send(part)
                    except OSError:  # which the transport meets, too
                        sent = 0
                    if sent != count:
                        self._apart(descriptor, self._owe, part[sent:])
                if left < 0:
                    return
                descriptor = -1
        except BaseException:  # such as MemoryError; the reactor would end all of them
            with suppress(BaseException):
                self._served[descriptor].fail()
        finally:
            self._echoed += MOST - left
            if served and self._echoed > UNCHECKED:
                self._echoed = -math.inf  # not again until busy() is called
                self._on_traffic()

    def _owe(self, echo: Echo, part: memoryview) -> None:
        """Leave ``part`` to the transport."""
        rest = bytes(part)
        self.give_back(echo)
        echo.send(rest)

    def _lose(self, echo: Echo, reason: Failure) -> None:
        cast(Any, echo.transport).connectionLost(reason)

    def _apart(self, descriptor: int, act: Callable[..., None], *arguments: object) -> None:
        """Act for one connection; an exception ends that one, and no other."""
        echo = self._served[descriptor]
        try:
            act(echo, *arguments)
        except BaseException:  # as the reactor has it
            with suppress(BaseException):
                echo.fail()

    def _linger(self) -> list[tuple[int, int]]:
        """Wait a moment for the next message, where only few talk, and return who is ready.

        A message that comes in time is spared a turn of the reactor, which takes longer
        than to echo it. It ends when anything else comes for the reactor, but for timers.
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
            # Not epoll or poll: their times are whole milliseconds.
            select.select(*self._all, [], LINGER)
        except (OSError, ValueError):  # as for a descriptor above 1023, which select(2) cannot
            self._crowded = PATIENCE
            return []
        return self._epoll.poll(0, BATCH)

    def connectionLost(self, reason: Failure) -> None:
        """End all connections, as the reactor does with its own when it is stopped."""
        for descriptor in list(self._served):
            if descriptor in self._served:  # one that ends may end others
                self._apart(descriptor, self._lose, reason)
