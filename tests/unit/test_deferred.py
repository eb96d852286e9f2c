"""Connections without a transport: what gives them one, failures, and observers that end them."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectError, ConnectionLost
from twisted.python.failure import Failure

from echod.daemon.metrics import Tally, transferred
from echod.deferred import DeferredConnection
from echod.events import Accepted, Closed, Ending, HalfClosed, Opened, Reason, Refused
from echod.protocol import Echo
from tests.streams.server import EchoServer, Peers
from tests.streams.sockets import TCP4Endpoints, UNIXEndpoints

run = pytest_twisted.ensureDeferred

MIB = 1 << 20


@pytest.fixture(params=[TCP4Endpoints, UNIXEndpoints])
def ends(request: pytest.FixtureRequest) -> Any:
    return request.param(deferred=True)


@pytest_twisted.async_yield_fixture
async def served(ends: Any) -> AsyncIterator[EchoServer]:
    served = EchoServer(ends, verbose=True)
    await ends.listen(served.factory)
    yield served
    served.factory.observer = served.events
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


async def end_of_new(served: EchoServer) -> str | None:
    """Connect, and return how the service ends the connection."""
    try:
        peer = await served.ends.connect(Peers())
    except ConnectError:  # reset before the client's connect returned
        return "RST"
    await served.ends.until(peer.when_ended())
    ended = str(peer.ended)
    peer.abort()
    await served.ends.turn()
    return ended


def without_transport(served: EchoServer) -> list[DeferredConnection]:
    """Return the connections that have no transport."""
    connections = served.factory.connections
    return [each for each in connections if isinstance(each, DeferredConnection)]


def fail(*_: object, **__: object) -> Any:
    raise MemoryError


def observe(served: EchoServer, kind: type, action: Callable[[], object]) -> None:
    """Call ``action`` in the observer at the next event of ``kind``."""

    def observer(event: Any) -> None:
        served.events(event)
        if isinstance(event, kind):
            served.factory.observer = served.events
            action()

    served.factory.observer = observer


async def still_serves(served: EchoServer, neighbour: Any) -> None:
    """Check that a neighbour and a new connection are served."""
    count = len(neighbour.received)
    neighbour.send(b"?")
    await served.ends.until(neighbour.when_received(count + 1))
    await talk(served)


def expected_reset(served: EchoServer) -> str:
    return "RST" if served.ends.knows_reset else "FIN"


@run
async def test_received_of_a_closed_connection(served: EchoServer) -> None:
    """A closed connection does not report the bytes of another one."""
    peer, connection = await talk(served)
    await talk(served)
    assert connection.received == len(b"hello")
    peer.finish()
    await served.ends.until(peer.when_ended())
    assert connection.received == 0


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


@run
async def test_no_memory_in_the_kernel(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that the epoll set has no memory for gets a transport at once."""
    no_memory(served, monkeypatch)
    peer, connection = await talk(served)
    assert isinstance(connection, Echo)
    peer.finish()
    await served.ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"hello", "FIN")


@run
async def test_predecessor(served: EchoServer) -> None:
    """An object that has been replaced refers to its successor, and can end it."""
    peer, connection = await talk(served)
    assert (connection.received, connection.buffered) == (5, 0)
    echo = connection.promote()
    assert connection.promote() is echo
    assert connection.transport is echo.transport
    assert served.factory.connections == {echo}
    peer.send(b"again")
    await served.ends.until(peer.when_received(10))
    assert (connection.received, connection.buffered, echo.received) == (10, 0, 10)
    connection.abort()
    assert [(each.ending, each.bytes) for each in served.events.closed] == [(Ending.ABORTED, 10)]
    connection.abort()
    assert len(served.events.closed) == 1


@pytest.mark.parametrize(
    "point",
    [
        "echod.deferred.set_socket_options",
        "echod.daemon.listeners.deferring.Acceptor.peer_address",
        "echod.factory.EchoFactory.refusal_reason",
        "echod.deferred.DeferredConnection.__init__",
        "echod.fastset.FastSet.add",
        "echod.factory.EchoFactory.connection_opened",
    ],
)
@run
async def test_accept_fails(
    served: EchoServer, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A connection that cannot be served for lack of memory is reset, and its neighbour is not."""
    neighbour, _ = await talk(served)
    descriptors = len(os.listdir("/dev/fd"))
    with monkeypatch.context() as patch:
        patch.setattr("echod.daemon.listeners.deferring.Acceptor.inherits_options", False)
        for acceptor in accepting(served):
            acceptor.inherits_options = False
        patch.setattr(point, fail)
        assert await end_of_new(served) == expected_reset(served)
    assert len(os.listdir("/dev/fd")) <= descriptors  # an earlier test's may be collected
    assert len(served.factory.connections) == 1
    assert [type(each) for each in served.events if not isinstance(each, Accepted)] == [Opened]
    await still_serves(served, neighbour)


def no_memory(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel have no memory for another entry of the epoll set."""
    fast_path: Any = served.factory.fast_path()
    epoll = Mock(wraps=fast_path._epoll)
    epoll.register.side_effect = OSError(errno.ENOSPC, "")
    monkeypatch.setattr(fast_path, "_epoll", epoll)


def accepting(served: EchoServer) -> list[Any]:
    """Return the listeners in the epoll set."""
    fast_path: Any = served.factory.fast_path()
    return list(fast_path._listeners.values())


@pytest.mark.parametrize("kind", [Accepted, Opened, HalfClosed, Closed, Refused])
@run
async def test_observer_fails(served: EchoServer, kind: type) -> None:
    """SystemExit in the observer of one event ends its connection, and no other."""

    def end() -> None:
        raise SystemExit

    neighbour, _ = await talk(served)
    observe(served, kind, end)
    if kind is Refused:
        served.factory.limits.total = 1
    try:
        peer = await served.ends.connect(Peers())
    except ConnectError:
        pass
    else:
        peer.send(b"hello")
        peer.finish()
        await served.ends.until(peer.when_ended())
    await served.settled(lambda: len(served.factory.connections) == 1)
    assert served.factory.observer == served.events
    served.factory.limits.total = 10
    await still_serves(served, neighbour)


@pytest.mark.parametrize("point", ["make_echo", "transport", "registerProducer", "replaced"])
@run
async def test_promotion_fails(
    served: EchoServer, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    """A connection that cannot get a transport for lack of memory is reset, and reported."""
    neighbour, _ = await talk(served, bytes(MIB))  # makes the pipe of the fast path
    peer, connection = await talk(served)
    objects: dict[str, Any] = {
        "make_echo": served.factory,
        "transport": served.ends.ports[0],
        "registerProducer": FileDescriptor,
        "replaced": served.factory.registry,
    }
    readers = len(served.ends.reactor.getReaders())
    descriptors = len(os.listdir("/dev/fd"))
    peer.stall()
    with monkeypatch.context() as patch:
        patch.setattr(objects[point], point, fail)
        peer.send(bytes(16 * MIB))
        await served.settled(lambda: connection not in served.factory.connections)
    assert served.events.endings == [Ending.ABORTED]
    assert served.events.closed[0].bytes > 5
    peer.resume()
    await served.ends.until(peer.when_ended())
    assert peer.ended == "RST"
    assert len(served.factory.connections) == 1
    assert len(served.ends.reactor.getReaders()) == readers - 1  # without the peer
    assert len(os.listdir("/dev/fd")) <= descriptors - 2
    await still_serves(served, neighbour)


@run
async def test_report_fails(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose ending cannot be reported does not stay counted."""
    neighbour, _ = await talk(served)
    peer, _ = await talk(served)
    with monkeypatch.context() as patch:
        patch.setattr("echod.deferred.Closed", fail)
        peer.finish()
        await served.ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (b"hello", "FIN")
    assert len(served.factory.connections) == 1
    await still_serves(served, neighbour)


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("action", ["abort", "promote", "drain"])
@pytest.mark.parametrize("kind", [Opened, HalfClosed])
@run
async def test_observer_acts(
    served: EchoServer, monkeypatch: pytest.MonkeyPatch, kind: type, action: str, fast: bool
) -> None:
    """The observer of an event may end the connection, give it a transport, or drain all."""
    neighbour, other = await talk(served)
    if not fast:
        no_memory(served, monkeypatch)
    drained: list[Any] = []

    def act() -> None:
        if action == "drain":
            drained.append(served.factory.drain(5))
            return
        [connection] = served.factory.connections - {other}
        if action == "abort":
            connection.abort()
        else:
            assert connection.transport.connected

    observe(served, kind, act)
    try:
        peer = await served.ends.connect(Peers())
    except ConnectError:
        assert action == "abort"
    else:
        peer.send(b"hello")
        peer.finish()
        await served.ends.until(peer.when_ended())
        if action != "abort":
            assert (peer.received, peer.ended) == (b"hello", "FIN")
    await served.settled(lambda: len(served.factory.connections) == 1)
    [ended] = served.events.endings
    if action != "abort":
        assert ended is Ending.FINISHED
    elif fast or kind is Opened:  # Twisted's abortConnection ends after the half-close is handled
        assert ended is Ending.ABORTED
    if action == "drain":
        await served.ends.advance(1)
        await served.ends.until(drained[0])
        assert served.events.endings == [Ending.FINISHED, Ending.DRAINED]
    else:
        await still_serves(served, neighbour)


@run
async def test_ended_by_an_observer(served: EchoServer) -> None:
    """The observer of one ending may end, or give a transport to, all others of the batch."""
    talks = [await talk(served) for _ in range(6)]
    aborted, promoted = [connection for _, connection in talks[2:4]]

    def act() -> None:
        for each in list(served.factory.connections):
            if each is promoted:
                assert each.transport.connected
            elif each is aborted:
                each.abort()

    observe(served, Closed, act)
    for peer, _ in talks[:5]:
        served.ends.send_unseen(peer, b"again")
        peer.finish()
    for peer, connection in talks[:5]:
        await served.ends.until(peer.when_ended())
        if connection is not aborted:
            assert (peer.received, peer.ended) == (b"helloagain", "FIN")
    await served.settled(lambda: len(served.factory.connections) == 1)
    assert Counter(served.events.endings) == {Ending.ABORTED: 1, Ending.FINISHED: 4}
    await still_serves(served, talks[5][0])


@run
async def test_end_of_the_reactor(served: EchoServer) -> None:
    """When the reactor stops, a whole reply ends in FIN, and one that is cut short in RST."""
    (whole, _), (cut_short, _) = await talk(served), await talk(served)
    served.ends.send_unseen(cut_short, b"again")
    [acceptor] = accepting(served)
    port = served.ends.ports.pop()
    acceptor.fast_path.connectionLost(Failure(ConnectionLost()))
    assert not port.connected
    assert served.events.endings == [Ending.LOST] * 2
    for peer in (whole, cut_short):
        await served.ends.until(peer.when_ended())
    assert (whole.received, whole.ended) == (b"hello", "FIN")
    assert (cut_short.received, cut_short.ended) == (b"hello", "RST")


@run
async def test_drained_with_unread_input(served: EchoServer) -> None:
    """A drain that finds unread input gives the connection a transport, which echoes it."""
    peer, _ = await talk(served)
    drained = served.factory.drain(50)
    served.ends.send_unseen(peer, b"again")
    served.ends.clock.advance(0.2)
    [echo] = served.factory.connections
    assert isinstance(echo, Echo)
    assert set(served.factory.timeouts.watched) == {echo}
    await served.ends.until(peer.when_received(10))
    await served.ends.advance(1)
    await served.ends.until(drained)
    assert served.events.endings == [Ending.DRAINED]
    assert (peer.received, peer.ended) == (b"helloagain", "FIN")


@run
async def test_drain_of_one_that_cannot_be_reset(
    served: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the deadline of a drain, a connection whose reset fails is cut off all the same."""
    peer, _ = await talk(served)
    drained = served.factory.drain(0)
    monkeypatch.setattr(DeferredConnection, "cut_short", fail)
    served.ends.clock.advance(0)
    await served.ends.until(drained)
    assert served.factory.connections == set()
    await served.ends.until(peer.when_ended())
    assert peer.ended == expected_reset(served)


@run
async def test_refused(served: EchoServer) -> None:
    """A connection above the limit is reset, and reported as refused."""
    served.factory.limits.total = 1
    neighbour, _ = await talk(served)
    assert await end_of_new(served) == expected_reset(served)
    assert [event.reason for event in served.events.refused] == [Reason.MAX_CONNECTIONS]
    served.factory.limits.total = 2
    await still_serves(served, neighbour)
