"""The in-memory network, where the conformance tests do not look."""

from __future__ import annotations

import socket
from typing import Any

from twisted.internet import error
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory, Protocol
from twisted.trial.unittest import SynchronousTestCase

import echod.testing
from echod.factory import EchoFactory
from echod.testing import MemoryNetwork, MemorySocket, Peer
from tests.streams.server import Peers


def pair(capacity: int = 4) -> tuple[MemorySocket, MemorySocket]:
    near, far = MemorySocket(capacity), MemorySocket(capacity)
    near.other, far.other = far, near
    return near, far


class MemorySocketTests(SynchronousTestCase):
    """As tcp(7), send(2), recv(2) and shutdown(2) say."""

    def test_bytes(self) -> None:
        """What one end sends the other receives, in pieces of any size."""
        near, far = pair()
        self.assertFalse(far.readable())
        self.assertEqual(near.send(b"abc"), 3)
        self.assertEqual(far.recv(2, socket.MSG_PEEK), b"ab")
        self.assertEqual(far.recv(2), b"ab")
        self.assertEqual(far.recv(2), b"c")
        self.assertRaises(BlockingIOError, far.recv, 2)

    def test_capacity(self) -> None:
        """What does not fit is not taken."""
        near, far = pair(4)
        self.assertEqual(near.send(b"abcdef"), 4)
        self.assertFalse(near.writable())
        self.assertRaises(BlockingIOError, near.send, b"ef")
        far.recv(1)
        self.assertTrue(near.writable())

    def test_half_close(self) -> None:
        """After SHUT_WR this end cannot send, and the other receives the rest, then the end."""
        near, far = pair()
        near.send(b"abc")
        near.shutdown(socket.SHUT_WR)
        self.assertRaises(BrokenPipeError, near.send, b"d")
        self.assertEqual([far.recv(9), far.recv(9)], [b"abc", b""])
        far.send(b"d")
        self.assertEqual(near.recv(9), b"d")
        near.shutdown(socket.SHUT_RD)

    def test_close_with_unread_bytes(self) -> None:
        """To close with bytes unread resets the other end."""
        near, far = pair()
        far.send(b"abc")
        near.close()
        self.assertRaises(ConnectionResetError, far.recv, 9)
        self.assertRaises(BrokenPipeError, far.send, b"d")

    def test_send_after_the_other_closed(self) -> None:
        """To send to an end that is closed is answered with a reset, which shows next time."""
        near, far = pair()
        near.close()
        self.assertTrue(far.writable())
        self.assertEqual(far.send(b"abc"), 3)
        self.assertRaises(ConnectionResetError, far.recv, 9)

    def test_reset_is_told_once(self) -> None:
        """An end learns once that it was reset; after that, there is just nothing more."""
        near, far = pair()
        far.send(b"abc")
        near.close()
        self.assertRaises(ConnectionResetError, far.recv, 1, socket.MSG_PEEK)
        self.assertEqual(far.recv(9), b"")

    def test_no_descriptor(self) -> None:
        """There is no descriptor, and options are remembered."""
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
        """One listens at an address, until it stops; others listen at others."""
        endpoint = self.network.server_endpoint()
        port = self.successResultOf(endpoint.listen(EchoFactory()))
        port.startListening()
        self.assertEqual((port.getHost().host, port.getHost().port), ("192.0.2.1", 7))
        self.failureResultOf(endpoint.listen(EchoFactory()), error.CannotListenError)
        self.successResultOf(self.network.server_endpoint(port=8).listen(EchoFactory()))
        port.stopListening()
        port.stopListening()
        self.successResultOf(endpoint.listen(EchoFactory()))

    def test_nobody_listens(self) -> None:
        """To connect where nobody listens is refused."""
        refused = self.network.client_endpoint().connect(Peers())
        self.failureResultOf(refused, error.ConnectionRefusedError)

    def test_not_wanted(self) -> None:
        """A factory that builds nothing closes the connection."""

        class Unwilling(Factory):
            noisy = False

            def buildProtocol(self, addr: Any) -> IProtocol | None:
                return None

        self.network.server_endpoint().listen(Unwilling())
        peer = self.connect(Peers())
        self.network.settle()
        self.assertEqual(peer.ended, "FIN")

    def test_addresses(self) -> None:
        """Both ends know each other's address; each client has a port of its own."""
        service = Peers()
        self.network.server_endpoint().listen(service)
        one, two = (self.connect(Peers(), source="198.51.100.9") for _ in range(2))
        self.assertEqual(service.peers[0].transport.getPeer(), one.transport.getHost())
        self.assertEqual(one.transport.getPeer(), service.peers[0].transport.getHost())
        self.assertEqual(one.transport.getHost().host, "198.51.100.9")
        self.assertNotEqual(one.transport.getHost(), two.transport.getHost())

    def test_time(self) -> None:
        """Time passes call by call, and calls that a call makes are in time too."""
        heard: list[float] = []

        def hear() -> None:
            heard.append(self.network.seconds())
            if len(heard) < 5:
                self.network.callLater(1, hear)

        self.network.callLater(1, hear)
        self.network.advance(3.5)
        self.assertEqual(heard, [1, 2, 3])
        self.assertEqual(self.network.seconds(), 3.5)

    def test_no_end(self) -> None:
        """Two that answer each other for ever are found out."""
        self.patch(echod.testing, "TURNS", 1000)

        class Answer(Protocol):
            def dataReceived(self, data: bytes) -> None:
                self.transport.write(data)

        self.network.server_endpoint().listen(Factory.forProtocol(Answer))
        client = self.connect(Factory.forProtocol(Answer))
        client.transport.write(b"ping")
        self.assertRaises(AssertionError, self.network.settle)

    def test_delayed_calls(self) -> None:
        """A call that was put off does not hold up those that are due before it."""
        heard: list[tuple[str, float]] = []
        late = self.network.callLater(1, lambda: heard.append(("late", self.network.seconds())))
        self.network.callLater(2, lambda: heard.append(("soon", self.network.seconds())))
        late.reset(4)
        self.network.advance(5)
        self.assertEqual(heard, [("soon", 2), ("late", 4)])

    def test_protocol_that_fails(self) -> None:
        """An exception in a protocol is logged, and ends its connection, as in a reactor."""

        class Failing(Protocol):
            def dataReceived(self, data: bytes) -> None:
                raise RuntimeError("not my day")

        self.network.server_endpoint().listen(Factory.forProtocol(Failing))
        peer: Peer = self.connect(Peers())
        peer.send(b"hello")
        self.network.settle()
        self.assertEqual(peer.ended, "FIN")
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_reactor(self) -> None:
        """It tells what it watches, and can forget all of it (IReactorFDSet)."""
        self.network.server_endpoint().listen(EchoFactory())
        peer = self.connect(Peers())
        peer.send(b"hello")
        self.assertIn(peer.transport, self.network.getReaders())
        self.assertEqual(self.network.getWriters(), [peer.transport])
        self.assertEqual(len(self.network.removeAll()), 3)
        self.assertEqual(self.network.getReaders() + self.network.getWriters(), [])

    def test_peer_waits(self) -> None:
        """Of several things waited for, each is told when it happens."""
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
