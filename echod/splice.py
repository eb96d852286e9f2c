"""Bulk without copies: bytes go from socket to socket through a pipe, by splice(2).

The kernel moves pages instead of bytes, which takes a third less CPU time for long messages than
recv(2) and send(2) do. One pipe serves all connections, one after the other. It is empty between
two calls, so that no byte is left in it when a connection ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import MutableSequence
from contextlib import suppress
from typing import Any, Final

CAPACITY: Final = 1024 * 1024
"""Bytes of the pipe: the most without privileges. The kernel counts whole pages of 4 KiB, however
few bytes of a packet are in each (pipe(7))."""

REFUSED: Final = frozenset({errno.ENOSYS, errno.EPERM, errno.EACCES, errno.EINVAL})
"""Errors of splice(2) itself, for example from a system-call filter. All others are the socket's,
which reports them only once (socket(7))."""


class Splicer:
    """Sends what a socket receives back on it.

    :param size: the most bytes that one call moves.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ends: tuple[int, ...] = ()
        self._splice: Any = getattr(os, "splice", None)  # not every Python has it

    def open(self) -> bool:
        """Return whether :meth:`move` is usable: not without splice(2), or a free descriptor."""
        if not self._ends and self._splice is not None:
            with suppress(OSError):
                self._ends = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
                # The limit of all pipes of a user may not allow it: then a call moves less.
                fcntl.fcntl(self._ends[0], fcntl.F_SETPIPE_SZ, CAPACITY)
        return bool(self._ends)

    def move(self, descriptor: int, received: MutableSequence[int]) -> tuple[int, bytes]:
        """Receive at most the bytes of one call, and send them back.

        :param descriptor: of a connected socket.
        :param received: bytes received, by descriptor. They are added before they are sent.
        :return: the number of bytes received, and those of them that the kernel does not accept.
            It is 0 at the end of the stream, before an urgent byte, and without splice(2): recv(2)
            finds out which.
        :raises OSError: an error of the socket.
        """
        if not self.open():
            return 0, b""
        reading, writing = self._ends
        try:
            count: int = self._splice(descriptor, writing, self._size)
        except BlockingIOError:
            return 0, b""
        except OSError as error:
            if error.errno not in REFUSED:
                raise
            self._splice = None
            self.close()
            return 0, b""
        try:
            received[descriptor] += count
            try:
                sent = self._splice(reading, descriptor, count) if count else 0
            except OSError:  # the connection sends again, and handles the error
                sent = 0
            return count, os.read(reading, count - sent) if sent != count else b""
        except BaseException:
            self.close()  # with the bytes in it: the next call is another connection's
            raise

    def close(self) -> None:
        """Close both ends, if they are open."""
        ends, self._ends = self._ends, ()
        for end in ends:
            os.close(end)

    __del__ = close
