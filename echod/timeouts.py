"""Idle timeout, stall timeout and drain: when a connection has to end.

One timer checks all watched connections, because a timer for each would take more memory than the
rest of its state. A check compares a connection's progress with that of the check before. From
these values, :meth:`Timeouts.expired` decides whether the connection ends.
"""

from __future__ import annotations

import typing
from collections.abc import Callable, Iterable, Iterator, Set
from contextlib import suppress
from typing import Any, Final, NamedTuple

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from echod.events import Ending
from echod.turns import TURN

CHECKS_PER_TIMEOUT: Final = 8
"""Checks within a timeout. A timeout begins at the first check without progress, and ends at a
later check: it never fires early, and at most a quarter late. The clock is read at each check, and
not for each byte that arrives."""

QUIET: Final = 0.2
"""Seconds without a byte after which a drain closes a connection."""

FIRST_BYTE: Final = 1.0
"""Seconds for which a drain keeps a new connection open on which no byte has arrived, over TLS or
behind a proxy: the first byte may be in flight. Nearly every round trip is shorter, and TCP's first
retransmission timeout is as long (RFC 6298 2.1)."""


class Progress(NamedTuple):
    """The state of a connection at one check.

    :ivar waits_for_peer: whether the peer has to read before anything else happens.
    :ivar marker: unchanged means that the peer is idle, or stalled if it has to read.
    :ivar closing: whether the connection is being closed anyway.
    :ivar first_byte_due: seconds, by the factory's clock; until then a first byte is expected.
    """

    waits_for_peer: bool
    marker: int
    closing: bool
    first_byte_due: float


class Watched(typing.Protocol):
    """A connection that is checked."""

    def progress(self, *, draining: bool) -> Progress:
        """Return the present state."""

    def end(self, ending: Ending) -> bool:
        """End the connection as ``ending``, and return whether it ends."""

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""


class Timeouts:
    """Checks the watched connections for expired timeouts.

    :param idle: the idle timeout in seconds (:class:`~echod.factory.EchoFactory`); ``None``: none.
    :param stall: the stall timeout in seconds; ``None``: none.
    :param connections: the open connections.
    :param draining: the connections that a drain ends.

    :ivar watched: the progress of each watched connection, and the time of its last change.
    :ivar find_busy: returns connections that have to be watched from the next check on.
    """

    def __init__(
        self,
        idle: float | None,
        stall: float | None,
        connections: Set[object],
        draining: Set[object],
    ) -> None:
        self.idle = idle
        self.stall = stall
        self.watched: dict[Watched, tuple[bool, int, float] | None] = {}
        self.find_busy: Callable[[], Iterable[Any]] = tuple
        self._connections = connections
        self._draining = draining
        self._next_check: IDelayedCall | None = None

    def watch(self, connection: Watched, clock: IReactorTime) -> None:
        """Check ``connection`` from now on, if there is a timeout."""
        if self.schedule(clock):
            self.watched.setdefault(connection)

    def schedule(self, clock: IReactorTime) -> bool:
        """Schedule the next check, and return whether there is any timeout."""
        periods = [
            each / CHECKS_PER_TIMEOUT for each in (self.stall, self.idle) if each is not None
        ]
        if self._draining:
            periods.append(QUIET)
        if not periods:
            return False
        due = self._next_check
        if self._draining and due is not None and due.getTime() > clock.seconds() + QUIET:
            self.cancel()  # a drain needs an earlier check than a timeout
        if self._next_check is None:
            self._next_check = clock.callLater(min(periods), self.check, clock)
        return True

    def cancel(self) -> None:
        """Cancel the next check."""
        if self._next_check is not None:
            if self._next_check.active():
                self._next_check.cancel()
            self._next_check = None

    def check(self, clock: IReactorTime, added: Iterable[Watched] = ()) -> None:
        """Check each connection, and end those whose timeout has expired.

        With thousands of connections, this takes several turns of the reactor.

        :param added: connections to watch from now on.
        """
        for connection in (*added, *self.find_busy()):
            self.watched.setdefault(connection)
        self._check_some(clock, iter(list(self.watched)))

    def _check_some(self, clock: IReactorTime, connections: Iterator[Watched]) -> None:
        """Check connections for one turn of the reactor, and the rest in later turns."""
        self.cancel()
        ends = clock.seconds() + TURN
        for connection in connections:
            now = clock.seconds()
            try:
                self._check(connection, now)
            except BaseException:  # one connection's failure must not delay the others' timeouts
                with suppress(BaseException):
                    connection.fail()
            if now >= ends:
                self.cancel()
                self._next_check = clock.callLater(0, self._check_some, clock, connections)
                return
        if self.watched:
            self.schedule(clock)

    def _check(self, connection: Watched, now: float) -> None:
        before = self.watched.pop(connection, None)
        if connection not in self._connections:  # an observer of one ending may end others
            return
        draining = connection in self._draining
        progress = connection.progress(draining=draining)
        current = (progress.waits_for_peer, progress.marker)
        since = before[2] if before is not None and before[:2] == current else now
        ending = self.expired(progress, since, now, draining=draining)
        if ending is not None and connection.end(ending):
            return
        if progress.waits_for_peer or draining or self.idle is not None:
            self.watched[connection] = (*current, since)

    def expired(
        self, progress: Progress, since: float, now: float, *, draining: bool
    ) -> Ending | None:
        """Return how a connection has to end, if it has to end now.

        :param progress: the state of the connection at ``now``.
        :param since: seconds, by the same clock as ``now``: the time of the last change.
        :param draining: whether a drain ends the connection.
        """
        unchanged = now - since
        if progress.waits_for_peer:
            if self.stall is not None and unchanged >= self.stall:
                return Ending.STALLED
        elif not progress.closing:
            if draining and unchanged >= QUIET and now >= progress.first_byte_due:
                return Ending.DRAINED
            if self.idle is not None and unchanged >= self.idle:
                return Ending.IDLE
        return None
