"""Echo on a string transport: replies, back-pressure, timeouts, endings."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import ITCPTransport
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from echod.events import Closed, Ending, Opened
from echod.factory import EchoFactory
from echod.protocol import Echo
from echod.testing import MemoryNetwork
from echod.timeouts import QUIET
from tests.recorder import Recorder
from tests.streams.server import Peers


@implementer(ITCPTransport)
class TCPStringTransport(StringTransport):
    """A StringTransport that records the socket options of TCP."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.options: dict[str, bool] = {}

    def setTcpNoDelay(self, enabled: bool) -> None:
        self.options["TCP_NODELAY"] = enabled

    def setTcpKeepAlive(self, enabled: bool) -> None:
        self.options["SO_KEEPALIVE"] = enabled


class EchoTests(SynchronousTestCase):
    def connect(self, transport: Any = None, **options: Any) -> Echo:
        self.clock = Clock()
        self.events = Recorder()
        self.factory = EchoFactory(clock=self.clock, observer=self.events, **options)
        self.transport = transport or StringTransport()
        echo = self.factory.buildProtocol(self.transport.getPeer())
        assert isinstance(echo, Echo)
        echo.makeConnection(self.transport)
        return echo

    def lose(self, echo: Echo, error: type[Exception]) -> None:
        echo.connectionLost(Failure(error()))

    def test_echo(self) -> None:
        """The bytes received are sent back, unchanged and in order."""
        echo = self.connect()
        for part in (b"hello", b"\0\xff\r\n", b" world"):
            echo.dataReceived(part)
        self.assertEqual(self.transport.value(), b"hello\0\xff\r\n world")
        self.assertEqual(echo.received, 15)

    def test_tcp_options(self) -> None:
        """Over TCP, TCP_NODELAY and SO_KEEPALIVE are on."""
        for host in (IPv4Address("TCP", "192.0.2.1", 1), IPv6Address("TCP", "2001:db8::1", 1)):
            transport = TCPStringTransport(hostAddress=host)
            self.connect(transport)
            self.assertEqual(transport.options, {"TCP_NODELAY": True, "SO_KEEPALIVE": True})

    def test_no_tcp_options(self) -> None:
        """A UNIX transport has TCP's methods too, and they are not called."""
        transport = TCPStringTransport(hostAddress=UNIXAddress(b"/run/x"))
        self.connect(transport)
        self.assertEqual(transport.options, {})

    def test_back_pressure(self) -> None:
        """Reading stops when the transport's buffer is full, and resumes when it is empty."""
        self.connect()
        self.assertTrue(self.transport.streaming)
        self.transport.producer.pauseProducing()
        self.assertEqual(self.transport.producerState, "paused")
        self.transport.producer.resumeProducing()
        self.assertEqual(self.transport.producerState, "producing")

    def test_half_close(self) -> None:
        """When the peer has finished sending, everything is sent back before the close."""
        echo = self.connect()
        echo.dataReceived(b"hello")
        echo.readConnectionLost()
        self.assertIsNone(self.transport.producer)
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.disconnected)
        echo.writeConnectionLost()
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.FINISHED])

    def test_events(self) -> None:
        """The observer gets one event at the start and one at the end of a connection."""
        echo = self.connect()
        peer = self.transport.getPeer()
        self.assertEqual(self.events, [Opened(peer)])
        echo.dataReceived(b"hello")
        self.clock.advance(2.5)
        echo.readConnectionLost()
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events[1:], [Closed(Ending.FINISHED, 5, 2.5, 0, peer)])
        self.assertEqual(self.factory.connections, set())

    def test_no_timer_after_the_end(self) -> None:
        """After the end of a connection, no timer runs for it."""
        echo = self.connect(idle_timeout=5)
        echo.dataReceived(b"hello")
        self.lose(echo, ConnectionLost)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_reset_by_the_peer(self) -> None:
        """A connection that the peer resets is lost, even if the peer has finished sending."""
        for finish in (False, True):
            echo = self.connect()
            echo.dataReceived(b"hello")
            if finish:
                echo.readConnectionLost()
            self.lose(echo, ConnectionLost)
            self.assertEqual(self.events.endings, [Ending.LOST])

    def test_unused(self) -> None:
        """A connection that the peer ends without a byte is unused: with FIN, RST or both."""
        for finish, error in (
            (True, ConnectionDone),
            (True, ConnectionLost),
            (False, ConnectionLost),
            (False, ConnectionDone),  # as with a wrapper that hides half-close
        ):
            echo = self.connect()
            if finish:
                echo.readConnectionLost()
            self.lose(echo, error)
            self.assertEqual(self.events.endings, [Ending.UNUSED])

    def test_not_unused(self) -> None:
        """A connection without a byte that echod or the application ends is not unused."""
        echo = self.connect(idle_timeout=8)
        self.clock.pump([1.0] * 11)
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.IDLE])
        echo = self.connect(idle_timeout=8)
        self.clock.pump([1.0] * 11)
        self.lose(echo, ConnectionLost)  # its FIN was not acknowledged
        self.assertEqual(self.events.endings, [Ending.LOST])
        echo = self.connect()
        echo.transport.loseConnection()
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.FINISHED])
        echo = self.connect()
        self.lose(echo, ConnectionAborted)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_closed_by_the_application(self) -> None:
        """A connection that the application closes is finished; one that it aborts is aborted."""
        for buffered in (10, 500_000):
            network = MemoryNetwork()
            events = Recorder()
            factory = EchoFactory(observer=events)
            network.server_endpoint().listen(factory)
            peer: Any = self.successResultOf(network.client_endpoint().connect(Peers()))
            peer.stall()
            peer.send(bytes(buffered))
            network.settle()
            [echo] = factory.connections
            echo.transport.loseConnection()
            network.settle()
            peer.resume()
            network.settle()
            self.assertEqual(events.endings, [Ending.FINISHED])
            self.assertEqual(len(peer.received), events.closed[0].bytes)
        echo = self.connect()
        self.lose(echo, ConnectionAborted)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_closed_by_the_peer_without_half_close(self) -> None:
        """If the transport hides half-close, a close by the peer may have lost bytes."""
        echo = self.connect()
        echo.dataReceived(b"hello")
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.LOST])

    def test_no_timer_without_a_timeout(self) -> None:
        """Without a timeout, no connection is checked, and no timer runs."""
        echo = self.connect(stall_timeout=None)
        echo.dataReceived(b"hello")
        self.transport.producer.pauseProducing()
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle_costs_no_timer(self) -> None:
        """By default a timer runs only while bytes are to be sent, not for a silent connection."""
        echo = self.connect()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        echo.dataReceived(b"hello")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        echo.dataReceived(b"hello")
        self.assertEqual(len(self.clock.getDelayedCalls()), 1)
        self.clock.advance(60)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_idle_timeout(self) -> None:
        """The idle timeout closes a connection: never early, and late by a quarter at most."""
        self.connect(idle_timeout=10)
        self.clock.pump([0.1] * 99)
        self.assertFalse(self.transport.disconnecting)
        self.clock.pump([0.1] * 32)
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.disconnected)

    def test_idle_timeout_restarts(self) -> None:
        """Each byte restarts the idle timeout."""
        echo = self.connect(idle_timeout=10)
        for _ in range(5):
            self.clock.pump([1] * 9)
            echo.dataReceived(b".")
        self.assertFalse(self.transport.disconnecting)

    def test_unsent_is_not_idle(self) -> None:
        """A connection is not idle while bytes are to be sent; after that it may be."""
        self.connect(idle_timeout=10, stall_timeout=None)
        self.transport.producer.pauseProducing()
        self.clock.pump([1] * 100)
        self.assertFalse(self.transport.disconnecting)
        self.transport.producer.resumeProducing()
        self.clock.pump([1] * 16)
        self.assertTrue(self.transport.disconnecting)

    def test_stall_timeout(self) -> None:
        """The stall timeout resets a connection whose peer does not read."""
        echo = self.connect(stall_timeout=10)
        echo.dataReceived(b"hello")
        self.transport.producer.pauseProducing()
        self.clock.pump([0.1] * 99)
        self.assertFalse(self.transport.disconnected)
        self.clock.pump([0.1] * 30)
        self.assertTrue(self.transport.disconnected)
        self.lose(echo, ConnectionAborted)
        self.assertEqual(self.events.endings, [Ending.STALLED])

    def test_drain(self) -> None:
        """A drain closes a connection that receives no byte for 0.2 s."""
        echo = self.connect()
        echo.dataReceived(b"hello")
        self.factory.drain(100)
        self.clock.advance(QUIET / 2)
        echo.dataReceived(b"more")
        self.clock.advance(QUIET / 2)
        self.assertFalse(self.transport.disconnecting)
        self.clock.advance(QUIET)
        self.assertTrue(self.transport.disconnecting)
        self.clock.advance(QUIET)  # it is closing, and not closed twice
        echo.readConnectionLost()
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.DRAINED])

    def test_drain_after_the_peer_finished(self) -> None:
        """A drain does not change the ending of a connection that is closing already."""
        echo = self.connect()
        echo.dataReceived(b"hello")
        echo.readConnectionLost()
        self.factory.drain(100)
        self.clock.pump([QUIET] * 5)
        self.lose(echo, ConnectionDone)
        self.assertEqual(self.events.endings, [Ending.FINISHED])

    def test_drain_waits_for_unsent_bytes(self) -> None:
        """A drain does not close a connection while bytes are to be sent."""
        self.connect(stall_timeout=None)
        self.transport.producer.pauseProducing()
        self.factory.drain(100)
        self.clock.pump([QUIET] * 20)
        self.assertFalse(self.transport.disconnecting)

    def test_stop_producing(self) -> None:
        """stopProducing, which a closing transport calls, does not close a string transport."""
        echo = self.connect()
        echo.stopProducing()
        self.assertFalse(self.transport.disconnecting)
