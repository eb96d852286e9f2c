"""A connection that has come and is not known yet: its TLS handshake or PROXY header is under way.

Until it is done, nobody knows whether it can be served, or even who it is. So it is no
connection for anybody but :class:`~echod.factory.EchoFactory`, which counts it against
``max_connections`` and gives it a time. Then it is served as any other, or refused and counted.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from echod.events import Reason
from echod.kernel import beneath, unread
from echod.protocol import QUIET, IStreamTransport, lose, reset, set_options

if TYPE_CHECKING:
    from echod.factory import EchoFactory


class Arrival(Protocol):
    """One connection, until it is known. Subclasses find out, and call the rest.

    :param factory: serves it then.
    :param peer: who connected, as far as that is known.

    :ivar leaving: whether a drain has begun since it came.
    """

    transport: IStreamTransport
    reason: Reason
    """Why it is refused when what comes first is wrong, or breaks off."""
    leaving = False

    def __init__(self, factory: EchoFactory, peer: IAddress | None) -> None:
        self._factory = factory
        self._peer = peer
        self._waiting = True
        self._timers: list[IDelayedCall] = []

    @property
    @abstractmethod
    def received(self) -> int:
        """Bytes that have come from the peer."""

    def connectionMade(self) -> None:
        """Set the socket's options, and begin to wait."""
        set_options(self.transport)
        factory = self._factory
        factory.arriving.add(self)
        if factory.handshake_timeout is not None:
            self._later(factory.handshake_timeout, self.refuse, Reason.HANDSHAKE_TIMEOUT)

    def arrived(self, peer: IAddress | None) -> Protocol | None:
        """Return what serves the connection from now on, or refuses it.

        ``None``: it has been refused already. Who calls this makes the connection to it.

        :param peer: who it is.
        """
        if not self._waiting:
            return None
        self._over()
        return self._factory.welcome(peer, leaving=self.leaving)

    def leave(self) -> None:
        """Refuse it at its first quiet moment, as a drain closes one that is served."""
        if not self.leaving:
            self.leaving = True
            self._later(QUIET, self._look, self.received)

    def _look(self, before: int) -> None:
        try:
            waiting = unread(self.transport)
        except OSError:  # a reset, which the kernel tells of once
            lose(self.transport)
            return
        if waiting or self.received != before:
            self._later(QUIET, self._look, self.received)
        else:
            self.refuse(Reason.DRAINING)

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        if self._waiting:
            self._over()
            # At once also where something wraps it: who waits for a drain waits no longer.
            reset(cast(IStreamTransport, beneath(self.transport)))
            self._factory.refused(reason, self._peer)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - any
        """Count one that broke off, but not who never said a word: a balancer's health check."""
        if self._waiting:
            self._over()
            if self.received:
                self._factory.refused(self.reason, self._peer)
            else:
                self._factory.see_whether_drained()

    def _later(self, seconds: float, action: Callable[..., None], about: object) -> None:
        clock = self._factory.clock_for(self.transport)
        self._timers.append(clock.callLater(seconds, action, about))

    def _over(self) -> None:
        self._waiting = False
        self._factory.arriving.discard(self)
        for timer in self._timers:
            if timer.active():
                timer.cancel()
