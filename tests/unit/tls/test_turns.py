"""Tiny TLS records: connections share the time of each turn."""

from __future__ import annotations

import itertools
import random
import ssl
from collections.abc import Callable
from typing import Any, cast

from twisted.internet.protocol import connectionDone

from echod.events import Ending
from echod.protocol import MAX_BUFFERED, Echo
from echod.tlsrecords import RECORDS
from echod.transport import beneath, has_unread_input, lose, unsent
from tests.authority import Authority
from tests.unit.tls.client import TLSClient, TLSServer, TLSTestCase


class SlowTLSServer(TLSServer):
    """A server on which each record takes a millisecond, so that the budget of a turn runs out.

    :ivar seen: for each record, the client's port and whether more input waits.
    """

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(authority, **options)
        server, self.seen = self, cast("list[tuple[int, bool]]", [])

        class Slow(Echo):
            def dataReceived(self, data: bytes) -> None:
                transport: Any = self.transport
                server.network.rightNow += 0.001
                server.seen.append((transport.getPeer().port, transport.has_undecrypted_input))
                if transport.has_undecrypted_input:
                    assert has_unread_input(transport)
                    assert beneath(transport) not in server.network.getReaders()
                server.act(self)
                super().dataReceived(data)

        self.factory.protocol = Slow

    def act(self, echo: Echo) -> None:
        """Run a test's code in the delivery of a record."""

    def act_at(self, number: int, act: Callable[[Any], object]) -> None:
        """Run ``act`` in the delivery of the record with that number."""

        def act_once(echo: Echo) -> None:
            if len(self.seen) == number:
                act(echo)

        self.act = act_once  # type: ignore[method-assign]


def tiny_records(client: TLSClient, count: int) -> tuple[bytes, bytes]:
    """Return ``count`` bytes, and their ciphertext as one record for each byte."""
    data = random.Random(862).randbytes(count)
    return data, b"".join(client.record(data[at : at + 1]) for at in range(count))


class FairnessTests(TLSTestCase):
    def test_shared_turns(self) -> None:
        """Tiny records of several clients take turns, and every byte is echoed in order."""
        server = SlowTLSServer(self.authority)
        clients = [server.client() for _ in range(3)]
        sent = [tiny_records(client, 200) for client in clients]
        for client, (_, records) in zip(clients, sent, strict=True):
            client.peer.send(records)
        server.network.settle()
        self.assertEqual([client.read() for client in clients], [data for data, _ in sent])
        ports = [port for port, _ in server.seen]
        runs = [len(list(run)) for _, run in itertools.groupby(ports)]
        self.assertLessEqual(max(runs), 2 * RECORDS)
        server.network.advance(10)
        self.assertEqual(server.network.getDelayedCalls(), [])
        for client in clients:  # the server reads again
            client.send(client.record(b"more"))
            self.assertTrue(client.read().endswith(b"more"))

    def test_end_after_waiting_records(self) -> None:
        """The end of the stream is handled after all records that were received before it."""
        for end in ["closing alert", "FIN"]:
            server = SlowTLSServer(self.authority)
            client = server.client()
            data, records = tiny_records(client, 200)
            client.peer.send(records + (client.closing_alert() if end == "closing alert" else b""))
            client.peer.finish()
            server.network.settle()
            self.assertEqual(client.read(), data)
            self.assertTrue(client.closed)
            self.assertEqual(client.peer.ended, "FIN")
            self.assertEqual(
                server.events.endings, [Ending.FINISHED if end == "closing alert" else Ending.LOST]
            )
            self.assertEqual(server.events.closed[0].bytes, 200)

    def test_waiting_records_of_a_slow_reader(self) -> None:
        """A peer that stalls and then reads again gets every byte."""
        server = SlowTLSServer(self.authority)
        client = server.client()
        client.peer.stall()
        data, records = tiny_records(client, 20_000)
        client.send(records)
        echo: Any = server.echo
        self.assertTrue(echo._paused)
        self.assertFalse(echo.transport.has_undecrypted_input)
        self.assertLess(unsent(echo.transport), MAX_BUFFERED)
        client.peer.resume()
        self.assertEqual(client.read(), data)

    def test_end_while_records_wait(self) -> None:
        """If a connection ends while its records wait, they are dropped."""
        ends: dict[Ending, Callable[[Any], object]] = {
            Ending.LOST: lambda echo: lose(echo.transport),
            Ending.ABORTED: lambda echo: echo.abort(),
            Ending.FINISHED: lambda echo: echo.transport.loseConnection(),
        }
        for ending, end in ends.items():
            server = SlowTLSServer(self.authority)
            server.act_at(50, end)
            client = server.client()
            data, records = tiny_records(client, 200)
            client.send(records)
            self.assertEqual(server.events.endings, [ending])
            self.assertEqual(len(server.seen), 50)
            if ending is Ending.FINISHED:
                self.assertEqual(client.read(), data[:49])
            server.network.advance(100)
            self.assertEqual(server.network.getDelayedCalls(), [])

    def test_reactor_stops_while_records_wait(self) -> None:
        """If the reactor stops while records wait, the connection is reset."""
        server = SlowTLSServer(self.authority)
        client = server.client()

        def stop(echo: Echo) -> None:
            below: Any = beneath(echo.transport)
            below.doWrite()  # send all buffered bytes
            below.connectionLost(connectionDone)  # as the reactor does when it stops

        server.act_at(50, stop)
        client.send(tiny_records(client, 200)[1])
        self.assertEqual(client.peer.ended, "RST")
        self.assertEqual(server.events.endings, [Ending.LOST])

    def test_exception_in_a_later_turn(self) -> None:
        """An exception resets its own connection and is logged; others are not affected."""
        server = SlowTLSServer(self.authority)
        clients = [server.client() for _ in range(2)]
        sent = [tiny_records(client, 200) for client in clients]

        def act(echo: Echo) -> None:
            if len(server.seen) > 50 and echo.peer.port == server.seen[0][0]:  # type: ignore[attr-defined]
                raise MemoryError

        server.act = act  # type: ignore[method-assign]
        for client, (_, records) in zip(clients, sent, strict=True):
            client.peer.send(records)
        server.network.settle()
        self.assertEqual(clients[0].peer.ended, "RST")
        self.assertEqual(clients[1].read(), sent[1][0])
        self.assertEqual(server.events.endings, [Ending.ABORTED])
        self.assertEqual(len(self.flushLoggedErrors(MemoryError)), 1)

    def test_data_while_paused(self) -> None:
        """Bytes that a transport delivers while it is paused are decrypted in their turn."""
        server = SlowTLSServer(self.authority)
        client = server.client()
        data, records = tiny_records(client, 200)
        first, last = records[:-1000], [records[-1000:]]

        def act(echo: Echo) -> None:
            transport: Any = echo.transport
            if transport.has_undecrypted_input and last:
                transport.dataReceived(last.pop())

        server.act = act  # type: ignore[method-assign]
        client.send(first)
        self.assertEqual(client.read(), data)

    def test_paused_while_records_wait(self) -> None:
        """A transport that is resumed while records wait reads again when they are decrypted."""
        server = SlowTLSServer(self.authority)
        client = server.client()
        data, records = tiny_records(client, 200)

        def act(echo: Echo) -> None:
            if len(server.seen) in (50, 150):
                echo.transport.pauseProducing()
            elif len(server.seen) == 100:
                echo.transport.resumeProducing()

        server.act = act  # type: ignore[method-assign]
        client.send(records)
        self.assertEqual(client.read(), data)
        self.assertNotIn(beneath(server.echo.transport), server.network.getReaders())
        server.echo.transport.resumeProducing()
        client.send(client.record(b"more"))
        self.assertEqual(client.read(), data + b"more")

    def test_waiting_handshake(self) -> None:
        """A handshake that waits for its turn gets another check before it times out."""
        server = SlowTLSServer(self.authority, handshake_timeout=10)
        other, client = server.client(), server.connect()
        with self.assertRaises(ssl.SSLWantReadError):
            client._tls.do_handshake()
        hello = client.record()

        def act(echo: Echo) -> None:
            if len(server.seen) == 20:
                [pending] = server.factory.pending
                self.assertTrue(has_unread_input(pending.transport))
                server.network.rightNow += 11  # past the timeout

        server.act = act  # type: ignore[method-assign]
        data, records = tiny_records(other, 100)
        other.peer.send(records)
        client.peer.send(hello)
        server.network.settle()
        client.settle()
        client._tls.do_handshake()
        client.send(client.record())
        self.assertEqual(server.events.refused, [])
        self.assertEqual(other.read(), data)
