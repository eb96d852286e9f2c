"""Endpoints that announce the client's address in a PROXY header, and the headers."""

from __future__ import annotations

import itertools
import socket
import struct
from typing import Any, ClassVar, cast

from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.protocol import Factory

from echod.events import HeaderRead
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from tests.streams.sockets import TCP4Endpoints


def proxy_header(version: int, host: str, port: int) -> bytes:
    """Return a PROXY header for a client at ``host`` (IPv4 or IPv6) and ``port``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if version == 1:
        kind = "TCP6" if ":" in host else "TCP4"
        return f"PROXY {kind} {host} {host} {port} 7\r\n".encode()
    packed = socket.inet_pton(family, host)
    addresses = packed * 2 + struct.pack("!HH", port, 7) + b"\x04\0\1\0"  # and PP2_TYPE_NOOP
    kinds = {socket.AF_INET: 0x11, socket.AF_INET6: 0x21}
    fixed = struct.pack("!BBH", 0x21, kinds[family], len(addresses))
    return b"\r\n\r\n\0\r\nQUIT\n" + fixed + addresses


class Announced(Factory):
    """A factory whose protocols send a PROXY header before their first byte."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, header: bytes) -> None:
        self.factory, self.header = factory, header

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol: Any = self.factory.buildProtocol(cast(Any, addr))
        make_connection = protocol.makeConnection

        def announce(transport: Any) -> None:
            # With Nagle's algorithm the next bytes may wait for the header's acknowledgement,
            # which the kernel delays by 40 ms: too long for a test whose clock is a task.Clock.
            transport.setTcpNoDelay(True)
            transport.getHandle().send(self.header)
            make_connection(transport)

        protocol.makeConnection = announce
        return protocol


class ProxyEndpoints(TCP4Endpoints):
    """TCP through a proxy: every client has the same address and a port of its own."""

    begins_with: ClassVar = [HeaderRead]

    def __init__(self, kind: str = "epoll", version: int = 1, **options: Any) -> None:
        super().__init__(kind, **options)
        self.version = version
        self.host = "192.0.2.1" if version == 1 else "2001:db8::1"
        self.numbers = itertools.count(49152)
        self.announces = False

    async def listen(self, factory: IProtocolFactory) -> None:
        self.announces = isinstance(factory, EchoFactory)
        await super().listen(ProxyFactory(factory) if isinstance(factory, EchoFactory) else factory)

    async def connect(self, factory: IProtocolFactory) -> Any:
        if not self.announces:
            return await super().connect(factory)
        header = proxy_header(self.version, self.host, next(self.numbers))
        return await super().connect(Announced(factory, header))
