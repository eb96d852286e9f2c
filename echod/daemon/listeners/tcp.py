"""Where to listen, and one clear line when that is not possible."""

from __future__ import annotations

import errno
import functools
import re
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Protocol, TypeVar, cast

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint, serverFromString
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorFDSet,
    IReactorTCP,
)
from twisted.logger import Logger

from echod.daemon.errors import AddressInUse, CannotServe, explain
from echod.daemon.listeners.interfaces import LOOPBACK, check_interface
from echod.daemon.optiontable import port
from echod.numbers import parse_whole_number
from echod.udp import DatagramPort, EchoDatagrams

BACKLOG: Final = 1024
"""Connections that the kernel completes and holds until they are accepted (listen(2)).
With Twisted's own 50, a burst of clients waits a second for its SYN to be sent again."""

ATTEMPTS: Final = 16
"""Free ports to try until one is free on every interface."""

UNKNOWN: Final = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)
"""What the kernel says of an address that the machine, or its kernel, does not have."""

UNESCAPED_COLON: Final = re.compile(r"(?<!\\):")

EVERYWHERE: Final = {"tcp": "0.0.0.0", "tcp6": "::"}
ON_LOOPBACK: Final = {"tcp": "127.0.0.1", "tcp6": "::1"}
"""Where ``tcp:`` and ``tcp6:`` listen if no interface is named."""

TCP_PARTS: Final = {
    "tcp": ("port", "interface", "backlog"),
    "tcp6": ("port", "backlog", "interface"),
}
"""The parts of a description, in the order in which they need no name, as Twisted has it."""

TCP_TAKES: Final = (
    r"it takes {kind}:PORT, {kind}:PORT:interface=ADDRESS, with \: for each colon of the address, "
    "and backlog=NUMBER"
)

NUMERIC: Final = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV
"""The flags with which getaddrinfo(3) asks no name server."""

T = TypeVar("T")

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
                    raise self._cannot_listen(error) from error
            else:
                return ports
        said = self._said(errno.EADDRINUSE)
        raise CannotServe(f"{said}: found no port that is free on all of {self._interfaces}")

    def _cannot_listen(self, error: CannotListenError) -> CannotServe:
        number = error.socketError.errno
        option, why = self._said(number), explain(error, self.kind)
        if number != errno.EADDRINUSE:
            return CannotServe(f"{option}: {why}")
        host = str(error.interface)
        address = IPv6Address if ":" in host else IPv4Address
        kind: Any = self.kind.upper()
        return AddressInUse(option, address(kind, host, error.port), why)

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
    :param backlog: connections that the kernel holds until they are accepted.
    """

    kind = "tcp"

    def __init__(
        self,
        reactor: IReactorTCP,
        port: int,
        interfaces: Sequence[str] = (),
        option: str | None = None,
        backlog: int = BACKLOG,
    ) -> None:
        super().__init__(port, interfaces)
        self._reactor = reactor
        self._option = option
        self._backlog = backlog

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        endpoint: Any = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
        where = endpoint(self._reactor, port, self._backlog, interface)
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
        sock = None
        try:
            # Which also turns the zone of a link-local address into the number of its link.
            [(family, kind, _, _, address), *_] = socket.getaddrinfo(
                interface, port, type=socket.SOCK_DGRAM, flags=NUMERIC
            )
            sock = socket.socket(family, kind)
            sock.bind(address)
        except OSError as error:
            if sock is not None:
                sock.close()
            raise CannotListenError(interface, port, error) from error
        port_ = DatagramPort(self._reactor, sock, self._datagrams)
        port_.startListening()
        return port_

    def _said(self, number: int) -> str:  # noqa: ARG002 - all of it is one option
        return self._said_as


def tcp_listener(
    reactor: IReactorTCP, description: str, option: str, hosts: Mapping[str, str] = EVERYWHERE
) -> TCPListener:
    """Return what ``tcp:`` or ``tcp6:`` describes, with Twisted's names and order of its parts.

    :param option: the option and what it was given, for error messages.
    :param hosts: for ``tcp`` and ``tcp6``, the address where the description names none.
    :raises CannotServe: where it is not such a description.
    """
    kind, *parts = UNESCAPED_COLON.split(description)
    kind = kind.lower()
    try:
        values = tcp_values(parts, TCP_PARTS[kind])
        number = read("a port", port, values.get("port", ""))
        backlog = read("backlog=", queue, values.get("backlog", str(BACKLOG)))
        interface = read("interface=", check_interface, values.get("interface", hosts[kind]))
        if kind == "tcp6" and ":" not in interface:
            raise ValueError(f"interface= takes an IPv6 address for tcp6:, not {interface!r}")
    except ValueError as error:
        raise CannotServe(f"{option}: {error}; {TCP_TAKES.format(kind=kind)}") from None
    return TCPListener(reactor, number, [interface], option, backlog)


def tcp_values(parts: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    r"""Return the values of the parts of an endpoint; ``\\:`` is a colon within a value.

    A part without a name takes the first name of ``names`` that has not been taken by one. An
    empty interface is no address: Twisted would listen on all of them.

    :raises ValueError: for another name, an empty value, a name given twice, or more parts.
    """
    values: dict[str, str] = {}
    positions = iter(names)
    for part in parts:
        name, equals, value = re.sub(r"\\(.)", r"\1", part).partition("=")
        if not equals:
            name, value = next(positions, ""), name
        add_value(values, names, name, value, part)
    return values


def add_value(
    values: dict[str, str], names: Collection[str], name: str, value: str, part: str
) -> None:
    """Add the value of one part of a description; raise ValueError where it is none."""
    if name not in names:
        raise ValueError(f"there is no parameter {part!r}")
    if not value:
        raise ValueError(f"{name}= is empty")
    if name in values:
        raise ValueError(f"it has {name}= twice")
    values[name] = value


queue = functools.partial(parse_whole_number, least=0, most=2**31 - 1)


def read(name: str, parse: Callable[[str], T], text: str) -> T:
    """Return what ``parse`` makes of ``text``.

    :raises ValueError: with a message that begins with ``name``, where that raises one.
    """
    try:
        return parse(text)
    except ValueError as error:
        raise ValueError(f"{name} {error}") from None


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
            kind, *parts = UNESCAPED_COLON.split(description)
            known = not parts or not str(error).startswith("Unknown endpoint type")
            why = "its parts do not fit" if known and parts else f"there is no endpoint {kind!r}"
            raise CannotServe(
                f"{self._said}: {why}; it takes a Twisted stream endpoint, "
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
    _, text, *rest = [*UNESCAPED_COLON.split(description), ""]
    number = read("a port", port, text.removeprefix("port="))
    values = named_values(rest, names)
    if "interface" in values:
        read("interface=", check_interface, values["interface"])
    return number, values


def named_values(parts: Iterable[str], names: Collection[str]) -> dict[str, str]:
    r"""Return the values of ``NAME=VALUE`` parts; ``\:`` is a colon within a value.

    :param names: those that there may be.
    :raises ValueError: for another name, an empty value, or a name given twice.
    """
    values: dict[str, str] = {}
    for part in filter(None, parts):
        name, _, value = part.replace("\\:", ":").partition("=")
        add_value(values, names, name, value, part)
    return values
