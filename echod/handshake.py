"""Accepted connections whose TLS handshake or PROXY header is not complete.

A pending connection counts against the connection limits, and has a handshake timeout. Observers
are not notified of it, except with ``verbose``. When its handshake or header is complete, it is
served like any other connection, or refused and counted.
"""

from __future__ import annotations

import typing
from abc import abstractmethod
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.events import Accepted, Closed, Ending, Event, Observer, Opened, Reason, Refused, notify
from echod.registry import Registry
from echod.socketoptions import set_options
from echod.timeouts import CHECKS_PER_TIMEOUT, FIRST_BYTE, QUIET
from echod.transport import (
    IStreamTransport,
    beneath,
    has_unread_input,
    lose,
    reset,
    resets_on_error,
)

log = Logger(namespace="echod")


class Server(typing.Protocol):
    """The interface of the factory that serves pending connections."""

    clock: IReactorTime
    observer: Observer
    verbose: bool
    handshake_timeout: float | None
    registry: Registry
    admission: Any

    def now(self, transport: IStreamTransport) -> float:
        """Return the time, in seconds."""

    def serve(
        self, peer: IAddress | None, *, draining: bool, tls: bool, admission: Any
    ) -> Protocol:
        """Return the protocol that serves a connection from ``peer`` from now on, or refuses it."""

    def report(self, *events: Event) -> None:
        """Notify the observer of a connection that is not served."""


class PendingConnection(Protocol):
    """One pending connection. Subclasses read its handshake or header.

    :param factory: serves the connection when that is complete.
    :param peer: the address of the socket's peer, if it has one.
    :ivar admission: the factory's data about the connection, such as its fault rules.
    """

    transport: IStreamTransport
    reason: Reason
    """The reason of a refusal if the handshake or header is wrong or incomplete."""
    tls = False
    """Whether the connection is encrypted; then the socket's peer is the client, not a proxy."""

    def __init__(self, factory: Server, peer: IAddress | None) -> None:
        self._factory = factory
        self._peer = peer
        self.admission = factory.admission
        self._waiting = True
        self._accepted: float | None = None
        self._timers: list[IDelayedCall] = []

    @property
    @abstractmethod
    def received(self) -> int:
        """Bytes received from the peer."""

    @resets_on_error
    def connectionMade(self) -> None:
        """Set the socket's options, and start the handshake timeout."""
        factory = self._factory
        factory.registry.handshake_begun(self, self._peer if self.tls else None)
        self._accepted = factory.now(self.transport)
        set_options(self.transport)
        if factory.verbose:
            notify(factory.observer, Accepted(self._peer, self.tls))
        timeout = factory.handshake_timeout
        if timeout is not None:
            self._later(timeout, self._check_timeout, timeout / CHECKS_PER_TIMEOUT)

    def age(self) -> float:
        """Return the seconds since the accept; 0 if the clock could not be read then."""
        return 0.0 if self._accepted is None else self._factory.clock.seconds() - self._accepted

    def serve(self, peer: IAddress | None) -> Protocol | None:
        """Return the protocol that serves the connection from now on, or refuses it.

        The caller connects it to the transport. ``None``: the connection was refused before.

        :param peer: the client's address.
        """
        if not self._waiting:
            return None
        draining = self._stop_waiting()
        return self._factory.serve(peer, draining=draining, tls=self.tls, admission=self.admission)

    def _check_timeout(self, again: float = 0.0) -> None:
        """Refuse the connection; but if it has unread input, check again after that was read.

        The input may have arrived in time, while the process was stopped or busy.

        :param again: seconds until the second check; 0: this is the second.
        """
        if again and self._has_unread_input():
            self._later(again, self._check_timeout)
        else:
            self.refuse(Reason.HANDSHAKE_TIMEOUT)

    def drain(self) -> None:
        """Refuse the connection soon if it stays silent, because a drain begins.

        A connection that has begun its handshake or header may complete it, until the handshake
        timeout or the deadline of the drain. The first byte of a new connection may be in flight.
        """
        self._later(max(QUIET, FIRST_BYTE - self.age()), self._refuse_silent)

    def _refuse_silent(self) -> None:
        if not self.received and not self._has_unread_input():
            self.refuse(Reason.DRAINING)

    def _has_unread_input(self) -> bool:
        try:
            return has_unread_input(self.transport)
        except OSError:  # a reset, which the kernel reports once
            lose(self.transport)
            return False

    def truncated(self) -> None:
        """Reset the connection: it ended before its handshake or header was complete.

        FIN would look like a complete reply. A connection without a byte is closed with FIN: it is
        the health check of a load balancer.
        """
        if self.received:
            self.refuse(self.reason)
        else:
            self.transport.loseConnection()

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        if self._waiting:
            self._stop_waiting()
            # Reset the transport below any wrapper, now: a wrapper would reset in a later turn, and
            # a drain may wait for this connection.
            reset(beneath(self.transport))
            self._factory.report(Refused(reason, self._peer, self.tls))

    def cut_short(self) -> None:
        """Refuse the connection: the deadline of a drain has passed."""
        self.refuse(Reason.DRAINING)

    def forget(self) -> None:
        """Stop counting the connection: its transport cannot reset it."""
        self._factory.registry.handshake_ended(self)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - any reason
        """Report a connection that the peer ended: refused, or unused if no byte was received."""
        if self._waiting:
            self._stop_waiting()
            if self.received:
                self._factory.report(Refused(self.reason, self._peer, self.tls))
            else:
                peer = self.transport.getPeer()
                closed = Closed(Ending.UNUSED, 0, self.age(), 0, peer, self.tls)
                self._factory.report(Opened(peer, self.tls), closed)

    def _later(self, seconds: float, action: Callable[..., None], *arguments: object) -> None:
        call = self._factory.clock.callLater(seconds, self._act, action, *arguments)
        self._timers.append(call)

    @resets_on_error
    def _act(self, action: Callable[..., None], *arguments: object) -> None:
        action(*arguments)

    def _stop_waiting(self) -> bool:
        """End the wait for the handshake, and return whether a drain was ending the connection."""
        self._waiting = False
        self._cancel_timers()
        return self._factory.registry.handshake_ended(self)

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()


class Refusal(Protocol):
    """Reset a connection that is refused.

    A peer that has sent bytes would take FIN for the end of a complete reply.
    """

    transport: IStreamTransport

    def connectionMade(self) -> None:
        """Reset the connection."""
        reset(self.transport)


def refuse_failed() -> Refusal:
    """Log the exception that buildProtocol has raised, and return a :class:`Refusal`.

    Twisted would close the connection with FIN.
    """
    with suppress(BaseException):
        log.failure("a connection fails")
    return Refusal()
