"""Endings over TLS: closing alert, truncated streams, damaged records, timeouts."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from echod.events import Ending, Event, Opened, broadcast
from echod.protocol import Echo
from echod.transport import beneath, lose, unsent
from tests.unit.tls.client import TLSServer, TLSTestCase


class EndingTests(TLSTestCase):
    def test_truncated_record(self) -> None:
        """A client that leaves in the middle of its first record is lost, and not unused."""
        for leave in ["finish", "abort"]:
            server = TLSServer(self.authority)
            client = server.client()
            client.send(client.record(b"hello")[:-1])
            getattr(client.peer, leave)()
            server.network.settle()
            self.assertEqual(server.events.endings, [Ending.LOST])

    def test_data_and_closing_alert(self) -> None:
        """All bytes before a closing alert in the same segment are echoed."""
        server = TLSServer(self.authority)
        client = server.client()
        client.send(client.record(b"hello") + client.record(bytes(40_000)) + client.closing_alert())
        self.assertEqual(client.read(), b"hello" + bytes(40_000))
        self.assertTrue(client.closed)
        self.assertEqual(client.peer.ended, "FIN")
        [closed] = server.events.closed
        self.assertEqual((closed.ending, closed.bytes, closed.unsent), (Ending.FINISHED, 40_005, 0))

    def test_closing_alert_of_a_slow_reader(self) -> None:
        """Bytes buffered at the closing alert are delivered, however late they are read."""
        server = TLSServer(self.authority)
        client = server.client()
        client.peer.stall()
        client.send(
            b"".join(client.record(bytes(16_000)) for _ in range(100)) + client.closing_alert()
        )
        server.network.advance(50)
        self.assertEqual(server.events.closed, [])
        client.peer.resume()
        self.assertEqual(client.read(), bytes(1_600_000))
        self.assertTrue(client.closed)
        self.assertEqual(server.events.endings, [Ending.FINISHED])

    def test_closing_alert_without_reading(self) -> None:
        """A client that sends its closing alert and reads nothing more is reset: stalled."""
        server = TLSServer(self.authority, stall_timeout=40)
        client = server.client()
        client.peer.stall()
        sent = b"".join(client.record(bytes(16_000)) for _ in range(6)) + client.closing_alert()
        client.send(sent)
        server.network.advance(60)
        [closed] = server.events.closed
        self.assertIs(closed.ending, Ending.STALLED)
        self.assertTrue(0 < closed.unsent <= closed.bytes == 96_000)
        client.peer.resume()
        server.network.settle()
        self.assertEqual(client.peer.ended, "RST")

    def test_stalled_while_sending(self) -> None:
        """A client that reads nothing is reset in time, even if it sends single bytes."""
        server = TLSServer(self.authority, stall_timeout=40)
        client = server.client()
        client.peer.stall()
        while not unsent(server.echo.transport):
            client.send(client.record(bytes(4000)))
        for _ in range(18):
            client.send(client.record(b"x"))
            server.network.advance(3)
        self.assertEqual(server.events.endings, [Ending.STALLED])

    def test_slow_reader_is_not_stalled(self) -> None:
        """A client that reads slowly is not stalled, whether it sends or not."""
        server = TLSServer(self.authority, stall_timeout=40)
        client = server.client()
        client.peer.stall()
        while not unsent(server.echo.transport):
            client.send(client.record(bytes(4000)))
        bottom: Any = beneath(server.echo.transport)
        for number in range(60):
            del bottom.socket.other._incoming[:1]  # the peer's application reads a byte
            client.send(client.record(b"x") if number % 2 else b"")
            server.network.advance(3)
        self.assertEqual(server.events.endings, [])

    def test_end_without_a_closing_alert(self) -> None:
        """FIN without a closing alert: all bytes are echoed, and the ending is lost."""
        server = TLSServer(self.authority)
        client = server.client()
        client.peer.send(client.record(b"hello"))
        client.peer.finish()
        self.assertEqual(client.read(), b"hello")
        self.assertTrue(client.closed)
        self.assertEqual(client.peer.ended, "FIN")
        [closed] = server.events.closed
        self.assertEqual((closed.ending, closed.bytes, closed.unsent), (Ending.LOST, 5, 0))

    def test_damaged_record(self) -> None:
        """A damaged record ends the connection as lost, after the records before it are echoed.

        The reply may have to wait for a slow reader.
        """
        for much in [False, True]:
            server = TLSServer(self.authority)
            client = server.client()
            good = [b"hello", *([bytes(16_000)] * 4 if much else [])]
            records = b"".join(map(client.record, good))
            bad = bytearray(client.record(b"world"))
            bad[-1] ^= 1
            client.peer.stall()
            client.send(records + bad)
            server.network.advance(1)
            client.peer.resume()
            client.settle()
            with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac|decrypt"):
                client.read()
            self.assertEqual(client.received, b"".join(good))
            self.assertEqual(client.peer.ended, "FIN")
            [closed] = server.events.closed
            self.assertEqual((closed.ending, closed.unsent), (Ending.LOST, 0))

    def test_reset(self) -> None:
        """A reset is lost, as without TLS."""
        server = TLSServer(self.authority)
        client = server.client()
        client.send(client.record(b"hello"))
        client.peer.abort()
        server.network.settle()
        self.assertEqual(server.events.endings, [Ending.LOST])

    def test_no_answer_to_the_closing_alert(self) -> None:
        """Echod closes after its closing alert, whether or not the peer answers it."""
        for ending in [Ending.IDLE, Ending.DRAINED]:
            server = TLSServer(self.authority, idle_timeout=10)
            client = server.client()
            client.send(client.record(b"hello"))
            if ending is Ending.DRAINED:
                server.factory.drain(5)
            server.network.advance(13)
            self.assertEqual(server.events.endings, [ending])
            self.assertEqual(client.peer.ended, "FIN")
            self.assertEqual(client.read(), b"hello")
            self.assertTrue(client.closed)

    def test_record_byte_by_byte(self) -> None:
        """A client that sends a record byte by byte is not idle, and its record is echoed."""
        server = TLSServer(self.authority, idle_timeout=10)
        client = server.client()
        record = client.record(b"hello")
        for at in range(len(record)):
            client.send(record[at : at + 1])
            server.network.advance(9 if at < 5 else 0.15)
            if at == 5:
                server.factory.drain(100)
        self.assertEqual(client.read(), b"hello")
        self.assertEqual(server.events.closed, [])
        server.network.advance(1)
        self.assertEqual(server.events.endings, [Ending.DRAINED])

    def test_no_space_for_the_closing_alert(self) -> None:
        """A client whose receive buffer is full, and stays so, is reset as stalled."""
        server = TLSServer(self.authority, idle_timeout=10, stall_timeout=40)
        client = server.client()
        client.peer.stall()
        bottom: Any = beneath(server.echo.transport)
        while free := bottom.socket._space():
            # a record is 22 bytes longer than its plaintext
            client.send(client.record(bytes(min(16_000, free - 22))) if free > 22 else b"")
            if free <= 22:
                bottom.socket.other._incoming += bytes(free)
        self.assertEqual(unsent(server.echo.transport), 0)
        server.network.advance(14)
        self.assertEqual(server.events.closed, [])  # the alert is buffered
        server.network.advance(60)
        self.assertEqual(server.events.endings, [Ending.STALLED])

    def test_lost_while_closing(self) -> None:
        """A connection that is lost while the reply is in flight reports the unsent bytes."""
        server = TLSServer(self.authority)
        client = server.client()
        client.peer.stall()
        client.send(
            b"".join(client.record(bytes(16_000)) for _ in range(8)) + client.closing_alert()
        )
        bottom: Any = beneath(server.echo.transport)
        bottom.connectionLost(Failure(ConnectionLost()))
        [closed] = server.events.closed
        self.assertIs(closed.ending, Ending.LOST)
        self.assertTrue(0 < closed.unsent <= closed.bytes)

    def test_ended_by_an_observer(self) -> None:
        """An observer may end a connection at its first event."""
        server = TLSServer(self.authority)
        ended = []

        def end(event: Event) -> None:
            if isinstance(event, Opened):
                ended.append(event)
                lose(server.echo.transport)

        server.factory.observer = broadcast(server.events, end)
        self.send_with_the_handshake(server)
        self.assertEqual(len(ended), 1)
        self.assertEqual(server.events.endings, [Ending.UNUSED])

    def test_ended_in_data_received(self) -> None:
        """A protocol may end its connection while bytes are delivered to it."""
        ended = []

        class Short(Echo):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                ended.append(data)
                lose(self.transport)

        server = TLSServer(self.authority)
        server.factory.protocol = Short
        self.send_with_the_handshake(server)
        self.assertEqual(ended, [b"hello"])
        self.assertEqual(server.events.endings, [Ending.LOST])

    def send_with_the_handshake(self, server: TLSServer) -> None:
        """Send the end of a handshake and two records in one segment."""
        client = server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        client.send(client.record())
        client._tls.do_handshake()
        client.send(client.record(b"hello") + client.record(b"hello"))
