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

from echod.addresses import on_one_line
from echod.client.endpoint import USAGES, BadTarget, check_port, endpoint_of, short_name

HOST: Final = r"(?:\[(?P<six>[^\[\]]+)\]|(?P<host>[^-:/=\\\[\]\s][^:/=\\\[\]\s]*))"
PLACE: Final = re.compile(HOST + r"(?::(?P<port>[^:/=]+))?")
TLS_PLACE: Final = re.compile(
    rf"(?!.*:(?:endpoint|bindAddress)=){HOST}:(?P<port>[0-9]{{1,5}})(?::.*)?", re.DOTALL
)
"""Patterns of a host, in brackets or not, and its port: alone, and before the files for TLS. An
endpoint of Twisted that connects in its own way is left to Twisted."""

USAGE: Final = "host, host:port, [IPv6 address]:port, udp:host:port or a Twisted client endpoint"

ECHO: Final = 7
"""The port of the echo service (RFC 862). Not every machine has it in services(5)."""

Address = tuple[Any, ...]
"""An address of Python's socket module: host and port, for IPv6 also flow label and scope."""

Addresses = list[tuple[int, Address]]
"""Address families, each with an address."""


@dataclass(frozen=True)
class Target:
    """A parsed TARGET.

    :ivar text: the argument as typed.
    :ivar udp: whether to use UDP.
    :ivar host: the name or IP address, or ``None`` for an endpoint that Twisted connects.
    :ivar port: the port number, or 0 without a ``host``.
    :ivar description: of the Twisted endpoint, also if only TLS is taken from it.
    """

    text: str
    udp: bool = False
    host: str | None = None
    port: int = 0
    description: str = ""

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        """Return the Twisted endpoint, for a target without a ``host`` or with a description.

        :raises BadTarget: if there is no such endpoint.
        """
        return endpoint_of(reactor, self.text, self.description or self.text)

    @property
    def name(self) -> str:
        """The target for headings: without arguments such as the files for TLS."""
        return short_name(self.text) if self.description or self.host is None else self.text


def parse_target(text: str, port: str = "") -> Target:
    """Parse TARGET. A Twisted endpoint is checked later, by :meth:`Target.endpoint`.

    :param port: the number after a TARGET without a port, as in ``telnet host 7``.
    :raises BadTarget: if ``text`` is neither a host nor like an endpoint.
    """
    typed = f"{text} {port}" if port else text
    kind, place = split_kind(text)
    if kind in ("unix", "tls", "ssl"):
        place = f"{place}:{port}" if port else place
        tls = TLS_PLACE.fullmatch(place) if kind == "tls" else None
        host, number = (tls["six"] or tls["host"], int(tls["port"])) if tls else (None, 0)
        if kind != "unix":
            place = re.sub(r"\[([^\[\]]*)\]", lambda found: found[1].replace(":", r"\:"), place)
        return Target(typed, False, host, number, f"{kind}:{place}")
    found = PLACE.fullmatch(in_brackets(text, place))
    if found and text.isprintable() and not place.isdecimal():
        if port and found["port"]:
            raise BadTarget(f"TARGET {text!r} has a port: leave out {port!r}")
        number = port_number(typed, found["port"] or port or "echo")
        if found["six"] and ":" in found["six"]:
            check_address(text, found["six"])
        if number:
            return Target(typed, kind == "udp", found["six"] or found["host"], number)
        if kind:
            raise BadTarget(f"TARGET {text!r}: {found['port']!r} is neither a port nor a service")
    is_endpoint = "://" not in text and re.match(r"[A-Za-z][A-Za-z0-9]*:.", text)
    if port or kind == "udp" or not is_endpoint:
        raise BadTarget(f"TARGET {typed!r} has to be {USAGE}")
    return Target(text)


def split_kind(text: str) -> tuple[str, str]:
    """Return ``tcp``, ``udp`` or the type of an endpoint, and what follows it.

    The type is ``""`` where ``text`` begins with a host.

    :raises BadTarget: for the URL of another service.
    """
    kind, _, place = text.partition(":")
    kind = kind.lower()
    if place.startswith("//"):
        if kind not in (*USAGES, "udp"):
            raise BadTarget(f"TARGET {text!r}: use tcp://, udp:// or tls://")
        return kind, place[2:] if kind == "unix" else place[2:].removesuffix("/")
    if place.startswith("/") and kind in ("tcp", "udp", "tls", "ssl"):
        right = on_one_line(f"{kind}:/{place}")
        raise BadTarget(f"TARGET {text!r}: type {right}, with two slashes")
    is_port = place.isdecimal()  # of a host that is called tcp, or udp
    return ("", text) if is_port or kind not in (*USAGES, "udp") else (kind, place)


def in_brackets(text: str, place: str) -> str:
    """Return ``place`` with brackets around an IPv6 address that has none.

    :raises BadTarget: if the last number is perhaps a port.
    """
    address, _, port = place.rpartition(":")
    has_port = port.isdecimal() and ipv6(address)
    one, other = f"[{address}]:{port}", f"[{place}]"
    if not ipv6(place):
        return one if has_port else place
    if has_port:
        kind = text.partition(place)[0]
        right = on_one_line(f"{kind}{one} or {kind}{other}")
        raise BadTarget(f"TARGET {text!r} is ambiguous: type {right}")
    return other


def ipv6(text: str) -> ipaddress.IPv6Address | None:
    """Return the IPv6 address that is ``text``, perhaps with its interface, or ``None``."""
    try:
        return ipaddress.IPv6Address(text)
    except ValueError:
        return None


def port_number(text: str, port: str) -> int:
    """Return the number of a port or of a service (services(5)), or 0 for an unknown service.

    :raises BadTarget: for a number that is not a port.
    """
    if re.match("[0-9]", port):
        check_port(text, port)
        return int(port)
    try:
        return ECHO if port.lower() == "echo" else socket.getservbyname(port)
    except (OSError, ValueError):  # ValueError: not ASCII, or a null character
        return 0


def check_address(text: str, address: str) -> None:
    """Check the IPv6 address of a TARGET.

    :raises BadTarget: for anything else, and for a link-local address without its interface.
    """
    parsed = ipv6(address)
    if parsed is None:
        raise BadTarget(f"TARGET {text!r}: {address!r} is not an IPv6 address")
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
        if family and isinstance(error, OSError) and isinstance(look_up(target, 0), list):
            error.strerror = "no address of the IP version that was asked for: leave out -4, -6, -I"
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
