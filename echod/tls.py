"""TLS: serve an EchoFactory over TLS; needs the extra ``tls``.

The rules:

- Until the handshake is complete, a connection is pending (:mod:`echod.handshake`): it counts
  against the limits and has a timeout, and no observer is notified of it.
- The peer's closing alert (close_notify) is a half-close. In TLS 1.3 the peer still receives after
  it (RFC 8446 6.1), and echod treats TLS 1.2 alike. echod sends back all bytes received before it,
  then its own closing alert, then FIN.
- A stream that ends without that alert is ``lost``, even if every byte was sent back: any machine
  on the path can forge a FIN.
- echod does not wait for an answer to its own closing alert (RFC 8446 6.1, RFC 5246 7.2.1).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress
from twisted.protocols.policies import WrappingFactory

from echod.arguments import check_callable, check_type
from echod.events import Reason, notify
from echod.factory import EchoFactory
from echod.handshake import PendingConnection, refuse_failed
from echod.tlstransport import TLSTransport

ALERT_TIME: Final = 1.0
"""Seconds in which a peer can read the alert of a failed handshake before it is reset."""


class TLSHandshake(PendingConnection):
    """An accepted connection whose TLS handshake is not complete."""

    reason = Reason.TLS_HANDSHAKE
    tls = True
    _failed = False

    @property
    def received(self) -> int:
        """Bytes of the handshake received from the peer."""
        return self._transport.ciphertext_in

    @property
    def _transport(self) -> TLSTransport:
        return cast(TLSTransport, self.transport)

    def handshake_done(self) -> None:
        """Let the factory serve the connection. No application data has been received yet."""
        if self._factory.verbose:
            notify(self._factory.observer, self._transport.negotiated(self.age()))
        protocol = self.serve(self._peer)
        if protocol is not None:
            self._transport.wrappedProtocol = protocol
            protocol.makeConnection(self.transport)

    def failed(self, *, alert: bool) -> None:
        """Refuse the connection: its handshake has failed.

        :param alert: whether an alert was sent. Then the peer has :data:`ALERT_TIME` to read it,
            because a reset at once could destroy it.
        """
        self._failed = True
        if alert:
            self._cancel_timers()
            self._later(ALERT_TIME, self.refuse, self.reason)
        else:
            self.refuse(self.reason)

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        super().refuse(self.reason if self._failed else reason)


class TLSFactory(WrappingFactory):
    """Serve ``factory`` over TLS, on any stream endpoint.

    :param factory: serves each connection after its handshake.
    :param context: returns the OpenSSL context of the next handshake. Its options must include
        OP_NO_RENEGOTIATION.

    :raises TypeError: for an argument of another type.
    """

    noisy = False
    protocol: type[TLSTransport] = TLSTransport

    def __init__(self, factory: EchoFactory, context: Callable[[], SSL.Context]) -> None:
        check_type("factory", factory, EchoFactory, "an EchoFactory")
        check_callable("context", context, "a callable that returns an OpenSSL.SSL.Context")
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._server = factory
        self._context = context

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``: see :meth:`~echod.factory.EchoFactory.use_reactor`."""
        self._server.use_reactor(reactor)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Begin a handshake, or refuse the connection with RST."""
        try:
            refusal = self._server.refusal(addr, tls=True)
            if refusal is not None:
                return refusal
            tls = server_end(self._context())
            return self.protocol(self, TLSHandshake(self._server, addr), tls, self._server)
        except BaseException:
            return refuse_failed()


def server_end(context: SSL.Context) -> SSL.Connection:
    """Return OpenSSL's state of a new connection, without a socket."""
    tls = SSL.Connection(context, None)
    tls.set_accept_state()
    return tls
