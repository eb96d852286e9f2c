"""Connections behind a proxy: the client's address, and refusal without a PROXY header."""

from __future__ import annotations

from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Closed, Ending, Event, Opened, Reason, Refused
from echod.factory import EchoFactory
from echod.protocol import Echo
from echod.proxy import ProxyFactory
from echod.testing import MemoryNetwork, Peer
from echod.timeouts import FIRST_BYTE, QUIET, Progress
from echod.transport import lose
from tests.recorder import Recorder
from tests.streams.proxy import proxy_header
from tests.streams.server import Peers

CLIENT = IPv4Address("TCP", "203.0.113.1", 40000)
HEADER = proxy_header(1, "203.0.113.1", 40000)
BINARY = proxy_header(2, "203.0.113.1", 40000)
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


class ProxyTestCase(SynchronousTestCase):
    def serve(self, **options: Any) -> None:
        self.network = MemoryNetwork()
        self.events = Recorder()
        self.factory = EchoFactory(**{"observer": self.events, **options})
        self.network.server_endpoint().listen(ProxyFactory(self.factory))

    def connect(self, *sent: bytes, source: str = "198.51.100.1") -> Peer:
        endpoint = self.network.client_endpoint(source=source)
        peer: Any = self.successResultOf(endpoint.connect(Peers()))
        for part in sent:
            peer.send(part)
            self.network.settle()
        return peer  # type: ignore[no-any-return]

    def assert_nothing_left(self) -> None:
        """Assert that no connection is pending, and no timer is running."""
        self.assertEqual(self.factory.pending, set())
        self.assertEqual(self.network.getDelayedCalls(), [])


class ServedTests(ProxyTestCase):
    def test_peer(self) -> None:
        """The peer of a connection is the client, not the proxy, in all of its events."""
        for version in (1, 2):
            for host, kind in (("203.0.113.1", IPv4Address), ("2001:db8::1", IPv6Address)):
                self.serve()
                peer = self.connect(proxy_header(version, host, 40000) + b"hello")
                client = kind("TCP", host, 40000)
                [echo] = self.factory.connections
                self.assertEqual(echo.peer, client)
                peer.finish()
                self.network.settle()
                self.assertEqual((bytes(peer.received), peer.ended), (b"hello", "FIN"))
                closed = Closed(Ending.FINISHED, 5, 0, 0, client)
                self.assertEqual(self.events, [Opened(client), closed])

    def test_byte_by_byte(self) -> None:
        """A header may arrive byte by byte."""
        for header in (HEADER, BINARY):
            self.serve()
            data = header + b"hello"
            peer = self.connect(*(data[at : at + 1] for at in range(len(data))))
            self.assertEqual(peer.received, b"hello")
            self.assertEqual(self.events, [Opened(CLIENT)])

    def test_header_data_and_fin(self) -> None:
        """Header, bytes and FIN in one segment: every byte is echoed, then FIN."""
        self.serve()
        peer = self.connect()
        peer.send(HEADER + b"hello")
        peer.finish()
        self.network.settle()
        self.assertEqual((bytes(peer.received), peer.ended), (b"hello", "FIN"))

    def test_header_alone(self) -> None:
        """A connection is served once its header is complete, before any byte."""
        self.serve()
        self.connect(HEADER)
        self.assertEqual(self.events, [Opened(CLIENT)])

    def test_no_client_address(self) -> None:
        """The proxy itself is the peer if its header has no client address."""
        for header in (LOCAL, b"PROXY UNKNOWN\r\n"):
            self.serve()
            peer = self.connect(header + b"hello")
            self.assertEqual(self.events, [Opened(peer.transport.getHost())])
            self.assertEqual(peer.received, b"hello")

    def test_socket_options(self) -> None:
        """TCP options are set on a TCP connection, even if the client's address is a UNIX path."""
        self.serve()
        client = b"\x21\x31\0\xd8" + b"/run/from".ljust(216, b"\0")
        self.connect(LOCAL[:12] + client + b"hello")
        [echo] = self.factory.connections
        self.assertEqual(getattr(echo.peer, "name", None), b"/run/from")
        self.assertTrue(echo.transport.getTcpNoDelay())

    def test_limit_per_peer(self) -> None:
        """The limit per peer counts clients, and does not limit the proxy."""
        self.serve(max_connections_per_peer=1)
        first = self.connect(HEADER)
        second = self.connect(HEADER)
        other = self.connect(proxy_header(1, "203.0.113.2", 1), b"hello")
        self.assertEqual([first.ended, second.ended, other.ended], [None, "RST", None])
        self.assertEqual(other.received, b"hello")
        self.assertEqual(self.events.refused, [Refused(Reason.MAX_CONNECTIONS_PER_PEER, CLIENT)])

    def test_closed_by_an_observer(self) -> None:
        """An observer may end a connection at its first event, and no byte is echoed."""

        def observe(event: Event) -> None:
            if isinstance(event, Opened):
                [echo] = self.factory.connections
                lose(echo.transport)

        self.serve(observer=observe)
        peer = self.connect(HEADER + b"hello")
        self.assertEqual(peer.received, b"")
        self.assertIsNotNone(peer.ended)


class RefusedTests(ProxyTestCase):
    def assert_refused(self, peer: Peer, reason: Reason) -> None:
        self.assertEqual((bytes(peer.received), peer.ended), (b"", "RST"))
        self.assertEqual(self.events, [Refused(reason, peer.transport.getHost())])
        self.assert_nothing_left()

    def test_garbage(self) -> None:
        """A malformed header is reset at its first wrong byte, and counted once."""
        for sent in (b"hello\n", b"\xff\xfe", b"PROXY TCP4 \xff 1 1 1\r\n", b"GET / HTTP/1.1\r\n"):
            for parts in ([sent], [sent[:1], sent[1:]]):
                self.serve()
                self.assert_refused(self.connect(*parts), Reason.PROXY_HEADER)

    def test_timeout(self) -> None:
        """A header that is not complete in time is reset and counted."""
        for sent in (b"", HEADER[:20]):
            self.serve(handshake_timeout=10)
            peer = self.connect(sent)
            self.network.advance(9)
            self.assertIsNone(peer.ended)
            self.network.advance(1)
            self.assert_refused(peer, Reason.HANDSHAKE_TIMEOUT)

    def test_no_timeout(self) -> None:
        """Without a handshake timeout, a header may take any time."""
        self.serve(handshake_timeout=None)
        peer = self.connect(HEADER[:20])
        self.assertEqual(self.network.getDelayedCalls(), [])
        peer.send(HEADER[20:] + b"hello")
        self.network.settle()
        self.assertEqual(peer.received, b"hello")

    def test_health_check(self) -> None:
        """A health check of a load balancer, without a byte, is unused."""
        for leave in (Peer.finish, Peer.abort):
            self.serve()
            peer = self.connect()
            self.network.advance(2)
            leave(peer)
            self.network.settle()
            proxy = peer.transport.getHost()
            closed = Closed(Ending.UNUSED, 0, 2.0, 0, proxy)
            self.assertEqual(self.events, [Opened(proxy), closed])
            self.assert_nothing_left()

    def test_truncated(self) -> None:
        """A peer that leaves in the middle of its header is counted, and gets no FIN."""
        for leave in (Peer.finish, Peer.abort):
            self.serve()
            peer = self.connect(HEADER[:20])
            leave(peer)
            self.network.settle()
            here = peer.transport.getHost()
            self.assertEqual(self.events, [Refused(Reason.PROXY_HEADER, here)])
            if leave is Peer.finish:
                self.assertEqual((bytes(peer.received), peer.ended), (b"", "RST"))
            self.assert_nothing_left()

    def test_unread_at_the_timeout(self) -> None:
        """A header that arrives in time, while the process is stopped, is read."""
        self.serve(handshake_timeout=10)
        peer = self.connect(HEADER[:20])
        peer.transport.getHandle().send(HEADER[20:] + b"hello")  # type: ignore[attr-defined]
        Clock.advance(self.network, 11)  # timers run, nothing is read
        self.network.advance(2)
        self.assertEqual(peer.received, b"hello")
        self.assertEqual(self.events.refused, [])

    def test_incomplete_at_the_second_check(self) -> None:
        """A header still incomplete at the second check is reset, late by a quarter at most."""
        self.serve(handshake_timeout=10)
        peer = self.connect(HEADER[:20])
        peer.transport.getHandle().send(HEADER[20:21])  # type: ignore[attr-defined]
        Clock.advance(self.network, 10)
        self.network.settle()
        self.assertIsNone(peer.ended)
        peer.transport.getHandle().send(HEADER[21:22])  # type: ignore[attr-defined]
        Clock.advance(self.network, 2.5)
        self.network.settle()
        self.assert_refused(peer, Reason.HANDSHAKE_TIMEOUT)

    def test_limit(self) -> None:
        """A pending connection counts against the limit, and connections above it are reset."""
        self.serve(max_connections=2)
        waiting, served = self.connect(), self.connect(HEADER)
        third = self.connect()
        self.network.settle()
        self.assertEqual(third.ended, "RST")
        [refused] = self.events.refused
        self.assertEqual(refused, Refused(Reason.MAX_CONNECTIONS, third.transport.getHost()))
        waiting.send(HEADER + b"hello")
        self.network.settle()
        self.assertEqual((bytes(waiting.received), served.ended), (b"hello", None))
        self.assertEqual(len(self.factory.connections), 2)

    def test_bytes_after_a_refusal(self) -> None:
        """On a transport that resets later, bytes after the refusal are ignored."""
        events = Recorder()
        factory = ProxyFactory(EchoFactory(clock=Clock(), observer=events))
        transport = StringTransport()
        pending: Any = factory.buildProtocol(CLIENT)
        pending.makeConnection(transport)
        pending.dataReceived(b"x")
        pending.dataReceived(b"x")
        pending._received.clear()
        pending.dataReceived(HEADER + b"hello")
        pending.connectionLost()
        self.assertTrue(transport.disconnected)
        self.assertEqual(transport.value(), b"")
        self.assertEqual(events, [Refused(Reason.PROXY_HEADER, CLIENT)])


class DrainTests(ProxyTestCase):
    def test_drain(self) -> None:
        """A drain refuses new connections, and pending ones that are silent for a second."""
        self.serve(handshake_timeout=10)
        old = self.connect()
        self.network.advance(FIRST_BYTE)
        new, begun = self.connect(), self.connect(HEADER[:20])
        drained = self.factory.drain(60)
        self.factory.drain(60)
        late = self.connect()
        peers = [late, old, new, begun]
        for seconds, left in ((0.1, 3), (QUIET, 2), (FIRST_BYTE, 1)):
            self.network.advance(seconds)
            ended = [peer.ended for peer in peers]
            self.assertEqual(ended, ["RST"] * (4 - left) + [None] * left)
        self.assertEqual([event.reason for event in self.events.refused], [Reason.DRAINING] * 3)
        self.assertNoResult(drained)
        self.network.advance(10)
        self.assertEqual(begun.ended, "RST")
        self.assertEqual(self.events.refused[-1].reason, Reason.HANDSHAKE_TIMEOUT)
        self.successResultOf(drained)
        self.assert_nothing_left()

    def test_path_of_250_ms(self) -> None:
        """In a drain, the header and the first byte may be in flight for half a second each."""
        self.serve()
        peer = self.connect()
        drained = self.factory.drain(10)
        for part in (HEADER[:10], HEADER[10:], b"hello"):
            self.network.advance(0.5)
            peer.send(part)
            self.network.settle()
        self.assertEqual((bytes(peer.received), peer.ended), (b"hello", None))
        self.assertNoResult(drained)
        self.network.advance(0.5)
        self.assertEqual(peer.ended, "FIN")
        self.successResultOf(drained)
        self.assertEqual(self.events.endings, [Ending.DRAINED])
        self.assert_nothing_left()

    def test_unread_header(self) -> None:
        """In a drain, a client whose header is unread in the kernel is served."""
        self.serve()
        peer = self.connect()
        peer.transport.getHandle().send(HEADER + b"hello")  # type: ignore[attr-defined]
        drained = self.factory.drain(10)
        self.network.advance(1)
        self.assertEqual((bytes(peer.received), peer.ended), (b"hello", "FIN"))
        self.assertEqual(self.events.endings, [Ending.DRAINED])
        self.successResultOf(drained)

    def test_header_in_parts(self) -> None:
        """A client whose header arrives in parts, without a quiet moment, is served and drained."""
        self.serve(max_connections_per_peer=1)
        peer, other = self.connect(), self.connect()
        drained = self.factory.drain(10)
        for part in (HEADER[:10], HEADER[10:20], HEADER[20:] + b"hello"):
            self.network.advance(0.15)
            for each in (peer, other):
                each.send(part)
            self.network.settle()
        self.assertEqual((bytes(peer.received), peer.ended), (b"hello", None))
        self.assertEqual(other.ended, "RST")  # over the limit, which holds in a drain too
        self.assertNoResult(drained)
        self.network.advance(1)
        self.assertEqual(peer.ended, "FIN")
        self.successResultOf(drained)
        self.assertEqual(self.events.endings, [Ending.DRAINED])
        self.assert_nothing_left()

    def test_many_handshakes_in_a_drain(self) -> None:
        """A handshake that is completed in a drain costs no check of all the other connections."""
        checks = 0

        class CheckedEcho(Echo):
            def progress(self, *, draining: bool) -> Progress:
                nonlocal checks
                checks += 1
                return super().progress(draining=draining)

        self.serve()
        self.factory.protocol = CheckedEcho
        peers = [self.connect() for _ in range(40)]
        for peer in peers[:20]:
            peer.send(HEADER)
        self.network.settle()
        drained = self.factory.drain(10)
        for peer in peers[20:]:
            peer.send(HEADER)
        self.network.settle()
        self.assertEqual(len(self.factory.registry.drain.connections), 40)
        self.assertLess(checks, 3 * 40)
        self.network.advance(FIRST_BYTE + 0.41)
        self.successResultOf(drained)
        self.assertEqual(self.events.endings, [Ending.DRAINED] * 40)
        self.assert_nothing_left()

    def test_pending_when_listening_again(self) -> None:
        """A drain ends its pending connections soon, even if the factory listens again."""
        self.serve(idle_timeout=3600)
        peer = self.connect()
        drained = self.factory.drain(10)
        self.factory.startFactory()
        stays = self.connect(HEADER)
        peer.send(HEADER)
        self.network.advance(FIRST_BYTE + 0.41)
        self.assertEqual([peer.ended, stays.ended], ["FIN", None])
        self.successResultOf(drained)

    def test_endless_header(self) -> None:
        """A client whose header never ends is reset at the deadline of the drain."""
        self.serve(handshake_timeout=None)
        peer = self.connect(LOCAL[:12] + b"\x21\0\xff\xff")
        drained = self.factory.drain(1)
        for _ in range(10):
            self.assertIsNone(peer.ended)
            peer.send(b"x")
            self.network.advance(0.1)
        self.network.advance(0.01)
        self.assertEqual(peer.ended, "RST")
        self.successResultOf(drained)
        self.assertEqual([event.reason for event in self.events.refused], [Reason.DRAINING])
        self.assert_nothing_left()

    def test_client_leaves(self) -> None:
        """A drain is over when the last pending connection has ended."""
        for sent, refused in (((), 0), ((HEADER[:10],), 1)):
            self.serve()
            peer = self.connect(*sent)
            drained = self.factory.drain(10)
            peer.abort()
            self.network.advance(0.3)
            self.successResultOf(drained)
            self.assertEqual(len(self.events.refused), refused)
            self.assert_nothing_left()

    def test_unread_reset(self) -> None:
        """A reset that a drain or the timeout finds is counted as if it had been read."""
        for sent, reasons in (((), []), ((HEADER[:10],), [Reason.PROXY_HEADER])):
            self.serve()
            peer = self.connect(*sent)
            drained = self.factory.drain(10)
            peer.transport.connectionLost(Failure(ConnectionAborted()))  # type: ignore[attr-defined]
            Clock.advance(self.network, 10)  # timers run, nothing is read
            self.successResultOf(drained)
            self.assertEqual([event.reason for event in self.events.refused], reasons)
            self.assert_nothing_left()

    def test_drain_in_an_observer(self) -> None:
        """An observer may drain again while a header is read."""

        def observe(event: Event) -> None:
            if isinstance(event, Opened):
                self.factory.drain(0)

        self.serve(observer=observe)
        peers = [self.connect() for _ in range(3)]
        for peer in peers:
            peer.transport.getHandle().send(HEADER)  # type: ignore[attr-defined]
        self.factory.drain(10)
        self.network.settle()
        self.assertEqual([peer.ended for peer in peers], ["RST"] * 3)
        self.assertEqual(self.factory.connections, set())
        self.assert_nothing_left()

    def test_listen_again(self) -> None:
        """After a drain, a factory that listens again accepts proxies."""
        self.serve()
        self.factory.drain(0)
        self.network.stop(self.network.server_endpoint()._address)
        self.network.server_endpoint().listen(ProxyFactory(self.factory))
        self.assertEqual(self.connect(HEADER + b"hello").received, b"hello")


class MixedTests(SynchronousTestCase):
    def test_ports_with_and_without_a_proxy(self) -> None:
        """One factory may serve ports with and without a proxy, under the same limits."""
        network, events = MemoryNetwork(), Recorder()
        factory = EchoFactory(observer=events, max_connections_per_peer=1)
        network.server_endpoint(7).listen(factory)
        network.server_endpoint(8).listen(ProxyFactory(factory))
        peers: list[Any] = []
        for port in (8, 7):
            endpoint = network.client_endpoint(port, source=CLIENT.host)
            peers.append(self.successResultOf(endpoint.connect(Peers())))
            peers[-1].send(HEADER)
            network.settle()
        self.assertEqual([peer.ended for peer in peers], [None, "RST"])

    def test_no_address(self) -> None:
        """Without an address in buildProtocol, the peer is the transport's."""
        factory = EchoFactory(clock=Clock())
        nobody: IAddress | None = None
        echo: Any = factory.buildProtocol(nobody)
        echo.makeConnection(StringTransport(peerAddress=CLIENT))
        self.assertEqual(echo.peer, CLIENT)
