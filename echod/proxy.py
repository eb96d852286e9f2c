"""Whom a proxy connects for: the PROXY protocol, versions 1 and 2.

A proxy that hides its clients' addresses can send a header before a client's first byte that
tells them. The specification is ``proxy-protocol.txt`` of HAProxy, and what follows here in
brackets are its sections. Who reaches a port where the header is read can claim any address.
"""

from __future__ import annotations

import socket
import struct
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.internet.protocol import Factory, Protocol
from zope.interface import implementer

from echod.arguments import check_type
from echod.events import HeaderRead, Reason, notify
from echod.factory import EchoFactory
from echod.handshake import PendingConnection, refuses_on_error
from echod.protocol import Echo
from echod.transport import resets_on_error

LINE: Final = b"PROXY "
LONGEST_LINE: Final = 107
"""How version 1 begins, and the most bytes that it may have, with CRLF [2.1]."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIXED: Final = struct.Struct("!12sBBH")
"""How version 2 begins, and its fixed part: that, command, family, bytes that follow [2.2]."""

LOCAL: Final = 0x20
PROXY: Final = 0x21
"""The version and the command in one byte: for itself, or for somebody else [2.2]."""

FAMILIES: Final = 3
TRANSPORTS: Final = 2
"""The highest that there are [2.2]."""

BLOCKS: Final = {
    0x11: struct.Struct("!4s4sHH"),
    0x21: struct.Struct("!16s16sHH"),
    0x31: struct.Struct("!108s108s"),
}
"""What there is of addresses, by the byte for family and transport: source, destination and
their ports. Of others, such as UDP, the addresses are ignored, as one may [2.2]."""


def read_header(received: bytes | bytearray) -> tuple[IAddress | None, int] | None:
    """Return whom the PROXY header that ``received`` begins with names, and its bytes.

    ``None``: it is not complete. The address is ``None`` where the header names nobody:
    then the peer is who has connected.

    :raises ValueError: where it is no such header, and cannot become one.
    """
    if SIGNATURE.startswith(received[: len(SIGNATURE)]):
        return _read_binary(received)
    if LINE.startswith(received[: len(LINE)]):
        return _read_line(received)
    raise ValueError("that is no PROXY header")


def _read_line(received: bytes | bytearray) -> tuple[IAddress | None, int] | None:
    """Read version 1 [2.1]."""
    size = received.find(b"\n", 0, LONGEST_LINE) + 1
    if not size:
        if len(received) >= LONGEST_LINE:
            raise ValueError("the PROXY header is too long")
        return None
    line = received[:size].decode("ascii", "replace")
    if not line.endswith("\r\n"):
        raise ValueError("the PROXY header does not end with CRLF")
    _, kind, *words = line[:-2].split(" ")
    if kind == "UNKNOWN":  # and what follows is ignored
        return None, size
    if kind not in ("TCP4", "TCP6") or len(words) != 4:
        raise ValueError("the PROXY header is not of TCP4, TCP6 or UNKNOWN")
    family = socket.AF_INET if kind == "TCP4" else socket.AF_INET6
    try:
        source, _ = (socket.inet_pton(family, host) for host in words[:2])
    except OSError:
        raise ValueError("the PROXY header has an address that is none") from None
    port, _ = map(_port, words[2:])
    return _ip_address(source, port), size


def _port(word: str) -> int:
    if not word.isdigit() or str(int(word)) != word or int(word) > 65535:
        raise ValueError("the PROXY header has a port that is none")
    return int(word)


def _read_binary(received: bytes | bytearray) -> tuple[IAddress | None, int] | None:
    """Read version 2 [2.2]. Type-length-value blocks are skipped, checksums too."""
    if len(received) < FIXED.size:
        return None
    _, command, kind, length = FIXED.unpack_from(received)
    block = None
    if command == PROXY:
        if kind >> 4 > FAMILIES or kind & 15 > TRANSPORTS:
            raise ValueError("the PROXY header has a family or transport that is none")
        block = BLOCKS.get(kind)
    elif command != LOCAL:  # for which all that follows is ignored
        raise ValueError("the PROXY header is not of version 2, or has no command of that")
    if block is not None and length < block.size:
        raise ValueError("the PROXY header has no room for its addresses")
    size = FIXED.size + length
    if len(received) < size:
        return None
    if block is None:
        return None, size
    source, _, *ports = block.unpack_from(received, FIXED.size)
    return (_ip_address(source, ports[0]) if ports else _unix_address(source)), size


def _ip_address(packed: bytes, port: int) -> IAddress:
    """Return the address, written as the kernel's own are: one peer is always the same."""
    if len(packed) == 4:
        return IPv4Address("TCP", socket.inet_ntop(socket.AF_INET, packed), port)
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, packed), port)


def _unix_address(padded: bytes) -> IAddress:
    """Return the address; one that begins with a null byte is abstract, or none (unix(7))."""
    abstract = padded.startswith(b"\0")
    return UNIXAddress((padded.rstrip(b"\0") if abstract else padded.partition(b"\0")[0]) or None)


@implementer(IHalfCloseableProtocol)
class ProxyArrival(PendingConnection):
    """One connection of a proxy, until its header is read.

    On a plain TCP or UNIX transport, which then goes to who serves it: nothing stays between.
    """

    reason = Reason.PROXY_HEADER

    def __init__(self, factory: EchoFactory, peer: IAddress | None) -> None:
        super().__init__(factory, peer)
        self._received = bytearray()

    @property
    def received(self) -> int:
        """Bytes of the header that have come."""
        return len(self._received)

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Go on with the header; when it is complete, let the connection be served."""
        self._received += data  # 64 KiB of header at most, and what Twisted reads at once
        try:
            header = read_header(self._received)
        except ValueError:
            self.refuse(self.reason)
            return
        if header is None:
            return
        peer, size = header
        if self._factory.verbose:
            proxy = self.transport.getPeer()
            notify(self._factory.observer, HeaderRead(proxy, proxy if peer is None else peer))
        protocol = self.serve(self._peer if peer is None else peer)
        if protocol is not None:
            if isinstance(protocol, Echo):
                protocol.named = peer
            transport: Any = self.transport
            transport.protocol = protocol
            protocol.makeConnection(transport)
            rest = bytes(self._received[size:])
            if rest and transport.connected:
                protocol.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Refuse it: the header is not complete when the peer finishes sending."""
        self.truncated()

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""


class ProxyFactory(Factory):
    """Serve by ``factory`` whom proxies connect for.

    On an endpoint of plain TCP or UNIX sockets, because the header comes first on the wire.

    :param factory: has the limits, the time for a header, and the observer. It may listen
        elsewhere without a proxy, too.
    :raises TypeError: for any other factory, which has none of these.
    """

    noisy = False

    def __init__(self, factory: EchoFactory) -> None:
        check_type("factory", factory, EchoFactory, "an EchoFactory")
        self._factory = factory

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``: see :meth:`~echod.factory.EchoFactory.use_reactor`."""
        self._factory.use_reactor(reactor)

    def startFactory(self) -> None:
        """Take connections (again): the first of the ports begins to listen."""
        self._factory.doStart()  # type: ignore[no-untyped-call]

    def stopFactory(self) -> None:
        """Tell the factory that no port listens any more."""
        self._factory.doStop()  # type: ignore[no-untyped-call]

    @refuses_on_error
    def buildProtocol(self, addr: IAddress | None) -> Protocol:
        """Wait for the header, or refuse the connection with RST."""
        refusal = self._factory.refusal(addr, is_peer=False)
        return ProxyArrival(self._factory, addr) if refusal is None else refusal
