"""PROXY protocol, versions 1 and 2: recover the client's address behind a proxy.

A proxy can send a header with the client's address before the client's first byte. The
specification is ``proxy-protocol.txt`` of HAProxy; numbers in brackets are its sections. Any peer
that can connect to a port with PROXY headers can claim any address.
"""

from __future__ import annotations

import re
import socket
import struct
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol
from twisted.protocols.policies import WrappingFactory
from zope.interface import implementer

from echod.arguments import check_type
from echod.events import HeaderRead, Reason, notify
from echod.factory import EchoFactory
from echod.handshake import PendingConnection, refuse_failed
from echod.protocol import Echo
from echod.transport import resets_on_error

TEXT_START: Final = b"PROXY "
LONGEST_LINE: Final = 107
"""The start of version 1, and its maximum number of bytes, including CRLF [2.1]."""

TEXT: Final = re.compile(
    rb"PROXY (?:UNKNOWN(?: .*)?"
    rb"|TCP([46]) ([^ ]+) ([^ ]+) (0|[1-9][0-9]{0,4}) (0|[1-9][0-9]{0,4}))\r\n",
    re.DOTALL,
)
"""Version 1: family, source, destination, and their ports [2.1]."""

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
FIXED: Final = struct.Struct("!12sBBH")
"""The start of version 2, and its fixed part: signature, command, family, rest [2.2]."""

LOCAL: Final = 0x20
PROXY: Final = 0x21
"""Version and command in one byte: the proxy's own connection, or a client's [2.2]."""

FAMILIES: Final = 3
TRANSPORTS: Final = 2
"""The highest numbers that are defined [2.2]."""

ADDRESSES: Final = {
    0x11: struct.Struct("!4s4sHH"),
    0x21: struct.Struct("!16s16sHH"),
    0x31: struct.Struct("!108s108s"),
}
"""The layout of source, destination and their ports, by the byte of family and transport. The
addresses of other families and transports, such as UDP, may be ignored [2.2]."""

Header = tuple[IAddress | None, int]
"""The client's address and the header's bytes. No address: the proxy itself is the client."""


def read_header(received: bytes | bytearray) -> Header | None:
    """Return the PROXY header at the start of ``received``; ``None``: it is not complete.

    :raises ValueError: if it is not a PROXY header, and more bytes cannot make it one.
    """
    if SIGNATURE.startswith(received[: len(SIGNATURE)]):
        return _read_binary(received)
    if TEXT_START.startswith(received[: len(TEXT_START)]):
        return _read_text(received)
    raise ValueError("not a PROXY header")


def _read_text(received: bytes | bytearray) -> Header | None:
    """Read version 1 [2.1]."""
    size = received.find(b"\n", 0, LONGEST_LINE) + 1
    if not size and len(received) < LONGEST_LINE:
        return None
    line = TEXT.fullmatch(received[:size])
    if line is None:
        raise ValueError("not a line of the PROXY protocol")
    version, *hosts, port, other_port = line.groups()
    if version is None:  # UNKNOWN: the rest is ignored
        return None, size
    family = socket.AF_INET if version == b"4" else socket.AF_INET6
    try:
        source, _ = (socket.inet_pton(family, host.decode("ascii")) for host in hosts)
    except (OSError, ValueError):
        raise ValueError("invalid address in a PROXY header") from None
    if max(int(port), int(other_port)) > 65535:
        raise ValueError("invalid port in a PROXY header")
    return _ip_address(source, int(port)), size


def _read_binary(received: bytes | bytearray) -> Header | None:
    """Read version 2 [2.2]. Type-length-value blocks are skipped, checksums too."""
    if len(received) < FIXED.size:
        return None
    _, command, kind, length = FIXED.unpack_from(received)
    layout = None
    if command == PROXY:
        if kind >> 4 > FAMILIES or kind & 15 > TRANSPORTS:
            raise ValueError("undefined family or transport in a PROXY header")
        layout = ADDRESSES.get(kind)
    elif command != LOCAL:
        raise ValueError("undefined version or command in a PROXY header")
    if layout is not None and length < layout.size:
        raise ValueError("PROXY header too short for its addresses")
    size = FIXED.size + length
    if len(received) < size:
        return None
    if layout is None:
        return None, size
    source, _, *ports = layout.unpack_from(received, FIXED.size)
    return (_ip_address(source, ports[0]) if ports else _unix_address(source)), size


def _ip_address(packed: bytes, port: int) -> IAddress:
    """Return the address in the kernel's notation, so that equal addresses are equal text."""
    if len(packed) == 4:
        return IPv4Address("TCP", socket.inet_ntop(socket.AF_INET, packed), port)
    return IPv6Address("TCP", socket.inet_ntop(socket.AF_INET6, packed), port)


def _unix_address(padded: bytes) -> IAddress:
    """Return the address; one that starts with a null byte is abstract or unnamed (unix(7))."""
    abstract = padded.startswith(b"\0")
    return UNIXAddress((padded.rstrip(b"\0") if abstract else padded.partition(b"\0")[0]) or None)


@implementer(IHalfCloseableProtocol)
class ProxyHeaderReader(PendingConnection):
    """An accepted connection whose PROXY header is not complete.

    Its transport is a plain TCP or UNIX socket. The protocol that serves the connection later uses
    the same transport, without a wrapper.
    """

    reason = Reason.PROXY_HEADER

    def __init__(self, factory: EchoFactory, peer: IAddress | None) -> None:
        super().__init__(factory, peer)
        self._received = bytearray()

    @property
    def received(self) -> int:
        """Bytes of the header received so far."""
        return len(self._received)

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Read more of the header; let the factory serve the connection when it is complete."""
        self._received += data  # at most a header of 64 KiB, and one read of Twisted's
        try:
            header = read_header(self._received)
        except ValueError:
            self.refuse(self.reason)
            return
        if header is None:
            return
        client, size = header
        if self._factory.verbose:
            proxy = self.transport.getPeer()
            notify(self._factory.observer, HeaderRead(proxy, proxy if client is None else client))
        protocol = self.serve(self._peer if client is None else client)
        if protocol is not None:
            if isinstance(protocol, Echo):
                protocol.named = client
            transport: Any = self.transport
            transport.protocol = protocol
            protocol.makeConnection(transport)
            rest = bytes(self._received[size:])
            if rest and transport.connected:
                protocol.dataReceived(rest)

    def readConnectionLost(self) -> None:
        """Refuse the connection: FIN before the header is complete."""
        self.truncated()

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""


class ProxyFactory(WrappingFactory):
    """Serve ``factory`` behind proxies that send a PROXY header.

    Listen on plain TCP or UNIX endpoints, because the header comes first on the wire.

    :param factory: has the limits, the timeouts and the observer. It may also listen on other
        ports, without a proxy.
    :raises TypeError: for an argument of another type.
    """

    noisy = False

    def __init__(self, factory: EchoFactory) -> None:
        check_type("factory", factory, EchoFactory, "an EchoFactory")
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self._server = factory

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``: see :meth:`~echod.factory.EchoFactory.use_reactor`."""
        self._server.use_reactor(reactor)

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Wait for the header, or refuse the connection with RST."""
        try:
            refusal = self._server.refusal(addr, is_peer=False)
            return ProxyHeaderReader(self._server, addr) if refusal is None else refusal
        except BaseException:
            return refuse_failed()
