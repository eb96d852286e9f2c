"""What Twisted and the kernel hold of a connection, where they can be asked.

A transport's interface tells when its buffer is full and when it is empty again,
and nothing between: too little to know whether a slow peer still reads, or
whether a connection can be closed without the kernel making it a reset. Both are
known one level below. Where a transport wraps another (TLS), these answer for the lowest;
where that is not a kernel socket of Twisted's (a test double), as if nothing were held.
"""

from __future__ import annotations

import fcntl
import socket
import struct
import termios
from typing import Final, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import ISystemHandle, ITransport
from twisted.internet.tcp import Connection
from twisted.protocols.policies import ProtocolWrapper

RESET: Final = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes close(2) a reset."""

SO_PASSRIGHTS: Final = 83
"""The socket option of Linux 6.16 (asm-generic/socket.h), which Python's socket has no name for."""


def beneath(transport: ITransport) -> ITransport:
    """Return the transport that carries ``transport``: below TLS and other wrappers, or itself."""
    while isinstance(transport, ProtocolWrapper):
        transport = cast(ITransport, transport.transport)
    return transport


def encrypted(transport: ITransport) -> bool:
    """Return whether ``transport`` is TLS, echod's or Twisted's own."""
    if isinstance(transport, Connection):
        return bool(transport.TLS)
    return hasattr(transport, "getPeerCertificate")  # of ISSLTransport, which not all declare


def unsent(transport: ITransport) -> int:
    """Return the bytes that ``transport`` has taken and not yet given to the kernel.

    Below TLS they are encrypted, which makes them some more; see :func:`buffered`.
    """
    if not isinstance(transport, FileDescriptor):
        transport = beneath(transport)
        if not isinstance(transport, FileDescriptor):
            return 0
    # The one use of Twisted's private state: no interface tells this number. The
    # tests of the oldest and the newest Twisted watch over it.
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def buffered(transport: ITransport) -> int:
    """Return the bytes that were written to ``transport`` and not yet given to the kernel.

    What is unsent; but echod's TLS knows how much that was before it was encrypted, when it had
    no record's overhead and was no alert.
    """
    count: int | None = getattr(transport, "buffered", None)
    return unsent(transport) if count is None else count


def kernel_send_queue(transport: ITransport) -> int:
    """Return what the kernel still holds for the peer: SIOCOUTQ in tcp(7) and unix(7).

    For TCP, bytes that the peer's kernel has not acknowledged; for UNIX sockets,
    the memory of what the peer has not read. Either way it changes as the peer reads. Over TCP it
    includes a FIN.
    """
    handle = _handle(transport)
    if not isinstance(handle, socket.socket):
        return getattr(handle, "kernel_send_queue", 0)
    try:
        answer = fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4))
    except OSError:  # not every kernel answers for every socket
        return 0
    return int(struct.unpack("i", answer)[0])


def is_broken(transport: ITransport) -> bool:
    """Return whether the connection was reset, or has timed out, since this was last asked.

    For a transport that is neither read nor written, which would show it (SO_ERROR in socket(7)).
    """
    handle = _handle(transport)
    return handle is not None and handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def has_unread_input(transport: ITransport) -> bool:
    """Tell whether bytes have arrived that Twisted has not read yet.

    To close such a socket is to reset it, and a reset can destroy what is still on
    its way to the peer (RFC 2525 2.17).

    :raises OSError: where the connection is broken. A socket tells that once (SO_ERROR in
        socket(7)): who asks next sees the end of the peer's sending.
    """
    if getattr(transport, "held", False):  # read, but not decrypted yet
        return True
    handle = _handle(transport)
    if handle is None:
        return False
    try:
        return bool(handle.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def cut_off(transport: ITransport) -> None:
    """Close the socket of ``transport`` with RST (SO_LINGER of 0 seconds in socket(7)).

    For a transport whose own connectionLost fails, or is about to close the socket with FIN.
    """
    below = beneath(transport)
    handle = _handle(below)
    if handle is not None and isinstance(below, FileDescriptor):
        below.stopReading()
        below.stopWriting()
        handle.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        handle.close()


def receive_urgent_inline(descriptor: object) -> None:
    """Receive urgent data in order, as any other byte (SO_OOBINLINE in socket(7)).

    Without it the kernel keeps the last byte of what was sent with MSG_OOB out of the stream, over
    TCP (RFC 6093) and over UNIX sockets: the echo is a byte short, and ends as if whole. The
    kernel looks at the option when the socket is read, so it counts for bytes that have arrived.
    One case is decided on arrival: TCP drops a first urgent byte that is unread when a second
    arrives. For that the option is set on TCP listeners too, and accepted sockets inherit it.

    :param descriptor: a transport, or a listening port.
    """
    sock = getattr(beneath(cast(ITransport, descriptor)), "socket", None)
    if isinstance(sock, socket.socket):
        try:  # each connection comes by here: suppress would take as long as the call
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
        except OSError:  # not every kind of socket has it on every kernel
            return


def refuse_descriptors(descriptor: object) -> bool:
    """Have the kernel refuse file descriptors sent over a UNIX socket (SCM_RIGHTS in unix(7)).

    A descriptor that is received has to be closed, and close(2) can block: a TCP socket with
    SO_LINGER and a full send queue stops the whole process for its linger time. A plain recv(2)
    does not help: the kernel then closes what arrived, in the same thread. With SO_PASSRIGHTS off,
    sendmsg(2) fails with EPERM at the sender. Accepted sockets inherit it from the listener.

    :param descriptor: a socket, a transport, or a listening port.
    :return: whether no descriptor can arrive: ``False`` for a UNIX socket on Linux before 6.16.
    """
    sock = descriptor
    if not isinstance(sock, socket.socket):
        sock = getattr(beneath(cast(ITransport, descriptor)), "socket", None)
    if not isinstance(sock, socket.socket) or sock.family != socket.AF_UNIX:
        return True
    try:
        sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
    except OSError:
        return False
    return True


def _handle(transport: ITransport) -> socket.socket | None:
    transport = beneath(transport)
    if isinstance(transport, FileDescriptor) and ISystemHandle.providedBy(transport):
        return cast(socket.socket, transport.getHandle())
    return None
