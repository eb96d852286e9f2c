"""What went wrong with a connection or a datagram: in one word, and in one line."""

from __future__ import annotations

import errno
import os
import socket
from typing import Final

from twisted.internet import defer, error
from twisted.python.failure import Failure

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
    errno.ENOENT: UNREACHABLE,  # of a UNIX socket
    errno.EACCES: UNREACHABLE,
    errno.EPERM: UNREACHABLE,  # of a firewall on this machine
    errno.ETIMEDOUT: TIMED_OUT,
    errno.ECONNRESET: RESET,
    errno.EPIPE: RESET,
    errno.EMSGSIZE: TOO_LONG,
    # The socket's own queue is full. A datagram that waits there is never late, but lost.
    errno.EAGAIN: NOT_SENT,
    errno.ENOBUFS: NOT_SENT,
}

CLASSES: Final = {
    error.ConnectionDone: CLOSED,
    # By this side alone, when it has waited enough; this is a ConnectionLost, too.
    error.ConnectionAborted: TIMED_OUT,
    error.ConnectionLost: RESET,
    error.ConnectionRefusedError: REFUSED,
    error.TimeoutError: TIMED_OUT,
    error.ConnectingCancelledError: TIMED_OUT,  # by addTimeout(), of Twisted's own endpoints
    defer.TimeoutError: TIMED_OUT,  # of addTimeout()
    TimeoutError: TIMED_OUT,
    socket.gaierror: UNRESOLVED,
}


def number_of(what: BaseException) -> int | None:
    """Return the error number of the kernel in an exception of Python's or Twisted's."""
    if isinstance(what, error.ConnectError):
        number = what.osError
        return number if isinstance(number, int) else None
    return what.errno if isinstance(what, OSError) else None


def exception_of(reason: Failure | BaseException) -> BaseException:
    """Return the exception."""
    if isinstance(reason, Failure):
        assert reason.value is not None
        return reason.value
    return reason


def kind_of(reason: Failure | BaseException) -> str:
    """Return one word of this module for what went wrong."""
    what = exception_of(reason)
    for kind, word in CLASSES.items():
        if isinstance(what, kind):
            return word
    if type(what).__module__.partition(".")[0] in ("OpenSSL", "service_identity"):
        return TLS
    return NUMBERS.get(number_of(what) or 0, FAILED)


LINES: Final = {
    TIMED_OUT: "no answer in time",
    CLOSED: "the service has closed the connection",
    RESET: "connection reset",
    REFUSED: "connection refused",
}


def line_of(reason: Failure | BaseException) -> str:
    """Return what went wrong, for people."""
    what = exception_of(reason)
    kind, number = kind_of(what), number_of(what)
    if kind == TLS:
        return f"TLS fails: {of_tls(what)}"
    if isinstance(what, socket.gaierror):
        return str(what.strerror)
    line = LINES.get(kind) or (number and number > 0 and os.strerror(number).lower())
    return line or " ".join(str(what).split())


def of_tls(what: BaseException) -> str:
    """Return what OpenSSL says, or who looks at the names in certificates."""
    if hasattr(what, "errors"):  # VerificationError: the names asked for, of which it has none
        return "the certificate is for another name"
    if what.args and isinstance(what.args[0], list):  # of a queue: library, function, reason
        said = ", ".join(str(each[-1]) for each in what.args[0])
    else:
        said = " ".join(str(what).split())
    return said or "the connection has ended"


def of_file(what: OSError) -> str:
    """Return what is wrong with a file, for people."""
    return str(what.strerror).lower()
