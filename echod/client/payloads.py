"""What is sent, so that whatever comes back instead is recognised.

The contents are random and differ from run to run: no other client's bytes, and none of an
earlier run, are taken for a reply. Each message differs from the next, so that one that comes
twice, or not at all, is a wrong one in its place.
"""

from __future__ import annotations

import os
import random
import struct
from typing import Final

MANY: Final = 61
"""How many different messages follow each other, a prime; fewer where they are large."""

POOL: Final = 8 * 1024 * 1024
"""Bytes that all of them take at the most, but there are two at the least."""

SMALL_POOL: Final = POOL // 64
"""And for the datagrams of one socket, of which there may be many."""

TOKEN: Final = struct.Struct("!LL")
"""What is at the start and at the end of a datagram: whose, and which one."""

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000
SPREAD: Final = 0x9E3779B1
"""An odd number, by which those that are near become far (of 32 bits, the golden section)."""

MIN_DATAGRAM: Final = 2 * TOKEN.size
MAX_DATAGRAM: Final = 65_507
"""Bytes of a datagram: of an IPv4 packet, less the headers, at the most (RFC 768, RFC 791)."""


def contents(size: int, pool: int = POOL) -> list[bytes]:
    """Return different messages of ``size`` bytes, which take ``pool`` at the most, or are two."""
    source = random.Random(os.urandom(16))
    many = max(2, min(MANY, pool // max(size, 1)))
    # In pieces: randbytes() takes less than 2**28, and needs as much memory once more.
    sizes = [POOL] * (size // POOL) + [size % POOL]
    return [b"".join(map(source.randbytes, sizes)) for _ in range(many)]


def differences(left: bytes, right: bytes) -> int:
    """Return in how many bytes these differ; what one has more counts, too."""
    size = min(len(left), len(right))
    differ = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return max(len(left), len(right)) - differ.to_bytes(size, "big").count(0)


class DatagramPayloads:
    """The datagrams of one socket, by number.

    :param size: bytes of each, from 16 to 65507.
    """

    def __init__(self, size: int) -> None:
        self._owner = int.from_bytes(os.urandom(4), "big")
        self._between = contents(size - MIN_DATAGRAM, SMALL_POOL)

    def build(self, number: int) -> bytes:
        """Return the datagram of that number."""
        # Of another number, no part of the token is the same: who is damaged is not mistaken.
        token = TOKEN.pack(self._owner ^ number * SPREAD & MASK, number & MASK)
        return token + self._between[number % len(self._between)] + token

    def find(self, datagram: bytes, near: int) -> tuple[int, int] | None:
        """Return of which number ``datagram`` is, and how many of its bytes are wrong.

        :param near: a number not far from that: only the last 32 bits are in the datagram.
        :return: ``None`` where it is none of these, or not to be recognised.
        """
        found = None
        for at in (0, len(datagram) - TOKEN.size):
            if len(datagram) < TOKEN.size:
                break
            _, low = TOKEN.unpack_from(datagram, at)
            number = near + (low - near + HALF) % (MASK + 1) - HALF
            if number < 0:
                continue
            right = self.build(number)
            if datagram == right:
                return number, 0
            wrong = differences(datagram, right)
            is_whole = datagram[at : at + TOKEN.size] == right[: TOKEN.size]
            if (is_whole or 2 * wrong < len(right)) and (found is None or wrong < found[1]):
                found = number, wrong
        return found
