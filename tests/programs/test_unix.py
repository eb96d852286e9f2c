"""UNIX sockets of real daemons: stale files, files in use, modes, and files after a stop."""

from __future__ import annotations

import os
import signal
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.daemon.descriptors import REFUSES_DESCRIPTORS
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.programs.test_twistd import refused

MODE = 0o666 if REFUSES_DESCRIPTORS else 0o600
"""The default mode."""


@pytest.fixture
def path(tmp_path: Path) -> Iterator[Path]:
    """A path without a file, before and after the test."""
    yield tmp_path / "socket"
    assert list(tmp_path.iterdir()) == []


def echoes(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"hello"


def stop(daemon: Daemon) -> None:
    """Stop a daemon that serves, and so handles SIGTERM."""
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
    """A second daemon on the same path exits with one line, and the first serves on."""
    with Daemon("--listen", f"unix:{path}") as first:
        for options in ("", ":lockfile=0", ":lockfile=1", ":mode=600"):
            line = refused("--listen", f"unix:{path}{options}")
            assert f"--listen 'unix:{path}{options}': address already in use: stop the" in line
            echoes(path)
        stop(first)


@pytest.mark.parametrize("options", ["", ":lockfile=0", ":lockfile=1", ":mode=660"])
def test_killed(path: Path, options: str) -> None:
    """After SIGKILL the next daemon replaces the file; while it runs, a third is refused."""
    kill(path, options)
    with Daemon("--listen", f"unix:{path}{options}") as second:
        echoes(path)
        assert "a running process" in refused("--listen", f"unix:{path}{options}") or (
            options != ":lockfile=1"
        )
        stop(second)


def test_several_at_once(path: Path) -> None:
    """Of several daemons that start at once on a stale socket, one serves."""
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
    """The file has the given mode, whatever the umask is."""
    with Daemon("--listen", f"unix:{path}:mode={mode}", umask=umask) as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == int(mode, 8)
        echoes(path)
        stop(daemon)


def test_mode_by_default(path: Path) -> None:
    """By default every user may connect, as with Twisted's endpoint."""
    with Daemon("--listen", f"unix:{path}") as daemon:
        assert stat.S_IMODE(path.stat().st_mode) == MODE
        echoes(path)
        stop(daemon)


def test_lock_file(path: Path) -> None:
    """With lockfile=1 there is Twisted's PATH.lock, which is removed at the stop."""
    lock = Path(f"{path}.lock")
    with Daemon("--listen", f"unix:{path}:lockfile=1") as daemon:
        assert os.readlink(lock) == str(daemon.process.pid)
        assert "socket.lock names a running process: stop it, or remove the file" in refused(
            "--listen", f"unix:{path.parent / 'socket'}:lockfile=1"
        )
        stop(daemon)


def test_no_socket(path: Path) -> None:
    """A file that is not a socket is left alone, and the error says so."""
    for make in (path.touch, path.mkdir, lambda: path.symlink_to("nowhere")):
        make()
        for options in ("", ":lockfile=1"):
            line = refused("--listen", f"unix:{path}{options}")
            assert "the file is not a socket: remove it, or choose another path" in line
        path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("description", "says"),
    [
        ("unix:/no/such/directory/x", "no such file or directory: its directory must exist"),
        ("unix:/no/such/directory/x:lockfile=1", "its directory must exist"),
        ("unix:/dev/null/x", "not a directory"),
        ("unix:" + "x" * 108, "path takes 107 bytes at most (unix(7))"),
        ("unix:" + "\u00e4" * 54, "path takes 107 bytes at most (unix(7))"),
        ("unix:", "path is empty; it takes unix:PATH, unix:PATH:mode=660"),
        ("unix:/run/x:mode=rw", "mode= takes an octal number from 0 to 777"),
        ("unix:/run/x:mode=1777", "mode= takes an octal number from 0 to 777"),
        ("unix:/run/x:mode=689", "mode= takes an octal number from 0 to 777"),
        ("unix:/run/x:backlog=-1", "backlog= takes a whole number from 0 to 2147483647"),
        (f"unix:/run/x:backlog={'9' * 5000}", "backlog= takes a whole number from 0 to 2147483647"),
        ("unix:/run/x:lockfile=yes", "lockfile= takes a whole number from 0 to 1"),
        ("unix:/run/x:owner=me", "there is no parameter 'owner=me'"),
        ("unix:/run/x:660:5:0:1", "there is no parameter '1'"),
    ],
)
def test_bad_input(description: str, says: str) -> None:
    """A mistake is one line that names the option, and exit status 2, or 1 if its path is wrong."""
    line = refused("--listen", description, expected=1 if "directory" in says else 2)
    assert ascii(description)[1:-1] in line
    assert says in line


def test_longest_path(tmp_path: Path) -> None:
    """A path of 107 bytes is served; a relative path counts as typed."""
    with Daemon("--listen", "unix:" + "x" * 107) as daemon:
        echoes_in(daemon, "x" * 107)
        stop(daemon)
        assert os.listdir(daemon.directory.name) == []


def echoes_in(daemon: Daemon, name: str) -> None:
    """Use the socket ``name`` in the daemon's directory; its absolute path may be too long."""
    here = os.open(".", os.O_RDONLY)
    os.chdir(daemon.directory.name)
    try:
        echoes(Path(name))
    finally:
        os.fchdir(here)
        os.close(here)


def test_removed_or_replaced(path: Path) -> None:
    """If the file has been removed or replaced, a stop is clean and removes no file."""
    with Daemon("--listen", f"unix:{path}") as first:
        echoes(path)
        path.unlink()
        with Daemon("--listen", f"unix:{path}") as second:
            stop(first)
            echoes(path)
            path.unlink()
            stop(second)


def test_many_at_once(path: Path) -> None:
    """A burst of clients waits in the backlog, and is served."""
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
