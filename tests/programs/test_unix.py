"""UNIX sockets of real daemons: taken when stale, left alone when in use, gone after a stop."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.testing import MemoryReactor
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.errors import CannotServe
from echod.daemon.listeners import unix as unixsockets
from echod.daemon.listeners.unix import UNIXListener, open_socket, remove_stale
from echod.factory import EchoFactory
from tests.coroutines import now
from tests.daemon.descriptors import REFUSES_DESCRIPTORS
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.programs.test_twistd import refused
from tests.reactors import reactor_of_kind, turn

MODE = 0o666 if REFUSES_DESCRIPTORS else 0o600
"""The mode by default."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path at which nothing is, before and after."""
    yield tmp_path / "socket"
    assert list(tmp_path.iterdir()) == []


def echoes(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"hello"


def stop(daemon: Daemon) -> None:
    """Stop a daemon that serves, and so knows what SIGTERM means."""
    daemon.terminate()
    assert daemon.wait() == 0
    assert "Traceback" not in daemon.log


def kill(path: Path, *options: str) -> None:
    """Leave a stale socket behind."""
    with Daemon("--listen", f"unix:{path}{''.join(options)}") as daemon:
        daemon.terminate(signal.SIGKILL)
        daemon.wait()
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_in_use(path: Path) -> None:
    """A second daemon on the same path gets one line, and the first goes on undisturbed."""
    with Daemon("--listen", f"unix:{path}") as first:
        for options in ("", ":lockfile=0", ":lockfile=1", ":mode=600"):
            line = refused("--listen", f"unix:{path}{options}")
            assert f"--listen 'unix:{path}{options}': address already in use: stop what" in line
            echoes(path)
        stop(first)


@pytest.mark.parametrize("options", ["", ":lockfile=0", ":lockfile=1", ":mode=660"])
def test_killed(path: Path, options: str) -> None:
    """After SIGKILL the next daemon takes the path; while it runs, a third is refused."""
    kill(path, options)
    with Daemon("--listen", f"unix:{path}{options}") as second:
        echoes(path)
        assert "a process that runs" in refused("--listen", f"unix:{path}{options}") or (
            options != ":lockfile=1"
        )
        stop(second)


def test_several_at_once(path: Path) -> None:
    """Of daemons that start in the same moment at a stale socket, one serves."""
    kill(path)
    daemons = [Daemon("--listen", f"unix:{path}") for _ in range(4)]
    try:
        losers = [daemon for daemon in daemons if not serves(daemon)]
        [winner] = [daemon for daemon in daemons if daemon not in losers]
        assert len(losers) == 3
        for loser in losers:
            assert loser.wait() == 1
            assert "address already in use" in loser.lines[-1]
        echoes(path)
        stop(winner)
    finally:
        for daemon in daemons:
            daemon.close()


def serves(daemon: Daemon) -> bool:
    try:
        daemon.wait_for("listening on")
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize("mode", ["600", "660", "666", "0777"])
@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_mode(path: Path, mode: str, umask: int) -> None:
    """The file has the mode that was asked for, whatever the umask is."""
    with Daemon("--listen", f"unix:{path}:mode={mode}", umask=umask) as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        echoes(path)
        stop(daemon)


def test_mode_by_default(path: Path) -> None:
    """Where no mode is asked for, every user may connect, as with Twisted's own."""
    with Daemon("--listen", f"unix:{path}") as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == MODE
        echoes(path)
        stop(daemon)


def test_lock_file(path: Path) -> None:
    """Twisted's PATH.lock is there for who asks for it, and gone after a stop."""
    lock = Path(f"{path}.lock")
    with Daemon("--listen", f"unix:{path}:lockfile=1") as daemon:
        assert os.readlink(lock) == str(daemon.process.pid)
        assert "socket.lock names a process that runs: stop it, or remove that" in refused(
            "--listen", f"unix:{path.parent / 'socket'}:lockfile=1"
        )
        stop(daemon)


def test_no_socket(path: Path) -> None:
    """A file that is no socket is left as it is, and the line says what it is."""
    for make in (path.touch, path.mkdir, lambda: path.symlink_to("nowhere")):
        make()
        for options in ("", ":lockfile=1"):
            line = refused("--listen", f"unix:{path}{options}")
            assert "there is a file that is no socket: remove it, or choose another path" in line
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("unix:/no/such/directory/x", "no such file or directory: its directory must exist"),
        ("unix:/no/such/directory/x:lockfile=1", "its directory must exist"),
        ("unix:/dev/null/x", "not a directory"),
        ("unix:" + "x" * 108, "a path has 107 bytes at most (unix(7))"),
        ("unix:" + "\u00e4" * 54, "a path has 107 bytes at most (unix(7))"),
        ("unix:", "there is no path; it takes unix:PATH, unix:PATH:mode=660"),
        ("unix:/run/x:mode=rw", "mode= is a number from 0 to 777"),
        ("unix:/run/x:mode=1777", "mode= is a number from 0 to 777"),
        ("unix:/run/x:mode=689", "mode= is a number from 0 to 777"),
        ("unix:/run/x:backlog=-1", "backlog= is a number from 0 to 2147483647"),
        (f"unix:/run/x:backlog={'9' * 5000}", "backlog= is a number from 0 to 2147483647"),
        ("unix:/run/x:lockfile=yes", "lockfile= is a number from 0 to 1"),
        ("unix:/run/x:owner=me", "that is too much"),
        ("unix:/run/x:660:5:0:1", "that is too much"),
    ],
)
def test_bad_input(description: str, says: str) -> None:
    """What cannot be is one line that names the option, and exit status 1."""
    line = refused("--listen", description)
    assert ascii(description)[1:-1] in line
    assert says in line


def test_longest_path(tmp_path: Path) -> None:
    """A path of 107 bytes is served: relative ones are short."""
    with Daemon("--listen", "unix:" + "x" * 107) as daemon:
        echoes_in(daemon, "x" * 107)
        stop(daemon)
        assert os.listdir(daemon.directory.name) == []


def echoes_in(daemon: Daemon, name: str) -> None:
    """Use the socket ``name`` in the daemon's directory, whose whole path may be too long."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(daemon.directory.name)
    try:
        echoes(Path(name))
    finally:
        os.fchdir(here)
        os.close(here)


def test_removed_by_somebody(path: Path) -> None:
    """Where the file is gone, or another's is in its place, a stop is clean and removes nothing."""
    with Daemon("--listen", f"unix:{path}") as first:
        echoes(path)
        path.unlink()
        with Daemon("--listen", f"unix:{path}") as second:
            stop(first)
            echoes(path)
            path.unlink()
            stop(second)


def test_many_at_once(path: Path) -> None:
    """A burst of clients that the daemon has not accepted yet waits, and is served."""
    with Daemon("--listen", f"unix:{path}") as daemon:
        daemon.process.send_signal(signal.SIGSTOP)
        clients = [socket.socket(socket.AF_UNIX) for _ in range(500)]
        for client in clients:
            client.setblocking(False)
            client.connect(str(path))
            client.send(b"hello")
        assert refused("--listen", f"unix:{path}").count("address already in use") == 1
        daemon.process.send_signal(signal.SIGCONT)
        for client in clients:
            with client:
                client.setblocking(True)
                assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        stop(daemon)


class UNIXListenerTests(SynchronousTestCase):
    """In the tests' own process, for what real life does not do on demand."""

    def setUp(self) -> None:
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.directory = directory.name
        self.path = os.path.join(directory.name, "socket")

    def stale(self) -> None:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(self.path)

    def test_colons(self) -> None:
        """A colon in the path is written with a backslash, as in all of Twisted's endpoints."""
        listener = UNIXListener(MemoryReactor(), "unix:/run/a\\:b:660:5:0", "--listen")
        self.assertEqual(
            (listener._path, listener._mode, listener._backlog), ("/run/a:b", 0o660, 5)
        )
        listener = UNIXListener(MemoryReactor(), "unix:lockfile=1:address=/run/x", "--listen")
        self.assertEqual((listener._path, listener._mode), ("/run/x", None))

    def listen(self, options: str = "") -> tuple[Any, EchoFactory]:
        """Listen there, and return the port and the factory that it serves by."""
        factory = EchoFactory()
        reactor = reactor_of_kind("epoll")
        [port] = now(UNIXListener(reactor, f"unix:{self.path}{options}", "-").listen(factory))
        return port, factory

    def stop(self, port: Any) -> None:
        port.stopListening()
        turn(reactor_of_kind("epoll"))

    def test_life(self) -> None:
        """It takes a stale socket, serves with the mode asked for, and removes what it made."""
        for options, more in (("", []), (":mode=600:lockfile=1", ["socket.lock"])):
            self.stale()
            port, factory = self.listen(options)
            self.assertEqual(sorted(os.listdir(self.directory)), ["socket", *more])
            mode = stat.S_IMODE(os.stat(self.path).st_mode)
            self.assertEqual(mode, 0o600 if more else MODE)
            self.assertRaises(CannotServe, self.listen, options)
            self.assertRaises(CannotServe, self.listen)
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(self.path)
                while not factory.connections:
                    turn(port.reactor)
            while factory.connections:
                turn(port.reactor)
            self.stop(port)
            self.assertEqual(os.listdir(self.directory), [])

    def test_what_is_not_its_own(self) -> None:
        """It removes nothing that somebody else has put there meanwhile."""
        for make in (None, self.stale):
            port, _ = self.listen()
            os.unlink(self.path)
            if make:
                make()
            self.stop(port)
            self.assertEqual(os.path.exists(self.path), make is not None)

    def test_lock_file_that_is_not_its_own(self) -> None:
        """Without its lock file, or with somebody else's there, it stops listening all the same."""
        lock = f"{self.path}.lock"
        for make in (None, lambda: os.symlink("1", lock)):
            port, factory = self.listen(":lockfile=1")
            os.unlink(lock)
            if make:
                make()
            self.stop(port)
            self.assertEqual(factory.numPorts, 0)
            self.assertEqual(os.path.lexists(lock), make is not None)

    def test_bad_input(self) -> None:
        """What it cannot be given is one line that says what it takes."""
        for description in ("unix", "unix:", "unix:x:mode=8", "unix:x:y=", f"unix:{'x' * 108}"):
            with self.assertRaises(CannotServe) as caught:
                UNIXListener(MemoryReactor(), description, f"--listen {description!r}")
            self.assertIn(f"twistd echod: --listen {description!r}: ", str(caught.exception))
            self.assertIn("; it takes unix:PATH, unix:PATH:mode=660", str(caught.exception))

    def test_lock_that_is_held(self) -> None:
        """Where another process keeps the directory to itself, a stale socket is not touched."""
        self.stale()
        self.patch(unixsockets, "LOOKS", 2)
        self.patch(unixsockets, "STEP", 0.001)
        holder = os.open(self.directory, os.O_RDONLY)
        self.addCleanup(os.close, holder)
        fcntl.flock(holder, fcntl.LOCK_EX)
        self.assertRaises(OSError, open_socket, self.path, 0o600, 5)
        self.assertTrue(os.path.exists(self.path))
        fcntl.flock(holder, fcntl.LOCK_UN)
        open_socket(self.path, 0o600, 5).close()

    def test_no_locks(self) -> None:
        """Where the file system knows no locks, likewise; a new socket can be made."""

        def flock(descriptor: int, operation: int) -> None:
            raise OSError(errno.ENOLCK, "no locks")

        self.patch(fcntl, "flock", flock)
        self.stale()
        self.assertRaises(OSError, open_socket, self.path, 0o600, 5)
        os.unlink(self.path)
        open_socket(self.path, 0o600, 5).close()

    def test_directory_that_cannot_be_read(self) -> None:
        """Where the directory may be written and not read, likewise."""

        def open_(path: str, flags: int) -> int:
            raise PermissionError(errno.EACCES, "not readable")

        self.patch(os, "open", open_)
        open_socket(self.path, 0o600, 5).close()
        self.assertRaises(OSError, open_socket, self.path, 0o600, 5)

    def test_gone_in_between(self) -> None:
        """A socket that its owner removes in that moment is no obstacle."""
        self.assertTrue(remove_stale(self.path))

    def test_failure_leaves_no_lock_file(self) -> None:
        """Where it cannot listen, no PATH.lock stays, and what is wrong is said."""
        Path(self.path).touch()
        reactor: Any = MemoryReactor()
        listener = UNIXListener(reactor, f"unix:{self.path}:lockfile=1", "--listen")
        self.assertRaises(CannotServe, lambda: now(listener.listen(EchoFactory())))
        self.assertEqual(os.listdir(self.directory), ["socket"])
