"""TARGET, the service to measure: parse it, and resolve its name."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IStreamClientEndpoint
from twisted.python.failure import Failure

from echod.client.endpoint import BadTarget, check_port, endpoint_of, short_name

HOST_AND_PORT: Final = re.compile(
    r"(udp:)?(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^:\[\]]+)):(?P<port>[0-9]+)",
    re.IGNORECASE,
)

USAGE: Final = "host:port, [IPv6 address]:port, udp:host:port or a Twisted client endpoint"

Address = tuple[Any, ...]
"""An address of Python's socket module: host and port, for IPv6 also flow label and scope."""

Addresses = list[tuple[int, Address]]
"""Address families, each with an address."""


@dataclass(frozen=True)
class Target:
    """A parsed TARGET.

    :ivar text: the argument as typed.
    :ivar udp: whether to use UDP.
    :ivar host: the name or IP address, or ``None`` for a Twisted endpoint.
    :ivar port: the port number, or 0 for a Twisted endpoint.
    """

    text: str
    udp: bool = False
    host: str | None = None
    port: int = 0

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """Return the Twisted endpoint, for a target without a ``host``.

        :raises BadTarget: if there is no such endpoint.
        """
        return endpoint_of(reactor, self.text)

    @property
    def name(self) -> str:
        """The target for headings: without arguments such as the files for TLS."""
        return self.text if self.host is not None else short_name(self.text)


def parse_target(text: str) -> Target:
    """Parse TARGET. A Twisted endpoint is checked later, by :meth:`Target.endpoint`.

    :raises BadTarget: if ``text`` is neither a host with a port nor like an endpoint.
    """
    found = HOST_AND_PORT.fullmatch(text)
    if found:
        port, six = found["port"], found["six"]
        check_port(text, port)
        if six and ":" in six:
            check_address(text, six)
        return Target(text, bool(found[1]), six or found["host"], int(port))
    if text.lower().startswith("udp:") or not re.match(r"[A-Za-z][A-Za-z0-9]*:.", text):
        hint = "; an IPv6 address goes in brackets" if text.count(":") > 1 else ""
        raise BadTarget(f"TARGET {text!r} has to be {USAGE}{hint}")
    return Target(text)


def check_address(text: str, address: str) -> None:
    """Check the IPv6 address of a TARGET.

    :raises BadTarget: for anything else, and for a link-local address without its interface.
    """
    try:
        parsed = ipaddress.IPv6Address(address)
    except ValueError as error:
        raise BadTarget(f"TARGET {text!r}: {address!r} is not an IPv6 address") from error
    if parsed.is_link_local and not parsed.scope_id:
        raise BadTarget(
            f"TARGET {text!r}: a link-local address needs its interface, as in [{address}%eth0]"
        )


NO_NAME: Final = "no such name: each part of a name has 1 to 63 characters"
ONLY_LOCAL: Final = "an interface after the address is for link-local addresses only: leave it out"


def look_up(target: Target, family: int) -> Addresses | Failure:
    """Call getaddrinfo(3), and return the addresses that it finds, or its failure."""
    kind = socket.SOCK_DGRAM if target.udp else socket.SOCK_STREAM
    try:
        found = socket.getaddrinfo(target.host, target.port, family, kind)
    except (OSError, UnicodeError) as error:  # UnicodeError: Python's own IDNA codec
        interface = str(target.host).partition("%")[2]
        if isinstance(error, OSError) and not interface:
            return Failure(error)
        reason = NO_NAME
        if interface:
            exists = any(interface == name for _, name in socket.if_nameindex())
            reason = ONLY_LOCAL if exists else f"there is no interface {interface}"
        return Failure(socket.gaierror(socket.EAI_NONAME, reason))
    return [(family, address) for family, *_, address in found]


def resolve(reactor: Any, target: Target, family: int = socket.AF_UNSPEC) -> Deferred[Addresses]:
    """Resolve the host of ``target`` to addresses, the preferred one first (RFC 6724).

    A daemon thread calls getaddrinfo(3), which may take longer than any timeout. No shutdown waits
    for a daemon thread.

    :param family: AF_INET or AF_INET6: only addresses of this family.
    :return: fails with :class:`socket.gaierror`.
    """
    resolved: Deferred[Addresses] = Deferred(lambda _: None)

    def finish(result: Any) -> None:
        if not resolved.called:  # otherwise, the timeout has cancelled it
            resolved.callback(result)

    def run() -> None:
        reactor.callFromThread(finish, look_up(target, family))

    threading.Thread(target=run, daemon=True).start()
    return resolved


def address_text(address: IAddress | Address) -> str:
    """Return an address as text: with its port, IPv6 in brackets and with its zone (RFC 4007)."""
    if isinstance(address, IPv4Address):
        address = (address.host, address.port)
    elif isinstance(address, IPv6Address):
        address = (address.host, address.port, address.flowInfo, address.scopeID)
    if isinstance(address, tuple):
        # getnameinfo(3) turns the scope into the name of its interface.
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        host, port = socket.getnameinfo(address, numeric)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, UNIXAddress) and address.name:
        return str(address.name.decode(errors="replace"))
    return str(address)
