"""Payloads of messages and datagrams, made so that any other bytes in the reply are noticed.

They are random and differ from run to run, so that bytes of another client or an earlier run do
not pass for a reply. Consecutive messages differ, so that a duplicated or missing one is noticed.
"""

from __future__ import annotations

import os
import random
import struct
from typing import Final

MAX_PAYLOADS: Final = 61
"""Number of different payloads, a prime; large payloads are fewer."""

POOL: Final = 8 * 1024 * 1024
"""Maximum bytes of all payloads together, except that there are always two."""

SMALL_POOL: Final = POOL // 64
"""Bytes of the payloads of one UDP socket, of which there may be many."""

TOKEN: Final = struct.Struct("!LL")
"""The token, at both ends of a datagram: the socket's random number XOR a hash of the datagram's
number, and the datagram's number."""

MASK: Final = 0xFFFFFFFF
HALF: Final = 0x80000000
SPREAD: Final = 0x9E3779B1
"""An odd multiplier that maps near numbers to distant ones: 2**32 divided by the golden ratio."""

MIN_DATAGRAM: Final = 2 * TOKEN.size
MAX_DATAGRAM: Final = 65_507
"""Bytes of a datagram; the maximum is that of IPv4, without headers (RFC 768, RFC 791)."""


def contents(size: int, pool: int = POOL) -> list[bytes]:
    """Return payloads of ``size`` bytes that differ: two, or as many as fit in ``pool`` bytes."""
    source = random.Random(os.urandom(16))
    count = max(2, min(MAX_PAYLOADS, pool // max(size, 1)))
    # In parts: randbytes() accepts less than 2**28, and takes twice the memory.
    sizes = [POOL] * (size // POOL) + [size % POOL]
    return [b"".join(map(source.randbytes, sizes)) for _ in range(count)]


def differences(left: bytes, right: bytes) -> int:
    """Return the number of bytes that differ, including those that only one of them has."""
    size = min(len(left), len(right))
    differ = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return max(len(left), len(right)) - differ.to_bytes(size, "big").count(0)


class DatagramPayloads:
    """Payloads of the datagrams of one socket, by number.

    :param size: bytes of each, from :data:`MIN_DATAGRAM` to :data:`MAX_DATAGRAM`.
    """

    def __init__(self, size: int) -> None:
        self._owner = int.from_bytes(os.urandom(4), "big")
        self._middle = contents(size - MIN_DATAGRAM, SMALL_POOL)

    def build(self, number: int) -> bytes:
        """Return the payload of datagram ``number``."""
        # Both parts of the token depend on the number: damage does not turn one token into another.
        token = TOKEN.pack(self._owner ^ number * SPREAD & MASK, number & MASK)
        return token + self._middle[number % len(self._middle)] + token

    def find(self, datagram: bytes, near: int) -> tuple[int, int] | None:
        """Return the number of a received datagram, and how many of its bytes are wrong.

        :param near: a number close to the expected one: the datagram has only the low 32 bits.
        :return: ``None`` for a datagram that was not sent, or is damaged beyond recognition.
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
            is_token_intact = datagram[at : at + TOKEN.size] == right[: TOKEN.size]
            if (is_token_intact or 2 * wrong < len(right)) and (found is None or wrong < found[1]):
                found = number, wrong
        return found
