"""The origin of a datagram: its source address, and the address that it was sent to.

A reply comes from the address that the datagram was sent to. A socket that is bound to the address
of one host needs nothing for that. On others, ancillary data has the address.
"""

from __future__ import annotations

import functools
import socket
import struct
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from echod.udprules import Sender, sender_of, source_of

IP_PKTINFO: Final = 8
"""The socket option and type of ancillary data (ip(7)), for which Python has no name."""

IPV4_INFO: Final = (socket.IPPROTO_IP, IP_PKTINFO)
IPV6_INFO: Final = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
IN_PKTINFO: Final = struct.Struct("4s4s4s")
"""in_pktinfo in ip(7): interface index, local address, destination address."""
IN6_PKTINFO: Final = struct.Struct("16s4s")
"""in6_pktinfo in RFC 3542 6.1: destination address, interface index."""
ANY: Final = bytes(4)
"""No interface, and no IPv4 address."""

SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
"""sockaddr_in in ip(7), after the family: port, address."""
SOCKADDR_IN6: Final = struct.Struct("!2xHI16s4s")
"""sockaddr_in6 in ipv6(7), after the family: port, flow, address, scope."""

CMSGHDR: Final = struct.Struct("Nii")
"""cmsghdr in cmsg(3): length including this header, level, type."""

NAME_SPACE: Final = 32
"""Bytes for a socket address."""

ANCILLARY_SPACE: Final = 256
"""Bytes for ancillary data: the packet information, and options that were enabled on the socket
before, as systemd does for Timestamping=."""

REPLY_SPACE: Final = socket.CMSG_SPACE(IN6_PKTINFO.size)
"""Bytes for the ancillary data of a reply. Over IPv4 it is shorter, and zeros follow."""

MAX_ORIGINS: Final = 2048
"""Origins that are parsed only once: the most recent ones. Each takes about 1 KiB."""

Ancillary = list[tuple[int, int, bytes]]
"""Level, type and data of each item, as in :meth:`socket.socket.recvmsg`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a datagram came from, and where its reply comes from.

    :ivar sender: the source, as the rules see it.
    :ivar peer: the source's socket address: host, port, and for IPv6 flow and scope.
    :ivar source: the ancillary data that sets the reply's source address, in the form that the
        socket takes. ``None``: many hosts got the datagram (:func:`reply_source`).
    """

    sender: Sender
    peer: Any
    source: Any


def ancillary_space(sock: socket.socket) -> int:
    """Return how many bytes of ancillary data a bound socket needs to reply.

    :return: 0 if the socket is bound to the address of one host. The kernel delivers no multicast
        or broadcast datagram to it, and sends from that address.
    """
    name = sock.getsockname()
    if source_of(name[0])[1] is None:
        # Only the kernel knows all broadcast addresses: without SO_BROADCAST, it refuses to connect
        # to one (socket(7)).
        with suppress(OSError), socket.socket(sock.family, socket.SOCK_DGRAM) as other:
            other.connect(name)
            return 0
    return ANCILLARY_SPACE


@functools.lru_cache(MAX_ORIGINS)
def origin_of(row: bytes) -> Origin:
    """Return the origin of a datagram that a :class:`BatchExchange` has received."""
    family = int.from_bytes(row[:2], sys.byteorder)
    if family == socket.AF_INET:
        port, address = SOCKADDR_IN.unpack_from(row)
        host = socket.inet_ntop(family, address)
        peer: tuple[Any, ...] = host, port
    else:
        port, flow, address, scope = SOCKADDR_IN6.unpack_from(row)
        host = socket.inet_ntop(family, address)
        peer = host, port, flow, int.from_bytes(scope, sys.byteorder)
    source = reply_source(parse_ancillary(row[NAME_SPACE:]))
    # Without an item, zeros: the kernel refuses to send them, and no other reply moves to this row.
    control = None if source is None else bytes(REPLY_SPACE if len(row) > NAME_SPACE else 0)
    for level, kind, data in source or ():
        header = CMSGHDR.pack(socket.CMSG_LEN(len(data)), level, kind)
        control = (header + data).ljust(REPLY_SPACE, b"\0")
    return Origin(sender_of(host, port), peer, control)


def parse_ancillary(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the items of ancillary data that zeros follow (cmsg(3))."""
    at = 0
    while at + CMSGHDR.size <= len(control):
        length, level, kind = CMSGHDR.unpack_from(control, at)
        if length < CMSGHDR.size:
            return
        yield level, kind, control[at + CMSGHDR.size : at + length]
        at += socket.CMSG_SPACE(length - CMSGHDR.size)


def reply_source(ancillary: Iterable[tuple[int, int, bytes]]) -> Ancillary | None:
    """Return the ancillary data that sets the reply's source address.

    :param ancillary: the datagram's own: IP_PKTINFO or IPV6_PKTINFO, or both for an IPv4 datagram
        on an IPv6 socket; nothing on a socket that is bound to one host's address.
    :return: ``None`` for a multicast or broadcast datagram, to which every host that got it would
        reply (RFC 1122 3.2.2).
    """
    found = {(level, kind): data for level, kind, data in ancillary}
    data = found.get(IPV4_INFO)
    if data is not None:
        _, local, destination = IN_PKTINFO.unpack(data)
        # No local address: the datagram arrived before IP_PKTINFO was set, as on a socket from
        # systemd. If it was broadcast, the kernel refuses to send the reply from its destination.
        if local not in (destination, ANY):
            return None
        # No interface: the routing table chooses it.
        return [(*IPV4_INFO, IN_PKTINFO.pack(ANY, destination, ANY))]
    data = found.get(IPV6_INFO)
    if data is None:
        return []
    destination, interface = IN6_PKTINFO.unpack(data)
    if destination[0] == 0xFF:
        return None
    link_local = destination[:2] == b"\xfe\x80"  # valid on one interface only
    return [(*IPV6_INFO, IN6_PKTINFO.pack(destination, interface if link_local else ANY))]
