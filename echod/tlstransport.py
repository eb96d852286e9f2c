"""TLS transport: OpenSSL in memory, between Twisted's TCP transport and an Echo.

This replaces Twisted's :class:`~twisted.protocols.tls.TLSMemoryBIOProtocol`, which takes the peer's
closing alert for the end of the connection, reports a stream without that alert like any other
loss, and waits for an answer to its own closing alert. It also takes 1.5 times as long for each
message.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final

from OpenSSL import SSL
from twisted.internet.interfaces import IHalfCloseableProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.events import HandshakeDone
from echod.factory import EchoFactory
from echod.protocol import Echo
from echod.tlsrecords import PIECE, RECORD, Ledger, RecordScanner
from echod.transport import kernel_socket, resets_on_error, send_now, unsent

MAX_EMPTY: Final = 1000
"""Successive records without application data after which a peer is reset. Normal peers send few:
a KeyUpdate once in millions of records (RFC 8446 5.5), or sometimes on an idle connection."""

HANDSHAKE_RECORD: Final = b"\x16\x03"
"""The first bytes of a TLS connection: a handshake record, of any version (RFC 8446 5.1)."""


@implementer(IHalfCloseableProtocol)
class TLSTransport(ProtocolWrapper):
    """TLS over the transport of a kernel socket.

    :param factory: keeps the set of open transports.
    :param pending: the protocol above this transport until the handshake is complete. Then an
        :class:`~echod.protocol.Echo` replaces it.
    :param tls: OpenSSL's state of the connection, without a socket.
    :param server: shares its time budget among all TLS connections.

    :ivar has_undecrypted_input: whether input waits for a later turn. Meanwhile nothing is read.
    """

    transport: Any
    wrappedProtocol: Any

    # Defaults on the class: most connections never need their own.
    has_undecrypted_input = False
    _handshaking = True
    _first_bytes = b""
    _handshake_in = 0  # bytes of ciphertext in the peer's handshake
    _paused = False
    _input = b""
    _at = 0  # the index in the input up to which it was decrypted
    _empty = 0
    _delivering = False

    def __init__(self, factory: Any, pending: Any, tls: Any, server: EchoFactory) -> None:
        super().__init__(factory, pending)
        self._tls = tls
        self._server = server
        self._ledger = Ledger()
        self._scanner = RecordScanner()

    @resets_on_error
    def makeConnection(self, transport: Any) -> None:
        """Wait for the peer to begin the handshake."""
        self.transport = transport
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Decrypt and deliver ``data``, and send the reply: now, or in later turns."""
        self._ledger.ciphertext_in += len(data)
        if self.has_undecrypted_input:  # from a transport that does not pause at once
            self._input += data
            return
        # Part of one record is decrypted at once: it takes no longer than a message without TLS.
        # All other input goes through the time budget; a handshake takes long at any size.
        records = None if self._handshaking else self._scanner.one_record(data)
        if records is not None:
            self._decrypt(data, records)
            return
        self._input = data
        self._server.turns.begin(self, self._server.clock)
        if self._input:
            self.has_undecrypted_input = True
            self.transport.pauseProducing()

    def step(self) -> bool:
        """Decrypt and deliver the next records of the input, and return whether more is left."""
        start = self._at
        self._at, records = self._scanner.scan(self._input, start)
        self._decrypt(self._input[start : self._at], records)
        if self._at < len(self._input) and self.connected and not self.disconnecting:
            return True
        self._input, self._at = b"", 0
        if self.has_undecrypted_input:
            self.has_undecrypted_input = False
            if not self._paused and not self.disconnecting:
                self.transport.resumeProducing()
        return False

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again, as soon as all input is decrypted."""
        self._paused = False
        if not self.has_undecrypted_input:
            self.transport.resumeProducing()

    @resets_on_error
    def readConnectionLost(self) -> None:
        """End the connection as truncated: FIN without a closing alert."""
        self.wrappedProtocol.truncated()

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""

    def write(self, data: bytes) -> None:
        """Encrypt ``data`` and send it, unless the connection is being closed."""
        if self.connected and not self.disconnecting:
            self._ledger.plaintext_out += len(data)
            # sendall, because send encrypts one record at most, and the peer may have asked for
            # small ones (RFC 6066 4).
            try:
                self._tls.sendall(data)
            except SSL.Error:  # OpenSSL waits for the rest of a KeyUpdate before it can write
                self.abortConnection()
                return
            if not self._delivering:
                self._flush()

    def writeSequence(self, data: Any) -> None:
        """Encrypt all of ``data`` and send it."""
        self.write(b"".join(data))

    def finish(self) -> None:
        """Send the closing alert, after which nothing can be written."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            with suppress(SSL.Error):  # no closing alert is possible after a fatal one
                self._tls.shutdown()
            self._flush()

    def loseConnection(self) -> None:
        """Send all buffered bytes and the closing alert, then FIN."""
        if self.connected and not self.disconnecting:
            self.finish()
            # The transport below would wait for its producer, which writes nothing more.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection in the reactor's next turn, without an alert."""
        self.disconnecting = True
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the end to the protocol above."""
        self.connected = False
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def getPeerCertificate(self) -> Any:
        """Return the peer's certificate (ISSLTransport)."""
        return self._tls.get_peer_certificate()

    def negotiated(self, seconds: float) -> HandshakeDone:
        """Return the event of a handshake that took ``seconds``."""
        version, cipher = self._tls.get_protocol_version_name(), self._tls.get_cipher_name()
        return HandshakeDone(self.transport.getPeer(), version, str(cipher), seconds)

    @property
    def ciphertext_in(self) -> int:
        """Bytes received from the peer, encrypted."""
        return self._ledger.ciphertext_in

    @property
    def ciphertext_out(self) -> int:
        """Bytes written to the transport below, encrypted."""
        return self._ledger.ciphertext_out

    @property
    def unsent_plaintext(self) -> int:
        """Bytes written by the protocol above that have not reached the kernel, before encryption.

        A record that is partly sent counts as a whole.
        """
        return self._ledger.unsent_plaintext(unsent(self.transport))

    @property
    def silent_since_handshake(self) -> bool:
        """Whether the peer has sent nothing since the handshake, not even a part of a record."""
        return self.ciphertext_in == self._handshake_in

    @resets_on_error
    def _decrypt(self, data: bytes, records: int) -> None:
        """Decrypt ``data``, in which ``records`` records end, and deliver the plaintext."""
        if not self.connected or self.disconnecting:
            return
        self._tls.bio_write(data)
        if self._handshaking:
            self._do_handshake(data)
            records = 0  # the handshake's records do not count as empty
        if not self._handshaking:
            self._deliver(records)

    def _do_handshake(self, data: bytes) -> None:
        self._first_bytes = (self._first_bytes + data)[: len(HANDSHAKE_RECORD)]
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except SSL.Error:
            self.disconnecting = True
            before = self.ciphertext_out
            # A peer that does not speak TLS would take an alert for a reply.
            if self._first_bytes == HANDSHAKE_RECORD:
                self._flush()
            self.wrappedProtocol.failed(alert=self.ciphertext_out > before)
        else:
            self._flush()
            self._handshaking = False
            self._handshake_in = self.ciphertext_in - len(self._input) + self._at
            self.wrappedProtocol.handshake_done()

    def _deliver(self, records: int) -> None:
        """Deliver all plaintext, send the reply, and handle the end of the stream.

        :param records: the number of complete records that OpenSSL was given.
        """
        end = None
        self._delivering = True
        self._empty += records
        try:
            while self.connected and not self.disconnecting:
                data = self._tls.recv(RECORD)
                self._empty = 0
                self.wrappedProtocol.dataReceived(data)
        except SSL.WantReadError:
            if self._empty > MAX_EMPTY:
                end = self.abortConnection
        except SSL.ZeroReturnError:  # the closing alert
            end = self.wrappedProtocol.readConnectionLost
        except SSL.Error:  # a damaged record, or an alert that reports an error
            end = self.wrappedProtocol.truncated
        self._delivering = False
        if not self.connected:
            return
        self._flush()
        if unsent(self.transport) and isinstance(self.wrappedProtocol, Echo):
            # The Echo has not sent these bytes: a TLS message, such as an answer to KeyUpdate.
            self.wrappedProtocol.watch()
        if end is not None:
            end()

    def _flush(self) -> None:
        """Send the records that OpenSSL has made, past the transport's buffer if it is empty."""
        below, ledger = self.transport, self._ledger
        with suppress(SSL.WantReadError):  # OpenSSL has no more
            size = PIECE
            while size == PIECE:
                piece = self._tls.bio_read(PIECE)
                size = len(piece)
                ledger.ciphertext_out += size
                sock = None if unsent(below) else kernel_socket(below)
                sent = 0 if sock is None else send_now(sock, piece)
                if sent < size:
                    below.write(piece[sent:])
        ledger.flushed(unsent(below))
