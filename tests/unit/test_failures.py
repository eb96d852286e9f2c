"""Exceptions while a connection is served: MemoryError, and bugs of echod's or Twisted's.

Wherever one is raised, the connection is reset: after a FIN the peer would take what it has
received for the whole reply. No other connection is harmed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from twisted.internet.error import ConnectError, ConnectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Closed, Ending, Opened, Reason
from echod.factory import EchoFactory
from echod.handshake import Refusal
from echod.proxy import ProxyFactory
from echod.testing import MemoryNetwork
from echod.tls import TLSFactory
from echod.transport import unsent
from tests.reactors import REACTORS
from tests.recorder import Recorder
from tests.streams.memory import MemoryEndpoints
from tests.streams.proxy import ProxyEndpoints
from tests.streams.server import EchoServer, Peers
from tests.streams.sockets import TCP4Endpoints
from tests.streams.tls import TLSEndpoints

run = pytest_twisted.ensureDeferred

MIB = 1 << 20

KINDS: list[Callable[[], Any]] = [
    MemoryEndpoints,
    *(lambda kind=kind: TCP4Endpoints(kind, fast_path=False) for kind in REACTORS),
    *(lambda kind=kind: TLSEndpoints(kind) for kind in REACTORS),
    lambda: ProxyEndpoints(version=2, fast_path=False),
]


@pytest.fixture(params=KINDS)
def ends(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest_twisted.async_yield_fixture
async def served(ends: Any) -> AsyncIterator[EchoServer]:
    served = EchoServer(ends, idle_timeout=100)
    await ends.listen(served.factory)
    yield served
    await served.disconnect()
    await ends.stop()


class Failing:
    """A peer, the Echo that serves it, and a second peer."""

    def __init__(self, served: EchoServer) -> None:
        self.served = served

    async def connect(self) -> tuple[Any, Any]:
        self.neighbour = await self.served.peer()
        others = set(self.served.factory.connections)
        self.peer = await self.served.peer()
        [self.echo] = self.served.factory.connections - others
        self.below = self.echo.transport
        while hasattr(self.below, "wrappedProtocol"):
            self.below = self.below.transport
        return self.peer, self.echo

    async def is_reset(self, ending: Ending = Ending.ABORTED) -> None:
        """Check that the peer is reset, that this is counted, and that others are served."""
        await self.served.settled(lambda: self.served.events.endings == [ending])
        self.peer.resume()
        await self.served.ends.until(self.peer.when_ended())
        assert self.peer.ended == "RST"
        self.neighbour.send(b"still here")
        await self.served.ends.until(self.neighbour.when_received(10))


@pytest.fixture
def failing(served: EchoServer) -> Failing:
    return Failing(served)


def fail(*_: object, **__: object) -> Any:
    raise MemoryError


async def end_of_new(ends: Any) -> str | None:
    """Connect, and return how the service ends the connection."""
    try:
        peer = await ends.connect(Peers())
    except ConnectError:  # reset before it knew that it was connected
        return "RST"
    await ends.until(peer.when_ended())
    return str(peer.ended)


@run
async def test_data_received(failing: Failing, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bytes that were received and cannot be sent cause a reset."""
    peer, echo = await failing.connect()
    echo.send = fail

    def fail_for_one(transport: Any) -> None:
        if transport is echo.transport:
            fail()

    monkeypatch.setattr("echod.protocol.kernel_socket", fail_for_one)
    peer.send(b"hello")
    await failing.is_reset()


@run
async def test_read_connection_lost(failing: Failing) -> None:
    """A half-close that cannot be handled causes a reset."""
    peer, echo = await failing.connect()
    echo._close = fail
    peer.send(b"hello")
    peer.finish()
    await failing.is_reset()


@run
async def test_resume_producing(failing: Failing) -> None:
    """A connection that cannot be read again is reset."""
    peer, echo = await failing.connect()
    peer.stall()
    peer.send(bytes(16 * MIB))
    await failing.served.settled(lambda: echo._paused)
    echo.transport.resumeProducing = fail
    peer.resume()
    await failing.is_reset()


@run
async def test_receive(failing: Failing) -> None:
    """An exception in Twisted's receive causes a reset: unread bytes have no reply."""
    peer, _ = await failing.connect()
    failing.below.doRead = fail
    peer.send(b"hello")
    await failing.is_reset(Ending.LOST)


@run
@pytest.mark.parametrize("finish", [False, True])
async def test_send(failing: Failing, finish: bool) -> None:
    """An exception in Twisted's send causes a reset, after a half-close too."""
    peer, echo = await failing.connect()
    peer.stall()
    peer.send(bytes(16 * MIB))
    await failing.served.settled(lambda: unsent(echo.transport) > 0)
    if finish:
        echo.readConnectionLost()
    failing.below.doWrite = fail
    peer.resume()
    await failing.is_reset(Ending.LOST)


@run
async def test_timers(failing: Failing) -> None:
    """A connection whose timeouts cannot be checked is reset, and the others are checked."""
    _, echo = await failing.connect()
    echo.progress = fail
    await failing.served.ends.advance(20)
    await failing.is_reset()
    factory = failing.served.factory
    assert set(factory.timeouts.watched) == factory.connections != set()
    await failing.served.ends.advance(200)
    await failing.served.settled(
        lambda: failing.served.events.endings == [Ending.ABORTED, Ending.IDLE]
    )


@run
async def test_connection_made(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that cannot be set up is reset, without an event."""
    monkeypatch.setattr(served.factory, "connection_opened", fail)
    assert await end_of_new(served.ends) == "RST"
    await served.ends.advance(1)
    assert served.events == []


@run
@pytest.mark.parametrize("fast_path", [True, False])
async def test_end_of_the_reactor(fast_path: bool) -> None:
    """When the reactor stops, a reply that is cut short ends in RST, and a whole one in FIN."""
    ends = TCP4Endpoints(fast_path=fast_path)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    flood, idle = await served.peer(), await served.peer()
    for count in (1, 2, 3):
        idle.send(b"?")
        await ends.until(idle.when_received(count))
    flood.stall()
    flood.send(bytes(16 * MIB))
    await served.settled(lambda: any(unsent(e.transport) for e in served.factory.connections))
    for echo in list(served.factory.connections):
        echo.transport.connectionLost(Failure(ConnectionDone()))  # type: ignore[attr-defined]
    flood.resume()
    await ends.until(flood.when_ended())
    await ends.until(idle.when_ended())
    assert (flood.ended, idle.ended) == ("RST", "FIN")
    await ends.stop()


@run
async def test_fast_path_between_receive_and_send() -> None:
    """An exception on the fast path, after the receive, resets only that connection."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    failing = Failing(served)
    peer, echo = await failing.connect()
    for count in (1, 2):
        for each in (peer, failing.neighbour):
            each.send(b"?")
            await ends.until(each.when_received(count))
    path = echo.fast_path
    bad = echo.transport.fileno()

    class Counts:
        def __init__(self, received: Any) -> None:
            self.received = received

        def __getitem__(self, descriptor: int) -> int:
            return int(self.received[descriptor])

        def __setitem__(self, descriptor: int, count: int) -> None:
            if descriptor == bad and count:
                raise MemoryError
            self.received[descriptor] = count

    path._received = Counts(path._received)
    peer.send(b"hello")
    await failing.is_reset()
    path._epoll = Mock(wraps=path._epoll)
    path._epoll.poll.side_effect = fail
    failing.neighbour.send(b"again")
    await ends.turn()
    path._epoll.poll.side_effect = None
    await ends.until(failing.neighbour.when_received(10))
    assert served.events.endings == [Ending.ABORTED]
    failing.neighbour.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@run
async def test_proxy_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A PROXY header that cannot be read for lack of memory is refused like a wrong one."""
    ends = ProxyEndpoints(version=2)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    monkeypatch.setattr("echod.proxy.read_header", fail)
    assert await served.refused() == "RST"
    assert [event.reason for event in served.events.refused] == [Reason.PROXY_HEADER]
    await ends.stop()


@run
async def test_options_before_a_proxy_header(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection whose socket options cannot be set is reset, and unused."""
    ends = ProxyEndpoints(version=2)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    monkeypatch.setattr("echod.handshake.set_options", fail)
    assert await end_of_new(ends) == "RST"
    assert served.events.endings == [Ending.UNUSED]
    assert not served.factory.pending
    await ends.stop()


@run
async def test_pending_connection_on_another_reactor() -> None:
    """A pending connection that its factory cannot serve is reset, and unused."""
    ends = ProxyEndpoints(version=2)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    served.factory._reactor = object()
    assert await end_of_new(ends) == "RST"
    assert served.events.endings == [Ending.UNUSED]
    assert [event.seconds for event in served.events if isinstance(event, Closed)] == [0]
    assert not served.factory.pending
    await ends.stop()


@run
async def test_tls_context() -> None:
    """A connection whose TLS handshake cannot be started is reset."""
    ends = TCP4Endpoints()
    factory = EchoFactory(clock=ends.clock)
    await ends.listen(TLSFactory(factory, fail))
    assert await end_of_new(ends) == "RST"
    assert not factory.pending
    await ends.stop()


@run
async def test_no_timer_left() -> None:
    """When the only connection ends on the fast path, no timer is left."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    peer = await served.peer()
    for count in (1, 2, 3):
        peer.send(b"?")
        await ends.until(peer.when_received(count))
    [echo] = served.factory.connections
    assert echo.fast_path is not None
    echo.send = fail  # type: ignore[method-assign]
    peer.stall()
    peer.send(bytes(16 * MIB))
    await served.settled(lambda: not served.factory.connections)
    assert ends.clock.getDelayedCalls() == []
    await ends.stop()


@run
async def test_transport_that_cannot_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A connection that cannot leave the fast path is reset, and not counted any more."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    failing = Failing(served)
    peer, echo = await failing.connect()
    for count in (1, 2):
        peer.send(b"?")
        await ends.until(peer.when_received(count))
    assert echo.fast_path is not None
    monkeypatch.setattr(echo.transport, "startReading", fail)
    peer.finish()
    await failing.is_reset()
    assert len(served.factory.connections) == 1
    failing.neighbour.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@run
async def test_second_message() -> None:
    """If a connection on its way to the fast path fails, the fast path does not keep it."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    failing = Failing(served)
    peer, echo = await failing.connect()
    for count in (1, 2):
        failing.neighbour.send(b"?")
        await ends.until(failing.neighbour.when_received(count))
    [neighbour] = served.factory.connections - {echo}
    path: Any = neighbour.fast_path
    peer.send(bytes(MIB))
    await ends.until(peer.when_received(MIB))
    if echo.fast_path is not None:
        echo.leave_fast_path()
    echo.watch = fail
    peer.send(b"?")
    await failing.is_reset()
    assert list(path._connections.values()) == [neighbour]
    failing.neighbour.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@run
async def test_first_connection_without_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the factory's clock cannot be made for one connection, the next one has it."""
    ends = TCP4Endpoints()
    factory = EchoFactory()
    await ends.listen(factory)
    with monkeypatch.context() as patch:
        patch.setattr("echod.factory.clock_of", fail)
        assert await end_of_new(ends) == "RST"
    peer = await ends.connect(Peers())
    peer.send(b"?")
    await ends.until(peer.when_received(1))
    peer.abort()
    await ends.until(peer.when_ended())
    await ends.stop()


class FactoryTests(SynchronousTestCase):
    def test_build_protocol(self) -> None:
        """If buildProtocol fails, each factory resets the connection: Twisted would send FIN."""
        echo = EchoFactory(clock=Clock())
        self.patch(echo.limits, "exceeded", fail)
        for factory in (echo, ProxyFactory(echo), TLSFactory(echo, fail)):
            self.assertIsInstance(factory.buildProtocol(None), Refusal)
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 3)

    def serve(self, count: int, observer: Any) -> None:
        self.network = MemoryNetwork()
        self.factory = EchoFactory(clock=self.network, observer=observer)
        self.network.server_endpoint().listen(self.factory)
        self.peers: list[Any] = []
        for _ in range(count):
            peer: Any = self.successResultOf(self.network.client_endpoint().connect(Peers()))
            peer.stall()
            peer.send(bytes(MIB))
            self.peers.append(peer)
        self.network.settle()

    def test_drain_of_one_that_cannot_be_reset(self) -> None:
        """At the deadline of a drain, a failed reset does not prevent the other resets."""
        events = Recorder()
        self.serve(3, events)
        bad = next(iter(self.factory.connections))
        bad.transport.connectionLost = fail  # type: ignore[attr-defined]
        drained = self.factory.drain(5)
        self.network.advance(5)
        self.successResultOf(drained)
        self.assertEqual(self.factory.connections, set())
        self.assertEqual(events.endings, [Ending.ABORTED] * 2)
        for peer in self.peers:
            peer.resume()
        self.network.settle()
        self.assertEqual([peer.ended for peer in self.peers], ["RST"] * 3)

    def test_drain_with_an_observer_that_fails(self) -> None:
        """A drain ends even if the observer raises SystemExit."""

        def observer(event: object) -> None:
            if isinstance(event, Closed):
                raise SystemExit

        self.serve(3, observer)
        drained = self.factory.drain(5)
        self.network.advance(5)
        self.successResultOf(drained)
        self.assertEqual(len(self.flushLoggedErrors(SystemExit)), 3)

    def test_drain_whose_beginning_fails(self) -> None:
        """A drain whose beginning fails ends at its deadline."""
        events = Recorder()
        self.serve(3, events)
        self.patch(self.factory.timeouts, "check", fail)
        drained = self.factory.drain(5)
        self.network.advance(4)
        self.assertNoResult(drained)
        self.network.advance(1)
        self.successResultOf(drained)
        self.assertEqual(events.endings, [Ending.ABORTED] * 3)
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)

    def test_pending_connection_that_cannot_be_refused(self) -> None:
        """A pending connection is not counted after the deadline, even if its reset fails."""
        network = MemoryNetwork()
        factory = EchoFactory(clock=network, handshake_timeout=None)
        network.server_endpoint().listen(ProxyFactory(factory))
        peer: Any = self.successResultOf(network.client_endpoint().connect(Peers()))
        peer.send(b"PROXY ")
        network.settle()
        [pending] = factory.pending
        pending.transport.connectionLost = fail  # type: ignore[attr-defined]
        pending.drain = lambda: None  # type: ignore[method-assign]
        drained = factory.drain(5)
        network.advance(5)
        self.successResultOf(drained)
        self.assertEqual(factory.pending, set())
        network.settle()
        self.assertEqual(peer.ended, "RST")

    def test_reset_that_fails_at_first(self) -> None:
        """If Twisted's connectionLost fails, the socket is closed with RST."""
        events = Recorder()
        self.serve(1, events)
        [echo] = self.factory.connections
        transport: Any = echo.transport
        lose = transport.connectionLost

        def fail_once(reason: Failure) -> None:
            transport.connectionLost = lose
            raise MemoryError

        transport.connectionLost = fail_once
        transport.resumeProducing = fail
        self.peers[0].resume()
        self.network.settle()
        self.assertEqual(events.endings, [Ending.LOST])
        self.assertEqual(self.peers[0].ended, "RST")
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 2)

    def test_end_that_cannot_be_reported(self) -> None:
        """A connection whose end cannot be reported does not stay counted."""
        events = Recorder()
        self.serve(1, events)
        [echo] = self.factory.connections
        self.patch(echo, "_sum_up", fail)
        self.peers[0].abort()
        self.network.settle()
        self.assertEqual(self.factory.connections, set())
        self.assertEqual([type(event) for event in events], [Opened])
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)
