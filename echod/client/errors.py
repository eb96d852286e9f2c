"""Errors of connections and datagrams: one word to count them by, one line to show."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from twisted.internet import defer, error

# The words are part of the output, and scripts compare them.
REFUSED: Final = "refused"
UNREACHABLE: Final = "unreachable"
UNRESOLVED: Final = "unresolved"
TIMED_OUT: Final = "timed_out"
CLOSED: Final = "closed"
RESET: Final = "reset"
TLS: Final = "tls"
TOO_LONG: Final = "too_long"
NOT_SENT: Final = "not_sent"
FAILED: Final = "failed"

NUMBERS: Final = {
    errno.ECONNREFUSED: REFUSED,
    errno.ENETUNREACH: UNREACHABLE,
    errno.EHOSTUNREACH: UNREACHABLE,
    errno.ENOENT: UNREACHABLE,  # no such UNIX socket
    errno.EACCES: UNREACHABLE,
    errno.EPERM: UNREACHABLE,  # a firewall on this machine
    errno.ETIMEDOUT: TIMED_OUT,
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.EMSGSIZE: TOO_LONG,
    # The send queue is full: a datagram is dropped, not delayed.
    errno.EAGAIN: NOT_SENT,
    errno.ENOBUFS: NOT_SENT,
}

# In this order: ConnectionAborted is a ConnectionLost too.
CLASSES: Final = {
    error.ConnectionDone: CLOSED,
    error.ConnectionAborted: TIMED_OUT,  # only this side aborts, and only after a timeout
    error.ConnectionLost: RESET,
    error.ConnectionRefusedError: REFUSED,
    error.TimeoutError: TIMED_OUT,
    error.ConnectingCancelledError: TIMED_OUT,  # raised by Twisted's endpoints after addTimeout()
    defer.TimeoutError: TIMED_OUT,
    TimeoutError: TIMED_OUT,
    socket.gaierror: UNRESOLVED,
}

LINES: Final = {
    TIMED_OUT: "no answer in time",
    CLOSED: "the service has closed the connection",
    RESET: "connection reset",
    REFUSED: "connection refused",
}


def errno_of(exception: BaseException | None) -> int | None:
    """Return the errno in an exception of Python or Twisted, or ``None``."""
    number = getattr(exception, "osError", getattr(exception, "errno", None))
    return number if isinstance(number, int) else None


def error_word(exception: BaseException | None) -> str:
    """Return one of this module's words for ``exception``, or for ``None``.

    The exception of a Failure, ``Failure.value``, may be ``None``.
    """
    for kind, word in CLASSES.items():
        if isinstance(exception, kind):
            return word
    if type(exception).__module__.partition(".")[0] in ("OpenSSL", "service_identity"):
        return TLS
    return NUMBERS.get(errno_of(exception) or 0, FAILED)


def error_line(exception: BaseException) -> str:
    """Return one line that describes ``exception`` to a user."""
    kind, number = error_word(exception), errno_of(exception)
    if kind == TLS:
        return f"TLS fails: {tls_reason(exception)}"
    if isinstance(exception, socket.gaierror):
        return str(exception.strerror)
    line = LINES.get(kind) or (number and number > 0 and os.strerror(number).lower())
    return line or " ".join(str(exception).split())


def tls_reason(exception: BaseException) -> str:
    """Return the reason in an exception of OpenSSL or service_identity."""
    if hasattr(exception, "errors"):  # VerificationError
        return "the certificate is for another name"
    if exception.args and isinstance(exception.args[0], list):  # (library, function, reason)
        reason = ", ".join(str(each[-1]) for each in exception.args[0])
    else:
        reason = " ".join(str(exception).split())
    return reason or "the connection has ended"


def os_error_line(exception: OSError) -> str:
    """Return the text for an error of a file, as a shell prints it."""
    return str(exception.strerror).lower()
