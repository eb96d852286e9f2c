"""Pause a listener whose accept(2) fails, and log the failures in rate-limited lines."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, Final

from twisted.internet.interfaces import IDelayedCall
from twisted.internet.tcp import Port
from twisted.logger import Logger

from echod.daemon.summary import RateLimitedSummary, Reasons
from echod.transport import with_methods

PAUSE: Final = 0.25
"""Seconds until a listener tries again after accept(2) failed. Connections that the kernel
completes in this time wait in the backlog."""

OF_ONE_CONNECTION: Final = frozenset(
    {
        errno.ECONNABORTED,
        errno.EPERM,
        errno.EPROTO,
        errno.ENETDOWN,
        errno.ENOPROTOOPT,
        errno.EHOSTDOWN,
        errno.ENONET,
        errno.EHOSTUNREACH,
        errno.EOPNOTSUPP,
        errno.ENETUNREACH,
    }
)
"""Errors of one connection, not of the listener: accept(2), «Error handling», and EPERM from a
firewall. The next accept may succeed at once."""

STREAM: Final = int(socket.SOCK_STREAM)

log = Logger(namespace="echod")


class ListeningSocket(socket.socket):
    """A replacement for the socket of a Twisted port, which pauses the port if accept(2) fails.

    While accept(2) fails for lack of descriptors (EMFILE, ENFILE) or memory (ENOMEM, ENOBUFS),
    the kernel still reports the listener as readable. Without a pause the reactor would try again
    at once, and Twisted would log each attempt.

    :param port: a listening port; closing it closes this socket.
    :param name: the port's address, for the log.
    :param failures: logs the failures.
    :ivar failed: whether the latest accept failed.
    """

    def __init__(self, port: Port, name: str, failures: RateLimitedSummary) -> None:
        super().__init__(fileno=port.socket.detach())
        self.setblocking(False)
        port.socket, port.fileno = self, self.fileno  # type: ignore[method-assign]
        self.failed = False
        self._family = int(self.family)
        self._port: Any = port
        self._name = name
        self._failures = failures
        self._pause: IDelayedCall | None = None

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection, as :meth:`accept_basic` does, with the socket that Twisted needs."""
        sock, client = self.accept_basic()
        return with_methods(sock), client

    def accept_basic(self) -> tuple[socket.SocketType, Any]:
        """Accept a connection.

        :raises BlockingIOError: if no connection waits, or accept(2) failed.
        """
        self.failed = False
        try:
            # As socket.accept(), which looks up two enumerations for each connection.
            descriptor, client = self._accept()  # type: ignore[attr-defined]
            try:
                return socket.SocketType(self._family, STREAM, 0, descriptor), client
            except BaseException:
                os.close(descriptor)
                raise
        except BlockingIOError:
            raise
        except (OSError, MemoryError) as error:
            number = getattr(error, "errno", None) or errno.ENOMEM
            if number not in OF_ONE_CONNECTION:
                self._fail(number)
            raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from error

    def _fail(self, number: int) -> None:
        self.failed = True
        self._failures.add(errno.errorcode.get(number, str(number)), self._name)
        if self._pause is None:
            self._port.stopReading()
            self._pause = self._port.reactor.callLater(PAUSE, self._resume)

    def _resume(self) -> None:
        self._pause = None
        self._port.startReading()

    def close(self) -> None:
        """Close the socket, and cancel the pause."""
        if self._pause is not None:
            self._pause.cancel()
            self._pause = None
        super().close()


def log_not_accepted(total: int, reasons: Reasons, peer: str) -> None:
    """Log failures of accept(2), the last of them on the listener ``peer``."""
    log.warn(
        "cannot accept connections: {reasons}, the last on {endpoint}: free descriptors or memory; "
        "clients wait in the backlog, and echod tries again every {pause:g} s",
        event="no-accept",
        endpoint=peer,
        total=total,
        reasons=reasons,
        pause=PAUSE,
    )
