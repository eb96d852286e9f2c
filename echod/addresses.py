"""What counts as one peer: an IPv4 address, or an IPv6 /64, the network of one site (RFC 6177)."""

from __future__ import annotations

import ipaddress

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress


def peer_key(peer: IAddress | None) -> str | None:
    """Return the network of ``peer``: see :func:`network_of`; ``None`` without an IP address."""
    return network_of(peer.host) if isinstance(peer, IPv4Address | IPv6Address) else None


def network_of(host: str) -> str:
    """Return what counts as one peer for the IP address ``host``: itself, or its IPv6 /64.

    An IPv4 address that reached a dual-stack socket (RFC 4291 2.5.5.2) is returned as IPv4.
    """
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:  # stated by a proxy, and not checked by the kernel
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))
