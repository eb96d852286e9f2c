"""Where to listen, and one clear line when that is not possible."""

from __future__ import annotations

import errno
import ipaddress
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Final, Protocol, cast

from twisted.internet.address import IPv4Address
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorFDSet,
    IReactorTCP,
)
from twisted.logger import Logger

from echod.daemon.options import LOOPBACK, CannotServe
from echod.datagram import DatagramPort, EchoDatagrams

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
    errno.EROFS: "choose a writable directory; under echod.service, name the path in echod.socket",
}

SANDBOX: Final = (
    "the sandbox of echod.service allows no port of its own (RestrictAddressFamilies=AF_UNIX, "
    "PrivateNetwork=yes): take the option out of OPTIONS, and name the port in echod.socket, "
    "echod-tls.socket or echod-metrics.socket"
)
"""The advice where the process may make no IP socket."""

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
    tls: bool
    """Whether the ports speak TLS."""

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen; raise CannotServe, and leave nothing listening, where it is not possible."""


class NumberListener(ABC):
    """One port number on each of several interfaces.

    :param port: 0 takes a free port, the same on each interface.
    :param interfaces: IP addresses; none means both loopbacks, and IPv4's alone where
        the machine has no IPv6.
    """

    passed = False
    tls = False
    kind: str
    """The protocol, as the log names it."""

    def __init__(self, port: int, interfaces: Sequence[str] = ()) -> None:
        self._port = port
        self._interfaces = interfaces or LOOPBACK
        self._asked = bool(interfaces)

    @abstractmethod
    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        """Listen there; raise CannotListenError where that is not possible."""

    @abstractmethod
    def _said(self, number: int) -> str:
        """Return the option that the error ``number`` is about."""

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
                    said = self._said(error.socketError.errno)
                    raise CannotServe(f"{said}: {explain(error, self.kind)}") from error
            else:
                return ports
        said = self._said(errno.EADDRINUSE)
        raise CannotServe(f"{said}: found no port that is free on all of {self._interfaces}")

    async def _listen(
        self, factory: IProtocolFactory, interface: str, port: int
    ) -> IListeningPort | None:
        try:
            return await self._open(factory, interface, port)
        except CannotListenError as error:
            if self._asked or ":" not in interface or error.socketError.errno not in UNKNOWN:
                raise
            log.info("this machine has no IPv6: serving IPv4 only", event="no-ipv6")
            return None


class TCPListener(NumberListener):
    """One TCP port number on each of several interfaces.

    :param reactor: listens.
    :param option: the option that asks for it, for error messages; ``None``: ``--port`` and
        ``--interface``.
    """

    kind = "tcp"

    def __init__(
        self,
        reactor: IReactorTCP,
        port: int,
        interfaces: Sequence[str] = (),
        option: str | None = None,
    ) -> None:
        super().__init__(port, interfaces)
        self._reactor = reactor
        self._option = option

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        endpoint: Any = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
        where = endpoint(self._reactor, port, BACKLOG, interface)
        return cast(IListeningPort, await where.listen(factory))

    def _said(self, number: int) -> str:
        if self._option is not None:
            return self._option
        if number in UNKNOWN and self._asked:
            return "--interface"
        return "--port" if self._port else "--port 0"


class UDPListener(NumberListener):
    """What ``--listen udp:PORT`` asks for: one UDP port number on each of several interfaces.

    :param reactor: listens.
    :param datagrams: answers.
    :param description: ``udp:PORT``, on both loopbacks, or ``udp:PORT:interface=ADDRESS``.
    :raises CannotServe: where it is not such a description.
    """

    kind = "udp"

    def __init__(self, reactor: IReactorFDSet, datagrams: EchoDatagrams, description: str) -> None:
        self._reactor = reactor
        self._datagrams = datagrams
        self._said_as = f"--listen {description!r}"
        try:
            port, values = port_and_values(description, ["interface"])
        except ValueError as error:
            raise CannotServe(
                f"{self._said_as}: {error}; it takes udp:PORT or udp:PORT:interface=ADDRESS, "
                r"with \: for each colon of the address"
            ) from None
        super().__init__(port, [*values.values()])

    async def _open(
        self,
        factory: IProtocolFactory,  # noqa: ARG002 - of streams
        interface: str,
        port: int,
    ) -> IListeningPort:
        family = socket.AF_INET6 if ":" in interface else socket.AF_INET
        sock = None
        try:
            sock = socket.socket(family, socket.SOCK_DGRAM)
            sock.bind((interface, port))
        except OSError as error:
            if sock is not None:
                sock.close()
            raise CannotListenError(interface, port, error) from error
        port_ = DatagramPort(self._reactor, sock, self._datagrams)
        port_.startListening()
        return port_

    def _said(self, number: int) -> str:  # noqa: ARG002 - all of it is one option
        return self._said_as


class EndpointListener:
    """A Twisted server endpoint, by its description.

    :param said: the option and what it was given, for error messages.
    :raises CannotServe: where Twisted cannot make an endpoint of it.
    """

    passed = False
    tls = False

    def __init__(self, reactor: object, description: str, said: str) -> None:
        self._said = said
        try:
            self.endpoint: Any = serverFromString(reactor, description)
        except Exception as error:  # whatever the parser of that endpoint type makes of it
            raise CannotServe(
                f"{self._said}: {explain(error)}; it takes a Twisted stream endpoint, "
                "such as tcp:65432:interface=127.0.0.1 or unix:/run/echod/socket"
            ) from error

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen there."""
        try:
            port = await self.endpoint.listen(factory)
        except Exception as error:  # an endpoint of a plugin may raise what it likes
            raise CannotServe(f"{self._said}: {explain(error)}") from error
        if not IListeningPort.providedBy(port):
            raise CannotServe(f"{self._said}: that is no port to listen on")
        return [port]


def port_and_values(description: str, names: Collection[str]) -> tuple[int, dict[str, str]]:
    r"""Return the parts of ``KIND:PORT:NAME=VALUE:...``; ``\:`` is a colon within a value.

    :param names: those that there may be. The value of ``interface`` is an IP address.
    :raises ValueError: where it is not such a description.
    """
    _, number, *rest = [*UNESCAPED_COLON.split(description), ""]
    number = number.removeprefix("port=")
    if not (number.isascii() and number.isdigit() and int(number) <= 65535):
        raise ValueError(f"a port is a whole number from 0 to 65535, not {number!r}")
    values = named_values(rest, names)
    if "interface" in values:
        ipaddress.ip_address(values["interface"])
    return int(number), values


def named_values(parts: Iterable[str], names: Collection[str]) -> dict[str, str]:
    r"""Return the values of ``NAME=VALUE`` parts; ``\:`` is a colon within a value.

    :param names: those that there may be.
    :raises ValueError: for another name, a name without a value, or one given twice.
    """
    values: dict[str, str] = {}
    for part in filter(None, parts):
        name, _, value = part.replace("\\:", ":").partition("=")
        if name not in names or not value:
            raise ValueError(f"it knows no {part!r}")
        if name in values:
            raise ValueError(f"it has {name}= twice")
        values[name] = value
    return values


def with_backlog(description: str) -> str:
    """Return ``description`` with :data:`BACKLOG`, where it is TCP and names no backlog."""
    kind, *rest = UNESCAPED_COLON.split(description)
    if kind.lower() not in ("tcp", "tcp6") or any(part.startswith("backlog=") for part in rest):
        return description
    if len([part for part in rest if "=" not in part]) > 2:  # port, interface, backlog
        return description
    return f"{description}:backlog={BACKLOG}"


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


def explain(error: Exception, kind: str = "tcp") -> str:
    """Return what went wrong and what to do about it, in one line.

    :param kind: the protocol of the port that it is about, if it is about one.
    """
    where, cause = "", error
    if isinstance(error, CannotListenError):
        cause = error.socketError
        if error.interface is not None:
            host = f"[{error.interface}]" if ":" in error.interface else error.interface or "*"
            where = f"cannot listen on {kind} {host}:{error.port}: "
    if not isinstance(cause, OSError) or cause.errno is None:
        text, kind = str(cause), type(cause).__name__
        if isinstance(cause, LookupError):  # whose text is the key alone
            text = text and f"{kind}: {text}"
        return f"{where}{text or kind}"
    advice = SANDBOX if cause.errno == errno.EAFNOSUPPORT and no_ip() else ADVICE.get(cause.errno)
    return f"{where}{str(cause.strerror).lower()}" + (f": {advice}" if advice else "")


def no_ip() -> bool:
    """Return whether the process may make no IPv4 socket.

    Every kernel has IPv4, and may be without IPv6. So this is the doing of
    RestrictAddressFamilies= (systemd.exec(5)), which has socket(2) fail with EAFNOSUPPORT.
    """
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False
