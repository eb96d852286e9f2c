"""All connections: who may come in, for how long, and how they leave together."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections import Counter
from contextlib import suppress
from functools import partial
from typing import Final, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IReactorFDSet,
    IReactorTime,
    ITransport,
)
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import Logger

from echod.addresses import peer_key
from echod.arguments import (
    check_callable,
    check_number,
    check_provider,
    check_type,
    check_whole,
    unless_none,
)
from echod.clock import clock_of
from echod.durations import LONGEST, SHORTEST
from echod.events import (
    Accepted,
    Closed,
    Ending,
    Event,
    Observer,
    Opened,
    Reason,
    Refused,
    ignore,
    notify,
)
from echod.fastpath import UNCHECKED, FastPath
from echod.handshake import PendingConnection
from echod.protocol import (
    CHECKS_PER_TIMEOUT,
    QUIET,
    Echo,
    Refusal,
    refuses_on_error,
)
from echod.transport import IStreamTransport, beneath, cut_off, encrypted, reset
from echod.turns import Turns

log = Logger(namespace="echod")

SPARE_DESCRIPTORS: Final = 16
"""What the default limit on connections leaves free of RLIMIT_NOFILE for listening
sockets, log files, name look-ups and the one being refused."""

FD_SETSIZE: Final = 1024
"""The least descriptor that select(2) cannot watch."""


class EchoFactory(Factory):
    """Build an :class:`~echod.protocol.Echo` for each connection, on any stream endpoint.

    :param clock: tells the time; by default the reactor of the first transport, so that
        no reactor is needed to make a factory. Where it is a reactor that follows the time
        of day, its :class:`~echod.clock.MonotonicClock` takes its place.
    :param observer: is told each :data:`~echod.events.Event`.
    :param max_connections: connections served at once; by default what
        RLIMIT_NOFILE leaves (getrlimit(2)) when the factory is made.
    :param max_connections_per_peer: connections served at once for one IPv4 address
        or one IPv6 /64, the network that one site has (RFC 6177); by default no
        limit. UNIX peers have no address and so no such limit.
    :param idle_timeout: seconds without a byte from the peer, and nothing owed, after
        which a connection is closed; by default never.
    :param stall_timeout: seconds for which the peer has not read what it is owed,
        after which it is reset; ``None``: never.
    :param handshake_timeout: seconds that a TLS handshake or a PROXY header may take, after
        which the connection is reset; ``None``: any time.
    :param verbose: whether the observer is notified of each step of a connection, too:
        :class:`~echod.events.Accepted`, :class:`~echod.events.HandshakeDone`,
        :class:`~echod.events.HeaderRead` and :class:`~echod.events.HalfClosed`.
    :param fast_path: whether bytes may go past Twisted's buffers, where that is possible
        (:mod:`echod.fastpath`).
    :raises TypeError: for an argument of another type.
    :raises ValueError: for a limit below 1, or a timeout that is not from 1 ms to 250,000 h.

    Timeouts are never early and late by a quarter at most.

    :ivar connections: what is served now.
    :ivar leaving: those of them that a drain is going to close.
    :ivar draining: whether :meth:`drain` was called since listening began.
    :ivar turns: the time budget that all TLS connections share.
    """

    noisy = False
    protocol: type[Echo] = Echo  # type: ignore[assignment]  # Twisted's is wider

    def __init__(
        self,
        *,
        clock: IReactorTime | None = None,
        observer: Observer = ignore,
        max_connections: int | None = None,
        max_connections_per_peer: int | None = None,
        idle_timeout: float | None = None,
        stall_timeout: float | None = 60.0,
        handshake_timeout: float | None = 10.0,
        verbose: bool = False,
        fast_path: bool = True,
    ) -> None:
        unless_none(check_provider, "clock", clock, IReactorTime)
        check_callable("observer", observer, "a callable that takes one event")
        unless_none(check_whole, "max_connections", max_connections, 1)
        unless_none(check_whole, "max_connections_per_peer", max_connections_per_peer, 1)
        unless_none(check_number, "idle_timeout", idle_timeout, SHORTEST, LONGEST)
        unless_none(check_number, "stall_timeout", stall_timeout, SHORTEST, LONGEST)
        unless_none(check_number, "handshake_timeout", handshake_timeout, SHORTEST, LONGEST)
        check_type("verbose", verbose, bool, "True or False")
        check_type("fast_path", fast_path, bool, "True or False")
        if max_connections is None:
            max_connections = descriptors_left()
        self.clock = None if clock is None else clock_of(clock)
        self.observer = observer
        self.max_connections = max_connections
        self.max_connections_per_peer = max_connections_per_peer
        self.idle_timeout = idle_timeout
        self.stall_timeout = stall_timeout
        self.handshake_timeout = handshake_timeout
        self.verbose = verbose
        self._fast_path_allowed = fast_path
        self._fast_path: FastPath | None = None
        self._reactor: object = None
        self.draining = False
        self.turns = Turns()
        self.connections: set[Echo] = set()
        self.leaving: set[Echo] = set()
        self.arriving: set[PendingConnection] = set()
        self._of_peer: Counter[str | None] = Counter()
        self._drained: list[Deferred[None]] = []
        self._deadline: IDelayedCall | None = None
        self._next_look: IDelayedCall | None = None

    def startFactory(self) -> None:
        """Take connections (again): the first of the ports begins to listen."""
        self.draining = False

    @refuses_on_error
    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Serve the connection from ``addr``, or refuse it with RST."""
        reason = Reason.DRAINING if self.draining else self._limit_that_meets(addr)
        if reason is not None:
            return self._refusal(reason, addr, tls=False)
        if self.verbose:
            notify(self.observer, Accepted(addr))
        return self._echo()

    def welcome(self, peer: IAddress | None, *, leaving: bool, tls: bool) -> Protocol:
        """Serve a connection that has arrived, or refuse it. :class:`PendingConnection` calls this.

        :param leaving: whether a drain has begun since it came, and is to close it too.
        """
        reason = self._limit_that_meets(peer)
        if self.draining and not leaving:
            reason = Reason.DRAINING
        if reason is not None:
            return self._refusal(reason, peer, tls=tls)
        echo = self._echo()
        if leaving:
            self.leaving.add(echo)
        return echo

    def refusal(
        self, addr: IAddress | None, *, is_peer: bool = True, tls: bool = False
    ) -> Refusal | None:
        """Return what refuses a connection from ``addr``, if it is to be refused.

        :param is_peer: whether ``addr`` is whom the limit for one peer is for, and no proxy.
        :param tls: whether the connection is encrypted, or going to be.
        """
        reason = self._limit_that_meets(addr if is_peer else None)
        if self.draining:
            reason = Reason.DRAINING
        return None if reason is None else self._refusal(reason, addr, tls=tls)

    def _refusal(self, reason: Reason, peer: IAddress | None, *, tls: bool) -> Refusal:
        self.refused(reason, peer, tls=tls)
        return Refusal()

    def _echo(self) -> Echo:
        echo = self.protocol()
        echo.factory = self
        return echo

    def refused(self, reason: Reason, peer: IAddress | None, *, tls: bool) -> None:
        """Notify the observer that a connection is not served."""
        self._notify(Refused(reason, peer, tls))

    def left_unused(self, peer: IAddress, seconds: float, *, tls: bool) -> None:
        """Notify the observer of a connection that ended before its first byte.

        :class:`PendingConnection` calls this.

        :param seconds: from accept to now.
        """
        self._notify(Opened(peer, tls), Closed(Ending.UNUSED, 0, seconds, 0, peer, tls))

    def _notify(self, *events: Event) -> None:
        try:
            for event in events:
                notify(self.observer, event)
        finally:
            self.see_whether_drained()

    def drain(self, deadline: float) -> Deferred[None]:
        """Refuse what comes, close each connection at its first quiet moment.

        Quiet: nothing is owed, and no byte came for 0.2 s; until the first byte has come,
        for 1 s from the beginning of the connection. A TLS handshake or PROXY header that has
        begun may be completed; then the connection is served, and closed likewise. One that has
        not begun is refused after 1 s from its accept. At the deadline what is left is cut off
        with RST, so that a part of a reply is never taken for the whole. Stop the ports first.
        Called again, an earlier deadline counts.

        :param deadline: seconds from now, 0 or more.
        :return: fires with ``None`` when none of the connections of now is left.
        :raises TypeError: for a deadline that is not a number.
        :raises ValueError: for a deadline below 0 or above 250,000 h.
        """
        check_number("deadline", deadline, 0, LONGEST)
        self.draining = True
        if not self.connections and not self.arriving:
            return succeed(None)
        # First, because the rest may fail where memory is short, and then waits for the deadline.
        some = cast(IStreamTransport, next(iter(self.connections or self.arriving)).transport)
        self._set_deadline(deadline, self.clock_for(some))
        drained: Deferred[None] = Deferred()
        self._drained.append(drained)
        try:
            self._begin_to_leave()
        except Exception:
            with suppress(Exception):
                log.failure("the beginning of a drain fails")
        return drained

    def _begin_to_leave(self) -> None:
        staying = self.connections - self.leaving
        self.leaving |= staying
        for arrival in list(self.arriving):
            arrival.leave()
        if staying:
            # Look at all of them now, and from now on often.
            for echo in staying:
                echo.watched = True
            self._look()
        self.see_whether_drained()

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``, which the factory's timers and its fast path are bound to.

        The first connection calls this, and :class:`~echod.testing.MemoryNetwork` when it listens.

        :raises ValueError: where the factory serves on another one.
        """
        if self._reactor is None:
            self._reactor = reactor
            if isinstance(reactor, SelectReactor):
                self.max_connections = min(self.max_connections, descriptors_left(reactor))
        elif reactor is not self._reactor:
            raise ValueError("this factory serves on another reactor: make a factory for each")

    def use_reactor_of(self, transport: ITransport) -> None:
        """Serve on the reactor of ``transport``: see :meth:`use_reactor`."""
        reactor = getattr(transport, "reactor", None)  # a test double may have none
        if reactor is not None and reactor is not self._reactor:
            self.use_reactor(reactor)

    def clock_for(self, transport: IStreamTransport) -> IReactorTime:
        """Return the factory's clock, or else that of the reactor that serves ``transport``."""
        if self.clock is None:
            self.clock = clock_of(transport.reactor)
        return self.clock

    def take_over(self, echo: Echo, sock: socket.socket) -> None:
        """Let the bytes of ``echo`` go past its transport. :class:`Echo` calls this.

        Where the kernel has no descriptor or no room for that, they stay where they are.
        """
        if not self._fast_path_allowed:
            return
        try:
            if self._fast_path is None:
                reactor = cast(IReactorFDSet, echo.transport.reactor)
                clock = self.clock_for(echo.transport)
                self._fast_path = FastPath(reactor, partial(self._look_later, clock))
            self._fast_path.take(echo, sock)
        except OSError:
            self.watch(echo)
        else:
            if echo.counted > UNCHECKED:
                self.watch(echo)

    def watch(self, echo: Echo) -> None:
        """Look at ``echo`` now and then, if there is a time to keep. :class:`Echo` calls this.

        One timer for all of them, because a timer each would cost more memory than
        all the rest of :class:`Echo`.
        """
        echo.watched = self._look_later(self.clock_for(echo.transport))

    def _look_later(self, clock: IReactorTime) -> bool:
        """Look at the connections in a while, and return whether there is a time to keep."""
        period = self._look_every()
        if period is None:
            return False
        if self._next_look is None:
            self._next_look = clock.callLater(period, self._look)
        return True

    def connection_opened(self, echo: Echo) -> None:
        """Count ``echo`` in. :class:`Echo` calls this."""
        self.use_reactor_of(echo.transport)
        if self.idle_timeout is not None:
            self.watch(echo)
        peer = echo.peer
        if self.max_connections_per_peer is not None:
            echo.key = self.count(peer)
        self.connections.add(echo)
        notify(self.observer, Opened(peer, encrypted(echo.transport)))
        if echo in self.leaving:
            # No look at all the others, who may be as many as those who still arrive.
            soon = self.clock_for(echo.transport).seconds() + QUIET
            if self._next_look is not None and self._next_look.getTime() > soon:
                self._forget_next_look()
            self.watch(echo)

    def connection_closed(self, echo: Echo, closed: Closed | None) -> None:
        """Count ``echo`` out, and notify the observer. :class:`Echo` calls this.

        :param closed: ``None`` if that could not be made.
        """
        opened = echo in self.connections
        self.connections.discard(echo)
        self.leaving.discard(echo)
        if echo.key is not None:
            self.discount(echo.key)
            echo.key = None
        try:
            if opened and closed is not None:
                notify(self.observer, closed)
        except BaseException:  # such as SystemExit; a drain may wait for this connection
            with suppress(BaseException):
                log.failure("a connection fails")
        if not self.connections:
            self._forget_next_look()
        if self._drained:
            self.see_whether_drained()

    def count(self, peer: IAddress | None) -> str | None:
        """Count one more connection of ``peer``, and return what to :meth:`discount` later."""
        key = None if self.max_connections_per_peer is None else peer_key(peer)
        if key is not None:
            self._of_peer[key] += 1
        return key

    def discount(self, key: str | None) -> None:
        """Count one connection less of what :meth:`count` has returned."""
        if key is not None:
            self._of_peer[key] -= 1
            if not self._of_peer[key]:
                del self._of_peer[key]

    def _limit_that_meets(self, peer: IAddress | None) -> Reason | None:
        if len(self.connections) + len(self.arriving) >= self.max_connections:
            return Reason.MAX_CONNECTIONS
        limit = self.max_connections_per_peer
        if limit is not None:
            key = peer_key(peer)
            if key is not None and self._of_peer[key] >= limit:
                return Reason.MAX_CONNECTIONS_PER_PEER
        return None

    def _look_every(self) -> float | None:
        timeouts = (self.stall_timeout, self.idle_timeout)
        periods = [timeout / CHECKS_PER_TIMEOUT for timeout in timeouts if timeout is not None]
        if self.leaving:
            periods.append(QUIET)
        return min(periods, default=None)

    def _look(self) -> None:
        self._forget_next_look()
        if self._fast_path is not None:
            for echo in self._fast_path.busy():
                echo.watched = True
        for echo in [echo for echo in self.connections if echo.watched]:
            try:
                clock = self.clock_for(echo.transport)
                # An observer that hears of one ending may end others.
                echo.watched = echo in self.connections and echo.check_timeouts(clock.seconds())
            except BaseException:  # which must not keep the others from their time
                echo.fail()
        still = next((echo for echo in self.connections if echo.watched), None)
        if still is not None:
            self.watch(still)

    def _forget_next_look(self) -> None:
        if self._next_look is not None:
            if self._next_look.active():
                self._next_look.cancel()
            self._next_look = None

    def _all_that_leave(self) -> list[Echo | PendingConnection]:
        return [*self.leaving, *(arrival for arrival in self.arriving if arrival.leaving)]

    def _set_deadline(self, deadline: float, clock: IReactorTime) -> None:
        if self._deadline is not None:
            if self._deadline.getTime() <= clock.seconds() + deadline:
                return
            self._deadline.cancel()
        self._deadline = clock.callLater(deadline, self._abort_all)

    def _abort_all(self) -> None:
        self._deadline = None
        for each in self._all_that_leave():
            try:
                if isinstance(each, Echo):
                    reset(cast(IStreamTransport, beneath(each.transport)))
                else:
                    each.refuse(Reason.DRAINING)
            except BaseException:  # which must not keep the others, nor the end of the drain
                self._give_up(each)
        self.see_whether_drained()

    def _give_up(self, each: Echo | PendingConnection) -> None:
        """Forget a connection that cannot be reset by its transport, and reset it without."""
        with suppress(BaseException):
            cut_off(each.transport)
        if isinstance(each, Echo):
            self.connection_closed(each, None)
        else:
            self.arriving.discard(each)
            self.see_whether_drained()

    def see_whether_drained(self) -> None:
        """Finish the drain if nobody is left. :class:`PendingConnection` calls this, too."""
        if not self._drained or self.leaving or any(each.leaving for each in self.arriving):
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        waiting, self._drained = self._drained, []
        for drained in waiting:
            drained.callback(None)


def descriptors_left(reactor: object = None) -> int:
    """Return for how many connections there are descriptors left, 1 at least.

    RLIMIT_NOFILE (getrlimit(2)) bounds them, and for ``reactor`` FD_SETSIZE if it is one that
    uses select(2), whose descriptors are below that.
    """
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        most = sys.maxsize
    if isinstance(reactor, SelectReactor):
        most = min(most, FD_SETSIZE)
    if most == sys.maxsize:
        return most
    return max(1, most - descriptors_in_use() - SPARE_DESCRIPTORS)


def descriptors_in_use() -> int:
    """Return how many descriptors the process has open, or at least that many that are lowest."""
    with suppress(OSError):  # there may be no /proc, as in a chroot
        return len(os.listdir("/dev/fd"))
    with suppress(OSError), socket.socket(socket.AF_UNIX) as lowest_free:
        return lowest_free.fileno()
    return sys.maxsize  # not one is left
