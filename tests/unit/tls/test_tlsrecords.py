"""TLS byte accounting: unsent plaintext, and the ends of records."""

from __future__ import annotations

import random

from twisted.trial.unittest import SynchronousTestCase

from echod.tlsrecords import PIECE, RECORD, RECORDS, Ledger, RecordScanner

OVERHEAD = 22


def record(size: int) -> bytes:
    """Return a record whose ciphertext has ``size`` bytes after the header."""
    return b"\x17\3\3" + size.to_bytes(2, "big") + bytes(size)


class LedgerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.ledger = Ledger()

    def write(self, plaintext: int, unsent: int) -> None:
        """Encrypt that many bytes in one record, and flush it."""
        self.ledger.plaintext_out += plaintext
        self.ledger.ciphertext_out += plaintext + OVERHEAD
        self.ledger.flushed(unsent)

    def test_all_sent(self) -> None:
        """If the kernel takes all records at once, no plaintext is unsent."""
        for _ in range(3):
            self.write(100, unsent=0)
            self.assertEqual(self.ledger.unsent_plaintext(0), 0)

    def test_not_encrypted_yet(self) -> None:
        """Plaintext that is not flushed yet is unsent."""
        self.ledger.plaintext_out += 100
        self.assertEqual(self.ledger.unsent_plaintext(0), 100)

    def test_partly_sent(self) -> None:
        """A record that is partly sent is unsent as a whole."""
        self.write(100, unsent=122)
        self.write(200, unsent=344)
        for unsent, plaintext in ((344, 300), (223, 300), (222, 200), (1, 200), (0, 0)):
            self.assertEqual(self.ledger.unsent_plaintext(unsent), plaintext)

    def test_never_back(self) -> None:
        """The plaintext sent never decreases, and never exceeds the ciphertext sent."""
        chance = random.Random(8446)
        unsent = before = 0
        for _ in range(1000):
            size = chance.choice((0, 1, 100, RECORD))
            unsent += size + OVERHEAD
            self.write(size, unsent)
            unsent -= chance.randrange(unsent + 1)
            sent = self.ledger.plaintext_out - self.ledger.unsent_plaintext(unsent)
            self.assertTrue(before <= sent <= self.ledger.ciphertext_out - unsent)
            before = sent

    def test_bounded(self) -> None:
        """Flushes without new records, and records that are sent, take no memory."""
        self.write(100, unsent=122)
        for _ in range(10):
            self.ledger.flushed(122)
        self.assertEqual(len(self.ledger._marks), 1)
        self.ledger.flushed(0)
        self.assertEqual(len(self.ledger._marks), 0)


class RecordScannerTests(SynchronousTestCase):
    def scan(self, *segments: bytes) -> int:
        """Scan each segment to its end, as the transport does, and return the records found."""
        scanner, found = RecordScanner(), 0
        for segment in segments:
            records = scanner.one_record(segment)
            if records is not None:
                found += records
                continue
            at = 0
            while at < len(segment):
                start = at
                at, records = scanner.scan(segment, start)
                self.assertTrue(0 < at - start <= PIECE)
                self.assertTrue(records <= RECORDS)
                found += records
        return found

    def test_one_record(self) -> None:
        """A record is found at its end, also where it is split after its header."""
        scanner = RecordScanner()
        data = record(100)
        self.assertEqual(scanner.one_record(data), 1)
        self.assertEqual([scanner.one_record(data[:9]), scanner.one_record(data[9:])], [0, 1])

    def test_not_one_record(self) -> None:
        """A segment that has a part of a header, or more than one record, is not one record."""
        scanner = RecordScanner()
        self.assertIsNone(scanner.one_record(record(100)[:4]))
        self.assertIsNone(scanner.one_record(record(100) + b"\x17"))

    def test_any_segments(self) -> None:
        """All records are found, wherever the segments end."""
        chance = random.Random(8446)
        sizes = [chance.choice((17, 18, 100, RECORD + 256)) for _ in range(200)]
        data = b"".join(map(record, sizes))
        for longest in (1, 7, 1000, len(data)):
            segments, at = [], 0
            while at < len(data):
                end = at + chance.randint(1, longest)
                segments.append(data[at:end])
                at = end
            self.assertEqual(self.scan(*segments), len(sizes))
