"""The TLS transport as an embedding application uses it, and Twisted's own TLS."""

from __future__ import annotations

import shutil
import socket
import subprocess
from typing import Any

import pytest
from OpenSSL import SSL

from echod.events import Closed, Dropped, Ending, Opened, Refused
from echod.protocol import Echo
from echod.transport import unsent
from tests import TIMEOUT
from tests.unit.tls.client import TLSServer, TLSTestCase, client_over_twisted


class ApplicationTests(TLSTestCase):
    def test_lose_connection(self) -> None:
        """``loseConnection`` sends the buffered bytes, the closing alert, and FIN: finished."""
        server = TLSServer(self.authority)
        client = server.client()
        client.peer.stall()
        client.send(b"".join(client.record(bytes(16_000)) for _ in range(10)))
        server.echo.transport.loseConnection()
        server.network.advance(1)
        client.peer.resume()
        self.assertEqual(client.read(), bytes(160_000))
        self.assertTrue(client.closed)
        self.assertEqual(server.events.endings, [Ending.FINISHED])

    def test_lose_connection_in_data_received(self) -> None:
        """After ``loseConnection``, no more bytes are delivered or written."""

        class Once(Echo):
            def dataReceived(self, data: bytes) -> None:
                super().dataReceived(data)
                self.transport.loseConnection()
                self.transport.write(b"more")

        server = TLSServer(self.authority)
        server.factory.protocol = Once
        client = server.client()
        client.send(client.record(b"hello") + client.record(b"world"))
        self.assertEqual(client.read(), b"hello")
        self.assertTrue(client.closed)
        [closed] = server.events.closed
        self.assertEqual((closed.ending, closed.bytes, closed.unsent), (Ending.FINISHED, 5, 0))

    def test_write(self) -> None:
        """An application may write bytes of any length, in one piece or several."""
        server = TLSServer(self.authority)
        client = server.client()
        transport = server.echo.transport
        transport.write(b"one ")
        transport.writeSequence([b"two ", b"three ", bytes(40_000)])
        self.assertEqual(client.read(), b"one two three " + bytes(40_000))

    @pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
    def test_write_with_small_records(self) -> None:
        """All bytes are sent to a client that has asked for records of 512 bytes.

        Few clients can (RFC 6066 4): the bytes of openssl are carried from its socket and back.
        """

        class Greeter(Echo):
            def connectionMade(self) -> None:
                super().connectionMade()
                self.transport.write(bytes(40_000))
                self.transport.loseConnection()

        server = TLSServer(self.authority)
        server.factory.protocol = Greeter
        peer, fed = server.connect().peer, 0
        with socket.create_server(("127.0.0.1", 0)) as port:
            port.settimeout(TIMEOUT)
            there = f"127.0.0.1:{port.getsockname()[1]}"
            command = (
                f"openssl s_client -quiet -maxfraglen 512 -CAfile {self.authority.file} -connect"
            )
            with subprocess.Popen(
                [*command.split(), there],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:
                sock, _ = port.accept()
                with sock:
                    sock.settimeout(TIMEOUT)
                    while peer.ended is None:
                        peer.send(sock.recv(1 << 16))
                        server.network.settle()
                        sock.sendall(bytes(peer.received[fed:]))
                        fed = len(peer.received)
                self.assertIsNotNone(process.stdout)
                self.assertEqual(process.stdout.read(), bytes(40_000))
                process.kill()

    def test_write_while_openssl_waits(self) -> None:
        """A write that OpenSSL refuses, in the middle of the peer's KeyUpdate, ends in RST."""
        server = TLSServer(self.authority)
        client = server.client()
        transport: Any = server.echo.transport

        def waits(_: bytes) -> None:
            raise SSL.WantReadError

        self.patch(transport._tls, "sendall", waits)
        transport.write(b"more")
        server.network.settle()
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(server.events.endings, [Ending.ABORTED])

    def test_write_after_the_end(self) -> None:
        """Bytes written after the end of the connection are dropped, as without TLS."""
        server = TLSServer(self.authority)
        client = server.client()
        transport: Any = server.echo.transport
        client.peer.abort()
        server.network.settle()
        transport.write(b"more")
        transport.writeSequence([b"more"])
        transport.finish()
        transport.loseConnection()
        self.assertEqual(server.events.endings, [Ending.UNUSED])

    def test_peer_certificate(self) -> None:
        """``getPeerCertificate`` returns the client's certificate, or ``None`` without one."""
        server = TLSServer(self.authority)
        server.client()
        transport: Any = server.echo.transport
        self.assertIsNone(transport.getPeerCertificate())

    def test_twisted_tls(self) -> None:
        """Over Twisted's own TLS, a slow reader's closing alert ends the connection: lost."""
        server = TLSServer(self.authority)
        client = client_over_twisted(server, self.authority)
        client.peer.stall()
        client.send(b"".join(client.record(bytes(14_000)) for _ in range(5)))
        client.send(
            b"".join(client.record(bytes(15_500)) for _ in range(4)) + client.closing_alert()
        )
        self.assertGreater(unsent(server.echo.transport), 64 * 1024)
        self.assertEqual(server.events.closed, [])
        client.peer.resume()
        self.assertEqual(client.read(), bytes(132_000))
        self.assertTrue(client.closed)
        self.assertEqual(server.events.endings, [Ending.LOST])

    def test_events_have_tls(self) -> None:
        """Each event says that the connection is encrypted, over Twisted's own TLS too."""
        server = TLSServer(self.authority, max_connections=1)
        client = server.client()
        server.connect()
        client.peer.abort()
        server.network.settle()
        other = client_over_twisted(server, self.authority)
        other.peer.abort()
        server.network.settle()
        self.assertEqual(
            [type(event) for event in server.events], [Opened, Refused, Closed, Opened, Closed]
        )
        self.assertTrue(all(event.tls for event in server.events if not isinstance(event, Dropped)))

    def test_abort(self) -> None:
        """``abort`` resets the connection once, and bytes already sent do not count as unsent."""
        server = TLSServer(self.authority)
        client = server.client()
        client.send(client.record(b"hello"))
        echo = server.echo
        for _ in range(2):
            echo.abort()
            server.network.settle()
        echo.transport.loseConnection()
        server.network.settle()
        self.assertEqual(client.peer.ended, "RST")
        [closed] = server.events.closed
        self.assertEqual((closed.ending, closed.bytes, closed.unsent), (Ending.ABORTED, 5, 0))
