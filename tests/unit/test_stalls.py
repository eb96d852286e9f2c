"""A peer that does not read: the kernel's send queue counts for the stall timeout and the close."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from OpenSSL import SSL
from twisted.trial.unittest import SynchronousTestCase

from echod.closing import MAX_ORPHANED
from echod.events import Ending
from echod.factory import EchoFactory
from echod.fastset import UNCHECKED
from echod.protocol import Echo
from echod.testing import MemoryNetwork, Peer
from echod.transport import kernel_send_queue, unsent
from tests.reactors import REACTORS
from tests.recorder import Recorder
from tests.streams.server import EchoServer, Peers
from tests.streams.sockets import TCP4Endpoints, UNIXEndpoints
from tests.streams.tls import TLSEndpoints

run = pytest_twisted.ensureDeferred

KINDS: dict[str, Callable[[], Any]] = {
    **{f"tcp-{kind}": (lambda kind=kind: TCP4Endpoints(kind)) for kind in REACTORS},
    "tcp-ordinary": lambda: TCP4Endpoints(fast_path=False),
    "unix": UNIXEndpoints,
    "unix-ordinary": lambda: UNIXEndpoints(fast_path=False),
    "tls": TLSEndpoints,
    "tls1.2": lambda: TLSEndpoints(version=SSL.TLS1_2_VERSION),
}


@pytest_twisted.async_yield_fixture(params=KINDS)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[EchoServer]:
    """A service whose idle timeout is shorter than its stall timeout."""
    ends = KINDS[request.param]()
    served = EchoServer(ends, idle_timeout=10, stall_timeout=40)
    await ends.listen(served.factory)
    yield served
    await served.close()
    await ends.stop()


async def fill(served: EchoServer) -> tuple[Peer, Echo, int]:
    """Fill the kernel's send queue for a peer, and return the number of bytes that it has sent."""
    peer = await served.peer()
    [echo] = served.factory.connections
    peer.stall()
    sent, size = 0, 40 * 1024
    while sent <= MAX_ORPHANED or kernel_send_queue(echo.transport) <= MAX_ORPHANED:
        peer.send(bytes(size))
        sent += size
        await served.settled(lambda sent=sent: echo.received == sent)  # type: ignore[misc]
    assert unsent(echo.transport) == 0
    return peer, echo, sent


@run
async def test_stalled_in_the_kernel(served: EchoServer) -> None:
    """A peer is reset after the stall timeout even if all its bytes are in the kernel."""
    peer, _, _ = await fill(served)
    await served.ends.advance(39)
    assert served.events.endings == []
    await served.stalled(13)
    peer.resume()
    await served.ends.until(peer.when_ended())
    assert peer.ended == ("RST" if served.ends.knows_reset else "FIN")


@run
async def test_delivered_after_half_close(served: EchoServer) -> None:
    """A connection is open until its peer has received everything, then it is finished."""
    peer, echo, sent = await fill(served)
    peer.finish()
    await served.settled(lambda: echo._closing)
    await served.ends.advance(9)
    assert served.factory.connections == {echo}
    peer.resume()
    await served.ends.until(peer.when_ended())
    assert (len(peer.received), peer.ended) == (sent, "FIN")
    await served.ends.advance(20)
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])


@run
async def test_stalled_after_half_close(served: EchoServer) -> None:
    """A peer that has finished sending and does not read is reset, not left to the kernel."""
    peer, echo, _ = await fill(served)
    peer.finish()
    await served.settled(lambda: echo._closing)
    await served.stalled(13)


@run
async def test_broken_after_half_close(served: EchoServer) -> None:
    """A connection whose peer vanishes before it has received everything is lost."""
    peer, echo, _ = await fill(served)
    peer.finish()
    await served.settled(lambda: echo._closing)
    served.ends.reset_unseen(peer)
    await served.ends.advance(11)
    await served.settled(lambda: served.events.endings == [Ending.LOST])


@run
async def test_one_closing_alert() -> None:
    """A TLS connection that the application and a timeout close sends one closing alert."""
    ends = TLSEndpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    await served.peer()
    [echo] = served.factory.connections
    transport: Any = echo.transport
    transport.finish()
    written = transport.ciphertext_out
    transport.finish()
    assert transport.ciphertext_out == written
    echo.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


class TimerTests(SynchronousTestCase):
    """In memory, with a network that buffers as much as a kernel."""

    def serve(self, capacity: int = 1 << 20, **options: Any) -> tuple[Peer, Echo]:
        self.network = MemoryNetwork(capacity)
        self.events = Recorder()
        self.factory = EchoFactory(clock=self.network, observer=self.events, **options)
        self.network.server_endpoint().listen(self.factory)
        peer: Any = self.successResultOf(self.network.client_endpoint().connect(Peers()))
        [echo] = self.factory.connections
        return peer, echo

    def test_slow_reader(self) -> None:
        """A peer that reads something within each stall timeout is never reset."""
        for finish in (False, True):
            peer, _ = self.serve(stall_timeout=40)
            peer.stall()
            peer.send(bytes(1 << 20))
            if finish:
                peer.finish()
            for _ in range(10):
                self.network.advance(30)
                peer.read(64 * 1024)
                self.network.settle()
            self.assertEqual(self.events.endings, [])
            peer.resume()
            self.network.advance(50)
            self.assertEqual(len(peer.received), 1 << 20)
            self.assertEqual(self.events.endings, [Ending.FINISHED] if finish else [])

    def test_stalled_half_way(self) -> None:
        """A peer that stops reading is reset, even if it has read most of the bytes."""
        peer, _ = self.serve(stall_timeout=40)
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.advance(30)
        peer.read(900 * 1024)
        self.network.advance(51)
        self.assertEqual(self.events.endings, [Ending.STALLED])
        self.assertEqual(self.events.closed[0].unsent, 0)

    def test_short_send_queue(self) -> None:
        """With few bytes in the kernel's send queue, the connection is closed at once."""
        peer, _ = self.serve(stall_timeout=40)
        peer.stall()
        peer.send(bytes(MAX_ORPHANED))
        peer.finish()
        self.network.settle()
        self.assertEqual(self.events.endings, [Ending.FINISHED])
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_drain(self) -> None:
        """A drain waits until the peer has received everything, or for its deadline."""
        for reads, ending in ((True, Ending.FINISHED), (False, Ending.ABORTED)):
            peer, _ = self.serve(stall_timeout=None)
            peer.stall()
            peer.send(bytes(1 << 20))
            peer.finish()
            self.network.advance(1)
            drained = self.factory.drain(10)
            self.network.advance(9)
            self.assertNoResult(drained)
            if reads:
                peer.resume()
            self.network.advance(6)
            self.successResultOf(drained)
            self.assertEqual(self.events.endings, [ending])
            self.assertEqual(self.network.getDelayedCalls(), [])

    def test_drain_before_it_finished(self) -> None:
        """A drain does not close a connection with many bytes in the kernel's send queue."""
        peer, _ = self.serve()
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.settle()
        drained = self.factory.drain(10)
        self.network.advance(5)
        self.assertNoResult(drained)
        peer.read((1 << 20) - MAX_ORPHANED)
        self.network.advance(1)
        self.successResultOf(drained)
        self.assertEqual(self.events.endings, [Ending.DRAINED])

    def test_no_timer_without_traffic(self) -> None:
        """When the peer has received everything and sends nothing, no timer runs."""
        peer, echo = self.serve()
        peer.send(bytes(1 << 20))
        self.network.settle()
        self.assertIn(echo, self.factory.timeouts.watched)
        self.network.advance(20)
        self.assertEqual(self.network.getDelayedCalls(), [])

    def test_shutdown_of_a_broken_connection(self) -> None:
        """A connection that breaks during its close is lost."""
        peer, echo = self.serve()
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.settle()
        handle: Any = echo.transport.getHandle()  # type: ignore[attr-defined]
        handle.shutdown = Mock(side_effect=OSError(errno.ENOTCONN, "not connected"))
        peer.abort()
        handle.getsockopt = Mock(return_value=errno.ECONNRESET)
        echo.readConnectionLost()
        self.assertEqual(self.events.endings, [Ending.LOST])


@run
async def test_timer_of_the_fast_path() -> None:
    """On the fast path, traffic starts the timer; it stops when everything is received."""
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    peer = await served.peer()
    [echo] = served.factory.connections
    for count in (1, 2, 3):
        peer.send(b"?")
        await ends.until(peer.when_received(count))
    assert echo.fast_path is not None
    assert ends.clock.getDelayedCalls() == []
    peer.send(bytes(UNCHECKED + 1))
    await ends.until(peer.when_received(count + UNCHECKED + 1))
    assert len(ends.clock.getDelayedCalls()) == 1
    await ends.advance(20)
    assert ends.clock.getDelayedCalls() == []
    assert not served.factory.timeouts.watched
    peer.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


@run
@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("stall_timeout", [None, 60])
async def test_large_messages_at_first(stall_timeout: float | None, fast_path: bool) -> None:
    """After much traffic a connection is checked, on the fast path or off it."""
    ends = TCP4Endpoints(fast_path=fast_path)
    served = EchoServer(ends, stall_timeout=stall_timeout)
    await ends.listen(served.factory)
    peer = await served.peer()
    [echo] = served.factory.connections
    size = UNCHECKED - 100
    for count in (1, 2):
        peer.send(bytes(size))
        await ends.until(peer.when_received(size * count))
    assert (echo in served.factory.timeouts.watched) == (stall_timeout is not None)
    peer.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()
