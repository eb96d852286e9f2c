"""A connection that has come and is not known yet: its TLS handshake or PROXY header is under way.

Until it is done, nobody knows whether it can be served, or even who it is. So it is no
connection for anybody but :class:`~echod.factory.EchoFactory`, which counts it against
``max_connections`` and gives it a time. Then it is served as any other, or refused and counted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from twisted.internet.interfaces import IAddress, IDelayedCall
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from echod.events import Reason
from echod.protocol import IStreamTransport, reset

if TYPE_CHECKING:
    from echod.factory import EchoFactory


class Arrival(Protocol):
    """One connection, until it is known. Subclasses find out, and call the rest.

    :param factory: serves it then.
    :param peer: who connected, as far as that is known.
    """

    transport: IStreamTransport
    reason: Reason
    """Why it is refused when what comes first is wrong, or breaks off."""

    def __init__(self, factory: EchoFactory, peer: IAddress | None) -> None:
        self._factory = factory
        self._peer = peer
        self._timeout: IDelayedCall | None = None
        self._waiting = True

    def connectionMade(self) -> None:
        """Begin to wait."""
        factory = self._factory
        factory.arriving.add(self)
        if factory.handshake_timeout is not None:
            clock = factory.clock_for(self.transport)
            self._timeout = clock.callLater(
                factory.handshake_timeout, self.refuse, Reason.HANDSHAKE_TIMEOUT
            )

    def arrived(self, peer: IAddress | None) -> Protocol | None:
        """Return what serves the connection from now on, or refuses it.

        ``None``: it has been refused already. Who calls this makes the connection to it.

        :param peer: who it is.
        """
        if not self._waiting:
            return None
        self._over()
        return self._factory.buildProtocol(peer)

    def hurry(self) -> None:
        """Find out now, if what has come is enough: afterwards nobody is let in any more."""

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        if self._waiting:
            self._over()
            self._factory.refused(reason, self._peer)
            reset(self.transport)

    def connectionLost(self, reason: Failure = connectionDone) -> None:  # noqa: ARG002 - any
        """Count one that broke off."""
        if self._waiting:
            self._over()
            self._factory.refused(self.reason, self._peer)

    def _over(self) -> None:
        self._waiting = False
        self._factory.arriving.discard(self)
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
