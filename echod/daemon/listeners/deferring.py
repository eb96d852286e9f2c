"""Accept the connections of Twisted's TCP and UNIX ports for the fast path, without a transport."""

from __future__ import annotations

import socket
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress
from twisted.internet.tcp import Port

from echod.daemon.listeners.accepting import ListeningSocket
from echod.deferred import serve
from echod.factory import EchoFactory
from echod.fastpath import FastPath
from echod.protocol import Echo
from echod.socketoptions import set_socket_options

BATCH: Final = 32
"""The maximum number of connections that are accepted at once: less than half a millisecond."""


def accept_deferred(port: Port, sock: ListeningSocket) -> None:
    """Let the fast path accept the connections of ``port``, if it serves plain echo.

    It does not with TLS or PROXY headers, with a protocol of an application, or without a fast
    path: then Twisted accepts.
    """
    factory: Any = port.factory
    if isinstance(factory, EchoFactory) and factory.protocol is Echo:
        factory.use_reactor(port.reactor)
        fast_path = factory.fast_path()
        if fast_path is not None:
            Acceptor(port, sock, factory, fast_path)


class Acceptor:
    """Takes over accepting from a port of Twisted's: replaces its doRead and how it is paused.

    :param port: a listening port, which closes its socket itself.
    :param sock: the socket of ``port``.
    :param factory: the factory of ``port``.
    :param fast_path: calls :meth:`doRead`, and serves the connections.

    :ivar inherits_options: whether accepted sockets inherit the options of the listening socket.
        TCP sockets do, except those that were in the backlog before it had them.
    """

    inherits_options = False

    def __init__(
        self, port: Any, sock: ListeningSocket, factory: EchoFactory, fast_path: FastPath
    ) -> None:
        self.factory = factory
        self.fast_path = fast_path
        self.fileno = port.fileno
        self.connectionLost = port.connectionLost
        self._port = port
        self._accept = sock.accept_basic
        self._resume, self._pause = port.startReading, port.stopReading
        self._pause()
        set_socket_options(sock)
        port.startReading, port.stopReading, port.doRead = self.resume, self.pause, self.doRead
        self.resume()

    def resume(self) -> None:
        """Accept connections."""
        if not self.fast_path.listen(self):
            self._resume()  # the reactor calls doRead

    def pause(self) -> None:
        """Leave connections in the backlog."""
        self.fast_path.stop_listening(self)
        self._pause()

    def doRead(self) -> None:
        """Accept connections, up to :data:`BATCH`."""
        for _ in range(BATCH):
            if self._port.disconnecting:  # an observer has stopped it
                return
            try:
                sock, client = self._accept()
            except BlockingIOError as blocked:
                # Without another error as the cause, the backlog is empty.
                if blocked.__cause__ is None:
                    self.inherits_options = self._port.addressFamily != socket.AF_UNIX
                return
            serve(self, sock, client)

    def peer_address(self, client: Any) -> IAddress:
        """Return the address of a peer, as Twisted does."""
        if not isinstance(client, tuple):
            return UNIXAddress(client or None)  # most have no name
        if len(client) == 2:
            return IPv4Address("TCP", *client)
        host, port, flow, scope = client
        if scope:  # the zone of a link-local address (RFC 4007)
            host, _ = socket.getnameinfo(client, socket.NI_NUMERICHOST | socket.NI_NUMERICSERV)
        return IPv6Address("TCP", host, port, flow, scope)

    def make_transport(self, sock: socket.socket, protocol: Echo, peer: Any) -> Any:
        """Return a transport that reads for ``protocol``, made as by Twisted's port."""
        port = self._port
        port.sessionno += 1
        return port.transport(sock, protocol, client_of(peer), port, port.sessionno, port.reactor)


def client_of(peer: Any) -> Any:
    """Return the socket address of ``peer``, from which Twisted's transport makes it again."""
    if isinstance(peer, IPv4Address):
        return peer.host, peer.port
    if isinstance(peer, IPv6Address):
        return peer.host, peer.port, peer.flowInfo, peer.scopeID
    return peer.name
