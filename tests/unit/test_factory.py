"""EchoFactory: admission, limits, drain."""

from __future__ import annotations

import math
import resource
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Event, Opened, Reason, Refused
from echod.factory import EchoFactory
from echod.handshake import Refusal
from echod.limits import descriptors_left
from echod.protocol import Echo
from echod.testing import MemoryNetwork
from tests.recorder import Recorder
from tests.streams.server import Peers


class EchoFactoryTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events = Recorder()

    def factory(self, **options: Any) -> EchoFactory:
        self.clock = Clock()
        return EchoFactory(clock=self.clock, observer=self.events, **options)

    def connect(self, factory: EchoFactory, peer: Any) -> Any:
        protocol = factory.buildProtocol(peer)
        protocol.makeConnection(StringTransport(peerAddress=peer))
        return protocol

    def test_bad_limits(self) -> None:
        """A factory cannot be made with a limit below 1 or a timeout out of range."""
        for name in ("max_connections", "max_connections_per_peer"):
            for value in (0, -1):
                with self.assertRaises(ValueError, msg=name):
                    EchoFactory(**{name: value})
        for name in ("idle_timeout", "stall_timeout"):
            for value in (0, -1, math.inf, math.nan):
                with self.assertRaises(ValueError, msg=name):
                    EchoFactory(**{name: value})

    def test_bad_deadline(self) -> None:
        """A deadline is finite and not negative."""
        for value in (-1, math.inf, math.nan):
            with self.assertRaises(ValueError):
                self.factory().drain(value)

    def test_default_limit(self) -> None:
        """The default limit is the number of file descriptors that are left."""
        self.patch(resource, "getrlimit", lambda which: (200, 200))
        self.assertEqual(EchoFactory().limits.total, descriptors_left())

    def test_refusal(self) -> None:
        """A connection over the limit is reset, and the observer notified."""
        factory = self.factory(max_connections=1)
        first, second = (IPv4Address("TCP", host, 1) for host in ("192.0.2.1", "192.0.2.2"))
        self.assertIsInstance(self.connect(factory, first), Echo)
        refusal = self.connect(factory, second)
        self.assertIsInstance(refusal, Refusal)
        self.assertTrue(refusal.transport.disconnected)
        self.assertEqual(self.events, [Opened(first), Refused(Reason.MAX_CONNECTIONS, second)])

    def test_limit_per_peer(self) -> None:
        """The limit per peer counts each IPv6 /64 by itself, and no UNIX peer."""
        factory = self.factory(max_connections_per_peer=1)
        peers = [IPv6Address("TCP", host, 1) for host in ("2001:db8::1", "2001:db8::2")]
        first = self.connect(factory, peers[0])
        self.assertIsInstance(self.connect(factory, peers[1]), Refusal)
        neighbour = IPv6Address("TCP", "2001:db8:0:1::1", 1)
        self.assertIsInstance(self.connect(factory, neighbour), Echo)
        for _ in range(2):
            self.assertIsInstance(self.connect(factory, UNIXAddress(None)), Echo)
        first.connectionLost()
        self.assertIsInstance(self.connect(factory, peers[1]), Echo)

    def test_limit_per_peer_after_an_end(self) -> None:
        """When a connection ends, one more of that peer is admitted."""
        factory = self.factory(max_connections_per_peer=2)
        peer = IPv4Address("TCP", "192.0.2.1", 1)
        first, _ = self.connect(factory, peer), self.connect(factory, peer)
        first.connectionLost()
        self.assertIsInstance(self.connect(factory, peer), Echo)
        self.assertIsInstance(self.connect(factory, peer), Refusal)

    def test_drain_of_nothing(self) -> None:
        """A drain without connections ends at once, and needs no clock."""
        drained = EchoFactory().drain(10)
        self.assertIsNone(self.successResultOf(drained))

    def test_drain_refuses(self) -> None:
        """A drain refuses new connections."""
        factory = self.factory()
        factory.drain(10)
        peer = IPv4Address("TCP", "192.0.2.1", 1)
        self.assertIsInstance(self.connect(factory, peer), Refusal)
        self.assertEqual(self.events, [Refused(Reason.DRAINING, peer)])

    def test_serve_again(self) -> None:
        """After a drain, the factory serves again when a port listens again."""
        factory = self.factory()
        factory.drain(10)
        factory.doStart()
        self.assertIsInstance(self.connect(factory, UNIXAddress(None)), Echo)

    def test_serve_again_during_a_drain(self) -> None:
        """A connection that is accepted when a port listens again is not drained."""
        factory = self.factory()
        old = self.connect(factory, UNIXAddress(None))
        old.pauseProducing()  # as with unsent bytes
        drained = factory.drain(10)
        factory.doStart()
        new = self.connect(factory, UNIXAddress(None))
        self.clock.pump([1] * 10)
        self.assertTrue(old.transport.disconnected)
        old.connectionLost()
        self.assertIsNone(self.successResultOf(drained))
        self.clock.pump([1] * 10)
        self.assertFalse(new.transport.disconnecting)
        self.assertEqual(factory.connections, {new})

    def test_earlier_deadline(self) -> None:
        """Of several deadlines the earliest applies, and each caller is notified."""
        factory = self.factory()
        echo = self.connect(factory, UNIXAddress(None))
        echo.pauseProducing()  # as with unsent bytes
        drained = [factory.drain(deadline) for deadline in (50, 100, 10)]
        self.clock.advance(9)
        self.assertFalse(echo.transport.disconnected)
        self.clock.advance(1)
        self.assertTrue(echo.transport.disconnected)
        echo.connectionLost()
        for deferred in drained:
            self.assertIsNone(self.successResultOf(deferred))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_deadline_is_cancelled(self) -> None:
        """When all connections end before the deadline, no timer is left."""
        factory = self.factory()
        echo = self.connect(factory, UNIXAddress(None))
        drained = factory.drain(10)
        echo.connectionLost()
        self.assertIsNone(self.successResultOf(drained))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_observer_that_fails(self) -> None:
        """An exception of the observer is logged, and does not affect the connection."""

        def observer(event: Event) -> None:
            raise RuntimeError("not my day")

        factory = EchoFactory(clock=Clock(), observer=observer)
        echo = self.connect(factory, UNIXAddress(None))
        echo.dataReceived(b"hello")
        self.assertEqual(echo.transport.value(), b"hello")
        echo.connectionLost()
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 2)

    def test_clock_of_the_transport(self) -> None:
        """Without a clock, the factory uses the reactor of its transports."""
        network = MemoryNetwork()
        events = Recorder()
        factory = EchoFactory(observer=events, idle_timeout=10)
        network.server_endpoint().listen(factory)
        self.successResultOf(network.client_endpoint().connect(Peers()))
        network.advance(13)
        self.assertEqual(len(events.closed), 1)

    def test_no_noise(self) -> None:
        """Starting and stopping the factory logs nothing."""
        self.assertFalse(EchoFactory.noisy)
