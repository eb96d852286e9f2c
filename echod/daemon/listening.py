"""Where to listen, and one clear line when that is not possible."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from typing import Any, Final, Protocol, cast

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTCP
from twisted.logger import Logger

from echod.daemon.options import LOOPBACK, CannotServe

BACKLOG: Final = 1024
"""Connections that the kernel completes and holds until they are accepted (listen(2)).
With Twisted's own 50, a burst of clients waits a second for its SYN to be sent again."""

ATTEMPTS: Final = 16
"""Free ports to try until one is free on every interface."""

ADVICE: Final = {
    errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE, a file a writable directory",
    errno.EADDRINUSE: "stop what listens there (ss -lp shows it), or choose another",
    errno.EADDRNOTAVAIL: "this machine has no such address (ip address lists those it has)",
    errno.ENOENT: "its directory must exist",
}

UNKNOWN: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What the kernel says of an address that the machine, or its kernel, does not have."""

UNESCAPED_COLON: Final = re.compile(r"(?<!\\):")

LOOPBACKS: Final = {"tcp": ("127.0.0.1", 1), "tcp6": (r"\:\:1", 2), "ssl": ("127.0.0.1", 4)}
"""For each type of endpoint that listens on every interface if none is named: loopback, and
how many of its arguments without a name come before the interface."""

log = Logger(namespace="echod")


class Listener(Protocol):
    """One wish to listen, for one port or more."""

    passed: bool
    """Whether systemd passed the sockets, and holds them too: what nobody has accepted when
    the service stops, it keeps for the next one."""

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen; raise CannotServe, and leave nothing listening, where it is not possible."""


class TCPListener:
    """One TCP port number on each of several interfaces.

    :param reactor: listens.
    :param port: 0 takes a free port, the same on each interface.
    :param interfaces: IP addresses; none means both loopbacks, and IPv4's alone where
        the machine has no IPv6.
    """

    passed = False

    def __init__(self, reactor: IReactorTCP, port: int, interfaces: Sequence[str] = ()) -> None:
        self._reactor = reactor
        self._port = port
        self._interfaces = interfaces or LOOPBACK
        self._asked = bool(interfaces)

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen on each interface."""
        for _ in range(ATTEMPTS):
            ports: list[IListeningPort] = []
            number = self._port
            try:
                for interface in self._interfaces:
                    port = await self._listen(factory, interface, number)
                    if port is not None:
                        ports.append(port)
                        number = cast(IPv4Address, port.getHost()).port
            except CannotListenError as error:
                for port in ports:
                    port.stopListening()
                # A free port of one interface can be taken on the next.
                if self._port != 0 or error.socketError.errno != errno.EADDRINUSE:
                    option = "interface" if error.socketError.errno in UNKNOWN else "port"
                    raise CannotServe(f"--{option}: {explain(error)}") from error
            else:
                return ports
        raise CannotServe(f"--port 0: found no port that is free on all of {self._interfaces}")

    async def _listen(
        self, factory: IProtocolFactory, interface: str, port: int
    ) -> IListeningPort | None:
        endpoint: Any = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
        try:
            where = endpoint(self._reactor, port, BACKLOG, interface)
            return cast(IListeningPort, await where.listen(factory))
        except CannotListenError as error:
            if self._asked or ":" not in interface or error.socketError.errno not in UNKNOWN:
                raise
            log.info("this machine has no IPv6: serving IPv4 only", event="no-ipv6")
            return None


class EndpointListener:
    """A Twisted server endpoint, by its description.

    :param option: the option that it was given to.
    :raises CannotServe: where Twisted cannot make an endpoint of it.
    """

    passed = False

    def __init__(self, reactor: object, description: str, option: str = "listen") -> None:
        self._said = f"--{option} {description!r}"
        try:
            self._endpoint = serverFromString(reactor, description)
        except Exception as error:  # whatever the parser of that endpoint type makes of it
            raise CannotServe(
                f"{self._said}: {explain(error)}; it takes a Twisted stream endpoint, "
                "such as tcp:65432:interface=127.0.0.1 or unix:/run/echod/socket"
            ) from error

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen there."""
        try:
            port = await self._endpoint.listen(factory)
        except Exception as error:  # an endpoint of a plugin may raise what it likes
            raise CannotServe(f"{self._said}: {explain(error)}") from error
        if not IListeningPort.providedBy(port):
            raise CannotServe(f"{self._said}: that is no port to listen on")
        return [port]


def on_loopback(description: str) -> str:
    """Return ``description`` with loopback for the interface, where it is IP and names none."""
    kind, *rest = UNESCAPED_COLON.split(description)
    kind = kind.lower()  # as Twisted compares it
    if kind == "haproxy":
        return f"{kind}:{on_loopback(':'.join(rest))}"
    if kind not in LOOPBACKS or any(part.startswith("interface=") for part in rest):
        return description
    loopback, before = LOOPBACKS[kind]
    if len([part for part in rest if "=" not in part]) > before:
        return description
    return f"{description}:interface={loopback}"


def explain(error: Exception) -> str:
    """Return what went wrong and what to do about it, in one line."""
    where, cause = "", error
    if isinstance(error, CannotListenError):
        cause = error.socketError
        if error.interface is not None:
            host = f"[{error.interface}]" if ":" in error.interface else error.interface or "*"
            where = f"cannot listen on tcp {host}:{error.port}: "
    if not isinstance(cause, OSError) or cause.errno is None:
        text, kind = str(cause), type(cause).__name__
        if isinstance(cause, LookupError):  # whose text is the key alone
            text = text and f"{kind}: {text}"
        return f"{where}{text or kind}"
    advice = ADVICE.get(cause.errno)
    return f"{where}{str(cause.strerror).lower()}" + (f": {advice}" if advice else "")
