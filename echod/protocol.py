"""Echo: send every byte of one connection back, in order; end an incomplete reply with RST.

The rules that this file keeps:

- The bytes received are sent back unchanged and in order. Nothing is added.
- When the peer has finished sending (half-close), everything is sent back first, then FIN.
- A peer that sends and does not read is not read from either (back-pressure). The bytes that are
  buffered, and not yet passed to the kernel, stay below :data:`MAX_BUFFERED`.
- A reply that is cut short ends in RST, never in FIN: no peer can mistake a part for the whole.
- No connection is closed while received bytes are unread.
"""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IPushProducer
from twisted.internet.protocol import connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.closing import MAX_ORPHANED, Delivery, outcome, reset_if_incomplete
from echod.events import Closed, Ending, HalfClosed, notify
from echod.fastprotocol import FastProtocol
from echod.fastset import UNCHECKED
from echod.socketoptions import set_options
from echod.timeouts import FIRST_BYTE, Progress
from echod.transport import (
    IStreamTransport,
    beneath,
    encrypted,
    fail,
    half_closes,
    has_unread_input,
    kernel_send_queue,
    kernel_socket,
    lose,
    reset,
    resets_on_error,
    send_now,
    unsent,
)

if TYPE_CHECKING:
    from echod.factory import EchoFactory

MAX_BUFFERED: Final = 256 * 1024
"""Bytes. Twisted stops reading when more than 64 KiB are buffered, and one read adds at most 64
KiB. The fast path gives back less than 256 KiB, and only when no bytes are buffered."""

log = Logger(namespace="echod")


@implementer(IHalfCloseableProtocol, IPushProducer)
class Echo(FastProtocol):
    """Echo one connection (RFC 862). :class:`EchoFactory` makes these.

    It is registered as its transport's producer: pausing it stops reading.

    :ivar named: the client's address from a PROXY header, if there was one.
    """

    named: IAddress | None = None
    factory: EchoFactory

    # Defaults on the class: most connections never need their own.
    _ending = Ending.FINISHED
    _closing = False
    _paused = False
    _delivered = 0  # bytes received when the kernel's send queue was last found empty
    _delivery: Delivery | None = None

    @property
    def peer(self) -> IAddress:
        """The peer's address."""
        return self.transport.getPeer() if self.named is None else self.named

    def connectionMade(self) -> None:
        """Set the socket's options, register for back-pressure, and report to the factory."""
        # Set here, and not one by one later, so that CPython stores the attributes compactly.
        self._received = 0
        self._opened = 0.0
        try:  # as resets_on_error does, but without another call for each connection
            self._opened = self.factory.now(self.transport)
            set_options(self.transport)
            self.transport.registerProducer(self, True)
            self.factory.connection_opened(self, self.peer, tls=encrypted(self.transport))
        except BaseException:
            fail(self.transport)

    def adopt(self, transport: IStreamTransport, opened: float, received: int) -> None:
        """Serve a connection that has been open without a transport.

        :param opened: seconds, by the factory's clock.
        :param received: bytes.
        """
        self._received, self._opened = received, opened
        self.transport = transport
        self.connected = True
        transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Send ``data`` back. The second message moves a connection to the fast path."""
        try:  # as in connectionMade
            # Checked each time, because an application may start TLS.
            sock, count = kernel_socket(self.transport), len(data)
            sent = 0 if sock is None or unsent(self.transport) else send_now(sock, data)
            is_first = not self._received
            self._received += count
            if sent < count:
                self.send(data[sent:])
            elif not is_first and sock is not None:
                self._leave_transport(sock)
        except BaseException:
            fail(self.transport)

    def _leave_transport(self, sock: socket.socket) -> None:
        """Move to the fast path. Without it, or after many bytes, have the timeouts checked."""
        fast_path = self.factory.fast_path()
        joined = fast_path is not None and self.join_fast_path(fast_path, sock)
        if not joined or self._received > UNCHECKED:
            self.watch()

    def watch(self) -> None:
        """Have the timeouts checked until the peer has received everything."""
        timeouts = self.factory.timeouts
        if self not in timeouts.watched:
            timeouts.watch(self, self.factory.clock)

    def readConnectionLost(self) -> None:
        """Close when everything is sent: the peer has finished sending (an empty receive)."""
        try:  # as in connectionMade
            if not self._closing:
                received = self.received
                if self.factory.verbose:
                    half_closed = HalfClosed(received, self.peer, encrypted(self.transport))
                    notify(self.factory.observer, half_closed)
                self._finish_reply(Ending.FINISHED if received else Ending.UNUSED)
        except BaseException:
            fail(self.transport)

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""

    def truncated(self) -> None:
        """Close when everything is sent, with the ending ``lost``: the peer may have sent more.

        TLS calls this if the stream ends without a closing alert (RFC 8446 6.1).
        """
        silent = not self.received and getattr(self.transport, "silent_since_handshake", True)
        self._finish_reply(Ending.UNUSED if silent else Ending.LOST)

    def _finish_reply(self, ending: Ending) -> None:
        self._close(ending)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report how the connection ended."""
        if self._delivery is not None:
            self._delivery.cancel()
        closed = None
        try:
            closed = self._sum_up(reason)
        except BaseException:  # such as MemoryError; the connection is over all the same
            with suppress(BaseException):
                log.failure("a connection fails")
        self.factory.connection_closed(self, closed)

    def _sum_up(self, reason: Failure) -> Closed:
        received = self.received
        ending, left = outcome(
            self.transport, reason, self._ending, received, closing=self._closing
        )
        seconds = self.factory.clock.seconds() - self._opened
        return Closed(ending, received, seconds, left, self.peer, encrypted(self.transport))

    def pauseProducing(self) -> None:
        """Stop reading: the bytes buffered have reached the transport's limit."""
        self.leave_fast_path()
        self._paused = True
        self.transport.pauseProducing()
        self.watch()

    @resets_on_error
    def resumeProducing(self) -> None:
        """Read again: nothing is buffered any more."""
        self._paused = False
        below: Any = beneath(self.transport)
        if self._closing and half_closes(self.transport):
            if not unsent(below):
                below.unregisterProducer()
                self._finish(below)
        elif getattr(self.transport, "disconnecting", False):
            # The application has closed the transport, which waits for its producer.
            self._closing = True
            self.transport.unregisterProducer()
        elif getattr(below, "disconnecting", False):
            # TLS has closed the transport below it, which waits for its producer, too.
            self.transport.unregisterProducer()
        else:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Reset the connection if its reply is not whole; :meth:`connectionLost` follows."""
        self.leave_fast_path()
        if reset_if_incomplete(self.transport):
            self._ending = Ending.LOST

    def abort(self) -> None:
        """Reset the connection."""
        self.transport.abortConnection()

    def cut_short(self) -> None:
        """Reset the connection now: the deadline of a drain has passed."""
        reset(beneath(self.transport))

    def forget(self) -> None:
        """Stop counting the connection: its transport cannot reset it."""
        self.factory.connection_closed(self, None)

    def _close(self, ending: Ending) -> None:
        if self.fast_path is not None:
            self.leave_fast_path()
        self._closing = True
        self._ending = ending
        transport: Any = self.transport
        # In this order: a transport waits for its producer before it closes.
        transport.unregisterProducer()
        below: Any = transport
        if not isinstance(transport, FileDescriptor):
            if not half_closes(transport):
                self.watch()
                transport.loseConnection()
                return
            transport.finish()
            below = beneath(transport)
        self._when_sent(below)

    def _when_sent(self, below: Any) -> None:
        if unsent(below):
            below.stopReading()
            # A pull producer is called when everything is sent, or the transport fails.
            self.transport.registerProducer(self, False)
            self.watch()
        else:
            self._finish(below)

    def _finish(self, below: Any) -> None:
        """Close after everything is sent: at once, or when the kernel's send queue is empty."""
        if self._received <= MAX_ORPHANED or kernel_send_queue(below) <= MAX_ORPHANED:
            # Not loseConnection: bytes that arrive before it closes would make the kernel reset.
            below.connectionLost(connectionDone)
        else:
            self.watch()
            self._delivery = Delivery(below, self.factory.clock)

    def progress(self, *, draining: bool) -> Progress:
        """Return the present state, for :class:`~echod.timeouts.Timeouts`.

        :param draining: whether a drain ends the connection. Then, as in a close, the peer need not
            read the last :data:`~echod.closing.MAX_ORPHANED` bytes first.
        """
        transport = self.transport
        queued, received = 0, self.received
        if self._closing or received - self._delivered > UNCHECKED:
            queued = kernel_send_queue(transport)
            if not queued:
                self._delivered = received
        behind_handshake = self.named is not None or encrypted(transport)
        first_byte_due = self._opened + FIRST_BYTE if behind_handshake and not received else 0.0
        # Over TLS, a peer that sends a part of a record is not idle either.
        marker = received + getattr(transport, "ciphertext_in", 0)
        if waits := bool(self._paused or unsent(transport) or queued > draining * MAX_ORPHANED):
            # The peer has to read. Twisted's buffer alone does not show whether it does: the kernel
            # accepts more only after megabytes of its own buffer are free again, which take a slow
            # reader minutes. Over TLS, more is sent than received.
            written = getattr(transport, "ciphertext_out", received)
            marker = written - unsent(transport) - kernel_send_queue(transport)
        return Progress(waits, marker, self._closing, first_byte_due)

    def end(self, ending: Ending) -> bool:
        """Reset a stalled connection, or close an idle or drained one without unread input.

        :return: whether it ends.
        """
        if ending is Ending.STALLED:
            self._ending = ending
            self.abort()
            return True
        try:
            if has_unread_input(self.transport):
                return False
        except OSError:
            lose(self.transport)
        else:
            self._close(ending)
        return True
