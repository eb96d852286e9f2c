"""Socket options of echod's connections and listeners.

Each is set before the first byte is read: on the accepted socket, or on the listening socket, from
which it is inherited.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Final, cast

from twisted.internet import unix
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import ITCPTransport, ITransport
from twisted.internet.tcp import Connection

from echod.transport import IStreamTransport, beneath

SO_PASSRIGHTS: Final = 83
"""A socket option of Linux 6.16 (asm-generic/socket.h) that Python's socket module lacks."""

UNIX: Final = (unix.Server, unix.Client)
"""UNIX transports subclass TCP's, but are not TCP."""


def set_options(transport: IStreamTransport) -> None:
    """Set the options of a socket, before its first byte is read.

    All sockets: receive urgent data in order. TCP: send small replies at once (TCP_NODELAY), and
    detect a peer that vanished (SO_KEEPALIVE). UNIX: refuse file descriptors, also on the
    listening socket. Later connections inherit the option from it, and have it before accept(2).
    """
    if isinstance(transport, Connection) and not isinstance(transport, UNIX):
        # Most connections: the methods of the transport take longer than the system calls.
        set_tcp_options(transport.socket)
        return
    receive_urgent_inline(transport)
    if isinstance(transport, Connection):
        refuse_descriptors(transport)
        refuse_descriptors(getattr(transport, "server", None))
    elif ITCPTransport.providedBy(transport) and isinstance(
        transport.getHost(), IPv4Address | IPv6Address
    ):
        # Not by the peer's address, which may be of another family behind a proxy.
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)


def set_socket_options(sock: socket.SocketType) -> None:
    """Set the same options on a socket without a transport, or on a listening socket.

    Accepted TCP sockets inherit all of them from the listening socket, and UNIX sockets only the
    refusal of file descriptors.
    """
    if sock.family == socket.AF_UNIX:
        receive_urgent_inline(sock)
        refuse_descriptors(sock)
    else:
        set_tcp_options(sock)


def set_tcp_options(sock: socket.SocketType) -> None:
    """Set the options of a TCP socket."""
    set_option = sock.setsockopt
    set_option(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    set_option(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    set_option(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def receive_urgent_inline(descriptor: object) -> None:
    """Receive urgent data in order, as any other byte (SO_OOBINLINE in socket(7)).

    Without it, the kernel takes the last byte sent with MSG_OOB out of the stream, over TCP (RFC
    6093) and over UNIX sockets: the echo is a byte short, and ends as if it were complete. The
    option also applies to bytes that have arrived before, except that TCP drops an unread urgent
    byte when another arrives. So it is set on TCP listeners, too, and accepted sockets inherit it.

    :param descriptor: a transport, or a listening port.
    """
    sock = _socket_of(descriptor)
    if sock is not None:
        with suppress(OSError):  # not every kind of socket has it on every kernel
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)


def refuse_descriptors(descriptor: object) -> bool:
    """Have the kernel refuse file descriptors sent over a UNIX socket (SCM_RIGHTS in unix(7)).

    A received descriptor has to be closed, and close(2) can block: a TCP socket with SO_LINGER and
    a full send queue stops the process for its linger time. With a plain recv(2), the kernel closes
    it, in the same thread. With SO_PASSRIGHTS off, sendmsg(2) fails with EPERM at the sender.
    Accepted sockets inherit it from the listener.

    :param descriptor: a socket, a transport, or a listening port.
    :return: whether no descriptor can arrive: ``False`` for a UNIX socket on Linux before 6.16.
    """
    sock = _socket_of(descriptor)
    if sock is None or sock.family != socket.AF_UNIX:
        return True
    with suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
        return True
    return False


def _socket_of(descriptor: object) -> socket.SocketType | None:
    if isinstance(descriptor, socket.SocketType):
        return descriptor
    sock = getattr(beneath(cast(ITransport, descriptor)), "socket", None)
    return sock if isinstance(sock, socket.socket) else None
