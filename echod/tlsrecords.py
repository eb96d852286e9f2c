"""TLS byte accounting, no I/O: where records end, and how much plaintext has reached the kernel."""

from __future__ import annotations

from collections import deque
from typing import Final

RECORD: Final = 16 * 1024
"""Bytes of plaintext in the largest record (RFC 8446 5.1)."""

PIECE: Final = RECORD + 512
"""Bytes of ciphertext passed to and from OpenSSL at once: one such record, encrypted (RFC 8446
5.2). OpenSSL keeps as much memory as the largest piece that it was ever given."""

HEADER: Final = 5
"""Bytes of a record's header: type, version, and length of the rest (RFC 8446 5.1)."""

RECORDS: Final = 16
"""Records that are decrypted in one step. This many tiny records take up to half a millisecond."""


class Ledger:
    """Counts of plaintext and ciphertext, which show how much plaintext the kernel has accepted.

    A record is longer than its plaintext, so the number of unsent bytes below TLS is not that of
    unsent plaintext. After each flush the ledger keeps a mark: the totals of ciphertext and
    plaintext. The plaintext up to a mark is sent when the ciphertext up to it is sent.

    :ivar ciphertext_in: bytes received from the peer.
    :ivar ciphertext_out: bytes of records that OpenSSL has made so far.
    :ivar plaintext_out: bytes given to OpenSSL to encrypt.
    """

    __slots__ = ("_marks", "_sent", "ciphertext_in", "ciphertext_out", "plaintext_out")

    def __init__(self) -> None:
        self.ciphertext_in = self.ciphertext_out = self.plaintext_out = self._sent = 0
        self._marks: deque[tuple[int, int]] = deque()

    def flushed(self, unsent: int) -> None:
        """Add a mark: all records that OpenSSL has made so far have been read from it.

        :param unsent: bytes of ciphertext that the kernel has not accepted.
        """
        if not unsent:
            self._marks.clear()
            self._sent = self.plaintext_out
            return
        mark = (self.ciphertext_out, self.plaintext_out)
        # Do not add the same mark twice. A flush follows each read from the peer, and the read of a
        # part of a record changes neither total.
        if not self._marks or self._marks[-1] != mark:
            self._marks.append(mark)
        self._forget_sent(unsent)

    def unsent_plaintext(self, unsent: int) -> int:
        """Return the bytes of plaintext whose record the kernel has not accepted as a whole.

        :param unsent: bytes of ciphertext that the kernel has not accepted.
        """
        self._forget_sent(unsent)
        return self.plaintext_out - self._sent

    def _forget_sent(self, unsent: int) -> None:
        sent = self.ciphertext_out - unsent
        while self._marks and self._marks[0][0] <= sent:
            _, self._sent = self._marks.popleft()


class RecordScanner:
    """Find the ends of records in a stream of ciphertext, wherever its segments end."""

    __slots__ = ("_body", "_header")

    def __init__(self) -> None:
        self._header = b""  # of the current record, as long as it is incomplete
        self._body = 0  # bytes of the current record that are still missing

    def one_record(self, data: bytes) -> int | None:
        """Return how many records end in ``data``, 0 or 1, if it is part of a single record.

        ``None``: it may be part of several records; nothing has been scanned.
        """
        size = len(data)
        if self._body:
            rest = self._body - size
        elif self._header or size < HEADER:
            return None
        else:
            rest = HEADER + (data[3] << 8 | data[4]) - size
        if rest < 0:
            return None
        self._body = rest
        return 0 if rest else 1

    def scan(self, data: bytes, start: int) -> tuple[int, int]:
        """Scan at most :data:`RECORDS` records and :data:`PIECE` bytes.

        :param start: the index in ``data`` to begin at.
        :return: the index reached, and how many records end before it. The last record may be
            incomplete.
        """
        at, header, body, records = start, self._header, self._body, 0
        end = min(len(data), start + PIECE)
        while at < end and records < RECORDS:
            if not body:
                part = data[at : min(end, at + HEADER - len(header))]
                at += len(part)
                header += part
                if len(header) < HEADER:
                    break
                body = header[3] << 8 | header[4]
                header = b""
            size = min(body, end - at)
            at += size
            body -= size
            if not body:
                records += 1
        self._header, self._body = header, body
        return at, records
