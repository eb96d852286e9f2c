"""Errors, as one word and as one line."""

from __future__ import annotations

import errno
import os
import socket

import pytest
import service_identity
from OpenSSL import SSL
from service_identity.exceptions import DNSMismatch
from service_identity.hazmat import DNS_ID
from twisted.internet import defer, error
from twisted.internet.error import getConnectError

from echod.client.errors import (
    CLOSED,
    FAILED,
    NOT_SENT,
    NUMBERS,
    REFUSED,
    RESET,
    TIMED_OUT,
    TLS,
    TOO_LONG,
    UNREACHABLE,
    UNRESOLVED,
    errno_of,
    error_line,
    error_word,
    os_error_line,
)

CLOSED_LINE = "the service has closed the connection"
CERTIFICATE = [("SSL routines", "", "certificate verify failed")]


@pytest.mark.parametrize(
    ("exception", "kind", "line"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "x"), REFUSED, "connection refused"),
        (OSError(errno.ENETUNREACH, "x"), UNREACHABLE, "network is unreachable"),
        (OSError(errno.EHOSTUNREACH, "x"), UNREACHABLE, "no route to host"),
        (FileNotFoundError(errno.ENOENT, "x"), UNREACHABLE, "no such file or directory"),
        (PermissionError(errno.EACCES, "x"), UNREACHABLE, "permission denied"),
        (PermissionError(errno.EPERM, "x"), UNREACHABLE, "operation not permitted"),
        (TimeoutError(errno.ETIMEDOUT, "x"), TIMED_OUT, "no answer in time"),
        (ConnectionResetError(errno.ECONNRESET, "x"), RESET, "connection reset"),
        (BrokenPipeError(errno.EPIPE, "x"), RESET, "connection reset"),
        (OSError(errno.EMSGSIZE, "x"), TOO_LONG, "message too long"),
        (BlockingIOError(errno.EAGAIN, "x"), NOT_SENT, "resource temporarily unavailable"),
        (OSError(errno.ENOBUFS, "x"), NOT_SENT, "no buffer space available"),
        (OSError(errno.EMFILE, "x"), FAILED, "too many open files"),
        (OSError("no number"), FAILED, "no number"),
    ],
    ids=lambda value: getattr(value, "strerror", None) and errno.errorcode[value.errno],
)
def test_kernel(exception: OSError, kind: str, line: str) -> None:
    """The errno of a kernel error determines its word and its line."""
    assert (error_word(exception), error_line(exception)) == (kind, line)
    assert errno_of(exception) == exception.errno


@pytest.mark.parametrize("number", NUMBERS, ids=errno.errorcode.get)
def test_connect(number: int) -> None:
    """An exception of Twisted for a failed connect has the word and the line of its errno."""
    exception = getConnectError(OSError(number, os.strerror(number)))
    original = OSError(number, os.strerror(number))
    assert errno_of(exception) == number
    assert error_word(exception) == error_word(original) == NUMBERS[number]
    assert error_line(exception) == error_line(original)


@pytest.mark.parametrize(
    ("exception", "kind", "line"),
    [
        (error.ConnectionDone(), CLOSED, CLOSED_LINE),
        (error.ConnectionLost(), RESET, "connection reset"),
        (error.ConnectionAborted(), TIMED_OUT, "no answer in time"),
        (error.TimeoutError(), TIMED_OUT, "no answer in time"),
        (error.TCPTimedOutError(errno.ETIMEDOUT, "x"), TIMED_OUT, "no answer in time"),
        (defer.TimeoutError(3.0, "Deferred"), TIMED_OUT, "no answer in time"),
        (TimeoutError(), TIMED_OUT, "no answer in time"),
        (error.ConnectingCancelledError(None), TIMED_OUT, "no answer in time"),
        (error.ConnectError(), FAILED, "An error occurred while connecting."),
        (error.ConnectError("not a number", "x\ny"), FAILED, None),
        (error.ConnectBindError(-2, "no such name"), FAILED, "Couldn't bind: -2: no such name."),
        (ValueError("two\n  lines"), FAILED, "two lines"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), UNRESOLVED, None),
        (socket.gaierror(socket.EAI_AGAIN, "Try again"), UNRESOLVED, "Try again"),
    ],
    ids=repr,
)
def test_python_and_twisted(exception: Exception, kind: str, line: str | None) -> None:
    """The class of an exception of Python or Twisted determines its word and its single line."""
    assert error_word(exception) == kind
    assert line is None or error_line(exception) == line
    assert error_line(exception)
    assert "\n" not in error_line(exception)


@pytest.mark.parametrize(
    ("exception", "line"),
    [
        (SSL.Error(CERTIFICATE), "TLS fails: certificate verify failed"),
        (SSL.Error([*CERTIFICATE, ("", "", "no luck")]), "TLS fails: certificate verify failed,"),
        (SSL.Error([]), "TLS fails: the connection has ended"),
        (SSL.SysCallError(-1, "Unexpected EOF"), "TLS fails: "),
        (SSL.ZeroReturnError(), "TLS fails: the connection has ended"),
    ],
    ids=repr,
)
def test_tls(exception: Exception, line: str) -> None:
    """An error of OpenSSL is counted as ``tls``, and quoted in one line."""
    assert error_word(exception) == TLS
    assert error_line(exception).startswith(line)
    assert "\n" not in error_line(exception)


def test_certificate_for_another_name() -> None:
    """A certificate for another name has its own line; other errors have their message."""
    mismatch = DNSMismatch(DNS_ID("localhost"))
    exception = service_identity.VerificationError(errors=[mismatch])
    assert (error_word(exception), error_line(exception)) == (
        TLS,
        "TLS fails: the certificate is for another name",
    )
    nameless = service_identity.CertificateError("It has\nno name.")
    assert (error_word(nameless), error_line(nameless)) == (TLS, "TLS fails: It has no name.")


def test_number() -> None:
    """An exception without an errno has no number."""
    for exception in (ValueError(5), error.ConnectError("5"), error.ConnectionDone(), None):
        assert errno_of(exception) is None


def test_file() -> None:
    """An error of a file is worded as the shell words it."""
    with pytest.raises(OSError, match="No such file") as raised:
        open("/no/such/file")  # noqa: SIM115
    assert os_error_line(raised.value) == "no such file or directory"
