"""Errors that stop the daemon from serving: one line with the cause and the remedy."""

from __future__ import annotations

import errno
import os
import socket
import sys
from typing import Any, ClassVar, Final, NoReturn

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IAddress

from echod.addresses import on_one_line

ADVICE: Final = {
    errno.EACCES: "a port below 1024 needs CAP_NET_BIND_SERVICE, a file needs a writable directory",
    errno.EADDRINUSE: "stop the process that listens there (ss -lp shows it), or choose another",
    errno.EADDRNOTAVAIL: "this machine has no such address (ip address lists those it has)",
    errno.EMFILE: "raise the limit (ulimit -n, or LimitNOFILE= of systemd)",
    errno.ENODEV: "this machine has no such link (ip link lists those it has)",
    errno.ENOENT: "its directory must exist",
    errno.EROFS: "choose a writable directory; under echod.service, name the path in echod.socket",
}
"""The remedy for each error of bind(2) and listen(2) that has one."""

SANDBOX: Final = (
    "the sandbox of echod.service allows no port of its own (RestrictAddressFamilies=AF_UNIX, "
    "PrivateNetwork=yes): take the option out of OPTIONS, and name the port in echod.socket, "
    "echod-tls.socket or echod-metrics.socket"
)
"""The remedy if the process may not create an IP socket."""


class CannotServe(SystemExit, Exception):
    """The daemon cannot run as configured: exit with status 1 after one line.

    Both bases are needed. On an Exception, twistd removes its pid file and reports the
    failure to the waiting parent; on a SystemExit, the interpreter prints the line without
    a traceback.

    :ivar why: the line, without the name of the program.
    :cvar status: the exit status.
    """

    status: ClassVar[int] = 1

    def __init__(self, why: object) -> None:
        self.why = on_one_line(str(why))
        super().__init__(f"twistd echod: {self.why}")

    def exit(self, program: str) -> NoReturn:
        """Print the line, and exit with :attr:`status`; the interpreter itself would exit with 1.

        :param program: the name of the program.
        """
        print(f"{program}: {self.why}", file=sys.stderr)
        raise SystemExit(self.status) from None


class WrongOption(CannotServe):
    """The command line has a mistake: exit with status 2 after one line."""

    status = 2


class AddressInUse(CannotServe):
    """Another socket listens on the address.

    :ivar option: the option as typed, with its value.
    :ivar address: the address in use.
    """

    def __init__(self, option: str, why: str, address: IAddress) -> None:
        super().__init__(f"{option}: {why}")
        self.option = option
        self.address = address


def cannot_listen(option: str, error: Exception, protocol: str = "TCP") -> CannotServe:
    """Return the error for an option on which listening failed.

    :param option: the option as typed, with its value.
    :param error: the exception that listening raised.
    :param protocol: ``TCP`` or ``UDP``, for errors that name a port.
    """
    why = explain(error, protocol)
    if not isinstance(error, CannotListenError) or errno_of(error) != errno.EADDRINUSE:
        return CannotServe(f"{option}: {why}")
    host, port = error.interface, error.port
    if host is None:
        return AddressInUse(option, why, UNIXAddress(os.fsencode(port)))
    kind: Any = IPv6Address if ":" in host else IPv4Address
    return AddressInUse(option, why, kind(protocol, host, port))


def errno_of(error: Exception) -> int | None:
    """Return the error number of the system call that failed, if one did."""
    return getattr(getattr(error, "socketError", error), "errno", None)


def explain(error: Exception, protocol: str = "TCP") -> str:
    """Describe why listening failed, and the remedy, in one line."""
    where = ""
    cause: object = error
    if isinstance(error, CannotListenError):
        cause = error.socketError
        if error.interface is not None:
            host = f"[{error.interface}]" if ":" in error.interface else error.interface or "*"
            where = f"cannot listen on {protocol.lower()} {host}:{error.port}: "
    if isinstance(cause, str):
        return f"{where}{cause}"
    if not isinstance(cause, OSError) or cause.errno is None:
        # Any other exception of an endpoint has a text for programmers.
        return f"{where}cannot listen on this endpoint"
    advice = ADVICE.get(cause.errno)
    if cause.errno == errno.EAFNOSUPPORT and ipv4_is_forbidden():
        advice = SANDBOX
    return f"{where}{str(cause.strerror).lower()}" + (f": {advice}" if advice else "")


def ipv4_is_forbidden() -> bool:
    """Return whether a sandbox forbids IPv4 sockets.

    Every kernel has IPv4. If socket(2) fails with EAFNOSUPPORT all the same,
    RestrictAddressFamilies= (systemd.exec(5)) is the cause.
    """
    try:
        socket.socket(socket.AF_INET).close()
    except OSError as error:
        return error.errno == errno.EAFNOSUPPORT
    return False
