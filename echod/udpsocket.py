"""Receive datagrams, and send each back from the address that it was sent to.

A :class:`BatchExchange` receives many datagrams in one system call, recvmmsg(2), and sends them in
another, sendmmsg(2). Python does not offer these, so it calls the C library. For few datagrams, or
where the C library cannot be called, a :class:`SingleExchange` takes less time.
"""

from __future__ import annotations

import mmap
import os
import socket
import struct
from array import array
from collections.abc import Sequence
from typing import Any, Final, Protocol

from echod.udporigin import (
    NAME_SPACE,
    REPLY_SPACE,
    SOCKADDR_IN,
    SOCKADDR_IN6,
    Origin,
    origin_of,
    reply_source,
)
from echod.udprules import sender_of

BATCH: Final = 32
"""The maximum number of datagrams in one system call. 16 take a tenth longer each; 32 of the
largest ones take 0.4 ms."""

SIZE: Final = 65_536
"""Bytes of a datagram's buffer. A datagram has at most 65,507 bytes over IPv4 and 65,527 over IPv6
(RFC 768, RFC 8200)."""

IOVEC: Final = struct.Struct("PN")
"""iovec in readv(2): address and length of a buffer."""
MSGHDR: Final = struct.Struct("PIPNPNi0P")
"""msghdr in recvmsg(2): address and length of the socket address, of the iovecs, and of the
ancillary data; flags."""
MMSGHDR: Final = struct.Struct(MSGHDR.format + "I0P")
"""mmsghdr in recvmmsg(2): a msghdr, and the size of the datagram."""

SO_MEMINFO: Final = 55
SK_MEMINFO_DROPS: Final = 8
"""The socket option and the index in its array (socket(7)), for which Python has no name."""


class Exchange(Protocol):
    """Receives datagrams, and sends them back from the buffers that they are in.

    :ivar limit: the maximum number of datagrams that it receives at once.
    """

    limit: int

    def receive(self) -> tuple[Sequence[Origin], Sequence[int]]:
        """Return the origin and the size (bytes) of each datagram received.

        :raises BlockingIOError: if there is none.
        :raises OSError: an ICMP error for an earlier reply (udp(7)).
        """

    def send_back(self, first: int, sources: Sequence[Any]) -> int:
        """Send back datagrams of the last call of :meth:`receive`, and return how many were sent.

        :param first: the index of the first one.
        :param sources: the ``source`` of the origin of the first one, and of those after it.
        :raises OSError: if the kernel does not accept the first one.
        """


class SingleExchange:
    """Handles one datagram in each system call.

    :param sock: a non-blocking socket.
    :param space: :func:`ancillary_space` of the socket.
    """

    limit = 1

    def __init__(self, sock: socket.socket, space: int) -> None:
        self._socket = sock
        self._space = space
        self._view = memoryview(bytearray(SIZE))
        self._size = 0
        self._peer: Any = None

    def receive(self) -> tuple[Sequence[Origin], Sequence[int]]:
        """Receive one datagram (:class:`Exchange`)."""
        self._size, ancillary, _flags, self._peer = self._socket.recvmsg_into(
            [self._view], self._space
        )
        sender = sender_of(*self._peer[:2])
        return [Origin(sender, self._peer, reply_source(ancillary))], [self._size]

    def send_back(self, first: int, sources: Sequence[Any]) -> int:
        """Send back the datagram (:class:`Exchange`)."""
        self._socket.sendmsg([self._view[: self._size]], sources[first], 0, self._peer)
        return 1

    def datagram(self) -> bytes:
        """Return the datagram that was received last."""
        return bytes(self._view[: self._size])


class BatchExchange:
    """Handles up to :data:`BATCH` datagrams in each system call.

    :param sock: a non-blocking socket.
    :param space: :func:`ancillary_space` of the socket.
    :raises ImportError: if Python was built without libffi.
    :raises AttributeError: if the C library does not have the system calls.
    :raises OSError: if the kernel or a sandbox does not.
    :raises MemoryError: if there is none, or an old libffi gets no executable memory (ctypes).
    """

    limit = BATCH

    def __init__(self, sock: socket.socket, space: int) -> None:
        import ctypes  # noqa: PLC0415 - not in every Python

        libc = ctypes.CDLL(None, use_errno=True)
        number, pointer = ctypes.c_int, ctypes.c_void_p
        self._recvmmsg, self._sendmmsg, self._errno = libc.recvmmsg, libc.sendmmsg, ctypes.get_errno
        self._recvmmsg.argtypes = (number, pointer, number, number, pointer)
        self._sendmmsg.argtypes = (number, pointer, number, number)
        self._fileno = sock.fileno

        def allocate(size: int) -> tuple[memoryview, int]:
            """Return zeroed memory and its address. Pages that no datagram fills cost nothing."""
            memory = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            return memoryview(memory), ctypes.addressof(ctypes.c_char.from_buffer(memory))

        self._buffers, buffers = allocate(BATCH * SIZE)
        # For each datagram a row: the socket address and ancillary data, with zeros after each.
        self._row = NAME_SPACE + space
        self._rows, rows = allocate(BATCH * self._row)
        # The ancillary data of the replies.
        reply_space = REPLY_SPACE if space else 0
        self._controls, controls = allocate(BATCH * REPLY_SPACE)
        # One half of these receives, the other sends.
        iovecs, iovec = allocate(2 * BATCH * IOVEC.size)
        headers, self._receive_headers = allocate(2 * BATCH * MMSGHDR.size)
        self._send_headers = self._receive_headers + BATCH * MMSGHDR.size
        name_size = (SOCKADDR_IN if sock.family == socket.AF_INET else SOCKADDR_IN6).size
        for index in range(BATCH):
            row = rows + index * self._row
            received = NAME_SPACE, row + NAME_SPACE, space
            sent = name_size, controls + index * REPLY_SPACE, reply_space
            for at, (name, *control) in ((index, received), (BATCH + index, sent)):
                IOVEC.pack_into(iovecs, at * IOVEC.size, buffers + index * SIZE, SIZE)
                fields = (row, name, iovec + at * IOVEC.size, 1, *control, 0, 0)
                MMSGHDR.pack_into(headers, at * MMSGHDR.size, *fields)
        self._lengths = iovecs.cast("L")[2 * BATCH + 1 :: 2]  # of the iovecs that send
        self._sizes = headers.cast("I")[MSGHDR.size // 4 :: MMSGHDR.size // 4]
        # The kernel overwrites the lengths in headers. Zeros end the ancillary data in a row.
        self._headers = headers
        self._new_headers = memoryview(bytes(headers))
        self._new_rows = memoryview(bytes(self._rows))
        self._used = 0
        self._check(self._recvmmsg(sock.fileno(), self._receive_headers, 0, 0, None))
        self._check(self._sendmmsg(sock.fileno(), self._send_headers, 0, 0))

    def receive(self) -> tuple[Sequence[Origin], Sequence[int]]:
        """Receive the datagrams that have arrived (:class:`Exchange`)."""
        self._headers[: self._used * MMSGHDR.size] = self._new_headers[: self._used * MMSGHDR.size]
        self._rows[: self._used * self._row] = self._new_rows[: self._used * self._row]
        self._used = 0
        self._used = count = self._check(
            self._recvmmsg(self._fileno(), self._receive_headers, BATCH, socket.MSG_DONTWAIT, None)
        )
        sizes = self._sizes[:count].tolist()
        self._lengths[:count] = array("L", sizes)
        rows = struct.unpack_from(f"{self._row}s" * count, self._rows)
        return list(map(origin_of, rows)), sizes

    def send_back(self, first: int, sources: Sequence[Any]) -> int:
        """Send back datagrams (:class:`Exchange`)."""
        controls = b"".join(sources)
        at = first * REPLY_SPACE
        self._controls[at : at + len(controls)] = controls
        headers = self._send_headers + first * MMSGHDR.size
        return self._check(self._sendmmsg(self._fileno(), headers, len(sources), 0))

    def _check(self, result: int) -> int:
        if result < 0:
            raise OSError(self._errno(), os.strerror(self._errno()))
        return result


def kernel_drop_counter(sock: socket.socket) -> int:
    """Return how many datagrams the kernel has dropped for ``sock``, modulo 2**32."""
    try:
        meminfo = sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 4 * (SK_MEMINFO_DROPS + 1))
    except OSError:  # some container runtimes do not have the option
        return 0
    return int(struct.unpack("9I", meminfo)[SK_MEMINFO_DROPS])
