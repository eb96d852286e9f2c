"""Kernel time stamps of packets, converted to the monotonic clock.

The kernel stamps with CLOCK_REALTIME (SO_TIMESTAMPNS in socket(7), SO_TIMESTAMPING in the kernel's
networking/timestamping.rst). The difference between that clock and CLOCK_MONOTONIC is constant,
except when the time of day is set: NTP's slewing changes the rate of both clocks (adjtimex(2)).
"""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Final

Ancillary = list[tuple[int, int, bytes]]

SO_TIMESTAMPNS: Final = 35
SO_TIMESTAMPING: Final = 37
"""Socket options of Linux that Python's socket module lacks (asm-generic/socket.h)."""

TRANSMIT: Final = 1 << 1 | 1 << 4 | 1 << 7 | 1 << 11
"""Software stamps of transmitted packets: TX_SOFTWARE, SOFTWARE, OPT_ID and OPT_TSONLY."""

RECEIVE_SPACE: Final = socket.CMSG_SPACE(16)
TRANSMIT_SPACE: Final = 256
"""Bytes of ancillary data: of a received packet, and of an entry in the error queue."""

TIMESPEC: Final = struct.Struct("ll")
EXTENDED_ERROR: Final = struct.Struct("=L4BLL")
"""struct sock_extended_err; its last field is the identifier of the packet."""

TOLERANCE: Final = 1e-6
"""Seconds. A smaller step of the time of day is not noticed, and changes no time by more."""

TRIES: Final = 5
"""Number of readings of both clocks. The shortest is used: this process may lose the CPU in one."""

LONGEST: Final = 10.0
"""Seconds after a step for which stamps can be wrong: no packet waits longer in a receive queue."""


def enable_stamps(sock: socket.socket, option: int, value: int = 1) -> bool:
    """Make the kernel stamp the packets of ``sock``. Return whether it does.

    The kernel begins to stamp received packets some milliseconds after the first request.
    A UNIX socket has neither stamps nor an error queue: a read of it would return data. And its
    ancillary data may hold file descriptors.

    :param option: SO_TIMESTAMPNS: those received; SO_TIMESTAMPING: those that ``value`` selects.
    """
    if sock.family == socket.AF_UNIX:
        return False
    with suppress(OSError):  # some container runtimes do not have the option
        sock.setsockopt(socket.SOL_SOCKET, option, value)
        return True
    return False


def identifier(ancillary: Ancillary) -> int:
    """Return the number of a stamped datagram, or of the last byte of a stamped send."""
    *_, number = EXTENDED_ERROR.unpack_from(ancillary[-1][2])
    return int(number)


class StampClock:
    """Converts kernel stamps to seconds of a monotonic clock.

    :param seconds: CLOCK_MONOTONIC.
    :param real: CLOCK_REALTIME, in nanoseconds.
    :ivar used: whether a stamp has been converted.
    """

    def __init__(
        self, seconds: Callable[[], float], real: Callable[[], int] = time.time_ns
    ) -> None:
        self._seconds, self._real = seconds, real
        self._base = real()  # differences from it are exact as floats
        self._low, self._high = self._compare()
        self._set_zero()
        self._first = float("-inf")  # stamps before this moment are not used
        self.used = False

    def check(self) -> None:
        """Find out whether the time of day has been set since the last call.

        Call it between poll(2) and recvmsg(2): the data that poll(2) reports is stamped by then.
        """
        now = self._seconds()
        # Slightly above the difference of the clocks: the second one is read later.
        if not self._low <= (self._real() - self._base) * 1e-9 - now <= self._high + TOLERANCE:
            self._find_step()

    def date(self, ancillary: Ancillary, now: float) -> float:
        """Return the moment of the stamp in ``ancillary``, or ``now`` if it cannot be used.

        A stamp is not used if the time of day may have been set after it, or if it is in the
        future.

        :param ancillary: as from recvmsg(2); the stamp is first.
        :param now: the time after recvmsg(2), in seconds.
        """
        seconds, nanoseconds = TIMESPEC.unpack_from(ancillary[0][2])
        moment: float = seconds - self._zero + (nanoseconds - self._zero_ns) * 1e-9
        if not self._first <= moment <= now:
            return now
        self.used = True
        return moment

    def _find_step(self) -> None:
        low, high = self._compare()
        # They overlap if this process has only lost the CPU between two readings.
        if low > self._high + TOLERANCE or high < self._low:
            # By the new difference, an earlier stamp is this much later than it was by the old one.
            now, shift = self._seconds(), self._low - low
            first = max(now, max(now, self._first) + shift)
            self._first = min(first, now + LONGEST)
            self._low, self._high = low, high
            self._set_zero()

    def _set_zero(self) -> None:
        """Keep CLOCK_REALTIME, in seconds and nanoseconds, when the monotonic clock was 0."""
        zero = self._base + round((self._low + self._high) / 2 * 1e9)
        self._zero, self._zero_ns = divmod(zero, 1_000_000_000)

    def _compare(self) -> tuple[float, float]:
        """Return limits of the difference between the clocks, in seconds."""
        readings = []
        for _ in range(TRIES):
            before = self._seconds()
            real = (self._real() - self._base) * 1e-9
            after = self._seconds()
            readings.append((after - before, real - after, real - before))
        _, low, high = min(readings)
        return low, high
