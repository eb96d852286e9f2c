"""TLS below the echo, with the endings that TLS knows; needs the extra ``tls``.

OpenSSL encrypts and decrypts in memory, Twisted's TCP transport below does the rest. Why not
Twisted's :class:`~twisted.protocols.tls.TLSMemoryBIOProtocol`: to that, the peer's closing
alert is the end of the whole connection, an end without it a loss like any other, and
its own closing alert something to wait for an answer to; and each message takes half as much
time again. The rules here:

- Until the handshake is done, a connection is no more than an arrival: it has a time, counts
  against the limits, and nobody hears of it. Only then there is an
  :class:`~echod.protocol.Echo`, with the TLS transport for its own.
- The peer's closing alert (close_notify) is the end of its sending. TLS 1.3 lets it go on
  receiving (RFC 8446 6.1), and TLS 1.2 is not asked to do worse: all that was received before
  it is sent back, then the own closing alert, then FIN.
- An end without that alert is ``lost``, whatever was sent back: it can be anybody's doing.
- The answer to the own closing alert is not waited for, as RFC 8446 6.1 and RFC 5246 7.2.1
  allow: a peer that does not answer is gone all the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, cast

from OpenSSL import SSL
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IProtocol
from twisted.internet.protocol import connectionDone
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.arguments import check_callable, check_type
from echod.events import HandshakeDone, Reason, notify
from echod.factory import EchoFactory
from echod.handshake import PendingConnection, refuses_on_error
from echod.protocol import Echo
from echod.transport import kernel_socket, resets_on_error, send_now, unsent

RECORD: Final = 16 * 1024
"""Bytes of the largest part that TLS encrypts by itself (RFC 8446 5.1)."""

PIECE: Final = RECORD + 512
"""Bytes that OpenSSL is given, and asked for, at once: such a part encrypted (RFC 8446 5.2)."""


HEADER: Final = 5
"""Bytes before each record: its type, a version, and the length of what follows (RFC 8446 5.1)."""

RECORDS: Final = 16
"""Records that are decrypted at once, before the time is looked at: as many tiny ones take up to
half a millisecond."""

MAX_EMPTY: Final = 1000
"""Records without application data after which a peer is reset. Honest peers renew their keys
once in millions of records (RFC 8446 5.5), or now and then where nothing else is to be sent."""

BEGINNING: Final = b"\x16\x03"
"""How a connection begins that speaks TLS: a handshake record, of any version (RFC 8446 5.1)."""

ALERT_TIME: Final = 1.0
"""Seconds that a peer has to read the alert of a failed handshake, until it is reset."""


class TLSArrival(PendingConnection):
    """One connection, until its handshake is done."""

    transport: TLSTransport  # type: ignore[assignment]  # has the methods of what it wraps
    reason = Reason.TLS_HANDSHAKE
    tls = True
    _failed = False

    @property
    def received(self) -> int:
        """Bytes of the handshake that have come."""
        return self.transport.taken

    def handshake_done(self) -> None:
        """Have the connection served: the handshake is done, and no application data received."""
        if self._factory.verbose:
            notify(self._factory.observer, self.transport.negotiated(self.age()))
        protocol = self.serve(self._peer)
        if protocol is not None:
            self.transport.wrappedProtocol = protocol
            protocol.makeConnection(cast(Any, self.transport))

    def failed(self, *, alert: bool) -> None:
        """Refuse the connection, because its handshake has failed.

        :param alert: whether the peer has been sent an alert that says why. Then it has
            :data:`ALERT_TIME` to read it and close; a reset at once could destroy it.
        """
        self._failed = True
        if alert:
            self._cancel_timers()
            self._later(ALERT_TIME, self.refuse, self.reason)
        else:
            self.refuse(self.reason)

    def refuse(self, reason: Reason) -> None:
        """Reset the connection, unserved."""
        super().refuse(self.reason if self._failed else reason)


@implementer(IHalfCloseableProtocol)
class TLSTransport(ProtocolWrapper):
    """TLS between the kernel socket's transport and an :class:`~echod.protocol.Echo`.

    :ivar held: whether input waits to be decrypted in later turns. Then nothing is read.
    :ivar taken: bytes received so far, encrypted.
    :ivar given: bytes sent so far, encrypted.
    """

    factory: TLSFactory
    transport: Any
    wrappedProtocol: Any

    # Defaults on the class, as Echo's.
    taken = 0
    given = 0
    _written = _gone = 0
    _taken_by_handshake = 0
    _shaking = True
    _beginning = b""
    held = False
    _paused = False
    _input = b""
    _at = 0  # in the input, up to where it was decrypted
    _header = b""  # of the record that is being received, as far as it is incomplete
    _body = 0  # bytes of that record still to come
    _empty = 0
    _delivering = False

    @resets_on_error
    def makeConnection(self, transport: Any) -> None:
        """Wait for the peer to begin the handshake."""
        self.transport = transport
        self._unsent: deque[tuple[int, int]] = deque()
        self._tls = SSL.Connection(self.factory.context(), None)
        self._tls.set_accept_state()
        super().makeConnection(transport)  # type: ignore[no-untyped-call]

    @resets_on_error
    def dataReceived(self, data: bytes) -> None:
        """Decrypt and deliver ``data``, and send what becomes of it: now, or in later turns."""
        size = len(data)
        self.taken += size
        if self.held:  # by a transport that does not pause at once
            self._input += data
            return
        if self._shaking:  # which takes long, whatever its size
            rest = -1
        elif self._body:
            rest = self._body - size
        elif self._header or size < HEADER:
            rest = -1
        else:
            rest = HEADER + (data[3] << 8 | data[4]) - size
        if rest >= 0:  # of one record: no more work than a connection without TLS makes
            self._body = rest
            self._decrypt(data, not rest)
            return
        self._input = data
        echo = self.factory.echo
        echo.turns.begin(self, echo.clock)
        if self._input:
            self.held = True
            self.transport.pauseProducing()

    def step(self) -> bool:
        """Decrypt and deliver the next records of the input, and return whether more is left."""
        start, records = self._at, self._find_records()
        self._decrypt(self._input[start : self._at], records)
        if self._at < len(self._input) and self.connected and not self.disconnecting:
            return True
        self._input, self._at = b"", 0
        if self.held:
            self.held = False
            if not self._paused and not self.disconnecting:
                self.transport.resumeProducing()
        return False

    def pauseProducing(self) -> None:
        """Stop reading."""
        self._paused = True
        self.transport.pauseProducing()

    def resumeProducing(self) -> None:
        """Read again, as soon as what was read is decrypted."""
        self._paused = False
        if not self.held:
            self.transport.resumeProducing()

    @resets_on_error
    def readConnectionLost(self) -> None:
        """End what the peer has ended without a closing alert (FIN alone)."""
        self.wrappedProtocol.truncated()

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""

    def write(self, data: bytes) -> None:
        """Encrypt ``data`` and send it; nothing any more when the connection is being closed."""
        if self.connected and not self.disconnecting:
            self._written += len(data)
            # Not send, which may take less: as much as a record of the peer's choice (RFC 6066 4).
            try:
                self._tls.sendall(data)
            except SSL.Error:  # the peer has begun a message of TLS's own, which has to end first
                self.abortConnection()
                return
            if not self._delivering:
                self._flush()

    def writeSequence(self, data: Any) -> None:
        """Encrypt all of ``data`` and send it."""
        self.write(b"".join(data))

    def finish(self) -> None:
        """Send the closing alert, after which nothing can be written any more."""
        if self.connected and not self.disconnecting:
            self.disconnecting = True
            with suppress(SSL.Error):  # none after an alert that tells of an error
                self._tls.shutdown()
            self._flush()

    def loseConnection(self) -> None:
        """Send what is owed, the closing alert, then FIN."""
        if self.connected and not self.disconnecting:
            self.finish()
            # Who is registered would be waited for, and nothing more is going to come from it.
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def abortConnection(self) -> None:
        """Reset the connection, in the reactor's next turn; an alert would not be sent."""
        self.disconnecting = True
        self.transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell who is above."""
        self.connected = False
        super().connectionLost(reason)  # type: ignore[no-untyped-call]

    def getPeerCertificate(self) -> Any:
        """Return the certificate that the peer has shown, as Twisted's TLS transports do."""
        return self._tls.get_peer_certificate()

    def negotiated(self, seconds: float) -> HandshakeDone:
        """Return the event of the handshake, which is done after ``seconds``."""
        version, cipher = self._tls.get_protocol_version_name(), self._tls.get_cipher_name()
        return HandshakeDone(self.transport.getPeer(), version, str(cipher), seconds)

    @property
    def silent(self) -> bool:
        """Whether the peer has sent nothing since the handshake, not even a part of a record."""
        return self.taken == self._taken_by_handshake

    @property
    def buffered(self) -> int:
        """Bytes that were written, and not all given to the kernel: in pieces of 16 KiB at most."""
        self._forget_sent()
        return self._written - self._gone

    @resets_on_error
    def _decrypt(self, data: bytes, records: int) -> None:
        """Give OpenSSL ``data``, which ends that many records, and deliver what it decrypts."""
        if not self.connected or self.disconnecting:
            return
        self._tls.bio_write(data)
        if self._shaking:
            self._shake(data)
            records = 0  # of the handshake
        if not self._shaking:
            self._deliver(records)

    def _find_records(self) -> int:
        """Advance in the input by some records, and return how many of them are complete.

        They are :data:`RECORDS` and :data:`PIECE` bytes at most, for OpenSSL keeps as much memory
        as it has ever been given at once. The last may be incomplete.
        """
        data, at, header, body, records = self._input, self._at, self._header, self._body, 0
        end = min(len(data), at + PIECE)
        while at < end and records < RECORDS:
            if not body:
                part = data[at : min(end, at + HEADER - len(header))]
                at += len(part)
                header += part
                if len(header) < HEADER:
                    break
                body = header[3] << 8 | header[4]
                header = b""
            size = min(body, end - at)
            at += size
            body -= size
            if not body:
                records += 1
        self._at, self._header, self._body = at, header, body
        return records

    def _deliver(self, records: int) -> None:
        """Deliver what can be decrypted, send what becomes of it, then see whether it was all.

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
        except SSL.Error:  # a damaged record, or an alert that tells of another error
            end = self.wrappedProtocol.truncated
        self._delivering = False
        if not self.connected:
            return
        self._flush()
        if self._unsent and isinstance(self.wrappedProtocol, Echo):
            # Which nobody else knows of, where they answer a message of TLS's own (KeyUpdate).
            self.wrappedProtocol.watch()
        if end is not None:
            end()

    def _shake(self, data: bytes) -> None:
        if len(self._beginning) < len(BEGINNING):
            self._beginning += data[: len(BEGINNING)]
        try:
            self._tls.do_handshake()
        except SSL.WantReadError:
            self._flush()
        except SSL.Error:
            self.disconnecting = True
            before = self.given
            # A peer that speaks no TLS must not see anything that looks like a reply.
            if self._beginning.startswith(BEGINNING):
                self._flush()
            self.wrappedProtocol.failed(alert=self.given > before)
        else:
            self._flush()
            self._shaking = False
            self._taken_by_handshake = self.taken - len(self._input) + self._at
            self.wrappedProtocol.handshake_done()

    def _flush(self) -> None:
        """Send what OpenSSL has encrypted: now, where nothing is before it and the kernel can."""
        below = self.transport
        with suppress(SSL.WantReadError):  # which says that there is no more
            size = PIECE
            while size == PIECE:
                piece = self._tls.bio_read(PIECE)
                size = len(piece)
                self.given += size
                sock = None if unsent(below) else kernel_socket(below)
                sent = 0 if sock is None else send_now(sock, piece)
                if sent < size:
                    below.write(piece[sent:])
        if self._unsent or unsent(below):
            # Once: nothing may have become of what has come, as of one more byte of a record.
            if not self._unsent or self._unsent[-1] != (self.given, self._written):
                self._unsent.append((self.given, self._written))
            self._forget_sent()
        else:
            self._gone = self._written

    def _forget_sent(self) -> None:
        """Forget of what was unsent all that the kernel has taken meanwhile."""
        taken = self.given - unsent(self.transport)
        while self._unsent and self._unsent[0][0] <= taken:
            _, self._gone = self._unsent.popleft()


class TLSFactory(WrappingFactory):
    """Serve ``factory`` over TLS, on any stream endpoint.

    :param factory: serves, once the handshake is done.
    :param context: returns what the next handshake is done with: keys, certificates, rules. Its
        options have to include OP_NO_RENEGOTIATION.

    :raises TypeError: for an argument of another type.

    :ivar echo: the factory that serves.
    """

    noisy = False

    def __init__(self, factory: EchoFactory, context: Callable[[], SSL.Context]) -> None:
        check_type("factory", factory, EchoFactory, "an EchoFactory")
        check_callable("context", context, "a callable that returns an OpenSSL.SSL.Context")
        super().__init__(factory)  # type: ignore[no-untyped-call]
        self.echo = factory
        self.context = context

    def use_reactor(self, reactor: object) -> None:
        """Serve on ``reactor``: see :meth:`~echod.factory.EchoFactory.use_reactor`."""
        self.echo.use_reactor(reactor)

    @refuses_on_error
    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Begin a handshake, or refuse the connection before that."""
        refusal = self.echo.refusal(addr, tls=True)
        if refusal is not None:
            return refusal
        arrival = cast(IProtocol, TLSArrival(self.echo, addr))
        return TLSTransport(cast(Any, self), arrival)
