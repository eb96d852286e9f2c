"""Listeners open the ports of one option: an endpoint, or one port number on several addresses."""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, cast

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from echod.daemon.errors import CannotServe, WrongOption, cannot_listen, errno_of
from echod.daemon.listeners.interfaces import LOOPBACK
from echod.factory import EchoFactory
from echod.faults import STREAM, Faults
from echod.faulty import FaultyEchoFactory
from echod.proxy import ProxyFactory

BACKLOG: Final = 1024
"""Connections that the kernel completes and queues until they are accepted (listen(2)).
With Twisted's default of 50, a burst of clients waits a second for the retransmitted SYN."""

ATTEMPTS: Final = 16
"""Free ports to try until one is free on every address."""

NO_ADDRESS: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""Errors of socket(2) and bind(2) if the machine lacks the address, or its address family."""

log = Logger(namespace="echod")


@dataclass
class Listener(ABC):
    """Opens the ports of one option.

    :param option: the option as typed, for error messages.
    :ivar proxied: whether each connection begins with a PROXY header.
    :ivar faults: the faults of the ports; ``None``: the ports have none.
    :ivar tls: the certificates, as :class:`~echod.daemon.listeners.tls.ListenerCertificates`,
        if the ports speak TLS.
    :cvar protocol: ``TCP`` or ``UDP``, for errors that name a port.
    :cvar held_by_systemd: whether systemd holds the sockets too. It keeps connections that are
        in the backlog when the service stops, for the next process.
    """

    option: str
    proxied: bool = field(default=False, init=False)
    tls: Any = field(default=None, init=False)
    faults: Faults | None = field(default=None, init=False)
    protocol = "TCP"
    held_by_systemd = False

    @property
    def serves(self) -> str:
        """What the ports serve, for :class:`~echod.faults.Faults`."""
        return self.tls.serves if self.tls else STREAM

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen, and return the ports.

        :raises CannotServe: if a port cannot be opened; then no port is left open.
        """
        if self.faults:
            faulty = FaultyEchoFactory(self.faults, beside=cast(EchoFactory, factory))
            factory = cast(IProtocolFactory, faulty)
        if self.proxied:
            factory = ProxyFactory(cast(Any, factory))
        if self.tls:
            factory = self.tls.wrap(factory)
        try:
            return await self._listen(factory)
        except CannotServe:
            raise
        except Exception as error:  # the endpoint of a plugin may raise any
            raise cannot_listen(self._option_for(error), error, self.protocol) from error

    @abstractmethod
    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen, and return the ports, or raise any exception."""

    def _option_for(self, error: Exception) -> str:  # noqa: ARG002 - subclasses choose by it
        """Return the option that ``error`` is about."""
        return self.option


@dataclass
class EndpointListener(Listener):
    """Listens on a Twisted server endpoint, including those of plugins.

    :param description: for :func:`~twisted.internet.endpoints.serverFromString`.
    :raises WrongOption: if Twisted cannot make an endpoint from it.
    """

    reactor: object
    description: str

    def __post_init__(self) -> None:
        try:
            self.endpoint: Any = serverFromString(self.reactor, self.description)
        except Exception as error:  # each kind of endpoint raises its own
            kind, colon, _ = self.description.partition(":")
            unknown = not colon or str(error).startswith("Unknown endpoint type")
            why = f"there is no endpoint {kind!r}" if unknown else "its parameters do not fit"
            raise WrongOption(
                f"{self.option}: {why}; it takes a Twisted stream endpoint, "
                "such as tcp:65432:interface=127.0.0.1 or unix:/run/echod/socket"
            ) from error

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        port = await self.endpoint.listen(factory)
        if not IListeningPort.providedBy(port):  # stdio: serves one peer, and has no port
            raise TypeError("listen() returned no port")
        return [port]


@dataclass
class IPListener(Listener):
    """Listens on one port number, on each of several addresses.

    :param port: 0 takes a free port, the same on each address.
    :param interfaces: IP addresses. If empty, 127.0.0.1 and ::1; on a machine without IPv6,
        only 127.0.0.1.
    :param option: the option as typed; empty: ``--port`` and ``--interface``.
    """

    reactor: Any
    port: int
    interfaces: Sequence[str]

    @abstractmethod
    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        """Listen on one address; raise CannotListenError if that fails."""

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        for _ in range(ATTEMPTS):
            ports: list[IListeningPort] = []
            try:
                await self._open_all(factory, ports)
            except CannotListenError as error:
                for port in ports:
                    port.stopListening()
                # A port that is free on one address may be in use on the next.
                if self.port != 0 or errno_of(error) != errno.EADDRINUSE:
                    raise
            else:
                return ports
        raise CannotServe(
            f"{self.option or '--port 0'}: found no port that is free on "
            f"{' and '.join(self.interfaces or LOOPBACK)}: name a port"
        )

    async def _open_all(self, factory: IProtocolFactory, ports: list[IListeningPort]) -> None:
        """Listen on each address, and append the ports to ``ports``."""
        number = self.port
        for interface in self.interfaces or LOOPBACK:
            try:
                port = await self._open(factory, interface, number)
            except CannotListenError as error:
                optional = not self.interfaces and interface == "::1"
                if not optional or errno_of(error) not in NO_ADDRESS:
                    raise
                log.info("this machine has no IPv6: serving IPv4 only", event="no-ipv6")
            else:
                ports.append(port)
                number = cast(IPv4Address, port.getHost()).port

    def _option_for(self, error: Exception) -> str:
        if self.option:
            return self.option
        if errno_of(error) in NO_ADDRESS and self.interfaces:
            return "--interface"
        return "--port" if self.port else "--port 0"
