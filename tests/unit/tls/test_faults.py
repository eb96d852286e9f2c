"""TLS faults: the handshake, the end of the connection, and the faults of all streams."""

from __future__ import annotations

import ssl
from typing import Any
from unittest.mock import Mock

from echod.certificates import Certificates
from echod.events import Closed, Ending, Fired, Opened, Reason
from echod.faults import TLS, Plan, Rule, when
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from tests.authority import Authority
from tests.coroutines import now
from tests.recorder import Recorder
from tests.streams.memory import MemoryEndpoints
from tests.unit.tls.client import Connects, TLSClient, TLSTestCase, client_over_twisted

TEXT = bytes(range(256)) * 4


class FaultyServer(Connects):
    """A FaultyEchoFactory over TLS, in memory."""

    def __init__(self, authority: Authority, *rules: Rule, **options: Any) -> None:
        ends = MemoryEndpoints()
        self.network, self.events = ends.network, Recorder()
        self.factory = FaultyEchoFactory(
            Plan(rules, 0), serves=TLS, clock=ends.clock, observer=self.events, **options
        )
        self.trusted, self.keylog = authority.file, authority.file + ".log"
        over: Any = FaultyTLSFactory(self.factory, Certificates(authority.key_file, authority.file))
        now(ends.listen(over))

    @property
    def fired(self) -> list[int]:
        """The numbers of the connections on which a rule has fired."""
        return [each.connection for each in self.events if isinstance(each, Fired)]

    @property
    def reasons(self) -> list[Reason]:
        return [each.reason for each in self.events.refused]


class FaultTestCase(TLSTestCase):
    def assert_echo(self, client: TLSClient) -> None:
        client.send(client.record(TEXT))
        self.assertEqual(client.read(), TEXT)


class TwistedTests(FaultTestCase):
    def test_reset(self) -> None:
        """Twisted's own TLS sends later than it is written to: a reset waits for that.

        A record that was received with the one that is reset is not answered.
        """
        server = FaultyServer(self.authority, when.from_byte(640).reset())
        client = client_over_twisted(server, self.authority)
        client.send(client.record(TEXT) + client.record(TEXT))
        server.network.advance(1)
        self.assertEqual((client.read(), client.peer.ended), (TEXT[:640], "RST"))
        self.assertEqual(server.events.endings, [Ending.FAULT])
        self.assertEqual(server.network.getDelayedCalls(), [])

    def test_half_close(self) -> None:
        """Twisted's own TLS cannot half-close: the connection is closed."""
        server = FaultyServer(self.authority, when.from_byte(640).half_close())
        client = client_over_twisted(server, self.authority)
        client.send(client.record(TEXT))
        server.network.advance(1)
        self.assertEqual((client.read(), client.closed), (TEXT[:640], True))
        client.send(client.closing_alert())
        self.assertEqual(server.events.endings, [Ending.FAULT])
        self.assertEqual(client.peer.ended, "FIN")


class HandshakeFaultTests(FaultTestCase):
    def start_handshake(self, server: FaultyServer) -> TLSClient:
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        client.send(client.record())
        return client

    def test_stall(self) -> None:
        """A stalled handshake is never answered: the handshake timeout ends it."""
        server = FaultyServer(self.authority, when.first(1).stall(), handshake_timeout=10)
        client = self.start_handshake(server)
        self.assertEqual(server.fired, [1])
        client.send(bytes(1 << 16))
        server.network.advance(9.9)
        self.assertEqual((bytes(client.peer.received), client.peer.ended), (b"", None))
        server.network.advance(0.2)
        self.assertEqual((bytes(client.peer.received), client.peer.ended), (b"", "RST"))
        self.assertEqual(server.reasons, [Reason.HANDSHAKE_TIMEOUT])
        self.assertEqual(server.factory.pending, set())
        self.assert_echo(server.client())

    def test_stall_until_the_client_ends(self) -> None:
        """A client that gives up is refused because of the fault."""
        for end in ("finish", "abort"):
            server = FaultyServer(self.authority, when.stall())
            client = self.start_handshake(server)
            getattr(client.peer, end)()
            server.network.settle()
            self.assertEqual(server.reasons, [Reason.FAULT])
            self.assertEqual(bytes(client.peer.received), b"")
            self.assertEqual(server.factory.pending, set())
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_stall_in_a_drain(self) -> None:
        """A drain ends a stalled handshake at its deadline."""
        server = FaultyServer(self.authority, when.stall(), handshake_timeout=None)
        client = self.start_handshake(server)
        drained = server.factory.drain(3)
        server.network.advance(2.9)
        self.assertFalse(drained.called)
        server.network.advance(0.2)
        self.assertTrue(drained.called)
        self.assertEqual((client.peer.ended, server.reasons), ("RST", [Reason.DRAINING]))

    def test_abort(self) -> None:
        """The connection is reset when the first bytes arrive, and not before."""
        server = FaultyServer(self.authority, when.abort())
        client = server.connect()
        server.network.advance(5)
        self.assertEqual((client.peer.ended, server.fired), (None, []))
        client.send(b"\x16")
        self.assertEqual((bytes(client.peer.received), client.peer.ended), (b"", "RST"))
        self.assertEqual(server.reasons, [Reason.FAULT])
        self.assertEqual(server.network.getDelayedCalls(), [])

    def test_no_byte(self) -> None:
        """No fault fires on a connection without a byte, such as a health check."""
        server = FaultyServer(self.authority, when.stall(), when.no_close_notify())
        client = server.connect()
        client.peer.finish()
        server.network.settle()
        self.assertEqual(client.peer.ended, "FIN")
        self.assertEqual([type(each) for each in server.events], [Opened, Closed])
        self.assertEqual(server.factory.faults.counts, {"stall": 0, "no-close-notify": 0})

    def test_certificates(self) -> None:
        """A client that rejects the certificate is refused because of the fault."""
        for wrong, found in [
            ("wrong-name", "Hostname mismatch"),
            ("expired", "certificate has expired"),
            ("self-signed", "self-signed certificate"),
        ]:
            server = FaultyServer(self.authority, when.first(1).certificate(wrong))
            client = server.connect()
            with self.assertRaisesRegex(ssl.SSLCertVerificationError, found):
                client.handshake()
            client.send(client.record())  # the alert
            self.assertEqual((client.peer.ended, server.reasons), ("RST", [Reason.FAULT]))
            self.assertEqual(server.factory.faults.counts, {wrong: 1})
            self.assert_echo(server.client())

    def test_certificate_of_a_client_that_does_not_check(self) -> None:
        """A client that accepts the certificate is served."""
        server = FaultyServer(self.authority, when.certificate("wrong-name"))
        client = TLSClient(server, checks_name=False)
        client.handshake()
        self.assert_echo(client)
        self.assertEqual(server.factory.faults.counts, {"wrong-name": 1})

    def test_old_version(self) -> None:
        """A client that requires TLS 1.2 gets an alert."""
        server = FaultyServer(self.authority, when.old_version())
        client = server.connect()
        with self.assertRaisesRegex(ssl.SSLError, "ALERT_PROTOCOL_VERSION"):
            client.handshake()
        server.network.advance(1)
        self.assertEqual((client.peer.ended, server.reasons), ("RST", [Reason.FAULT]))

    def test_one_fault_of_the_handshake(self) -> None:
        """A connection has the first fault of its handshake that fires, and no second."""
        server = FaultyServer(
            self.authority, when.at_most(1).abort(), when.certificate("expired"), when.stall()
        )
        self.start_handshake(server)
        client = server.connect()
        with self.assertRaisesRegex(ssl.SSLCertVerificationError, "certificate has expired"):
            client.handshake()
        self.assertEqual(server.factory.faults.counts, {"abort": 1, "expired": 1, "stall": 0})

    def test_number_at_the_accept(self) -> None:
        """Connections have their numbers in the order of the accepts, not of the handshakes."""
        server = FaultyServer(self.authority, when.numbers(2, 2).abort())
        first, second = server.connect(), server.connect()
        second.peer.send(b"\x16")
        server.network.settle()
        self.assertEqual((first.peer.ended, second.peer.ended), (None, "RST"))
        first.handshake()
        self.assert_echo(first)
        self.assertEqual(server.fired, [2])

    def test_handshake_in_pieces(self) -> None:
        """A fault fires once, in whatever pieces the handshake arrives."""
        server = FaultyServer(self.authority, when.certificate("expired"))
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        for byte in client.record():
            client.send(bytes([byte]))
        with self.assertRaisesRegex(ssl.SSLCertVerificationError, "certificate has expired"):
            client.handshake()
        self.assertEqual(len(server.fired), 1)

    def test_refuse(self) -> None:
        """A refused connection is reset before its handshake."""
        server = FaultyServer(self.authority, when.refuse())
        client = server.connect()
        server.network.settle()
        self.assertEqual((client.peer.ended, server.reasons), ("RST", [Reason.FAULT]))


class EndFaultTests(FaultTestCase):
    def test_no_close_notify(self) -> None:
        """The last byte of the reply is followed by FIN, without an alert."""
        for rules, alert in [((), True), ((when.no_close_notify(),), False)]:
            server = FaultyServer(self.authority, *rules)
            client = server.client()
            client.send(client.record(TEXT))
            self.assertEqual(client.read(), TEXT)
            client.send(client.closing_alert())
            client.read()
            self.assertEqual(client.closed, alert)
            self.assertEqual(client.peer.ended, "FIN")
            self.assertEqual(len(server.fired), len(rules))
            self.assertEqual(server.events.endings, [Ending.FINISHED])
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_no_close_notify_at_most_once(self) -> None:
        """The limit of a rule counts ends, not connections."""
        server = FaultyServer(self.authority, when.at_most(1).no_close_notify())
        clients = [server.client(), server.client()]
        for client in reversed(clients):
            client.send(client.closing_alert())
            client.read()
        self.assertEqual([client.closed for client in clients], [True, False])
        self.assertEqual(server.fired, [2])


class StreamFaultTests(FaultTestCase):
    """The faults of all streams, over TLS."""

    def reply(self, rule: Rule, seconds: float = 0.0) -> TLSClient:
        """Return a client that has sent TEXT, and has received for ``seconds``."""
        self.server = server = FaultyServer(self.authority, rule)
        client = server.client()
        client.send(client.record(TEXT))
        server.network.advance(seconds)
        client.read()
        return client

    def test_ends(self) -> None:
        """A connection ends after exactly as many bytes as the rule says."""
        for rule, ended, closed in [
            (when.from_byte(640).reset(), "RST", False),
            (when.from_byte(640).close(), "FIN", True),
        ]:
            client = self.reply(rule, 1)
            received = (bytes(client.received), client.peer.ended, client.closed)
            self.assertEqual(received, (TEXT[:640], ended, closed))
            self.assertEqual(self.server.events.endings, [Ending.FAULT])
            self.assertEqual(self.server.network.getDelayedCalls(), [])

    def test_half_close(self) -> None:
        """After its closing alert and FIN the port goes on reading; nothing follows them."""
        for rules, alert in [((), True), ((when.no_close_notify(),), False)]:
            server = FaultyServer(
                self.authority,
                when.from_byte(3).half_close(),
                when.from_time(1).insert(b"late"),
                *rules,
            )
            client = server.client()
            ended = client.peer.readConnectionLost = Mock()
            client.send(client.record(b"12345"))
            self.assertEqual((client.read(), client.closed, ended.call_count), (b"123", alert, 1))
            client.send(client.record(TEXT))
            server.network.advance(1)
            self.assertEqual(server.events.endings, [])
            client.send(client.closing_alert())
            self.assertEqual(server.events.endings, [Ending.FAULT])
            self.assertEqual(server.events.closed[0].bytes, len(TEXT) + 5)
            self.assertEqual(server.factory.faults.counts["no-close-notify"], len(rules))
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_bytes(self) -> None:
        """What a fault changes arrives in whole records, and the rest of the reply unchanged."""
        for rule, reply in [
            (when.from_byte(3).damage(), b"\0\1\2\2" + TEXT[4:]),
            (when.from_byte(3).swallow(2), TEXT[:3] + TEXT[5:]),
            (when.from_byte(3).insert(b"more"), TEXT[:3] + b"more" + TEXT[3:]),
            (when.greet(b"hello"), b"hello" + TEXT),
            (when.truncate(10), TEXT[:10]),
            (when.silent(), b""),
        ]:
            client = self.reply(rule)
            self.assertEqual(bytes(client.received), reply)
            client.send(client.closing_alert())
            client.read()
            self.assertTrue(client.closed)
            self.assertEqual(self.server.events.endings, [Ending.FINISHED])

    def test_times(self) -> None:
        """A reply that is late arrives as a whole."""
        for rule, early in [
            (when.delay(2), b""),
            (when.from_byte(3).freeze(2), TEXT[:3]),
            (when.lasts(2).deaf(), b""),
            (when.throttle(512), TEXT[:520]),
            (when.slice(64, 0.1), TEXT[:704]),
        ]:
            client = self.reply(rule, 1.01)
            self.assertEqual(bytes(client.received), early)
            self.server.network.advance(2)
            self.assertEqual(client.read(), TEXT)

    def test_each_record(self) -> None:
        """Each slice is a record of its own: a client gets it before the next one."""
        client = self.reply(when.slice(100))
        self.assertEqual(client.read(), TEXT)
        ciphertext = client.peer.received
        records, at = 0, 0
        while at < len(ciphertext):
            records += ciphertext[at] == 23 and at > 0
            at += 5 + int.from_bytes(ciphertext[at + 3 : at + 5], "big")
        self.assertGreaterEqual(records, 11)
