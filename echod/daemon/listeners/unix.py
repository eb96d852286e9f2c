"""UNIX sockets: one that nobody listens on any more is taken, one in use is left alone.

The file of a UNIX socket outlives the process that made it, unless that removes it. So a file
alone says nothing; to connect tells whether somebody listens (unix(7)).
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
import socket
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

from twisted.internet.address import UNIXAddress
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.lockfile import FilesystemLock

from echod.daemon.errors import AddressInUse, CannotServe, explain
from echod.daemon.listeners.systemd import PassedUNIXPort
from echod.daemon.listeners.tcp import BACKLOG, UNESCAPED_COLON
from echod.transport import refuse_descriptors

LONGEST: Final = 107
"""Bytes of a path, which ends with a null byte in 108 (unix(7))."""

LOOKS: Final = 100
STEP: Final = 0.05
"""How often to look whether another process holds the directory, and seconds between."""

MODE: Final = 0o666
"""The mode of the file by default."""

OWNER_ONLY: Final = 0o600
"""The mode by default where any peer can send a descriptor whose close(2) blocks the daemon."""

TAKES: Final = "it takes unix:PATH, unix:PATH:mode=660, and Twisted's backlog= and lockfile="

log = Logger(namespace="echod")


class UNIXListener:
    """What ``unix:PATH`` asks for, with ``:mode=`` (octal) and ``:backlog=``.

    The mode is 666 by default, and 600 on Linux before 6.16 (:data:`OWNER_ONLY`).

    ``:lockfile=1`` makes Twisted's ``PATH.lock`` besides, for others who go by that.

    :param reactor: listens.
    :param description: as Twisted's own ``unix:`` endpoint has it.
    :param said: the option and what it was given, for error messages.
    :raises CannotServe: where it is not such a description.
    """

    passed = False
    tls = False

    def __init__(self, reactor: Any, description: str, said: str) -> None:
        self._reactor = reactor
        self._said = said
        _, *parts = UNESCAPED_COLON.split(description)
        values = {"backlog": str(BACKLOG), "lockfile": "0"}
        names = ("address", "mode", "backlog", "lockfile")
        for part, name in zip(parts, names, strict=False):
            key, equals, value = part.partition("=")
            values[key if equals else name] = re.sub(r"\\(.)", r"\1", value if equals else part)
        try:
            self._path = values.pop("address", "")
            given = values.pop("mode", None)
            self._mode = None if given is None else number("mode", given, 8, 0o777)
            self._backlog = number("backlog", values.pop("backlog"), 10, 2**31 - 1)
            self._lockfile = number("lockfile", values.pop("lockfile"), 10, 1)
            if values or len(parts) > len(names):
                raise ValueError("that is too much")
            if not self._path:
                raise ValueError("there is no path")
            if len(os.fsencode(self._path)) > LONGEST:
                raise ValueError(f"a path has {LONGEST} bytes at most (unix(7))")
        except ValueError as error:
            raise CannotServe(f"{said}: {error}; {TAKES}") from None

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen there."""
        lock = FilesystemLock(os.path.abspath(f"{self._path}.lock")) if self._lockfile else None
        try:
            if lock is not None and not lock.lock():
                raise ValueError(f"{lock.name} names a process that runs: stop it, or remove that")
            try:
                sock = open_socket(self._path, self._mode, self._backlog)
            except BaseException:
                if lock is not None:
                    lock.unlock()
                raise
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError):
                raise CannotServe(f"{self._said}: {error}") from error
            if error.errno == errno.EADDRINUSE:
                address = UNIXAddress(os.fsencode(self._path))
                raise AddressInUse(self._said, address, explain(error)) from error
            raise CannotServe(f"{self._said}: {explain(error)}") from error
        port = UNIXPort(sock, factory, self._reactor)
        port.lockFile = lock
        port.startListening()
        return [port]


def number(name: str, text: str, base: int, most: int) -> int:
    """Return the number ``text``; raise ValueError if it is none, or above ``most``."""
    if not re.fullmatch(f"[0-{base - 1}]{{1,18}}", text) or int(text, base) > most:
        raise ValueError(f"{name}= is a number from 0 to {most:{'o' if base == 8 else 'd'}}")
    return int(text, base)


def open_socket(path: str, mode: int | None, backlog: int) -> socket.socket:
    """Return a socket that listens at ``path``, from where a stale one is removed.

    :param mode: of its file, from the beginning, whatever the umask is; ``None``: the default.
    :raises OSError: where that is not possible, as where somebody listens there.
    :raises ValueError: where there is a file that is no socket.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        refused = refuse_descriptors(sock)
        if mode is None:
            mode = MODE if refused else OWNER_ONLY
            if not refused:
                log.info(
                    "unix {path} has mode 600: on Linux before 6.16, any user who may connect can "
                    "block echod by a descriptor sent along; :mode= sets another",
                    event="unix-mode",
                    path=path,
                )
        # Until it listens, another daemon would take it for stale.
        with alone_in(os.path.dirname(path) or ".") as alone:
            try:
                bind(sock, path, mode)
            except OSError as error:
                if error.errno != errno.EADDRINUSE or not (alone and remove_stale(path)):
                    raise
                bind(sock, path, mode)
            sock.listen(backlog)
    except BaseException:
        sock.close()
        raise
    sock.setblocking(False)
    return sock


def bind(sock: socket.socket, path: str, mode: int) -> None:
    """Make the file of ``sock`` with its mode, which Linux takes from the socket itself.

    To change it later would be to follow whatever somebody has put in its place meanwhile.
    """
    os.fchmod(sock.fileno(), mode)
    before = os.umask(0)
    try:
        sock.bind(path)
    finally:
        os.umask(before)


@contextmanager
def alone_in(directory: str) -> Iterator[bool]:
    """Keep other daemons from opening sockets in ``directory``; yield whether that works.

    By a lock on the directory itself (flock(2)), which leaves no file behind.
    """
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # there is none, which bind says better; or one that cannot be read
        yield False
        return
    try:
        yield is_locked(descriptor)
    finally:
        os.close(descriptor)


def is_locked(descriptor: int) -> bool:
    """Lock it, and tell whether that was possible within a few seconds."""
    for _ in range(LOOKS):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(STEP)
        except OSError:  # as on a file system of the network
            return False
        else:
            return True
    return False


def remove_stale(path: str) -> bool:
    """Remove the socket at ``path`` if nobody listens on it; return whether it is gone.

    :raises ValueError: where it is no socket.
    """
    with suppress(FileNotFoundError):  # whoever made it has just removed it
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise ValueError("there is a file that is no socket: remove it, or choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.setblocking(False)  # where many wait already, connect would wait too
            if probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT):
                return False
        os.unlink(path)
    return True


class UNIXPort(PassedUNIXPort):
    """A port on a UNIX socket that listens already, and whose file it removes in the end.

    Twisted's own removes what it finds there, though it be another daemon's.
    """

    def __init__(self, sock: socket.socket, factory: IProtocolFactory, reactor: Any) -> None:
        super().__init__(sock, factory, reactor)
        self._file = os.path.abspath(os.fsencode(sock.getsockname()))
        self._made = identity(self._file)

    def connectionLost(self, reason: Failure) -> None:
        """Remove the file, while it still cannot be taken for stale, and close."""
        if self._made is not None and identity(self._file) == self._made:
            with suppress(OSError):  # it is not ours any more to remove: the next one takes it
                os.unlink(self._file)
        if self.lockFile is not None:
            with suppress(OSError, ValueError):  # somebody has removed it, or has it now
                self.lockFile.unlock()
        super().connectionLost(reason)


def identity(path: bytes) -> tuple[int, int, int] | None:
    """Return what no other file at ``path`` has; when it was made, because numbers are reused.

    ``None``: there is none, or it cannot be seen.
    """
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino, status.st_mtime_ns
