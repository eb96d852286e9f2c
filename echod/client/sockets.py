"""Sockets to the service: make them, and set the socket options of the command line."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import Final

from echod.client.target import Address

# The socket module has no names for IP_MTU_DISCOVER in ip(7), IPV6_MTU_DISCOVER in ipv6(7).
IP_OPTIONS: Final[dict[int, tuple[int, ...]]] = {
    socket.AF_INET: (socket.IPPROTO_IP, socket.IP_TOS, socket.IP_TTL, 10),
    socket.AF_INET6: (socket.IPPROTO_IPV6, socket.IPV6_TCLASS, socket.IPV6_UNICAST_HOPS, 23),
}
"""By family: the level of the options, and those for type of service, hops and MTU discovery."""

PMTUDISC_DO: Final = 2

SO_RCVBUFFORCE: Final = 33
"""A socket option of Linux (socket(7)) that Python's socket module lacks."""

RECEIVE_BUFFER: Final = 64 * 1024 * 1024
"""Bytes of SO_RCVBUF to ask for: more than 100,000 small datagrams. The kernel uses memory only for
those that wait."""


@dataclass(frozen=True)
class SocketOptions:
    """The options of the command line that apply to each TCP and UDP socket.

    :ivar family: AF_INET or AF_INET6: use only addresses of this family. Set it if ``source`` is
        set.
    :ivar source: the local IP address, as text; ``""``: the kernel chooses it.
    :ivar interface: the interface to send and receive on (SO_BINDTODEVICE in socket(7)).
    :ivar tos: the byte of DSCP and ECN (RFC 2474): IP_TOS in ip(7), IPV6_TCLASS.
    :ivar ttl: the maximum number of hops.
    :ivar dont_fragment: set the Don't Fragment bit of datagrams (IP_MTU_DISCOVER in ip(7)).
    :ivar kernel_clock: take times from the kernel's time stamps (SO_TIMESTAMPNS in socket(7)).
    """

    family: int = socket.AF_UNSPEC
    source: str = ""
    interface: str = ""
    tos: int | None = None
    ttl: int | None = None
    dont_fragment: bool = False
    kernel_clock: bool = True

    def open(self, family: int, kind: int, address: Address | None = None) -> socket.socket:
        """Return a non-blocking socket that has these options.

        :param family: AF_INET or AF_INET6.
        :param kind: SOCK_STREAM or SOCK_DGRAM.
        :param address: connect a UDP socket to it. The receive buffer is then as large as the
            kernel allows: after a freeze of the service, all replies of that time come at once.
        :raises OSError: if the kernel refuses an option, as with an address that is not on this
            machine, or there is no route.
        """
        sock = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        try:
            level, *options = IP_OPTIONS[family]
            values = (self.tos, self.ttl, PMTUDISC_DO if self.dont_fragment else None)
            for option, value in zip(options, values, strict=True):
                if value is not None:
                    sock.setsockopt(level, option, value)
            if self.interface:
                name = os.fsencode(self.interface)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
            if self.source:
                found = socket.getaddrinfo(self.source, 0, family, kind, 0, socket.AI_NUMERICHOST)
                sock.bind(found[0][4])
            if address is not None:
                try:  # above net.core.rmem_max, which needs CAP_NET_ADMIN
                    sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
                except PermissionError:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
                sock.connect(address)
        except OSError:
            sock.close()
            raise
        return sock


DEFAULTS: Final = SocketOptions()
