"""Connections without a transport: what gives them one, failures, and observers that end them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_twisted

from echod.daemon.metrics import Tally, transferred
from echod.deferred import DeferredConnection
from tests.streams.server import EchoServer
from tests.streams.sockets import TCP4Endpoints, UNIXEndpoints

run = pytest_twisted.ensureDeferred

MIB = 1 << 20

Serve = Callable[..., Any]


@pytest.fixture(params=[TCP4Endpoints, UNIXEndpoints])
def ends(request: pytest.FixtureRequest) -> Any:
    return request.param(deferred=True)


@pytest_twisted.async_yield_fixture
async def served(ends: Any) -> AsyncIterator[EchoServer]:
    served = EchoServer(ends)
    await ends.listen(served.factory)
    yield served
    await served.close()
    await ends.stop()


async def talk(served: EchoServer, data: bytes = b"hello") -> tuple[Any, Any]:
    """Return a peer that has received ``data`` back, and its connection."""
    before = set(served.factory.connections)
    peer = await served.peer()
    peer.send(data)
    await served.ends.until(peer.when_received(len(data)))
    [connection] = served.factory.connections - before
    return peer, connection


def without_transport(served: EchoServer) -> list[DeferredConnection]:
    """Return the connections that have no transport."""
    connections = served.factory.connections
    return [each for each in connections if isinstance(each, DeferredConnection)]


@run
async def test_metrics(served: EchoServer) -> None:
    """Reading the metrics gives no connection a transport."""
    for _ in range(3):
        await talk(served)
    stalled, _ = await talk(served)
    stalled.stall()
    stalled.send(bytes(16 * MIB))
    await served.settled(lambda: len(without_transport(served)) == 3)
    received, sent = transferred(Tally(), served.factory)
    assert sent < received
    assert received - sent == sum(each.buffered for each in served.factory.connections)
    assert len(without_transport(served)) == 3
