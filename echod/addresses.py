"""Addresses as text, and the network that counts as one peer: an IPv4 address or IPv6 /64."""

from __future__ import annotations

import ipaddress
import os
from typing import Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress

LONGEST_PATH: Final = 107
"""Maximum bytes of a UNIX socket's path: ``sun_path`` has 108, with the null byte (unix(7))."""

MAPPED: Final = "::ffff:"
"""The start of an IPv4-mapped IPv6 address, as the kernel writes it (RFC 4291 2.5.5.2)."""


def name_of(address: IAddress | None, *, tls: bool = False) -> str:
    """Return ``address`` in its usual notation, in printable ASCII on one line.

    :param tls: whether the connection is encrypted: «tls» replaces «tcp».
    """
    protocol = "tls" if tls else getattr(address, "type", "").lower()
    if isinstance(address, IPv4Address):
        name = f"{protocol} {address.host}:{address.port}"
    elif isinstance(address, IPv6Address):
        host = address.host
        # An IPv4 client of a dual-stack listener is named and counted by its IPv4 address.
        mapped = host.startswith(MAPPED) and "." in host
        host = host.removeprefix(MAPPED) if mapped else f"[{host}]"
        name = f"{protocol} {host}:{address.port}"
    elif isinstance(address, UNIXAddress):
        path = address.name or b"(unnamed)"
        # The abstract namespace (unix(7)), in the notation of ss(8) and systemd.
        name = "unix " + os.fsdecode(b"@" + path[1:] if path.startswith(b"\0") else path)
    else:
        name = repr(address)
    return on_one_line(name)


def on_one_line(text: str) -> str:
    """Return ``text`` with all but printable ASCII escaped: no line breaks, no terminal codes."""
    return text if text.isascii() and text.isprintable() else ascii(text)[1:-1]


def peer_key(peer: IAddress | None) -> str | None:
    """Return the network of ``peer``: see :func:`network_of`; ``None`` without an IP address."""
    return network_of(peer.host) if isinstance(peer, IPv4Address | IPv6Address) else None


def network_of(host: str) -> str:
    """Return the network that counts as one peer: the address ``host``, or its IPv6 /64.

    A /64 is the network of one site (RFC 6177).

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
