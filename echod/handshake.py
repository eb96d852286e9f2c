"""Accepted connections whose TLS handshake or PROXY header is not complete.

Until it is complete, nothing is known of the connection but its socket. No observer is notified of
it; :class:`~echod.factory.EchoFactory` counts it against ``max_connections`` and limits its time.
Then it is served as any other connection, or refused and counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from echod.events import Accepted, Reason, notify
from echod.protocol import CHECKS_PER_TIMEOUT, FIRST_BYTE, QUIET
from echod.transport import (
    IStreamTransport,
    beneath,
    has_unread_input,
    lose,
    reset,
    resets_on_error,
    set_options,
)

if TYPE_CHECKING:
    from echod.factory import EchoFactory


class PendingConnection(Protocol):
    """One accepted connection. Subclasses read its handshake or header, and call the rest.

    :param factory: serves the connection when that is complete.
    :param peer: the address of the socket's peer, if it has one.

    :ivar leaving: whether a drain has begun since the connection was accepted.
    """

    transport: IStreamTransport
    reason: Reason
    """Why it is refused when its handshake or header is wrong or incomplete."""
    leaving = False
    tls = False
    """Whether the connection is encrypted."""

    def __init__(self, factory: EchoFactory, peer: IAddress | None) -> None:
        self._factory = factory
        self._peer = peer
        self._waiting = True
        self._timers: list[IDelayedCall] = []

    @property
    @abstractmethod
    def received(self) -> int:
        """Bytes received from the peer."""

    @resets_on_error
    def connectionMade(self) -> None:
        """Set the socket's options, and start the handshake timeout."""
        factory = self._factory
        factory.arriving.add(self)
        self._accepted = factory.clock_for(self.transport).seconds()
        factory.use_reactor_of(self.transport)
        set_options(self.transport)
        if factory.verbose:
            notify(factory.observer, Accepted(self._peer, self.tls))
        if factory.handshake_timeout is not None:
            timeout = factory.handshake_timeout
            self._later(timeout, self._check_timeout, timeout / CHECKS_PER_TIMEOUT)

    def age(self) -> float:
        """Return the seconds since the connection was accepted."""
        return self._factory.clock_for(self.transport).seconds() - self._accepted

    def arrived(self, peer: IAddress | None) -> Protocol | None:
        """Return what serves the connection from now on, or refuses it.

        ``None``: it has been refused already. Who calls this makes the connection to it.

        :param peer: who it is.
        """
        if not self._waiting:
            return None
        self._over()
        return self._factory.welcome(peer, leaving=self.leaving, tls=self.tls)

    def _check_timeout(self, again: float = 0.0) -> None:
        """Refuse the connection; but if input is unread, have it read first and look again.

        It may have arrived in time, while the process was stopped or busy.

        :param again: seconds until the next look; 0: there is none.
        """
        if again and self._has_unread_input():
            self._later(again, self._check_timeout)
        else:
            self.refuse(Reason.HANDSHAKE_TIMEOUT)

    def leave(self) -> None:
        """Refuse the connection if it stays silent: a drain begins.

        One that has begun its handshake or header may complete it, until the handshake timeout or
        the deadline of the drain. The first byte of one that was accepted just now may be on its
        way.
        """
        if not self.leaving:
            self.leaving = True
            self._later(max(QUIET, FIRST_BYTE - self.age()), self._check_begun)

    def _check_begun(self) -> None:
        if not self.received and not self._has_unread_input():
            self.refuse(Reason.DRAINING)

    def _has_unread_input(self) -> bool:
        try:
            return has_unread_input(self.transport)
        except OSError:  # a reset, which the kernel reports once
            lose(self.transport)
            return False

    def broke_off(self) -> None:
        """End it, because the peer has finished sending: FIN alone would look like a whole reply.

        Except where it never sent a byte: that is a load balancer's health check.
        """
        if self.received:
            self.refuse(self.reason)
        else:
            self.transport.loseConnection()

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        if self._waiting:
            self._over()
            # At once also where something wraps it: who waits for a drain waits no longer.
            reset(cast(IStreamTransport, beneath(self.transport)))
            self._factory.refused(reason, self._peer, tls=self.tls)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - any
        """Report a connection that broke off: refused, or unused if no byte has come."""
        if self._waiting:
            self._over()
            if self.received:
                self._factory.refused(self.reason, self._peer, tls=self.tls)
            else:
                self._factory.left_unused(self.transport.getPeer(), self.age(), tls=self.tls)

    def _later(self, seconds: float, action: Callable[..., None], *about: object) -> None:
        clock = self._factory.clock_for(self.transport)
        self._timers.append(clock.callLater(seconds, self._act, action, *about))

    @resets_on_error
    def _act(self, action: Callable[..., None], *about: object) -> None:
        action(*about)

    def _over(self) -> None:
        self._waiting = False
        self._factory.arriving.discard(self)
        self._cancel_timers()

    def _cancel_timers(self) -> None:
        for timer in self._timers:
            if timer.active():
                timer.cancel()
