"""The open connections of a factory, and the limits, timeouts and drain that apply to them."""

from __future__ import annotations

import typing
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger

from echod.drain import Drain, Draining, Served
from echod.limits import ConnectionLimits
from echod.timeouts import Timeouts

log = Logger(namespace="echod")


class Pending(Draining, typing.Protocol):
    """An accepted connection whose TLS handshake or PROXY header is not complete."""

    def drain(self) -> None:
        """Begin to end: a drain begins."""


class Registry:
    """Counts connections, and has them checked or drained.

    The parameters are those of :class:`~echod.limits.ConnectionLimits` and
    :class:`~echod.timeouts.Timeouts`.

    :ivar served: the connections that are served now.
    :ivar pending: accepted connections whose TLS handshake or PROXY header is not complete.
    :ivar limits: the limits on connections.
    :ivar timeouts: the idle and the stall timeout.
    :ivar drain: the connections that a drain ends.
    :ivar draining: whether new connections are refused.
    """

    draining = False

    def __init__(
        self, total: int, per_peer: int | None, idle: float | None, stall: float | None
    ) -> None:
        self.served: set[Served] = set()
        self.pending: set[Pending] = set()
        self.drain = Drain()
        self.limits = ConnectionLimits(total, per_peer, (self.served, self.pending))
        self.timeouts = Timeouts(idle, stall, self.served, self.drain.connections)

    def handshake_begun(self, pending: Pending, peer: IAddress | None) -> None:
        """Count ``pending`` against the limits; also per peer, if ``peer`` is the client."""
        self.pending.add(pending)
        self.limits.admit(pending, peer)

    def handshake_ended(self, pending: Pending) -> bool:
        """Stop counting ``pending``, and return whether a drain was ending it."""
        self.pending.discard(pending)
        self.limits.release(pending)
        draining = pending in self.drain.connections
        self.drain.connections.discard(pending)
        return draining

    def opened(self, connection: Served, peer: IAddress, clock: IReactorTime) -> None:
        """Count ``connection``."""
        self._watch_if_needed(connection, clock)
        if self.limits.per_peer is not None:
            self.limits.admit(connection, peer)
        self.served.add(connection)

    def replaced(self, connection: Served, successor: Served, clock: IReactorTime) -> None:
        """Count ``successor`` in place of ``connection``, whose state it has taken over."""
        for each in (self.served, self.drain.connections):
            if connection in each:
                each.add(successor)  # first: if it fails, the connection stays counted
                each.discard(connection)
        watched = self.timeouts.watched
        if connection in watched:
            watched[successor] = watched.pop(connection)
        self._watch_if_needed(successor, clock)
        self.limits.replace(connection, successor)

    def closed(self, connection: Served) -> bool:
        """Stop counting ``connection``, and return whether it was counted.

        The caller reports the ending, and then calls :meth:`finish`.
        """
        counted = connection in self.served
        self.served.discard(connection)
        self.drain.connections.discard(connection)
        self.timeouts.watched.pop(connection, None)
        if self.limits.per_peer is not None:
            self.limits.release(connection)
        return counted

    def finish(self) -> None:
        """Stop the timer if no connection is left, and notify the callers of a drain."""
        if not self.served:
            self.timeouts.cancel()
        if self.drain.waiting:
            self.drain.finish()

    def begin_drain(self, deadline: float, clock: IReactorTime) -> Deferred[None]:
        """End all connections, each as soon as it is quiet, and the rest at ``deadline``.

        :param deadline: seconds from now.
        :return: fires when no connection is left.
        """
        # Set the deadline first: it ends the drain even if the rest fails for lack of memory.
        drained = self.drain.wait(deadline, clock)
        try:
            self._drain_open(clock)
        except Exception:
            with suppress(Exception):
                log.failure("the start of a drain fails")
        return drained

    def _drain_open(self, clock: IReactorTime) -> None:
        added = self.served - self.drain.connections
        pending = self.pending - self.drain.connections
        self.drain.connections.update(added, pending)
        for each in pending:
            each.drain()
        if added:  # check all of them now, and often from now on
            self.timeouts.check(clock, added)
        self.drain.finish()

    def _watch_if_needed(self, connection: Served, clock: IReactorTime) -> None:
        if self.timeouts.idle is not None or connection in self.drain.connections:
            self.timeouts.watch(connection, clock)
