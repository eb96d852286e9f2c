"""Endpoints that speak TLS over TCP."""

from __future__ import annotations

import socket
import tempfile
from pathlib import Path
from typing import Any, ClassVar, cast

from OpenSSL import SSL
from twisted.internet.interfaces import (
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
)
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from zope.interface import implementer

from echod.certificates import Certificates
from echod.events import HandshakeDone
from echod.factory import EchoFactory
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from echod.testing import Peer
from echod.tls import TLSFactory
from echod.transport import beneath
from tests.authority import Authority
from tests.streams.sockets import TCP4Endpoints


class TLSPeer(TLSMemoryBIOProtocol):
    """The peer's end of TLS. It half-closes with close_notify, and keeps receiving."""

    def loseWriteConnection(self) -> None:
        self.loseConnection()

    def abortConnection(self) -> None:
        if self.connected:  # Twisted raises once the connection is lost
            super().abortConnection()


class TLSEndpoints(TCP4Endpoints):
    """TLS over TCP: the server's as in ``--listen ssl:``, the client's is Twisted's own."""

    begins_with: ClassVar = [HandshakeDone]

    def __init__(self, kind: str = "epoll", version: int = SSL.TLS1_3_VERSION) -> None:
        super().__init__(kind)
        with tempfile.TemporaryDirectory() as directory:
            authority = Authority(Path(directory))
            self.certificates = Certificates(*authority.issue("server"))
            self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            self._context.load_verify_locations(authority.file)
        self._context.set_verify(SSL.VERIFY_PEER)
        self._context.set_max_proto_version(version)

    async def listen(self, factory: Any) -> None:
        # A test's own peer on the server's side gets its TLS from Twisted.
        over: Any
        if isinstance(factory, FaultyEchoFactory):
            over = FaultyTLSFactory(factory, self.certificates)
        elif isinstance(factory, EchoFactory):
            over = TLSFactory(factory, self.certificates)
        else:
            over = self._wrapped(factory, is_client=False)
        await super().listen(over)

    async def connect(self, factory: IProtocolFactory) -> Any:
        tls = await super().connect(self._wrapped(factory, is_client=True))
        return tls.wrappedProtocol

    def send_unseen(self, peer: Peer, data: bytes) -> None:
        self._send(peer, data, 0)

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        self._send(peer, data, socket.MSG_OOB)

    def _send(self, peer: Peer, data: bytes, flags: int) -> None:
        connection = cast(Any, peer.transport).getHandle()
        connection.send(data)
        cast(Any, beneath(peer.transport)).getHandle().send(connection.bio_read(1 << 15), flags)

    def _wrapped(self, factory: IProtocolFactory, is_client: bool) -> Any:
        wrapped = TLSMemoryBIOFactory(TLSContext(self, is_client), is_client, factory, Clock())
        wrapped.protocol = TLSPeer
        return wrapped


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class TLSContext:
    def __init__(self, ends: TLSEndpoints, is_client: bool) -> None:
        self._context = ends._context if is_client else ends.certificates()

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    serverConnectionForTLS = clientConnectionForTLS
