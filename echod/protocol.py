"""One connection: every byte back, in order, and an honest ending.

The rules that this file keeps:

- What comes in goes out, unchanged, in order. Nothing is added.
- The peer's end of sending (half-close) is not the end of the connection:
  everything owed is sent first, then FIN.
- A peer that sends and does not read is not read from either. What is owed and
  not yet taken by the kernel stays below :data:`MAX_BUFFERED` bytes.
- A reply that is cut short ends in RST, never in FIN: no peer can mistake a part
  for the whole.
- Nothing is closed in the face of bytes that have already arrived.

*Owed* means: received from the peer, and not yet taken by the kernel for sending.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IHalfCloseableProtocol,
    IPushProducer,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.events import Closed, Ending, HalfClosed, notify
from echod.fastpath import UNCHECKED
from echod.transport import (
    IStreamTransport,
    beneath,
    buffered,
    cut_off,
    encrypted,
    fail,
    half_closes,
    has_unread_input,
    is_broken,
    kernel_send_queue,
    kernel_socket,
    lose,
    reset,
    resets_on_error,
    send_now,
    set_options,
    unsent,
)

if TYPE_CHECKING:
    from echod.factory import EchoFactory
    from echod.fastpath import FastPath

MAX_BUFFERED: Final = 256 * 1024
"""Bytes. Twisted stops the reading when more than 64 KiB are owed, and one read adds 64 KiB
at most; what the fast path hands back, when nothing is owed, is less than 256 KiB."""

MAX_ORPHANED: Final = 64 * 1024
"""Bytes in the kernel's send queue (SIOCOUTQ in tcp(7)) with which a connection is closed at once:
the kernel delivers them, or gives up by its own rules. With more it stays, and is counted, until
the peer has taken them: the kernel would keep megabytes for minutes, beyond any limit."""

DELIVERY_CHECKS: Final = (0.01, 5.0)
"""Seconds until the first look whether a peer has taken all, and the most; each wait is twice the
one before, so that the end is seen late by no more than it took."""

QUIET: Final = 0.2
"""Seconds without a byte that make a quiet moment, at which a drain may close."""

FIRST_BYTE: Final = 1.0
"""Seconds since its start within which a drain does not close a connection over TLS or behind a
proxy that has not sent a byte: the first one may be on its way. Nearly every round trip is
shorter; it is TCP's first retransmission timeout, too (RFC 6298 2.1)."""

CHECKS_PER_TIMEOUT: Final = 8
"""How often a connection is looked at within a timeout. One look to see it begin, and
one to see it end: a timeout is late by a quarter at most, and never early; in return no
byte costs a clock reading."""


Build = TypeVar("Build", bound=Callable[..., Any])

log = Logger(namespace="echod")


@implementer(IHalfCloseableProtocol, IPushProducer)
class Echo(Protocol):
    """Echo one connection (RFC 862). :class:`EchoFactory` makes these.

    It is its transport's producer: what it produces is what it reads, so that
    «do not produce» stops the reading.

    :ivar named: the peer's address that a proxy has told, if one has.
    :ivar counted: bytes received so far, but for those on the fast path since it is there.
    :ivar watched: whether the factory calls :meth:`check_timeouts` now and then; the factory's own.
    :ivar fast_path: what serves it in place of its transport, if anything; the fast path's own.
    :ivar key: what the factory counts it under; the factory's own.
    """

    key: str | None = None
    fast_path: FastPath | None = None
    named: IAddress | None = None

    factory: EchoFactory
    transport: IStreamTransport

    # Defaults on the class: most connections never need their own.
    _ending = Ending.FINISHED
    _closing = False
    _paused = False
    _seen: tuple[bool, int] | None = None
    _since = 0.0
    _delivered = 0  # bytes received when the kernel's send queue was last seen to be empty
    _next_check: IDelayedCall | None = None

    @property
    def peer(self) -> IAddress:
        """The peer's address."""
        return self.transport.getPeer() if self.named is None else self.named

    @property
    def received(self) -> int:
        """Bytes received so far."""
        return self.counted + (0 if self.fast_path is None else self.fast_path.received(self))

    def connectionMade(self) -> None:
        """Begin: set the socket's options, wire the back-pressure, tell the factory."""
        # Set here, and not by and by, for CPython to keep the attributes compactly.
        self.counted = 0
        self.watched = False
        self._opened = 0.0
        try:  # as resets_on_error does, but without a call more for each connection
            set_options(self.transport)
            self.transport.registerProducer(self, True)
            self._opened = self.factory.clock_for(self.transport).seconds()
            self.factory.connection_opened(self)
        except BaseException:
            fail(self.transport)

    def dataReceived(self, data: bytes) -> None:
        """Send ``data`` back. Who comes with more goes on on the fast path, if there is one."""
        try:  # likewise
            # Asked for each time, because an application may start TLS.
            sock, count = kernel_socket(self.transport), len(data)
            sent = 0 if sock is None or unsent(self.transport) else send_now(sock, data)
            talks = self.counted > 0
            self.counted += count
            if sent < count:
                self.send(data[sent:])
            elif talks and sock is not None:
                self.factory.take_over(self, sock)
        except BaseException:
            fail(self.transport)

    def send(self, data: bytes) -> None:
        """Send ``data`` when the peer takes it."""
        self.transport.write(data)
        if not self.watched:
            self.factory.watch(self)

    def readConnectionLost(self) -> None:
        """Close when all is sent: the peer has finished sending (an empty receive)."""
        try:  # likewise
            if not self._closing:
                if self.factory.verbose:
                    half_closed = HalfClosed(self.received, self.peer, encrypted(self.transport))
                    notify(self.factory.observer, half_closed)
                self._close(Ending.FINISHED if self.received else Ending.UNUSED)
        except BaseException:
            fail(self.transport)

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""

    def broke_off(self) -> None:
        """Close when all is sent, as lost: nobody knows whether that was all of the peer's.

        TLS calls this where the end is not the peer's own word (RFC 8446 6.1).
        """
        self._close(Ending.UNUSED if self._is_silent() else Ending.LOST)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Tell how it ended."""
        if self._next_check is not None and self._next_check.active():
            self._next_check.cancel()
        closed = None
        try:
            closed = self._sum_up(reason)
        except BaseException:  # such as MemoryError; the connection is over all the same
            with suppress(BaseException):
                log.failure("a connection fails")
        self.factory.connection_closed(self, closed)

    def _sum_up(self, reason: Failure) -> Closed:
        received = self.received
        # Below Twisted's own TLS it is encrypted, and may be more than was received.
        left = min(buffered(self.transport), received)
        # Where the transport hides half-close, or what it holds, an end that the peer
        # made says nothing of what it has received.
        known = (
            self._closing
            or isinstance(self.transport, FileDescriptor)
            or getattr(self.transport, "disconnecting", False)  # by the application
        )
        if self._ending is Ending.STALLED:
            ending = Ending.STALLED
        elif isinstance(reason.value, ConnectionAborted):
            ending = Ending.ABORTED
        elif isinstance(reason.value, ConnectionDone) and known and not left:
            ending = self._ending
        elif self._ending is Ending.UNUSED or (
            self._ending is Ending.FINISHED and self._is_silent()
        ):
            ending = Ending.UNUSED
        else:
            ending = Ending.LOST
        seconds = self.factory.clock_for(self.transport).seconds() - self._opened
        return Closed(ending, received, seconds, left, self.peer, encrypted(self.transport))

    def pauseProducing(self) -> None:
        """Stop reading: what is owed has reached the transport's limit."""
        self._leave_fast_path()
        self._paused = True
        self.transport.pauseProducing()
        self.factory.watch(self)

    @resets_on_error
    def resumeProducing(self) -> None:
        """Read again: nothing is owed any more."""
        self._paused = False
        if self._closing and half_closes(self.transport):
            if not unsent(self.transport):
                cast(Any, beneath(self.transport)).unregisterProducer()
                self._finish()
        elif getattr(self.transport, "disconnecting", False):
            # The application has closed the transport, which waits for its producer.
            self._closing = True
            self.transport.unregisterProducer()
        elif getattr(beneath(self.transport), "disconnecting", False):
            # Likewise, but it was TLS that closed what is below it.
            self.transport.unregisterProducer()
        else:
            self.transport.resumeProducing()

    def stopProducing(self) -> None:
        """Let go of the transport: it is about to close, and :meth:`connectionLost` follows.

        It closes with FIN where its own code or the reactor's raised an exception (MemoryError),
        and where the reactor stops. The reply is not whole if something is owed or unread: reset.
        """
        self._leave_fast_path()
        below = beneath(self.transport)
        if isinstance(below, FileDescriptor) and below.disconnected:
            if unsent(below):
                cut_off(below)
            else:
                with suppress(OSError):
                    # Bytes that arrive after the application has closed are not answered.
                    held = getattr(self.transport, "held", False)
                    if held or (not below.disconnecting and has_unread_input(below)):
                        self._ending = Ending.LOST
                        cut_off(below)

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""
        fail(self.transport)

    def abort(self) -> None:
        """Cut the connection off with RST."""
        self.transport.abortConnection()

    def _is_silent(self) -> bool:
        """Return whether the peer has sent nothing, over TLS since the handshake."""
        return not self.received and getattr(self.transport, "silent", True)

    def _leave_fast_path(self) -> None:
        if self.fast_path is not None:
            self.fast_path.give_back(self)

    def _close(self, ending: Ending) -> None:
        self._leave_fast_path()
        self._closing = True
        self._ending = ending
        # In this order: a transport waits for its producer before it closes.
        self.transport.unregisterProducer()
        if not half_closes(self.transport):
            self.transport.loseConnection()
            self.factory.watch(self)
            return
        if not isinstance(self.transport, FileDescriptor):
            cast(Any, self.transport).finish()
        if unsent(self.transport):
            cast(Any, beneath(self.transport)).stopReading()
            # As a pull producer, it is called when all is sent; or when the transport fails.
            self.transport.registerProducer(self, False)
            self.factory.watch(self)
        else:
            self._finish()

    def _finish(self) -> None:
        """Close, all being sent: at once, or when the peer has taken what the kernel holds."""
        below: Any = beneath(self.transport)
        if self.counted <= MAX_ORPHANED or kernel_send_queue(below) <= MAX_ORPHANED:
            # What loseConnection comes to, but now and not in the next turn of the
            # reactor, in which bytes could arrive and make a reset of it.
            below.connectionLost(connectionDone)
        else:
            below.stopReading()
            with suppress(OSError):  # of a connection that is broken, which is seen next
                below.getHandle().shutdown(socket.SHUT_WR)
            self.factory.watch(self)
            self._check_delivery(DELIVERY_CHECKS[0])

    @resets_on_error
    def _check_delivery(self, delay: float) -> None:
        """Close if the peer has taken all; otherwise look again in ``delay`` seconds."""
        below: Any = beneath(self.transport)
        if is_broken(below):
            lose(below)
        elif not kernel_send_queue(below):
            below.connectionLost(connectionDone)
        else:
            clock = self.factory.clock_for(self.transport)
            longer = min(2 * delay, DELIVERY_CHECKS[1])
            self._next_check = clock.callLater(delay, self._check_delivery, longer)

    def _awaits_first_byte(self, now: float) -> bool:
        """Return whether the first byte may be on its way, behind a handshake or a PROXY header."""
        if self.received or now - self._opened >= FIRST_BYTE:
            return False
        return self.named is not None or encrypted(self.transport)

    def check_timeouts(self, now: float) -> bool:
        """Look whether a timeout is over, or a quiet moment has come, and act on it.

        A time is over when the connection has been found unchanged for that long.
        :class:`EchoFactory` calls this a few times within each timeout.

        :param now: seconds, by the factory's clock.
        :return: whether to look again, if no more bytes come.
        """
        factory = self.factory
        leaving = self in factory.leaving
        held, received = 0, self.received
        if self._closing or received - self._delivered > UNCHECKED:
            held = kernel_send_queue(self.transport)
            if not held:
                self._delivered = received
        # A drain leaves to the kernel what a close would.
        owes = self._paused or unsent(self.transport) > 0 or held > leaving * MAX_ORPHANED
        seen = self._progress(owes)
        if seen != self._seen:
            self._seen, self._since = seen, now
        still = now - self._since
        if owes:
            if factory.stall_timeout is not None and still >= factory.stall_timeout:
                self._ending = Ending.STALLED
                self.abort()
                return False
        elif not self._closing:
            over = None
            if leaving and still >= QUIET and not self._awaits_first_byte(now):
                over = Ending.DRAINED
            elif factory.idle_timeout is not None and still >= factory.idle_timeout:
                over = Ending.IDLE
            if over is not None:
                try:
                    waiting = has_unread_input(self.transport)
                except OSError:
                    lose(self.transport)
                    return False
                if not waiting:
                    self._close(over)
                    return unsent(self.transport) > 0
        if owes or leaving or factory.idle_timeout is not None:
            return True
        self._seen = None
        return False

    def _progress(self, owes: bool) -> tuple[bool, int]:
        """Return something that changes when the peer does what it is waited for."""
        if not owes:
            # Over TLS, who is in the midst of a record talks too.
            return (False, self.received + getattr(self.transport, "taken", 0))
        # Wait for the peer to read. Twisted alone would not do: the kernel asks for
        # more only when a good part of megabytes of buffer is free again, which
        # takes a slow but honest reader minutes.
        held = unsent(self.transport) + kernel_send_queue(self.transport)
        # Over TLS, what is held grows by more than what is received.
        return (True, getattr(self.transport, "given", self.received) - held)


class Refusal(Protocol):
    """Reset a connection that is not to be served.

    RST and not FIN, because to a peer that has sent something, and may have
    finished, FIN would say: this is your whole reply.
    """

    transport: IStreamTransport

    def connectionMade(self) -> None:
        """Reset it."""
        reset(self.transport)


def refuses_on_error(build: Build) -> Build:
    """Make an exception that ``build`` raises refuse the connection: Twisted would close with FIN.

    For buildProtocol of a factory.
    """

    @functools.wraps(build)
    def call(self: Any, addr: IAddress | None) -> Any:
        try:
            return build(self, addr)
        except BaseException:
            with suppress(BaseException):
                log.failure("a connection fails")
            return Refusal()

    return cast(Build, call)
