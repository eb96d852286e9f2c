"""Listen on UNIX sockets: stale files, files of other processes, locks and modes."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
import tempfile
from pathlib import Path
from typing import Any

from twisted.internet.error import CannotListenError
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe
from echod.daemon.listeners import unix
from echod.daemon.listeners.kinds import make_listener
from echod.daemon.listeners.unix import UNIXListener, open_socket, remove_stale
from echod.factory import EchoFactory
from tests.coroutines import now
from tests.daemon.descriptors import REFUSES_DESCRIPTORS
from tests.reactors import reactor_of_kind, turn

MODE = 0o666 if REFUSES_DESCRIPTORS else 0o600
"""The default mode."""


class UNIXListenerTests(SynchronousTestCase):
    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = os.path.join(directory.name, "socket")

    def listener(self, description: str) -> Any:
        return make_listener(MemoryReactor(), description, f"--listen {description!r}")

    def stale(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)

    def test_colons(self) -> None:
        """A colon in the path is escaped with a backslash, as in all endpoint descriptions."""
        listener: Any = self.listener("unix:/run/a\\:b:660:5:0")
        self.assertEqual((listener.path, listener.mode, listener.backlog), ("/run/a:b", 0o660, 5))
        listener = self.listener("unix:lockfile=1:address=/run/x")
        self.assertEqual((listener.path, listener.mode), ("/run/x", None))

    def listen(self, **options: Any) -> tuple[Any, EchoFactory]:
        """Listen on the path, and return the port and its factory."""
        factory = EchoFactory()
        reactor = reactor_of_kind("epoll")
        [port] = now(UNIXListener("-", reactor, self.path, **options).listen(factory))
        return port, factory

    def stop(self, port: Any) -> None:
        port.stopListening()
        turn(reactor_of_kind("epoll"))

    def test_lifecycle(self) -> None:
        """It replaces a stale socket, serves with the given mode, and removes its files."""
        for options, more in (({}, []), ({"mode": 0o600, "lockfile": True}, ["socket.lock"])):
            self.stale()
            port, factory = self.listen(**options)
            self.assertEqual(sorted(os.listdir(self.directory)), ["socket", *more])
            mode = stat.S_IMODE(os.stat(self.path).st_mode)
            self.assertEqual(mode, 0o600 if more else MODE)
            self.assertRaises(CannotServe, self.listen, **options)
            self.assertRaises(CannotServe, self.listen)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self.path)
                while not factory.connections:
                    turn(port.reactor)
            while factory.connections:
                turn(port.reactor)
            self.stop(port)
            self.assertEqual(os.listdir(self.directory), [])

    def test_replaced_file(self) -> None:
        """It does not remove a file that has replaced its own."""
        for make in (None, self.stale):
            port, _ = self.listen()
            os.unlink(self.path)
            if make:
                make()
            self.stop(port)
            self.assertEqual(os.path.exists(self.path), make is not None)

    def test_replaced_lock_file(self) -> None:
        """If its lock file is removed or replaced, it stops listening all the same."""
        lock = f"{self.path}.lock"
        for make in (None, lambda: os.symlink("1", lock)):
            port, factory = self.listen(lockfile=True)
            os.unlink(lock)
            if make:
                make()
            self.stop(port)
            self.assertEqual(factory.numPorts, 0)
            self.assertEqual(os.path.lexists(lock), make is not None)

    def test_bad_input(self) -> None:
        """A mistake is one line that says what the option takes."""
        for description in ("unix", "unix:", "unix:x:mode=8", "unix:x:y=", f"unix:{'x' * 108}"):
            with self.assertRaises(CannotServe) as caught:
                self.listener(description)
            self.assertIn(f"twistd echod: --listen {description!r}: ", str(caught.exception))
            self.assertIn("; it takes unix:PATH, unix:PATH:mode=660", str(caught.exception))

    def test_locked_directory(self) -> None:
        """If another process keeps the directory locked, a stale socket is not replaced."""
        self.stale()
        self.patch(unix, "LOCK_ATTEMPTS", 2)
        self.patch(unix, "LOCK_INTERVAL", 0.001)
        holder = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, holder)
        fcntl.flock(holder, fcntl.LOCK_EX)
        self.assertRaises(CannotListenError, open_socket, self.path, 0o600, 5)
        self.assertTrue(os.path.exists(self.path))
        fcntl.flock(holder, fcntl.LOCK_UN)
        open_socket(self.path, 0o600, 5).close()

    def test_no_locks(self) -> None:
        """On a file system without locks, a stale socket is not replaced; a new one can be made."""

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        self.patch(fcntl, "flock", flock)
        self.stale()
        self.assertRaises(CannotListenError, open_socket, self.path, 0o600, 5)
        os.unlink(self.path)
        open_socket(self.path, 0o600, 5).close()

    def test_unreadable_directory(self) -> None:
        """In a directory without read permission, a stale socket is not replaced."""

        def open_(path: str, flags: int) -> int:
            raise PermissionError(errno.EACCES, "not readable")

        self.patch(os, "open", open_)
        open_socket(self.path, 0o600, 5).close()
        self.assertRaises(CannotListenError, open_socket, self.path, 0o600, 5)

    def test_removed_by_owner(self) -> None:
        """A stale socket that its owner has just removed counts as removed."""
        self.assertTrue(remove_stale(self.path))

    def test_failure_leaves_no_lock_file(self) -> None:
        """If listening fails, no PATH.lock stays, and the error says why."""
        Path(self.path).touch()
        reactor: Any = MemoryReactor()
        listener = UNIXListener("--listen", reactor, self.path, lockfile=True)
        self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory())))
        self.assertEqual(os.listdir(self.directory), ["socket"])
