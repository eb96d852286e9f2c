"""Bounded memory over TLS, and counts of bytes that are sent."""

from __future__ import annotations

import random
from typing import Any

from echod.daemon.metrics import Tally, transferred
from echod.events import Ending
from echod.protocol import MAX_BUFFERED
from echod.tlsrecords import RECORD
from echod.tlstransport import MAX_EMPTY
from echod.transport import buffered, unsent
from tests.unit.tls.client import TLSServer, TLSTestCase, client_over_twisted
from tests.unit.tls.records import Records, client_secret


class AccountingTests(TLSTestCase):
    def test_bounded_buffer(self) -> None:
        """Whatever a peer that never reads sends, little is read and buffered."""
        server = TLSServer(self.authority)
        for size, count in ((16_000, 100), (1, 10_000), (300, 3000)):
            client = server.client()
            client.peer.stall()
            client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
        held = [unsent(echo.transport) for echo in server.factory.connections]
        self.assertEqual(len(held), 3)
        self.assertTrue(all(60_000 < each < MAX_BUFFERED for each in held))

    def test_sent_never_decreases(self) -> None:
        """Unsent bytes are counted without TLS overhead, so that the bytes sent never decrease."""
        for seed in range(5):
            chance = random.Random(seed)
            server = TLSServer(self.authority)
            client = server.client()
            before = paused = 0
            for _ in range(100):
                (client.peer.stall if chance.random() < 0.7 else client.peer.resume)()
                size, count = chance.choice(((1, 300), (1, 1), (300, 40), (16_000, 4)))
                client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
                received, sent = transferred(Tally(), server.factory)
                self.assertTrue(before <= sent <= received)
                self.assertLessEqual(
                    buffered(server.echo.transport), unsent(server.echo.transport) + RECORD
                )
                before = sent
                paused += sent < received
            self.assertTrue(paused)
            client.peer.resume()
            self.assertEqual(len(client.read()), sum(transferred(Tally(), server.factory)) / 2)
            self.assertEqual(buffered(server.echo.transport), 0)

    def test_bounded_ledger(self) -> None:
        """A record that arrives byte by byte while bytes are unsent takes constant memory."""
        server = TLSServer(self.authority)
        client = server.client()
        client.peer.stall()
        tls: Any = server.echo.transport
        while not unsent(tls):
            client.send(client.record(bytes(8192)))
        before = len(tls._ledger._marks)
        record = client.record(bytes(1000))
        for at in range(len(record)):
            client.send(record[at : at + 1])
        self.assertLessEqual(len(tls._ledger._marks), before + 1)
        client.peer.resume()
        server.network.settle()
        self.assertEqual(tls.unsent_plaintext, 0)
        self.assertEqual(len(tls._ledger._marks), 0)

    def test_sent_never_decreases_over_twisted_tls(self) -> None:
        """The bytes sent never decrease over Twisted's own TLS, where overhead counts too."""
        server, tally = TLSServer(self.authority), Tally()
        client = client_over_twisted(server, self.authority)
        server.factory.observer = tally
        client.peer.stall()
        while not unsent(server.echo.transport):
            client.send(client.record(bytes(8192)))
        before = transferred(tally, server.factory)
        for _ in range(10):
            client.send(client.record(b"x"))
            received, sent = transferred(tally, server.factory)
            self.assertGreater(received, before[0])
            self.assertTrue(before[1] <= sent < received)
            before = received, sent
        client.peer.resume()
        client.read()
        self.assertEqual(
            transferred(tally, server.factory), (len(client.received), len(client.received))
        )

    def test_empty_records(self) -> None:
        """A peer that sends KeyUpdates and no data is reset, and counted as aborted."""
        server = TLSServer(self.authority)
        client = server.client()
        records = Records(client_secret(server.keylog))
        half = MAX_EMPTY // 2
        for answer in (False, True):
            client.send(b"".join(records.key_update(answer=answer) for _ in range(half)))
        client.send(records.record(b"hello"))  # resets the count of empty records
        client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
        client.send(records.record(b"world"))
        for _ in range(MAX_EMPTY):  # OpenSSL returns after each KeyUpdate that it answers
            client.read()
        self.assertEqual(client.read(), b"helloworld")
        client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
        self.assertIsNone(client.peer.ended)
        client.send(records.key_update())
        self.assertEqual(client.peer.ended, "RST")
        [closed] = server.events.closed
        self.assertEqual((closed.ending, closed.bytes), (Ending.ABORTED, 10))
