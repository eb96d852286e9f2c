"""Accept connections for the fast path, in place of a Twisted port."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import pytest_twisted

from echod.events import Opened
from tests.streams.server import EchoServer
from tests.streams.sockets import TCP4Endpoints

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
