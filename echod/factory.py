"""EchoFactory: admit connections, enforce limits and timeouts, and drain connections."""

from __future__ import annotations

import select
from contextlib import suppress
from functools import partial
from typing import Any

from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IAddress, IReactorTime, ITransport
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.selectreactor import SelectReactor
from twisted.logger import Logger

from echod.arguments import (
    check_callable,
    check_number,
    check_provider,
    check_type,
    check_whole,
    unless_none,
)
from echod.clock import clock_of
from echod.drain import Served
from echod.durations import LONGEST, SHORTEST
from echod.events import Accepted, Closed, Event, Observer, Opened, Reason, Refused, ignore, notify
from echod.fastpath import FastPath
from echod.handshake import Refusal, refuse_failed
from echod.limits import descriptors_left
from echod.protocol import Echo
from echod.registry import Registry
from echod.turns import Turns

log = Logger(namespace="echod")


class EchoFactory(Factory):
    """Build an :class:`~echod.protocol.Echo` for each connection, on any stream endpoint.

    :param clock: the source of time; by default the reactor of the first transport. In place of a
        reactor that follows the time of day, its :class:`~echod.clock.MonotonicClock` is used.
    :param observer: is called with each :data:`~echod.events.Event`.
    :param max_connections: connections served at once; by default the number that RLIMIT_NOFILE
        (getrlimit(2)) leaves when the factory is made.
    :param max_connections_per_peer: connections served at once for one IPv4 address or one IPv6
        /64, the network of one site (RFC 6177); by default no limit. UNIX peers have no limit.
    :param idle_timeout: seconds after which an idle connection is closed: no byte arrives, and no
        byte is left to send. It fires up to a quarter late. By default, there is none.
    :param stall_timeout: seconds after which a stalled connection is reset: the peer has bytes to
        read, and does not read. It fires up to a quarter late. ``None``: there is none.
    :param handshake_timeout: seconds after which a connection is reset if its TLS handshake or
        PROXY header is not complete; ``None``: there is none.
    :param verbose: whether the observer is notified of each step of a connection, too:
        :class:`~echod.events.Accepted`, :class:`~echod.events.HandshakeDone`,
        :class:`~echod.events.HeaderRead` and :class:`~echod.events.HalfClosed`.
    :param fast_path: whether to use :mod:`echod.fastpath`, where that is possible.
    :raises TypeError: for an argument of another type.
    :raises ValueError: for a limit below 1, or a timeout that is not from 1 ms to 250,000 h.

    :ivar connections: the connections that are served now.
    :ivar pending: accepted connections whose TLS handshake or PROXY header is not complete.
    :ivar limits: the limits on connections.
    :ivar timeouts: the idle and the stall timeout.
    :ivar registry: the connections, the limits and the timeouts.
    :ivar turns: the time budget that all TLS connections share.
    :ivar admission: data of a subclass about the connection that was accepted last, which is passed
        to :meth:`make_echo`.
    """

    noisy = False
    protocol: type[Echo] = Echo  # type: ignore[assignment]  # Twisted's is wider
    clock: IReactorTime
    """Set when the first connection is made, unless given."""
    admission: Any = None

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
        if clock is not None:
            self.clock = clock_of(clock)
        self.observer = observer
        self.handshake_timeout = handshake_timeout
        self.verbose = verbose
        self.turns = Turns()
        total = descriptors_left() if max_connections is None else max_connections
        registry = Registry(total, max_connections_per_peer, idle_timeout, stall_timeout)
        self.registry = registry
        self.connections, self.pending = registry.served, registry.pending
        self.limits, self.timeouts = registry.limits, registry.timeouts
        self._fast_path_allowed = fast_path
        self._fast_path: FastPath | None = None
        self._reactor: Any = None

    @property
    def draining(self) -> bool:
        """Whether :meth:`drain` was called since listening began."""
        return self.registry.draining

    def startFactory(self) -> None:
        """Admit connections, also after a drain: the first port begins to listen."""
        self.registry.draining = False

    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Serve the connection from ``addr``, or refuse it with RST."""
        try:
            refusal = self.refusal(addr)
            if refusal is None and self.verbose:
                notify(self.observer, Accepted(addr))
            return self.make_echo(self.admission) if refusal is None else refusal
        except BaseException:
            return refuse_failed()

    def refusal(
        self, addr: IAddress | None, *, is_peer: bool = True, tls: bool = False
    ) -> Refusal | None:
        """Return the protocol that refuses a connection from ``addr``, or ``None`` to admit it.

        :param is_peer: whether ``addr`` is the client's, and not a proxy's. The limit per peer
            applies to clients.
        :param tls: whether the connection is encrypted, or going to be.
        """
        reason = self.refusal_reason(addr if is_peer else None)
        return None if reason is None else self._refuse(reason, addr, tls=tls)

    def refusal_reason(self, peer: IAddress | None) -> Reason | None:
        """Return why a new connection is refused, or ``None`` to admit it.

        :param peer: its address; ``None``: not known, and under no limit per peer.
        """
        return Reason.DRAINING if self.registry.draining else self.limits.exceeded(peer)

    def _refuse(self, reason: Reason, peer: IAddress | None, *, tls: bool) -> Refusal:
        self.report(Refused(reason, peer, tls))
        return Refusal()

    def make_echo(self, admission: Any = None) -> Echo:  # noqa: ARG002 - subclasses use it
        """Return a protocol for one connection.

        :param admission: :attr:`admission` when it was accepted.
        """
        echo = self.protocol()
        echo.factory = self
        return echo

    def report(self, *events: Event) -> None:
        """Notify the observer of a connection that is not served."""
        try:
            for event in events:
                notify(self.observer, event)
        finally:
            self.registry.drain.finish()

    def serve(
        self, peer: IAddress | None, *, draining: bool, tls: bool, admission: Any = None
    ) -> Protocol:
        """Serve a connection whose handshake is done, or refuse it.

        :param draining: whether a drain has begun since the accept. It ends this connection, too.
        :param admission: :attr:`admission` when it was accepted.
        """
        reason = self.limits.exceeded(peer)
        if reason is not None:
            return self._refuse(reason, peer, tls=tls)
        echo = self.make_echo(admission)
        if draining:
            self.registry.drain.connections.add(echo)
        return echo

    def drain(self, deadline: float) -> Deferred[None]:
        """Refuse new connections, and close each open one as soon as it is quiet.

        A connection is quiet if no bytes are buffered, and none was received for 0.2 s. Over TLS or
        behind a proxy, it has 1 s from its start for the first byte. A TLS handshake or PROXY
        header in progress may complete. A connection on which neither has begun is refused 1 s
        after its accept. At the deadline, all remaining connections are reset, so that no peer
        takes a part of its reply for the whole. Stop the ports first. After a second call, the
        earlier deadline applies.

        :param deadline: seconds from now, 0 or more.
        :return: fires with ``None`` when all connections that are open now have ended.
        :raises TypeError: for a deadline that is not a number.
        :raises ValueError: for a deadline below 0 or above 250,000 h.
        """
        check_number("deadline", deadline, 0, LONGEST)
        self.registry.draining = True
        if not self.connections and not self.pending:
            return succeed(None)
        return self.registry.begin_drain(deadline, self.clock)

    def use_reactor(self, reactor: object) -> None:
        """Bind the factory's timers and its fast path to ``reactor``.

        The first connection calls this, and :class:`~echod.testing.MemoryNetwork` when it listens.

        :raises ValueError: if the factory is bound to another reactor.
        """
        if self._reactor is None:
            if isinstance(reactor, SelectReactor):
                self.limits.total = min(self.limits.total, descriptors_left(reactor))
            if not hasattr(self, "clock"):
                self.clock = clock_of(reactor)
            self._reactor = reactor  # last, so that the next connection tries again after a failure
        elif reactor is not self._reactor:
            raise ValueError("this factory serves on another reactor: make a factory for each")

    def now(self, transport: ITransport) -> float:
        """Return the time in seconds, by the given clock or that of the reactor of ``transport``.

        :raises ValueError: if the factory serves on another reactor.
        """
        reactor = getattr(transport, "reactor", None)  # a test double may have none
        if reactor is not None and reactor is not self._reactor:
            self.use_reactor(reactor)
        return self.clock.seconds()

    def fast_path(self) -> FastPath | None:
        """Return the fast path on the factory's reactor (:meth:`use_reactor`).

        ``None``: it is turned off, or the kernel has no descriptor for it.
        """
        if self._fast_path is None and self._fast_path_allowed and hasattr(select, "epoll"):
            schedule = partial(self.timeouts.schedule, self.clock)
            with suppress(OSError):
                self._fast_path = FastPath(self._reactor, clock_of(self._reactor), schedule)
                self.timeouts.find_busy = self._fast_path.busy
        return self._fast_path

    def connection_opened(self, connection: Served, peer: IAddress, *, tls: bool) -> None:
        """Count ``connection``, and notify the observer."""
        self.registry.opened(connection, peer, self.clock)
        notify(self.observer, Opened(peer, tls))

    def connection_closed(self, connection: Served, closed: Closed | None) -> None:
        """Stop counting ``connection``, and notify the observer.

        :param closed: the event; ``None`` if it could not be made.
        """
        counted = self.registry.closed(connection)
        try:
            if counted and closed is not None:
                notify(self.observer, closed)
        except BaseException:  # such as SystemExit; a drain may wait for this connection
            with suppress(BaseException):
                log.failure("a connection fails")
        self.registry.finish()
