"""The end of a connection: wait until the peer has received everything, and name the ending."""

from __future__ import annotations

import socket
from contextlib import suppress
from typing import Any, Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.error import ConnectionAborted, ConnectionDone
from twisted.internet.interfaces import IDelayedCall, IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure

from echod.events import Ending
from echod.transport import (
    beneath,
    buffered,
    cut_off,
    half_closes,
    has_unread_input,
    is_broken,
    kernel_send_queue,
    lose,
    reset,
    resets_on_error,
    unsent,
)

MAX_ORPHANED: Final = 64 * 1024
"""Bytes. With this many or fewer in the kernel's send queue (SIOCOUTQ in tcp(7)), a connection is
closed at once: the kernel delivers them, or times out. With more, the connection stays open and
counted until the peer has received them. Otherwise the kernel would hold megabytes for minutes, for
connections that no limit counts."""

DELIVERY_CHECKS: Final = (0.01, 5.0)
"""Seconds until the first check whether the peer has received everything, and the longest wait.
Each wait is twice the one before, so that the connection ends late by at most the time that the
delivery took."""


class Delivery:
    """Sends FIN, and closes the connection when the kernel's send queue is empty.

    :param transport: a transport of a kernel socket, with nothing unsent; for a reset, also TLS
        over one, with or without unsent bytes.
    :param fin: whether to send FIN; otherwise, reset the connection in the end.
    """

    def __init__(self, transport: Any, clock: IReactorTime, *, fin: bool = True) -> None:
        below: Any = beneath(transport)
        self.transport = below
        self._clock = clock
        self._fin = fin
        self._next_check: IDelayedCall | None = None
        below.stopReading()
        if fin:
            with suppress(OSError):  # the connection is broken, which the check detects
                below.getHandle().shutdown(socket.SHUT_WR)
        if half_closes(transport):
            self._check(DELIVERY_CHECKS[0])
        else:  # Twisted's own TLS, which sends in a later turn of the reactor
            self._next_check = clock.callLater(DELIVERY_CHECKS[0], self._check, DELIVERY_CHECKS[0])

    @resets_on_error
    def _check(self, delay: float) -> None:
        """Close if the peer has received everything; otherwise check again in ``delay`` seconds."""
        if is_broken(self.transport):
            lose(self.transport)
        elif not (unsent(self.transport) or kernel_send_queue(self.transport)):
            if self._fin:
                self.transport.connectionLost(connectionDone)
            else:
                reset(self.transport)
        else:
            longer = min(2 * delay, DELIVERY_CHECKS[1])
            self._next_check = self._clock.callLater(delay, self._check, longer)

    def cancel(self) -> None:
        """Make no more checks: the connection has ended."""
        if self._next_check is not None and self._next_check.active():
            self._next_check.cancel()


def reset_if_incomplete(transport: ITransport) -> bool:
    """Reset a connection that Twisted is about to close with FIN, if its reply is not complete.

    Twisted does so after an exception in its own code or the reactor's (MemoryError), and when the
    reactor stops.

    :return: whether unread bytes have arrived, which get no reply.
    """
    below = beneath(transport)
    if not isinstance(below, FileDescriptor) or not below.disconnected:
        return False
    has_unread = False
    if not unsent(below):
        with suppress(OSError):
            # Bytes that arrive after the application has closed the connection are not echoed.
            undecrypted = getattr(transport, "has_undecrypted_input", False)
            has_unread = undecrypted or (not below.disconnecting and has_unread_input(below))
        if not has_unread:
            return False
    cut_off(below)
    return has_unread


def outcome(
    transport: ITransport, reason: Failure, intended: Ending, received: int, *, closing: bool
) -> tuple[Ending, int]:
    """Return the ending of a connection, and the number of bytes that were not sent back.

    :param reason: the argument of connectionLost.
    :param intended: the ending if everything was sent back.
    :param received: bytes received.
    :param closing: whether echod closes the connection.
    """
    # Below Twisted's own TLS, the unsent bytes are encrypted, and may be more than were received.
    left = min(buffered(transport), received)
    # Some transports do not report half-close, or do not show how much they have buffered. Over
    # these, a close by the peer does not show how much the peer has received.
    known = closing or isinstance(transport, FileDescriptor)
    if not known:
        known = getattr(transport, "disconnecting", False)  # closed by the application
    silent = not received and getattr(transport, "silent_since_handshake", True)
    ending: Ending = Ending.LOST
    if intended in (Ending.STALLED, Ending.FAULT):
        ending = intended
    elif isinstance(reason.value, ConnectionAborted):
        ending = Ending.ABORTED
    elif isinstance(reason.value, ConnectionDone) and known and not left:
        ending = intended
    elif intended is Ending.UNUSED or (intended is Ending.FINISHED and silent):
        ending = Ending.UNUSED
    return ending, left
