"""Listen on UNIX sockets: replace a stale socket file, and never one that is in use.

Twisted's ``unix:`` endpoint does not suffice:

- The file of a socket outlives a process that is killed. Twisted replaces it only if it uses a
  lock file, ``PATH.lock``. That outlives the process too, and Twisted then refuses to listen if
  another process has got the process ID in it.
- It removes the file at the end even if another daemon has replaced it.
- It sets the mode after bind(2), by path. Until then, the umask decides the mode. If the file is
  replaced in between, the other file gets the mode.
- On a socket that systemd passed, it changes the mode and the backlog, and removes the file.
- Its connections receive file descriptors, whose close(2) can block the daemon.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

from twisted.internet import tcp, unix
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock

from echod.daemon.listeners.base import BACKLOG, Listener
from echod.socketoptions import refuse_descriptors

LOCK_ATTEMPTS: Final = 100
LOCK_INTERVAL: Final = 0.05
"""Attempts to lock the directory, and seconds between them."""

MODE: Final = 0o666
"""The default mode of the file."""

OWNER_ONLY: Final = 0o600
"""The default mode if any peer can send a descriptor whose close(2) blocks the daemon."""

log = Logger(namespace="echod")


@dataclass
class UNIXListener(Listener):
    """Listens on a UNIX stream socket.

    :param path: the file.
    :param mode: of the file. By default 666, and 600 on Linux before 6.16 (:data:`OWNER_ONLY`).
    :param backlog: connections that the kernel queues until they are accepted.
    :param lockfile: whether to make Twisted's ``PATH.lock``, for other programs that honour it.
    """

    reactor: Any
    path: str
    mode: int | None = None
    backlog: int = BACKLOG
    lockfile: bool = False

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        lock = FilesystemLock(os.path.abspath(f"{self.path}.lock")) if self.lockfile else None
        if lock is not None and not lock.lock():
            why = f"{lock.name} names a running process: stop it, or remove the file"
            raise CannotListenError(None, self.path, why)
        try:
            sock = open_socket(self.path, self.mode, self.backlog)
        except BaseException:
            if lock is not None:
                lock.unlock()
            raise
        port = UNIXPort(sock, factory, self.reactor)
        port.lockFile = lock
        port.startListening()
        return [port]


def open_socket(path: str, mode: int | None, backlog: int) -> socket.socket:
    """Return a socket that listens at ``path``; replace a stale one.

    :param mode: of the file, whatever the umask is; ``None``: the default.
    :raises CannotListenError: if another process listens there, or a file is not a socket.
    :raises OSError: if another system call fails.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        refused = refuse_descriptors(sock)
        if mode is None:
            mode = MODE if refused else OWNER_ONLY
            if not refused:
                log.info(
                    "unix {path} has mode 600: on Linux before 6.16, any user who may connect can "
                    "block echod by sending a file descriptor; :mode= sets another mode",
                    event="unix-mode",
                    path=path,
                )
        # Between bind(2) and listen(2), another daemon would take the socket for stale.
        with locked(os.path.dirname(path) or ".") as is_locked:
            try:
                bind(sock, path, mode)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not (is_locked and remove_stale(path)):
                    raise CannotListenError(None, path, error) from error
                bind(sock, path, mode)
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def bind(sock: socket.socket, path: str, mode: int) -> None:
    """Bind ``sock`` to ``path``; the file has its mode from the start.

    Linux takes the mode of the file from the socket, less the umask.
    """
    os.fchmod(sock.fileno(), mode)
    umask = os.umask(0)
    try:
        sock.bind(path)
    finally:
        os.umask(umask)


@contextmanager
def locked(directory: str) -> Iterator[bool]:
    """Lock ``directory`` against other daemons that open sockets in it (flock(2)).

    Yield whether that succeeded. A lock on the directory itself leaves no file behind.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # not readable; or missing, and then bind(2) fails too
        yield False
        return
    try:
        yield lock(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> bool:
    """Lock a directory, and return whether that succeeded within a few seconds."""
    for _ in range(LOCK_ATTEMPTS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(LOCK_INTERVAL)
        except OSError:  # some network file systems have no locks
            return False
        else:
            return True
    return False


def remove_stale(path: str) -> bool:
    """Remove the socket at ``path`` if no process listens on it; return whether it is gone.

    Only connect(2) shows whether a process listens (unix(7)).

    :raises CannotListenError: if it is not a socket.
    """
    with suppress(FileNotFoundError):  # its owner has just removed it
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            why = "the file is not a socket: remove it, or choose another path"
            raise CannotListenError(None, path, why)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.setblocking(False)  # connect(2) waits if the backlog is full
            if client.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
                return False
        os.unlink(path)
    return True


class UNIXTransport(unix.Server):
    """A UNIX connection that does not receive file descriptors.

    Before Linux 6.16 a peer can send them in any case. Twisted's transport receives them, logs
    a line for each message, closes them one by one, and leaks the rest when a close fails. With a
    plain recv(2) the kernel closes them all.
    """

    doRead = tcp.Connection.doRead  # type: ignore[assignment]  # unix.Server has no types


class AdoptedUNIXPort(unix.Port):
    """A port on a UNIX socket that listens already. Mode, backlog and file stay as they are."""

    transport = UNIXTransport

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        name: str | bytes = sock.getsockname()  # bytes: an abstract name (unix(7))
        super().__init__(os.fsencode(name), factory, reactor=reactor)
        self.socket = sock
        # Private to Twisted: shutdown(2) would stop the listener in every process that holds it.
        self._shouldShutdown = False

    def startListening(self) -> None:
        """Accept connections."""
        factory: Any = self.factory
        factory.doStart()
        self.connected = True
        self.fileno = self.socket.fileno  # type: ignore[method-assign]
        self.numberAccepts = 100
        self.startReading()  # type: ignore[no-untyped-call]

    def connectionLost(self, reason: Failure) -> None:
        """Close the socket, and leave the file."""
        tcp.Port.connectionLost(self, reason)


class UNIXPort(AdoptedUNIXPort):
    """A port on a UNIX socket that listens already, and removes its file when it stops."""

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(sock, factory, reactor)
        self._file = os.path.abspath(os.fsencode(sock.getsockname()))
        self._identity = identity(self._file)

    def connectionLost(self, reason: Failure) -> None:
        """Remove the file while the socket listens, so that it is never stale; then close."""
        if self._identity is not None and identity(self._file) == self._identity:
            with suppress(OSError):  # no permission any more: the next daemon replaces it
                os.unlink(self._file)
        if self.lockFile is not None:
            with suppress(OSError, ValueError):  # removed, or another process's
                self.lockFile.unlock()
        super().connectionLost(reason)


def identity(path: bytes) -> tuple[int, int, int] | None:
    """Return device, inode and time of the last change of a file; ``None`` if lstat(2) fails.

    They identify the file: inode numbers are reused, so the time is needed too.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
