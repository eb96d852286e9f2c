"""Functions that Twisted's transports lack: bytes not sent, bytes not read, an immediate reset.

A transport reports only that its buffer is full, or empty again: not whether a slow peer still
reads, or whether closing makes the kernel reset the connection. These functions ask the transport
below any wrapper (TLS). Without a kernel socket (a test double), they find no bytes.

The core uses this private or undocumented state of Twisted's, here and in the files that are named:

- ``FileDescriptor.dataBuffer``, ``offset`` and ``_tempDataLen``: the bytes not sent.
- ``FileDescriptor.connectionLost``: end a connection now, not in the reactor's next turn.
- ``Connection.socket`` and ``Connection.TLS``: the plain socket, and whether it is encrypted.
- ``Server.server``: the listening port of an accepted UNIX connection, in ``socketoptions.py``.
- ``ReactorBase.timeout``: the seconds until the reactor's next timer, in ``linger.py``.

The daemon uses that of Twisted's ports: ``Port.socket`` in ``accepting.py`` (and Python's
``socket._accept``), ``doRead``, ``transport`` and ``sessionno`` in ``deferring.py``,
``_shouldShutdown`` and ``numberAccepts`` in ``unix.py``, ``tcp._reservedFD`` in ``chroot.py``. The
client takes TLS from ``_WrapperEndpoint._wrapperFactory``, in ``client/connector.py``. ``peer.py``
uses ``ReactorBase._registerAsIOThread``, ``ReactorBase._internalReaders`` and ``tcp._reservedFD``.
"""

from __future__ import annotations

import fcntl
import functools
import select
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, TypeVar, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionLost
from twisted.internet.interfaces import (
    IConsumer,
    IPushProducer,
    IReactorTime,
    ISystemHandle,
    ITCPTransport,
    ITransport,
)
from twisted.internet.tcp import Connection
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure

RESET: Final = struct.pack("ii", 1, 0)
"""The value of SO_LINGER that makes close(2) send RST."""

Method = TypeVar("Method", bound=Callable[..., None])
log = Logger(namespace="echod")


class IStreamTransport(ITCPTransport, IConsumer, IPushProducer):
    """The interface of a connection's transport, for the type checker."""

    reactor: IReactorTime


def beneath(transport: ITransport) -> ITransport:
    """Return the transport that carries ``transport``: below TLS and other wrappers, or itself."""
    while isinstance(transport, ProtocolWrapper):
        transport = cast(ITransport, transport.transport)
    return transport


def encrypted(transport: ITransport) -> bool:
    """Return whether ``transport`` is TLS, echod's or Twisted's own."""
    if isinstance(transport, Connection):
        return bool(transport.TLS)
    return hasattr(transport, "getPeerCertificate")  # not every class declares ISSLTransport


def half_closes(transport: ITransport) -> bool:
    """Return whether ``transport`` supports half-close: Twisted's sockets and echod's TLS do."""
    return isinstance(transport, FileDescriptor) or hasattr(transport, "finish")


def kernel_socket(transport: ITransport) -> socket.socket | None:
    """Return the socket of ``transport`` if the bytes on it are those of the application.

    ``None`` for TLS, wrappers, platforms without epoll, and transports in memory.
    """
    if isinstance(transport, Connection) and not transport.TLS and hasattr(select, "epoll"):
        sock = transport.socket
        if type(sock) is socket.socket:
            return sock
    return None


def send_now(sock: socket.socket, data: bytes) -> int:
    """Send as much of ``data`` as the kernel accepts now, and return the number of bytes.

    After an error, return 0: the transport gets the error again, and handles it.
    """
    try:
        return sock.send(data)
    except OSError:
        return 0


def unsent(transport: ITransport) -> int:
    """Return the bytes that ``transport`` has buffered and not yet passed to the kernel.

    Below TLS these are encrypted, and slightly more than the plaintext; see :func:`buffered`.
    """
    if not isinstance(transport, FileDescriptor):
        transport = beneath(transport)
        if not isinstance(transport, FileDescriptor):
            return 0
    return len(transport.dataBuffer) - transport.offset + transport._tempDataLen


def buffered(transport: ITransport) -> int:
    """Return the unsent bytes of ``transport``, over echod's TLS those before encryption."""
    count: int | None = getattr(transport, "unsent_plaintext", None)
    return unsent(transport) if count is None else count


def kernel_send_queue(transport: ITransport | socket.SocketType) -> int:
    """Return the size of the kernel's send queue: SIOCOUTQ in tcp(7) and unix(7).

    For TCP, the bytes that the peer has not acknowledged, a FIN included; for UNIX sockets, the
    memory of the bytes that the peer has not read. Either shrinks as the peer reads.
    """
    handle = _handle(transport)
    if not isinstance(handle, socket.SocketType):
        return getattr(handle, "kernel_send_queue", 0)
    with suppress(OSError):  # not every kernel supports it for every kind of socket
        return int(struct.unpack("i", fcntl.ioctl(handle, termios.TIOCOUTQ, bytes(4)))[0])
    return 0


def is_broken(transport: ITransport) -> bool:
    """Return whether the connection was reset or timed out since the last call.

    Use it for a transport that is neither read nor written (SO_ERROR in socket(7)).
    """
    handle = _handle(transport)
    return handle is not None and handle.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0


def send_fin(transport: Any) -> None:
    """Send FIN after the unsent bytes, and go on reading; if there are none, at once.

    Twisted always does it in a later turn. If FIN from the peer ends the connection in the same
    turn, before that, Twisted writes to a socket that is closed, and logs the error.
    """
    if not isinstance(transport, FileDescriptor) or unsent(transport):
        transport.loseWriteConnection()
    else:
        with suppress(OSError):  # the connection is broken, which the next receive finds
            _handle(transport).shutdown(socket.SHUT_WR)  # type: ignore[union-attr]


def is_gone(transport: ITransport) -> bool:
    """Return whether the connection was reset, or both its directions are closed.

    Use it for a transport that is not read. It reads no error from the socket. A UNIX peer that
    closes its socket causes no other error, and a UNIX socket has no keep-alive probes.
    """
    handle = _handle(transport)
    if not isinstance(handle, socket.SocketType):
        return handle is not None and is_broken(transport)
    poll = select.poll()
    poll.register(handle, 0)  # POLLERR and POLLHUP are always reported (poll(2))
    return bool(poll.poll(0))


def has_unread_input(transport: ITransport | socket.socket) -> bool:
    """Return whether bytes have arrived that Twisted has not read yet.

    Closing such a socket resets the connection, which can destroy bytes in flight (RFC 2525 2.17).

    :raises OSError: if the connection is broken. The kernel reports that once (socket(7)).
    """
    if getattr(transport, "has_undecrypted_input", False):
        return True
    handle = _handle(transport)
    if handle is None:
        return False
    try:
        return bool(handle.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return False


def reset(transport: ITransport) -> None:
    """Reset the connection, at once where that is possible."""
    if isinstance(transport, FileDescriptor):
        # As abortConnection, but now: the next accept(2) may need the descriptor.
        transport.connectionLost(Failure(ConnectionAborted()))
    else:
        cast(IStreamTransport, transport).abortConnection()


def cut_off(transport: ITransport) -> None:
    """Close the socket of ``transport`` with RST (SO_LINGER of 0 seconds in socket(7)).

    Use it if the transport's connectionLost fails, or is about to close the socket with FIN.
    """
    below = beneath(transport)
    handle = _handle(below)
    if handle is not None and isinstance(below, FileDescriptor):
        below.stopReading()
        below.stopWriting()
        reset_socket(handle)


def reset_socket(sock: socket.SocketType) -> None:
    """Close a socket with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    sock.close()


def with_methods(sock: socket.SocketType) -> socket.socket:
    """Return ``sock``, whose class is the one in C, as an object of its subclass in Python.

    Transports give applications the subclass, which has more methods. An object of the class in C
    is made and closed 0.4 µs faster, and takes 56 bytes less.
    """
    whole = socket.socket(sock.family, sock.type, 0, sock.fileno())
    sock.detach()
    return whole


def lose(transport: ITransport) -> None:
    """End a broken connection, as the reactor does when its transport gets the error."""
    below: Any = beneath(transport)
    below.connectionLost(Failure(ConnectionLost()))


def fail(transport: ITransport) -> None:
    """Log the exception that is being handled, and reset the connection that it was raised for.

    The reactor itself would close with FIN, and the peer would mistake a part of its reply for the
    whole. If memory is short, the log line may fail, but not the reset.
    """
    with suppress(BaseException):
        log.failure("a connection fails")
    below = beneath(transport)
    try:
        reset(below)
    except BaseException:
        cut_off(below)
        raise


def resets_on_error(method: Method) -> Method:
    """Decorate a protocol's ``method`` so that an exception resets its connection: :func:`fail`."""

    @functools.wraps(method)
    def call(self: Any, *args: Any) -> None:
        try:
            method(self, *args)
        except BaseException:
            fail(self.transport)

    return cast(Method, call)


def _handle(transport: ITransport | socket.SocketType) -> socket.SocketType | None:
    if isinstance(transport, socket.SocketType):
        return transport
    transport = beneath(transport)
    if isinstance(transport, FileDescriptor) and ISystemHandle.providedBy(transport):
        return cast(socket.socket, transport.getHandle())
    return None
