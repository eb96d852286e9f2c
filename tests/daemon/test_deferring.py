"""Accept connections for the fast path, in place of a Twisted port."""

from __future__ import annotations

import errno
import socket
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from twisted.internet.address import IPv6Address

from echod import deferred
from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.deferring import accept_deferred
from echod.deferred import DeferredConnection
from echod.events import Opened
from tests.streams.server import EchoServer
from tests.streams.sockets import TCP4Endpoints, TCP6Endpoints, UNIXEndpoints

run = pytest_twisted.ensureDeferred


@run
async def test_stopped_by_an_observer() -> None:
    """A port that an observer stops accepts no connection after that, as a port of Twisted."""
    ends = TCP4Endpoints(deferred=True)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    [port] = ends.ports

    def stop(event: Any) -> None:
        served.events(event)
        if isinstance(event, Opened):
            port.stopListening()

    served.factory.observer = stop
    address = port.socket.getsockname()
    clients = [socket.create_connection(address) for _ in range(2)]
    await served.settled(lambda: not port.connected)
    assert len(served.factory.connections) == 1
    clients[0].sendall(b"?")
    await ends.turn()
    assert clients[0].recv(9) == b"?"
    with pytest.raises(ConnectionResetError):
        clients[1].recv(9)
    for each in clients:
        each.close()
    await served.settled(lambda: not served.factory.connections)


OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_OOBINLINE),
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE),
    (socket.IPPROTO_TCP, socket.TCP_NODELAY),
]


@pytest.mark.parametrize(
    ("make", "options"),
    [(TCP4Endpoints, OPTIONS), (TCP6Endpoints, OPTIONS), (UNIXEndpoints, OPTIONS[:1])],
)
@run
async def test_options(make: Any, options: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets that were in the backlog before it had the options have them, and later ones."""
    ends = make()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    [port] = ends.ports
    set_by_hand = Mock(wraps=deferred.set_socket_options)
    monkeypatch.setattr(deferred, "set_socket_options", set_by_hand)
    clients = [socket.socket(port.addressFamily) for _ in range(4)]
    for each in clients[:2]:
        each.connect(port.socket.getsockname())
    accept_deferred(port, ListeningSocket(port, "", Mock()))
    await served.settled(lambda: len(served.factory.connections) == 2)
    for each in clients[2:]:
        each.connect(port.socket.getsockname())
    await served.settled(lambda: len(served.factory.connections) == 4)
    for connection in served.factory.connections:
        assert isinstance(connection, DeferredConnection)
        assert all(connection._socket.getsockopt(*option) for option in options)
    assert set_by_hand.call_count == (4 if make is UNIXEndpoints else 2)
    for connection in list(served.factory.connections):
        assert connection.transport.getPeer() == connection.peer  # type: ignore[attr-defined]
    for each in clients:
        each.close()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@pytest.mark.parametrize("memory", [True, False])
@run
async def test_paused(memory: bool) -> None:
    """A paused port leaves clients in the backlog. Without memory for it, the reactor polls it."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    [port] = ends.ports
    served.factory.use_reactor(ends.reactor)
    fast_path: Any = served.factory.fast_path()
    epoll = fast_path._epoll
    if not memory:
        fast_path._epoll = Mock(register=Mock(side_effect=OSError(errno.ENOSPC, "")))
    accept_deferred(port, ListeningSocket(port, "", Mock()))
    fast_path._epoll = epoll
    assert (port in ends.reactor.getReaders()) is not memory
    port.stopReading()
    assert port not in ends.reactor.getReaders()
    with socket.create_connection(port.socket.getsockname()) as client:
        await ends.turn()
        assert not served.factory.connections
        port.startReading()
        assert port not in ends.reactor.getReaders()
        await served.settled(lambda: len(served.factory.connections) == 1)
        client.sendall(b"?")
        await ends.turn()
        assert client.recv(9) == b"?"
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@run
async def test_zone() -> None:
    """The address of a peer on a link-local address has the name of its zone (RFC 4007)."""
    ends = TCP6Endpoints(deferred=True)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    [acceptor] = served.factory.fast_path()._listeners.values()  # type: ignore[union-attr]
    index, name = socket.if_nameindex()[0]
    address: Any = acceptor.peer_address(("fe80::1", 7, 0, index))  # type: ignore[attr-defined]
    assert address == IPv6Address("TCP", f"fe80::1%{name}", 7, 0, index)
    await ends.stop()
