"""IP addresses to listen on: validate them as typed, and detect conflicts."""

from __future__ import annotations

import ipaddress
import socket

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress

LOOPBACK = ("127.0.0.1", "::1")
WILDCARDS = ("0.0.0.0", "::")
BROADCAST = "255.255.255.255"


def check_interface(text: str) -> str:
    """Return ``text``, an IP address that bind(2) accepts.

    :raises ValueError: for any other text; the message says which addresses are allowed.
    """
    try:
        address = ipaddress.ip_address(text)
        if address.is_multicast or text == BROADCAST:
            raise ValueError
    except ValueError:
        raise ValueError(f"takes an IPv4 or IPv6 address of this machine, not {text!r}") from None
    zone = getattr(address, "scope_id", None)
    if zone is None:
        if address.version == 6 and address.is_link_local:
            raise ValueError(
                f"takes a link-local address with its link, as in {text}%eth0, not {text!r}"
            )
    elif not address.is_link_local:
        raise ValueError(f"takes a link after link-local addresses only, not {text!r}")
    elif not is_link(zone):
        raise ValueError(
            f"takes a link of this machine after the % (ip link lists them), not {zone!r}"
        )
    return text


def is_link(zone: str) -> bool:
    """Return whether this machine has a link with that name or number."""
    try:
        if zone.isdecimal():
            socket.if_indextoname(int(zone))
        else:
            socket.if_nametoindex(zone)
    except (OSError, OverflowError, ValueError):  # int() takes at most 4300 digits
        return False
    return True


def is_loopback(host: str) -> bool:
    """Return whether an IP address is a loopback address of IPv4, also IPv4-mapped, or of IPv6."""
    ip = ipaddress.ip_address(host)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def overlap(one: IAddress, other: IAddress) -> bool:
    """Return whether two sockets cannot listen on these addresses at the same time."""
    ip = IPv4Address | IPv6Address
    if not isinstance(one, ip) or not isinstance(other, ip):
        return one == other
    if (one.type, one.port) != (other.type, other.port):
        return False
    if one.host == other.host or "::" in (one.host, other.host):  # :: takes IPv4 too (ipv6(7))
        return True
    return type(one) is type(other) and not {one.host, other.host}.isdisjoint(WILDCARDS)
