"""Whom to measure: TARGET on the command line, and the way there."""

from __future__ import annotations

import ipaddress
import re
import socket
import threading
from collections.abc import Callable
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

TAKES: Final = "host:port, [IPv6 address]:port, udp:host:port or a Twisted client endpoint"

Address = tuple[Any, ...]
"""As socket(7) has it: host, port, and more for IPv6."""


@dataclass(frozen=True)
class Target:
    """What TARGET says.

    :ivar text: as it was given.
    :ivar udp: whether it is to be reached by UDP.
    :ivar host: the name or address, or ``None`` for an endpoint.
    :ivar port: its number, or 0 for an endpoint.
    """

    text: str
    udp: bool = False
    host: str | None = None
    port: int = 0

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """Return the endpoint that it describes, where ``host`` is ``None``.

        :raises BadTarget: where it describes none.
        """
        return endpoint_of(reactor, self.text)

    @property
    def name(self) -> str:
        """Where it leads, for headings: without arguments such as the files for TLS."""
        return self.text if self.host is not None else short_name(self.text)


def parse_target(text: str) -> Target:
    """Return what ``text`` names.

    :raises BadTarget: where that cannot be a target.
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
        raise BadTarget(f"TARGET {text!r} has to be {TAKES}{hint}")
    return Target(text)


def check_address(text: str, address: str) -> None:
    """Check an IPv6 address.

    :raises BadTarget: for anything but an IPv6 address, or one of a link without its zone.
    """
    try:
        read = ipaddress.IPv6Address(address)
    except ValueError as error:
        raise BadTarget(f"TARGET {text!r}: {address!r} is no IPv6 address") from error
    if read.is_link_local and not read.scope_id:
        raise BadTarget(
            f"TARGET {text!r}: a link-local address needs its interface, as in [{address}%eth0]"
        )


NO_NAME: Final = "no such name: each part of a name has 1 to 63 characters"
ONLY_LOCAL: Final = "an interface after the address is for link-local addresses only: leave it out"


def resolve(reactor: Any, target: Target) -> Deferred[list[tuple[int, Address]]]:
    """Return the families and addresses of a target's host, the best first (RFC 6724).

    In a thread that nobody waits for at the end: getaddrinfo(3) may take longer than any timeout.

    :return: fails with :class:`socket.gaierror`.
    """
    found: Deferred[list[tuple[int, Address]]] = Deferred(lambda _: None)
    kind = socket.SOCK_DGRAM if target.udp else socket.SOCK_STREAM

    def tell(act: Callable[[Any], None], what: object) -> None:
        if not found.called:  # its timeout is over
            act(what)

    def ask() -> None:
        try:
            told = socket.getaddrinfo(target.host, target.port, type=kind)
        except (OSError, UnicodeError) as error:  # UnicodeError: of Python's own IDNA
            zone = str(target.host).partition("%")[2]
            why = NO_NAME
            if zone:
                is_there = any(zone == name for _, name in socket.if_nameindex())
                why = ONLY_LOCAL if is_there else f"there is no interface {zone}"
            known = isinstance(error, OSError) and not zone
            failure = Failure(error if known else socket.gaierror(socket.EAI_NONAME, why))
            reactor.callFromThread(tell, found.errback, failure)
        else:
            reactor.callFromThread(tell, found.callback, [(each[0], each[4]) for each in told])

    threading.Thread(target=ask, daemon=True).start()
    return found


MTU_DISCOVER: Final[dict[int, tuple[int, int]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, 23),
}
PMTUDISC_DO: Final = 2
"""IP_MTU_DISCOVER in ip(7), IPV6_MTU_DISCOVER in ipv6(7); Python does not name them."""


def udp_socket(family: int, address: Address, dont_fragment: bool) -> socket.socket:
    """Return a socket that sends to ``address`` and receives from there alone.

    :param dont_fragment: have no datagram cut into fragments on its way (IP_MTU_DISCOVER in ip(7)).
    :raises OSError: where there is no way to it.
    """
    sock = socket.socket(family, socket.SOCK_DGRAM)
    try:
        sock.setblocking(False)
        if dont_fragment:
            sock.setsockopt(*MTU_DISCOVER[family], PMTUDISC_DO)
        sock.connect(address)
    except OSError:
        sock.close()
        raise
    return sock


def name_of(address: IAddress | Address) -> str:
    """Return an address as it is written: with a port, and IPv6 in brackets, with its zone."""
    if isinstance(address, IPv4Address):
        address = (address.host, address.port)
    if isinstance(address, IPv6Address):
        address = (address.host, address.port, address.flowInfo, address.scopeID)
    if isinstance(address, tuple):
        host, port = address[:2]
        if len(address) == 4:  # the name of the interface (RFC 4007), of which it has the number
            host, _ = socket.getnameinfo(address, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    if isinstance(address, UNIXAddress) and address.name:
        return str(address.name.decode(errors="replace"))
    return str(address)
