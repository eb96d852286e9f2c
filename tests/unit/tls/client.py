"""An EchoFactory over TLS in memory, and a client that makes each of its records itself."""

from __future__ import annotations

import ssl
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from OpenSSL import SSL
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from echod.certificates import Certificates
from echod.protocol import Echo
from echod.tls import TLSFactory
from tests.authority import Authority
from tests.coroutines import now
from tests.streams.memory import MemoryEndpoints
from tests.streams.server import EchoServer, Peers


class TLSTestCase(SynchronousTestCase):
    """A test with a certificate authority. It fails if an error is logged and not flushed."""

    def setUp(self) -> None:
        directory = TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = Path(directory.name)
        self.authority = Authority(self.directory)


class Connects:
    """A server to which a test connects."""

    def connect(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> TLSClient:
        return TLSClient(self, version=version)

    def client(self) -> TLSClient:
        """Return a client that has connected and completed its handshake."""
        client = self.connect()
        client.handshake()
        return client


class TLSServer(EchoServer, Connects):
    """An EchoFactory over TLS, in memory."""

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(MemoryEndpoints(), **options)
        self.network = self.ends.network
        self.trusted = authority.file
        self.keylog = Path(authority.file).with_name("keys.log")
        self.over = TLSFactory(self.factory, Certificates(*authority.issue("server")))
        now(self.ends.listen(self.over))

    @property
    def echo(self) -> Echo:
        [echo] = self.factory.connections
        return echo


class TLSClient:
    """A TLS client without a socket: a test decides when each of its bytes is sent.

    :ivar closed: whether the server's closing alert has been received.
    """

    def __init__(
        self,
        server: Any,
        port: int = 7,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        *,
        checks_name: bool = True,
    ) -> None:
        self._network = server.network
        connecting: list[Any] = []
        server.network.client_endpoint(port).connect(Peers()).addCallback(connecting.append)
        [self.peer] = connecting
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=server.trusted)
        context.maximum_version = version
        context.check_hostname = checks_name
        context.keylog_filename = str(server.keylog)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._fed = 0
        self.received = bytearray()
        self.closed = False

    def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send(self.record())
            else:
                self.send(self.record())
                return

    def record(self, data: bytes = b"") -> bytes:
        """Return the ciphertext of ``data``, and any other bytes that OpenSSL has to send."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def closing_alert(self) -> bytes:
        """Return the ciphertext of the closing alert."""
        with suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        """Send ``data`` as it is, and receive the reply."""
        self.peer.send(data)
        self.settle()

    def settle(self) -> None:
        self._network.settle()
        self._incoming.write(bytes(self.peer.received[self._fed :]))
        self._fed = len(self.peer.received)

    def read(self) -> bytes:
        """Return all plaintext received so far."""
        self.settle()
        try:
            while data := self._tls.read(1 << 16):
                self.received += data
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return bytes(self.received)


def client_over_twisted(server: Any, authority: Authority) -> TLSClient:
    """Listen over Twisted's own TLS too, connect there, and do the handshake."""
    certificates = Certificates(*authority.issue("server"))

    @implementer(IOpenSSLServerConnectionCreator)
    class Creator:
        def serverConnectionForTLS(self, protocol: object) -> Any:
            return SSL.Connection(certificates(), None)

    over = TLSMemoryBIOFactory(Creator(), False, server.factory, server.network)
    over.protocol = TLSMemoryBIOProtocol
    server.network.server_endpoint(8).listen(over)
    client = TLSClient(server, port=8)
    client.handshake()
    return client
