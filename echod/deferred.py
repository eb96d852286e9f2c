"""Connections without a transport: accepted by echod's own ports, and served by the fast path.

Twisted's transport takes more time and memory than the rest of a short or idle connection, which
never needs it. So a :class:`DeferredConnection` has none. It becomes an ordinary
:class:`~echod.protocol.Echo` with a transport, and stays one, as soon as it needs more than the
fast path and an immediate close: when the kernel does not accept all bytes of a reply, when a
timeout or a drain ends it, or when many bytes are in the kernel's send queue at the end.
"""

from __future__ import annotations

import socket
import typing
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IAddress
from twisted.logger import Logger

from echod.closing import MAX_ORPHANED
from echod.events import Accepted, Closed, Ending, HalfClosed, Refused, notify
from echod.factory import EchoFactory
from echod.fastpath import FastPath
from echod.fastset import UNCHECKED
from echod.protocol import Echo
from echod.socketoptions import set_socket_options
from echod.timeouts import Progress
from echod.transport import kernel_send_queue, reset_socket, with_methods

log = Logger(namespace="echod")


class AcceptingPort(typing.Protocol):
    """The interface of a port that accepts connections without a transport.

    :ivar factory: admits and counts its connections.
    :ivar fast_path: serves its connections.
    :ivar inherits_options: whether sockets inherit their options from the listening socket.
    """

    factory: EchoFactory
    fast_path: FastPath
    inherits_options: bool

    def peer_address(self, client: Any) -> IAddress:
        """Return the address of a peer.

        :param client: as socket.accept() returns it.
        """

    def make_transport(self, sock: socket.socket, protocol: Echo, peer: IAddress) -> Any:
        """Return a transport that reads for ``protocol``."""


def serve(port: AcceptingPort, sock: socket.SocketType, client: Any) -> None:
    """Serve an accepted connection, or refuse it with RST.

    :param client: the peer's address, as socket.accept() returns it.
    """
    factory = port.factory
    try:
        sock.setblocking(False)
        if not port.inherits_options:
            set_socket_options(sock)
        peer = port.peer_address(client)
        reason = factory.refusal_reason(peer)
        if reason is not None:
            reset_socket(sock)
            factory.report(Refused(reason, peer))
            return
        if factory.verbose:
            notify(factory.observer, Accepted(peer))
        connection = DeferredConnection(port, sock, peer, factory.clock.seconds())
    except BaseException:
        with suppress(BaseException):
            log.failure("a connection fails")
        if sock.fileno() != -1:  # it has not been refused
            reset_socket(sock)
        return
    try:
        is_fast = port.fast_path.add(connection, sock)
        factory.connection_opened(connection, peer, tls=False)
        if not is_fast and sock.fileno() != -1:  # the observer has not ended it
            connection.promote()
    except BaseException:
        connection.fail()


class DeferredConnection:
    """One connection without a transport.

    :param port: the port that has accepted it.
    :param sock: its socket, which does not block.
    :param opened: seconds, by the factory's clock.
    :ivar peer: the peer's address.
    """

    __slots__ = ("_echo", "_opened", "_port", "_socket", "peer")

    def __init__(
        self, port: AcceptingPort, sock: socket.SocketType, peer: IAddress, opened: float
    ) -> None:
        self._port = port
        self._socket = sock
        self.peer = peer
        self._opened = opened
        self._echo: Echo | None = None  # the successor

    @property
    def received(self) -> int:
        """Bytes received so far."""
        if self._echo is not None:
            return self._echo.received
        return self._port.fast_path.received(self._socket.fileno())

    @property
    def buffered(self) -> int:
        """Bytes received that the kernel has not accepted for sending."""
        return 0 if self._echo is None else self._echo.buffered

    @property
    def transport(self) -> Any:
        """A transport, which the connection has from now on."""
        return self.promote().transport

    def promote(self) -> Echo:
        """Give the connection a transport, and return the :class:`Echo` that serves it.

        The caller calls :meth:`fail` after an exception, such as MemoryError.
        """
        if self._echo is None:
            port = self._port
            echo = port.factory.make_echo()
            self._socket = sock = with_methods(self._socket)
            transport = port.make_transport(sock, echo, self.peer)
            received = port.fast_path.remove(sock.fileno())
            self._echo = echo  # from here on, the transport closes the socket
            echo.adopt(transport, self._opened, received)
            port.factory.registry.replaced(self, echo, port.factory.clock)
        return self._echo

    def send(self, data: bytes) -> None:
        """Send ``data``, buffered until the kernel accepts it."""
        self.promote().send(data)

    def input_ended(self) -> None:
        """Close: the peer has finished sending. The kernel delivers the rest of the reply."""
        received = self.received
        if received > MAX_ORPHANED and kernel_send_queue(self._socket) > MAX_ORPHANED:
            self.promote()  # the transport finds the end of the stream again
            return
        factory = self._port.factory
        if factory.verbose:
            notify(factory.observer, HalfClosed(received, self.peer))
        self._close(Ending.FINISHED if received else Ending.UNUSED)

    def input_failed(self) -> None:
        """End the connection, which the kernel has reported as broken."""
        self._close(Ending.LOST if self.received else Ending.UNUSED)

    def progress(self, *, draining: bool) -> Progress:
        """Return the present state, for :class:`~echod.timeouts.Timeouts`."""
        received = self.received
        queued = kernel_send_queue(self._socket) if received > UNCHECKED else 0
        waits = queued > draining * MAX_ORPHANED
        return Progress(waits, received - queued if waits else received, False, 0.0)

    def end(self, ending: Ending) -> bool:
        """Reset a stalled connection, or close an idle or drained one without unread input.

        :return: ``True``: if the connection does not end, its successor is watched instead.
        """
        self.promote().end(ending)
        return True

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""
        with suppress(BaseException):
            log.failure("a connection fails")
        self.cut_short()

    def abort(self) -> None:
        """Reset the connection."""
        self.cut_short()

    def cut_short(self) -> None:
        """Reset the connection now."""
        if self._echo is None:
            self._close(Ending.ABORTED, reset_socket)
            return
        try:
            self._echo.cut_short()
        finally:  # still counted, if promote() has failed
            self._report(Ending.ABORTED, self._echo.received)

    def forget(self) -> None:
        """Stop counting the connection, or its successor."""
        self._port.factory.connection_closed(self._echo or self, None)

    def _close(
        self, ending: Ending, close: Callable[[socket.SocketType], None] = socket.SocketType.close
    ) -> None:
        port, sock = self._port, self._socket
        # The observer of HalfClosed may have given it a transport, or have ended it.
        if self._echo is not None or sock.fileno() == -1:
            return
        received = port.fast_path.remove(sock.fileno())
        close(sock)
        self._report(ending, received)

    def _report(self, ending: Ending, received: int) -> None:
        """Stop counting the connection, and notify the observer unless its successor has."""
        factory = self._port.factory
        closed = None
        try:
            seconds = factory.clock.seconds() - self._opened
            closed = Closed(ending, received, seconds, 0, self.peer)
        finally:
            factory.connection_closed(self, closed)
