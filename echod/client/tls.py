"""TLS over this client's own connections, with the settings of a Twisted endpoint."""

from __future__ import annotations

from typing import Any

from twisted.internet.interfaces import IProtocolFactory


def with_tls(endpoint: Any, factory: IProtocolFactory) -> IProtocolFactory:
    """Return a factory of TLS transports around the protocols of ``factory``.

    :param endpoint: of the type ``tls``.
    """
    from twisted.protocols.tls import TLSMemoryBIOProtocol  # noqa: PLC0415 - needs the extra tls

    wrapped: Any = endpoint._wrapperFactory(factory)
    # Twisted's default, a subclass of this, encrypts in the next turn of the reactor.
    wrapped.protocol = TLSMemoryBIOProtocol
    return wrapped  # type: ignore[no-any-return]
