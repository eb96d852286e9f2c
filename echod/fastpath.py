"""The fast path: bytes go from socket to socket, past Twisted's transports.

When its epoll set is readable, the connections in it are echoed in batches: received into one
shared buffer, and sent from it. Every case that is not «bytes in, the same bytes out» is the
connection's own: bytes that the kernel does not accept at once, the end of the stream, an error. So
no bytes are ever buffered here, and the rules of a connection are in one place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.fastset import FEW, UNCHECKED, FastSet
from echod.splice import Splicer
from echod.turns import TURN

SEGMENT: Final = 65_483
"""Bytes in loopback's largest TCP segment: an IPv4 packet of 65,535, less 52 of headers."""

SIZE: Final = 3 * SEGMENT
"""Bytes of the shared buffer, and so the most that a connection has to buffer when it leaves the
fast path. A multiple of the segment: with 64 KiB, each send ends in a segment of 53 bytes, and
1 MB messages take a third longer."""

SPLICED: Final = 2 * SEGMENT
"""Bytes that one splice moves: less than :data:`SIZE`, because the peer reads meanwhile. With one
segment, messages of 64 KiB take a tenth longer, and with three, 1 MB messages a third more CPU time
on ten connections."""

BULK: Final = 32 * 1024
"""Bytes of one receive that begin to splice a connection."""

SHORT: Final = 8 * 1024
"""A spliced connection is received and sent again if one splice moves fewer bytes than this."""

BATCH: Final = 64
"""Descriptors in one round. The kernel lists every ready one before it repeats one."""

ROUNDS: Final = 64
STEP: Final = 256 * 1024
"""Limits of one turn of the reactor, besides :data:`~echod.turns.TURN`: the number of rounds, and
the bytes after which the time is checked within a round."""


@implementer(IReadDescriptor)
class FastPath(FastSet):
    """Echoes the connections that were added.

    :param reactor: reports when the epoll set is readable.
    :param clock: bounds a turn.
    :param on_traffic: called when more than :data:`~echod.fastset.UNCHECKED` bytes have been echoed
        since the last call of :meth:`busy`.
    :raises OSError: if there is no file descriptor left.
    """

    def __init__(
        self, reactor: IReactorFDSet, clock: IReactorTime, on_traffic: Callable[[], object]
    ) -> None:
        super().__init__(reactor)
        self._clock = clock
        self._on_traffic = on_traffic
        self._view = memoryview(bytearray(SIZE))
        self._splicer = Splicer(SPLICED)
        self._batch: Iterator[tuple[int, int]] = iter(())  # the rest of the last turn's batch

    def logPrefix(self) -> str:
        """Return the name of this reader in the log."""
        return "echod"

    def doRead(self) -> None:  # noqa: PLR0912, PLR0915 - calls would slow down each message
        """Echo the connections that are ready."""
        sockets, received, connections = self._sockets, self._received, self._connections
        view, poll, now = self._view, self._epoll.poll, self._clock.seconds
        size, part, left = -1, view, STEP
        linger, descriptor, batch = self._linger, -1, self._batch
        lingers, seconds, few = False, 0.0, len(connections) <= FEW
        try:
            if few:
                seconds = linger.begin()
            ends = now() + (seconds or TURN)
            for _ in range(ROUNDS):
                for descriptor, _ in batch:
                    sock = sockets[descriptor]
                    if sock is None:
                        left -= self._other(descriptor)
                    else:
                        # Receive: the connection handles the end of the stream and errors.
                        try:
                            count = sock.recv_into(view)
                        except BlockingIOError:  # no bytes have arrived after all
                            continue
                        except OSError:
                            self._isolated(descriptor, "input_failed")
                            continue
                        if count != size:  # most messages are as long as the one before
                            if not count:
                                self._isolated(descriptor, "input_ended")
                                continue
                            size, part = count, view[:count]
                            if count >= BULK and self._splicer.open():
                                self._spliced[descriptor], sockets[descriptor] = sock, None
                                size = -1  # look at the next receive of this size, too
                        # Account, before the send: received bytes count even if it fails.
                        received[descriptor] += count
                        left -= count
                        # Send: the connection buffers the bytes that the kernel does not accept.
                        try:  # as send_now, but another call takes 3 % longer
                            sent = sock.send(part)
                        except OSError:  # the connection sends again, and handles the error
                            sent = 0
                        if sent != count:
                            self._isolated(descriptor, "send", bytes(part[sent:]))
                    # Check the time after many bytes. The rest of the batch is first next time.
                    if left < 0:
                        self._echoed += STEP - left
                        left = STEP
                        if now() >= ends:
                            return
                # Poll: get a batch of ready descriptors. Linger for one, but not before the first
                # round: another event, such as a flood on another port, might end each wait.
                descriptor = -1
                if now() >= ends:
                    return
                if seconds and linger.stale:  # the poll object is not usable: do not linger
                    seconds, lingers, ends = 0.0, False, min(ends, now() + TURN)
                ready, lingers = linger.wait() if lingers else poll(0, BATCH), seconds > 0
                if not ready and not few and linger.begin() and linger.wait():
                    ready, ends = poll(0, BATCH), now() + TURN
                if not ready:
                    return
                batch = iter(ready)
        except BaseException:  # such as MemoryError; the reactor would end all connections
            with suppress(BaseException):
                connections[descriptor].fail()
        finally:
            self._batch = batch
            # Report traffic, at most once between two calls of busy().
            self._echoed += STEP - left
            if connections and self._echoed > UNCHECKED:
                with suppress(BaseException):  # after a MemoryError, the next turn tries again
                    self._on_traffic()
                    self._echoed = -math.inf

    def _other(self, descriptor: int) -> int:
        """Splice a connection, or have a listener accept, and return the bytes to account for.

        Ignore a connection that an observer has just ended.
        """
        sock = self._spliced.get(descriptor)
        if sock is not None:
            return self._splice(descriptor, sock)
        listener = self._listeners.get(descriptor)
        if listener is None:
            return 0
        self._linger.stale = True  # as in _isolated
        listener.doRead()
        self._echoed -= STEP + 1  # not traffic: the result is to have the time checked
        return STEP + 1

    def _splice(self, descriptor: int, sock: Any) -> int:
        """Echo the bytes of one splice, and return their number."""
        count, rest = 0, b""
        try:
            count, rest = self._splicer.move(descriptor, self._received)
        except OSError:
            self._isolated(descriptor, "input_failed")
        else:
            if count < SHORT:  # if it is the end of the stream, the next poll reports it again
                del self._spliced[descriptor]
                self._sockets[descriptor] = sock
            if rest:
                self._isolated(descriptor, "send", rest)
        return count

    def _isolated(self, descriptor: int, method: str, *arguments: object) -> None:
        """Call a method of one connection: an exception ends it, and no other."""
        connection = self._connections[descriptor]
        # It may add a timer or another reader to the reactor, for which no wait would end.
        self._linger.stale = True
        try:
            getattr(connection, method)(*arguments)
        except BaseException:  # Twisted's reactors catch the same
            with suppress(BaseException):
                connection.fail()

    def connectionLost(self, reason: Failure) -> None:
        """End all connections and listeners, as a reactor that stops does with its own."""
        for listener in list(self._listeners.values()):
            listener.connectionLost(reason)
        for descriptor in list(self._connections):
            if descriptor in self._connections:  # an observer of one ending may end others
                self._isolated(descriptor, "input_failed")
