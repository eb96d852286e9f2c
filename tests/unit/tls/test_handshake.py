"""TLS handshakes: timeout, limits, failures, drain, and clients without a byte."""

from __future__ import annotations

import contextlib
import ssl

from twisted.internet.task import Clock

from echod.events import Closed, Ending, Opened, Reason, Refused
from echod.timeouts import FIRST_BYTE, QUIET
from echod.tls import ALERT_TIME
from tests.authority import Authority
from tests.unit.tls.client import TLSServer, TLSTestCase

PLAINTEXT = [b"h", b"hell", b"hello", b"hello\n", b"GET / HTTP/1.0\r\n\r\n", bytes(100_000)]


BROKEN_HANDSHAKE = b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff"


class HandshakeTests(TLSTestCase):
    def test_no_events_before_the_handshake(self) -> None:
        """No observer is notified of a connection before its handshake is complete."""
        server = TLSServer(self.authority)
        client = server.connect()
        server.network.settle()
        self.assertEqual(server.events, [])
        self.assertEqual(server.factory.connections, set())
        client.handshake()
        self.assertEqual([type(event) for event in server.events], [Opened])
        self.assertEqual(server.factory.pending, set())
        client.send(client.record(b"hello"))
        self.assertEqual(client.read(), b"hello")

    def test_handshake_timeout(self) -> None:
        """A handshake that is not complete in time is reset and counted; others are left alone."""
        server = TLSServer(self.authority, handshake_timeout=10)
        slow, quick = server.connect(), server.client()
        server.network.advance(9.9)
        self.assertIsNone(slow.peer.ended)
        server.network.advance(0.2)
        self.assertEqual(slow.peer.ended, "RST")
        self.assertEqual(
            [event.reason for event in server.events.refused], [Reason.HANDSHAKE_TIMEOUT]
        )
        self.assertEqual(server.factory.pending, set())
        server.network.advance(100)
        quick.send(quick.record(b"hello"))
        self.assertEqual(quick.read(), b"hello")

    def test_no_handshake_timeout(self) -> None:
        """Without a handshake timeout, a handshake may take any time."""
        server = TLSServer(self.authority, handshake_timeout=None)
        client = server.connect()
        server.network.advance(10_000)
        client.handshake()
        self.assertEqual(len(server.factory.connections), 1)

    def test_timeout_in_a_handshake(self) -> None:
        """A handshake that stops halfway is reset at the timeout, and counted once."""
        server = TLSServer(self.authority)
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        client.send(client.record()[:100])
        server.network.advance(11)
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(
            [event.reason for event in server.events.refused], [Reason.HANDSHAKE_TIMEOUT]
        )

    def test_plaintext(self) -> None:
        """Plaintext ends in RST, and is counted once: FIN would look like an empty reply."""
        for sent in PLAINTEXT:
            for segment in [1, 3, 100_000]:
                for finishes in [False, True]:
                    server = TLSServer(self.authority)
                    client = server.connect()
                    for start in range(0, min(len(sent), 50 * segment), segment):
                        client.peer.send(sent[start : start + segment])
                        server.network.settle()
                    if finishes and client.peer.ended is None:
                        client.peer.finish()
                        server.network.settle()
                    if len(sent) < 5 and not finishes:  # the start of a record's header, perhaps
                        self.assertIsNone(client.peer.ended)
                        server.network.advance(11)
                    self.assertEqual((bytes(client.peer.received), client.peer.ended), (b"", "RST"))
                    [refused] = server.events.refused
                    self.assertIn(refused.reason, (Reason.TLS_HANDSHAKE, Reason.HANDSHAKE_TIMEOUT))
                    self.assertEqual(refused.peer, client.peer.transport.getHost())
                    self.assertEqual(server.factory.pending, set())
                    self.assertEqual(server.network.getDelayedCalls(), [])

    def test_failed_handshake(self) -> None:
        """A client whose handshake fails gets an alert, time to read it, then RST."""
        for finishes in [False, True]:
            server = TLSServer(self.authority)
            client = server.connect()
            client.send(BROKEN_HANDSHAKE + b"more")
            self.assertTrue(client.peer.received.startswith(b"\x15\x03"))  # an alert (RFC 8446 5.1)
            self.assertIsNone(client.peer.ended)
            self.assertEqual(len(server.factory.pending), 1)  # it keeps its descriptor
            if finishes:
                client.peer.finish()
                server.network.settle()
            else:
                client.send(b"still more")
                server.network.advance(ALERT_TIME)
            self.assertEqual((len(client.peer.received), client.peer.ended), (7, "RST"))
            [refused] = server.events
            self.assertEqual(
                refused, Refused(Reason.TLS_HANDSHAKE, client.peer.transport.getHost(), tls=True)
            )
            self.assertEqual(server.factory.pending, set())
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_failed_handshake_in_a_drain(self) -> None:
        """A drain does not extend a failed handshake, and the reason stays the same."""
        for deadline in [0.5, 2]:
            server = TLSServer(self.authority)
            client = server.connect()
            client.send(BROKEN_HANDSHAKE)
            drained = server.factory.drain(deadline)
            server.network.advance(1.1)
            self.assertTrue(drained.called)
            self.assertEqual(client.peer.ended, "RST")
            self.assertEqual(
                [event.reason for event in server.events.refused], [Reason.TLS_HANDSHAKE]
            )

    def test_client_alert(self) -> None:
        """A client that does not trust the certificate sends an alert, and is reset at once."""
        server = TLSServer(self.authority)
        (self.directory / "other").mkdir()
        server.trusted = Authority(self.directory / "other").file
        client = server.connect()
        with self.assertRaises(ssl.SSLCertVerificationError):
            client.handshake()
        client.send(client.record())
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual([event.reason for event in server.events], [Reason.TLS_HANDSHAKE])

    def test_truncated_handshake(self) -> None:
        """A client that leaves in the middle of its handshake is counted, and gets no FIN."""
        for end in ["finish", "abort"]:
            server = TLSServer(self.authority)
            client = server.connect()
            client.send(b"\x16\x03\x01")  # the start of a record
            getattr(client.peer, end)()
            server.network.settle()
            self.assertEqual(
                [event.reason for event in server.events.refused], [Reason.TLS_HANDSHAKE]
            )
            self.assertEqual(server.factory.pending, set())
            if end == "finish":
                self.assertEqual(client.peer.ended, "RST")
            server.network.advance(100)
            self.assertEqual(len(server.events), 1)

    def test_handshakes_count_against_the_limits(self) -> None:
        """Pending handshakes count against the limits, and connections above them are reset."""
        server = TLSServer(self.authority, max_connections=3, max_connections_per_peer=2)
        first, second = server.connect(), server.connect()
        third = server.connect()
        server.network.settle()
        self.assertEqual(third.peer.ended, "RST")
        first.handshake()
        second.handshake()
        fourth = server.connect()
        server.network.settle()
        self.assertEqual(fourth.peer.ended, "RST")
        self.assertEqual(
            [event.reason for event in server.events.refused],
            [
                Reason.MAX_CONNECTIONS_PER_PEER,
                Reason.MAX_CONNECTIONS_PER_PEER,
            ],
        )
        for client in (first, second):
            client.peer.abort()
        server.network.settle()
        self.assertEqual(len(server.factory.connections), 0)
        server.client()
        self.assertEqual(len(server.factory.connections), 1)

    def test_handshake_unread_at_the_timeout(self) -> None:
        """A handshake that arrives in time, while the process is stopped, is completed."""
        server = TLSServer(self.authority, handshake_timeout=10)
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        client.send(client.record())
        client._tls.do_handshake()
        client.peer.transport.getHandle().send(client.record(b"hello"))  # type: ignore[attr-defined]
        Clock.advance(server.network, 11)  # timers run, nothing is read
        server.network.advance(2)
        self.assertEqual(client.read(), b"hello")
        self.assertEqual(server.events.refused, [])

    def test_handshake_byte_by_byte(self) -> None:
        """A handshake that arrives byte by byte is reset, late by a quarter at most."""
        server = TLSServer(self.authority, handshake_timeout=10)
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        hello = client.record()
        client.send(hello[:1])
        for at in range(1, 13):
            self.assertIsNone(client.peer.ended)
            client.peer.transport.getHandle().send(hello[at : at + 1])  # type: ignore[attr-defined]
            Clock.advance(server.network, 1)
            server.network.settle()
            if client.peer.ended is not None:
                break
        self.assertTrue(10 < server.network.seconds() <= 12.5)
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(
            [event.reason for event in server.events.refused], [Reason.HANDSHAKE_TIMEOUT]
        )

    def test_silent_in_a_drain(self) -> None:
        """A drain refuses a client that has not begun its handshake after a second."""
        server = TLSServer(self.authority)
        old = server.connect()
        server.network.advance(FIRST_BYTE)
        new = server.connect()
        drained = server.factory.drain(10)
        server.network.advance(QUIET)
        self.assertEqual((old.peer.ended, new.peer.ended), ("RST", None))
        server.network.advance(FIRST_BYTE)
        self.assertTrue(drained.called)
        self.assertEqual(new.peer.ended, "RST")
        self.assertEqual([event.reason for event in server.events.refused], [Reason.DRAINING] * 2)

    def test_handshake_in_a_drain(self) -> None:
        """A drain on a path of 250 ms completes the handshake, echoes the bytes, and sends FIN.

        The first byte is in flight when the drain begins, as after accept_waiting.
        """
        for version in [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]:
            server = TLSServer(self.authority)
            client = server.connect(version)
            drained = server.factory.drain(10)
            done = False
            while not done:
                with contextlib.suppress(ssl.SSLWantReadError):
                    client._tls.do_handshake()
                    done = True
                flight = client.record() + (client.record(b"hello") if done else b"")
                server.network.advance(0.25)  # both directions together
                client.send(flight)
            self.assertEqual(client.read(), b"hello")
            self.assertFalse(drained.called)
            server.network.advance(1)
            self.assertTrue(drained.called)
            self.assertEqual(client.read(), b"hello")
            self.assertTrue(client.closed)
            self.assertEqual(server.events.endings, [Ending.DRAINED])

    def test_handshake_timeout_in_a_drain(self) -> None:
        """In a drain, a handshake that stays incomplete ends at the handshake timeout."""
        server = TLSServer(self.authority, handshake_timeout=10)
        client = server.connect()
        client.send(b"\x16\x03\x01")
        drained = server.factory.drain(60)
        server.network.advance(9)
        self.assertFalse(drained.called)
        server.network.advance(1.1)
        self.assertTrue(drained.called)
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(
            [event.reason for event in server.events.refused], [Reason.HANDSHAKE_TIMEOUT]
        )

    def test_health_check(self) -> None:
        """A client that leaves without a byte, as a health check does, is unused."""
        for leave in ("finish", "abort"):
            server = TLSServer(self.authority)
            client = server.connect()
            server.network.advance(2)
            getattr(client.peer, leave)()
            server.network.settle()
            peer = client.peer.transport.getHost()
            closed = Closed(Ending.UNUSED, 0, 2.0, 0, peer, tls=True)
            self.assertEqual(server.events, [Opened(peer, tls=True), closed])
            self.assertEqual(server.factory.pending, set())
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_health_check_with_a_handshake(self) -> None:
        """A client that leaves without a byte after the handshake is unused, however it leaves."""
        for leave in ["finish", "abort", "alert"]:
            server = TLSServer(self.authority)
            client = server.client()
            if leave == "alert":
                client.send(client.closing_alert())
            else:
                getattr(client.peer, leave)()
            server.network.settle()
            self.assertEqual(server.events.endings, [Ending.UNUSED])

    def test_refused_before_it_is_done(self) -> None:
        """A connection that was refused is not served if its handshake completes later."""
        server = TLSServer(self.authority)
        client = server.connect()
        [pending] = server.factory.pending
        for reason in (Reason.DRAINING, Reason.HANDSHAKE_TIMEOUT):
            pending.refuse(reason)
        pending.handshake_done()  # type: ignore[attr-defined]  # called by the transport
        server.network.settle()
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(
            server.events, [Refused(Reason.DRAINING, client.peer.transport.getHost(), tls=True)]
        )
