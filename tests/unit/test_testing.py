"""The in-memory network: parts that the conformance tests do not cover."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import error
from twisted.internet.address import IPv4Address
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

import echod.testing
from echod.factory import EchoFactory
from echod.testing import MemoryNetwork, MemorySocket, Peer
from tests.streams.server import Peers


def pair(capacity: int = 4) -> tuple[MemorySocket, MemorySocket]:
    address = IPv4Address("TCP", "192.0.2.1", 7)
    near, far = MemorySocket(address, capacity), MemorySocket(address, capacity)
    near.other, far.other = far, near
    return near, far


class MemorySocketTests(SynchronousTestCase):
    """The sockets behave as tcp(7), send(2), recv(2) and shutdown(2) say."""

    def test_bytes(self) -> None:
        """The bytes that one end sends are received at the other, in parts of any size."""
        near, far = pair()
        self.assertFalse(far.readable())
        self.assertEqual(near.send(b"abc"), 3)
        self.assertEqual(far.recv(2, socket.MSG_PEEK), b"ab")
        self.assertEqual(far.recv(2), b"ab")
        self.assertEqual(far.recv(2), b"c")
        self.assertRaises(BlockingIOError, far.recv, 2)

    def test_capacity(self) -> None:
        """A send is cut at the capacity."""
        near, far = pair(4)
        self.assertEqual(near.send(b"abcdef"), 4)
        self.assertFalse(near.writable())
        self.assertRaises(BlockingIOError, near.send, b"ef")
        far.recv(1)
        self.assertTrue(near.writable())

    def test_half_close(self) -> None:
        """After SHUT_WR an end cannot send; the other receives the rest, then EOF."""
        near, far = pair()
        near.send(b"abc")
        near.shutdown(socket.SHUT_WR)
        self.assertRaises(BrokenPipeError, near.send, b"d")
        self.assertEqual([far.recv(9), far.recv(9)], [b"abc", b""])
        far.send(b"d")
        self.assertEqual(near.recv(9), b"d")
        near.shutdown(socket.SHUT_RD)

    def test_close_with_unread_bytes(self) -> None:
        """Closing with unread bytes resets the other end."""
        near, far = pair()
        far.send(b"abc")
        near.close()
        self.assertRaises(ConnectionResetError, far.recv, 9)
        self.assertRaises(BrokenPipeError, far.send, b"d")

    def test_send_after_the_other_closed(self) -> None:
        """Sending to a closed end causes a reset, which the next call reports."""
        near, far = pair()
        near.close()
        self.assertTrue(far.writable())
        self.assertEqual(far.send(b"abc"), 3)
        self.assertRaises(ConnectionResetError, far.recv, 9)

    def test_reset_reported_once(self) -> None:
        """A reset is reported once; after that, the end of the stream."""
        near, far = pair()
        far.send(b"abc")
        near.close()
        self.assertRaises(ConnectionResetError, far.recv, 1, socket.MSG_PEEK)
        self.assertEqual(far.recv(9), b"")

    def test_no_descriptor(self) -> None:
        """There is no descriptor, and options are stored."""
        near, _ = pair()
        near.setblocking(False)
        self.assertEqual(near.fileno(), -1)
        self.assertEqual(near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 0)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.assertEqual(near.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE), 1)


class MemoryNetworkTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.network = MemoryNetwork()

    def connect(self, factory: Any, **where: Any) -> Any:
        return self.successResultOf(self.network.client_endpoint(**where).connect(factory))

    def test_ports(self) -> None:
        """Each address has one listener until that stops."""
        endpoint = self.network.server_endpoint()
        port = self.successResultOf(endpoint.listen(EchoFactory()))
        port.startListening()
        self.assertEqual((port.getHost().host, port.getHost().port), ("192.0.2.1", 7))
        self.failureResultOf(endpoint.listen(EchoFactory()), error.CannotListenError)
        self.successResultOf(self.network.server_endpoint(port=8).listen(EchoFactory()))
        port.stopListening()
        port.stopListening()
        self.successResultOf(endpoint.listen(EchoFactory()))

    def test_connection_refused(self) -> None:
        """Connecting to an address without a listener is refused."""
        refused = self.network.client_endpoint().connect(Peers())
        self.failureResultOf(refused, error.ConnectionRefusedError)

    def test_no_protocol(self) -> None:
        """A factory that builds no protocol closes the connection."""

        class Unwilling(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> IProtocol | None:
                return None

        self.network.server_endpoint().listen(Unwilling())
        peer = self.connect(Peers())
        self.network.settle()
        self.assertEqual(peer.ended, "FIN")

    def test_addresses(self) -> None:
        """Each end knows the other's address, and each client has a port of its own."""
        service = Peers()
        self.network.server_endpoint().listen(service)
        one, two = (self.connect(Peers(), source="198.51.100.9") for _ in range(2))
        self.assertEqual(service.peers[0].transport.getPeer(), one.transport.getHost())
        self.assertEqual(one.transport.getPeer(), service.peers[0].transport.getHost())
        self.assertEqual(one.transport.getHost().host, "198.51.100.9")
        self.assertNotEqual(one.transport.getHost(), two.transport.getHost())

    def test_time(self) -> None:
        """Time advances from one delayed call to the next, including calls made by calls."""
        moments: list[float] = []

        def note() -> None:
            moments.append(self.network.seconds())
            if len(moments) < 5:
                self.network.callLater(1, note)

        self.network.callLater(1, note)
        self.network.advance(3.5)
        self.assertEqual(moments, [1, 2, 3])
        self.assertEqual(self.network.seconds(), 3.5)

    def test_endless_traffic(self) -> None:
        """Endless traffic between two protocols is detected."""
        self.patch(echod.testing, "TURNS", 1000)

        class Answering(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(data)

        self.network.server_endpoint().listen(Factory.forProtocol(Answering))
        client = self.connect(Factory.forProtocol(Answering))
        client.transport.write(b"ping")
        self.assertRaises(AssertionError, self.network.settle)

    def test_delayed_calls(self) -> None:
        """A call that was postponed does not delay calls that are due before it."""
        moments: list[tuple[str, float]] = []
        late = self.network.callLater(1, lambda: moments.append(("late", self.network.seconds())))
        self.network.callLater(2, lambda: moments.append(("soon", self.network.seconds())))
        late.reset(4)
        self.network.advance(5)
        self.assertEqual(moments, [("soon", 2), ("late", 4)])

    def test_failing_protocol(self) -> None:
        """An exception in a protocol is logged, and ends its connection, as in a reactor."""

        class Failing(Protocol):
            def dataReceived(self, data: bytes) -> None:
                raise RuntimeError("a bug")

        self.network.server_endpoint().listen(Factory.forProtocol(Failing))
        peer: Peer = self.connect(Peers())
        peer.send(b"hello")
        self.network.settle()
        self.assertEqual(peer.ended, "FIN")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_reactor(self) -> None:
        """The network lists its readers and writers, and can remove them (IReactorFDSet)."""
        self.network.server_endpoint().listen(EchoFactory())
        peer = self.connect(Peers())
        peer.send(b"hello")
        self.assertIn(peer.transport, self.network.getReaders())
        self.assertEqual(self.network.getWriters(), [peer.transport])
        self.assertEqual(len(self.network.removeAll()), 3)
        self.assertEqual(self.network.getReaders() + self.network.getWriters(), [])

    def test_peer_waits(self) -> None:
        """Each Deferred of a peer fires at its own condition."""
        self.network.server_endpoint().listen(EchoFactory())
        peer: Peer = self.connect(Peers())
        two, four, ended = peer.when_received(2), peer.when_received(4), peer.when_ended()
        peer.send(b"abc")
        self.network.settle()
        self.assertIs(self.successResultOf(two), peer)
        self.assertNoResult(four)
        peer.finish()
        self.network.settle()
        self.assertIs(self.successResultOf(four), peer)
        self.assertIs(self.successResultOf(ended), peer)
