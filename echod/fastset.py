"""The connections and listeners of the fast path, in an epoll set.

An epoll set is a descriptor that can itself be polled. So a single reader, in a reactor of any
kind, stands for all descriptors in the set.
"""

from __future__ import annotations

import select
import typing
from array import array
from typing import Any, Final

from twisted.internet.interfaces import IReactorFDSet
from twisted.python.failure import Failure

from echod.linger import Linger

UNCHECKED: Final = 32 * 1024
"""Bytes echoed since the last check, on one connection or on all together, above which the stall
timeout checks the kernel's send queue. A few short messages do not cost a check."""

FEW: Final = 4
"""With at most this many connections, a wait (:class:`~echod.linger.Linger`) covers each of them.
With more it covers their set, and another system call finds out which are ready."""


class FastConnection(typing.Protocol):
    """The interface of a connection that the fast path serves."""

    def input_ended(self) -> None:
        """Handle the end of the stream, an empty receive."""

    def input_failed(self) -> None:
        """Handle an error of the socket. The kernel reports it only once (socket(7))."""

    def send(self, data: bytes) -> None:
        """Leave the fast path, and send ``data``, buffered until the kernel accepts it."""

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""


class FastListener(typing.Protocol):
    """The interface of a listening port whose connections the fast path accepts."""

    def fileno(self) -> int:
        """Return the descriptor of the listening socket."""

    def doRead(self) -> object:
        """Accept the connections that wait, up to a bounded number."""

    def connectionLost(self, reason: Failure) -> object:
        """Close the port."""


class FastSet:
    """The set, and what is counted for each connection.

    :param reactor: reports when the set is readable.
    :raises OSError: if there is no file descriptor left.
    """

    def __init__(self, reactor: IReactorFDSet) -> None:
        self._reactor: Any = reactor
        self._epoll = select.epoll()
        self.fileno = self._epoll.fileno
        self._connections: dict[int, FastConnection] = {}
        self._listeners: dict[int, FastListener] = {}
        self._linger = Linger(reactor, self)
        self._spliced: dict[int, Any] = {}  # sockets, of the connections that are spliced
        # By descriptor, in few objects: with many connections, an object for each would not fit
        # into the CPU's caches.
        self._sockets: list[Any] = []  # None: a listener, or spliced
        self._received: array[int] = array("q")
        # The value in _received when busy() last returned the connection. At first it is minus the
        # bytes received before the connection was added, so that these count as new.
        self._checked: array[int] = array("q")
        self._echoed = 0.0  # by all connections since the last call of busy()

    def add(self, connection: FastConnection, sock: Any, received: int = 0) -> bool:
        """Echo ``connection`` from now on, and return whether the kernel has memory for that.

        :param connection: has no unsent bytes.
        :param sock: its kernel socket.
        :param received: bytes received before.
        """
        descriptor: int = sock.fileno()
        if not self._register(descriptor):
            return False
        self._connections[descriptor] = connection  # first: it may lack memory, the rest does not
        self._checked[descriptor] = -received
        self._sockets[descriptor] = sock
        return True

    def remove(self, descriptor: int) -> int:
        """Stop serving a connection, and return the bytes received since it was added.

        Call this before its socket is closed: if another process has the socket open, too, it
        could not be removed from the set any more.

        :param descriptor: of its socket; one that is not served is ignored.
        """
        if self._connections.pop(descriptor, None) is None:
            return 0
        received = self._received[descriptor]
        self._sockets[descriptor] = None
        self._spliced.pop(descriptor, None)
        self._received[descriptor] = 0
        if not self._connections:
            self._echoed = 0
        self._unregister(descriptor)
        return received

    def listen(self, listener: FastListener) -> bool:
        """Call ``listener.doRead`` from now on when connections wait to be accepted.

        :return: whether the kernel has memory for that.
        """
        descriptor = listener.fileno()
        if descriptor not in self._listeners:
            if not self._register(descriptor):
                return False
            self._listeners[descriptor] = listener
        return True

    def stop_listening(self, listener: FastListener) -> None:
        """Do not accept for ``listener`` any more. Call this before it is closed."""
        if self._listeners.pop(listener.fileno(), None) is not None:
            self._unregister(listener.fileno())

    def _register(self, descriptor: int) -> bool:
        missing = descriptor + 1 - len(self._sockets)
        if missing > 0:  # first: a lack of memory must not leave half an entry
            self._received.extend([0] * missing)
            self._checked.extend([0] * missing)
            self._sockets += [None] * missing
        try:
            self._epoll.register(descriptor, select.EPOLLIN)
        except OSError:
            return False
        self._linger.stale = True
        if not self._connections and not self._listeners:
            self._reactor.addReader(self)
        return True

    def _unregister(self, descriptor: int) -> None:
        self._linger.stale = True
        self._epoll.unregister(descriptor)
        if not self._connections and not self._listeners:
            self._reactor.removeReader(self)

    def descriptors(self) -> list[int]:
        """Return what to wait for: the descriptors in the set if they are few, or its own."""
        if len(self._connections) > FEW:
            return [self.fileno()]
        return [*self._connections, *self._listeners]

    def received(self, descriptor: int) -> int:
        """Return the bytes received on a connection since it was added; 0 if it is closed.

        :param descriptor: of its socket; -1 of a closed one.
        """
        return 0 if descriptor < 0 else self._received[descriptor]

    def busy(self) -> list[FastConnection]:
        """Return the connections with more than :data:`UNCHECKED` new bytes since the last call.

        Their peers may not have read all bytes in the kernel's send queue.
        """
        self._echoed = 0
        busy, received, checked = [], self._received, self._checked
        for descriptor, connection in self._connections.items():
            if received[descriptor] - checked[descriptor] > UNCHECKED:
                checked[descriptor] = received[descriptor]
                busy.append(connection)
        return busy
