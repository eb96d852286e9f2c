"""Receive datagrams, and send each back from the address that it was sent to.

A :class:`BatchExchange` receives many datagrams in one system call, recvmmsg(2), and sends them in
another, sendmmsg(2). Python does not offer these, so it calls the C library. For few datagrams, or
where the C library cannot be called, a :class:`SingleExchange` takes less time.
"""

from __future__ import annotations

import functools
import mmap
import os
import socket
import struct
import sys
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from echod.udprules import Sender, sender_of

BATCH: Final = 32
"""The maximum number of datagrams in one system call. 16 take a tenth longer each; 32 of the
largest ones take 0.4 ms."""

SIZE: Final = 65_536
"""Bytes of a datagram's buffer. A datagram has at most 65,507 bytes over IPv4 and 65,527 over IPv6
(RFC 768, RFC 8200)."""

IP_PKTINFO: Final = 8
"""The socket option and type of ancillary data (ip(7)), for which Python has no name."""

IPV4_INFO: Final = (socket.IPPROTO_IP, IP_PKTINFO)
IPV6_INFO: Final = (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO)
IN_PKTINFO: Final = struct.Struct("4s4s4s")
"""in_pktinfo in ip(7): interface index, local address, destination address."""
IN6_PKTINFO: Final = struct.Struct("16s4s")
"""in6_pktinfo in RFC 3542 6.1: destination address, interface index."""
ANY: Final = bytes(4)
"""No interface, and no IPv4 address."""

SOCKADDR_IN: Final = struct.Struct("!2xH4s8x")
"""sockaddr_in in ip(7), after the family: port, address."""
SOCKADDR_IN6: Final = struct.Struct("!2xHI16s4s")
"""sockaddr_in6 in ipv6(7), after the family: port, flow, address, scope."""

CMSGHDR: Final = struct.Struct("Nii")
"""cmsghdr in cmsg(3): length including this header, level, type."""
IOVEC: Final = struct.Struct("PN")
"""iovec in readv(2): address and length of a buffer."""
MSGHDR: Final = struct.Struct("PIPNPNi0P")
"""msghdr in recvmsg(2): address and length of the socket address, of the iovecs, and of the
ancillary data; flags."""
MMSGHDR: Final = struct.Struct(MSGHDR.format + "I0P")
"""mmsghdr in recvmmsg(2): a msghdr, and the size of the datagram."""

NAME_SPACE: Final = 32
"""Bytes for a socket address."""

ANCILLARY_SPACE: Final = 256
"""Bytes for ancillary data: the packet information, and options that were enabled on the socket
before, as systemd does for Timestamping=."""

REPLY_SPACE: Final = socket.CMSG_SPACE(IN6_PKTINFO.size)
"""Bytes for the ancillary data of a reply. Over IPv4 it is shorter, and zeros follow."""

ROW: Final = NAME_SPACE + ANCILLARY_SPACE
"""Bytes of a row: a socket address and ancillary data, with zeros after each."""

MAX_ORIGINS: Final = 2048
"""Origins that are parsed only once: the most recent ones. Each takes about 1 KiB."""

Ancillary = list[tuple[int, int, bytes]]
"""Level, type and data of each item, as in :meth:`socket.socket.recvmsg`."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a datagram came from, and where its reply comes from.

    :ivar sender: the source, as the rules see it.
    :ivar peer: the source's socket address: host, port, and for IPv6 flow and scope.
    :ivar source: the ancillary data that sets the reply's source address, in the form that the
        socket takes. ``None``: many hosts got the datagram (:func:`reply_source`).
    """

    sender: Sender
    peer: Any
    source: Any


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

    :param sock: a non-blocking socket with IP_PKTINFO or IPV6_RECVPKTINFO.
    """

    limit = 1

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._view = memoryview(bytearray(SIZE))
        self._size = 0
        self._peer: Any = None

    def receive(self) -> tuple[Sequence[Origin], Sequence[int]]:
        """Receive one datagram (:class:`Exchange`)."""
        self._size, ancillary, _flags, self._peer = self._socket.recvmsg_into(
            [self._view], ANCILLARY_SPACE
        )
        sender = sender_of(*self._peer[:2])
        return [Origin(sender, self._peer, reply_source(ancillary))], [self._size]

    def send_back(self, first: int, sources: Sequence[Any]) -> int:
        """Send back the datagram (:class:`Exchange`)."""
        self._socket.sendmsg([self._view[: self._size]], sources[first], 0, self._peer)
        return 1


class BatchExchange:
    """Handles up to :data:`BATCH` datagrams in each system call.

    :param sock: a socket as for :class:`SingleExchange`.
    :raises ImportError: if Python was built without libffi.
    :raises AttributeError: if the C library does not have the system calls.
    :raises OSError: if the kernel or a sandbox does not.
    """

    limit = BATCH

    def __init__(self, sock: socket.socket) -> None:
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
        # The socket address and ancillary data of each datagram, and the ancillary data of replies.
        self._rows, rows = allocate(BATCH * ROW)
        self._controls, controls = allocate(BATCH * REPLY_SPACE)
        # One half of these receives, the other sends.
        iovecs, iovec = allocate(2 * BATCH * IOVEC.size)
        headers, self._receive_headers = allocate(2 * BATCH * MMSGHDR.size)
        self._send_headers = self._receive_headers + BATCH * MMSGHDR.size
        name_size = (SOCKADDR_IN if sock.family == socket.AF_INET else SOCKADDR_IN6).size
        for index in range(BATCH):
            row = rows + index * ROW
            received = NAME_SPACE, row + NAME_SPACE, ANCILLARY_SPACE
            sent = name_size, controls + index * REPLY_SPACE, REPLY_SPACE
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
        self._rows[: self._used * ROW] = self._new_rows[: self._used * ROW]
        self._used = 0
        self._used = count = self._check(
            self._recvmmsg(self._fileno(), self._receive_headers, BATCH, socket.MSG_DONTWAIT, None)
        )
        sizes = self._sizes[:count].tolist()
        self._lengths[:count] = array("L", sizes)
        rows = struct.unpack_from(f"{ROW}s" * count, self._rows)
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


@functools.lru_cache(MAX_ORIGINS)
def origin_of(row: bytes) -> Origin:
    """Return the origin of a datagram that a :class:`BatchExchange` has received."""
    family = int.from_bytes(row[:2], sys.byteorder)
    if family == socket.AF_INET:
        port, address = SOCKADDR_IN.unpack_from(row)
        host = socket.inet_ntop(family, address)
        peer: tuple[Any, ...] = host, port
    else:
        port, flow, address, scope = SOCKADDR_IN6.unpack_from(row)
        host = socket.inet_ntop(family, address)
        peer = host, port, flow, int.from_bytes(scope, sys.byteorder)
    source = reply_source(parse_ancillary(row[NAME_SPACE:]))
    if source is None:
        return Origin(sender_of(host, port), peer, None)
    [(level, kind, data)] = source
    control = CMSGHDR.pack(socket.CMSG_LEN(len(data)), level, kind) + data
    return Origin(sender_of(host, port), peer, control.ljust(REPLY_SPACE, b"\0"))


def parse_ancillary(control: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Yield the items of ancillary data that zeros follow (cmsg(3))."""
    at = 0
    while at + CMSGHDR.size <= len(control):
        length, level, kind = CMSGHDR.unpack_from(control, at)
        if length < CMSGHDR.size:
            return
        yield level, kind, control[at + CMSGHDR.size : at + length]
        at += socket.CMSG_SPACE(length - CMSGHDR.size)


def reply_source(ancillary: Iterable[tuple[int, int, bytes]]) -> Ancillary | None:
    """Return the ancillary data that sets the reply's source address.

    :param ancillary: the datagram's own: IP_PKTINFO or IPV6_PKTINFO, or both for an IPv4 datagram
        on an IPv6 socket.
    :return: ``None`` for a multicast or broadcast datagram, to which every host that got it would
        reply (RFC 1122 3.2.2).
    """
    found = {(level, kind): data for level, kind, data in ancillary}
    data = found.get(IPV4_INFO)
    if data is not None:
        _, local, destination = IN_PKTINFO.unpack(data)
        # No local address: the datagram arrived before IP_PKTINFO was set, as on a socket from
        # systemd. If it was broadcast, the kernel refuses to send the reply from its destination.
        if local not in (destination, ANY):
            return None
        # No interface: the routing table chooses it.
        return [(*IPV4_INFO, IN_PKTINFO.pack(ANY, destination, ANY))]
    destination, interface = IN6_PKTINFO.unpack(found[IPV6_INFO])
    if destination[0] == 0xFF:
        return None
    link_local = destination[:2] == b"\xfe\x80"  # valid on one interface only
    return [(*IPV6_INFO, IN6_PKTINFO.pack(destination, interface if link_local else ANY))]
