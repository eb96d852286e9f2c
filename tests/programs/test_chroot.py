"""twistd --chroot: an empty directory suffices; files that twistd needs are named."""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import socket
import ssl
import sys
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import pytest
from twisted.internet import tcp

from echod.daemon import chroot
from echod.daemon.chroot import prepare
from echod.daemon.errors import CannotServe
from tests import TIMEOUT
from tests.authority import Authority
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.streams.proxy import proxy_header

NOBODY = 65534

WATCHED = """
import os, sys
del sys.argv[0]
chroot = os.chroot

def watch(event, arguments):
    if event in ("import", "open", "os.listdir"):
        kind = "module" if event == "import" else "file"
        os.write(1, f"late {kind}: {arguments[0]}\\n".encode())

def change_root(path):
    from twisted.internet import reactor
    reactor.callWhenRunning(lambda: {}["an exception, for its traceback"])
    chroot(path)
    sys.addaudithook(watch)

os.chroot = change_root
from twisted.scripts.twistd import run
run()
"""
"""A program that runs twistd, and prints each module or file that it opens after chroot(2)."""

FILES = {"/", "/dev/fd", "/proc/self/stat", "/proc/self/limits"}
"""Files that may be opened in the new root: the directory of the UNIX socket, to lock it; the
descriptors, to count them; and the files that prometheus_client reads."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="chroot(2) needs root")


@pytest.fixture(name="root")
def empty_directory(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    root.mkdir()
    return root


def options(root: Path, **changed: Any) -> dict[str, Any]:
    """Return the options of ``twistd --chroot ROOT -n --pidfile=``, with some changed."""
    return {"chroot": str(root), "pidfile": "", "nodaemon": True, "uid": None} | changed


@pytest.fixture(name="loaded")
def loaded_fixture(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the names of the files and codecs that would be loaded before chroot(2); load none."""
    loaded: list[str] = []
    reserve = type("", (), {"reserve": lambda _: loaded.append(os.devnull)})()
    monkeypatch.setattr(tcp, "_reservedFD", reserve)
    monkeypatch.setattr(chroot.codecs, "lookup", loaded.append)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    return loaded


def test_without_rights(root: Path, loaded: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Without root's rights, the error says so."""
    monkeypatch.setattr(os, "geteuid", lambda: NOBODY)
    with pytest.raises(CannotServe, match="needs root's rights: leave it out, or use sudo"):
        prepare(options(root))
    assert loaded == []


def test_without_chroot(loaded: list[str]) -> None:
    """Without --chroot nothing is loaded early."""
    prepare(None)
    prepare(options(Path("/"), chroot=None))
    assert loaded == []


def test_prepared(root: Path, loaded: list[str]) -> None:
    """With --chroot the codec of host names and the reserved descriptor are loaded."""
    prepare(options(root))
    assert loaded == ["idna", os.devnull]


def make(root: Path, path: str, text: str = "") -> None:
    (root / path).parent.mkdir(parents=True)
    (root / path).write_text(text)


@pytest.mark.parametrize(
    ("path", "text", "changed"),
    [
        ("etc/passwd", f"root:x:0:0:::\n\nnobody:x:{NOBODY}:{NOBODY}:::\n", {"uid": NOBODY}),
        ("dev/null", "", {"nodaemon": False}),
        ("run/other", "", {"pidfile": "/run/twistd.pid"}),
    ],
)
def test_present_files(
    root: Path, loaded: list[str], path: str, text: str, changed: dict[str, Any]
) -> None:
    """If the file that twistd opens is in the new root, the start continues."""
    make(root, path, text)
    prepare(options(root, **changed))
    assert loaded


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"chroot": "/no/such"}, "--chroot /no/such: there is no such directory: "),
        ({"pidfile": "/run/x.pid"}, "--pidfile /run/x.pid: --chroot ROOT has no such directory"),
        ({"nodaemon": False}, "(-n), or mknod -m 666 ROOT/dev/null c 1 3"),
        ({"uid": NOBODY}, f"--uid {NOBODY}: ROOT/etc/passwd has no such user"),
    ],
)
def test_missing_files(root: Path, loaded: list[str], changed: dict[str, Any], says: str) -> None:
    """If the file that twistd opens is missing in the new root, the error names it."""
    with pytest.raises(CannotServe) as raised:
        prepare(options(root, **changed))
    assert says.replace("ROOT", str(root)) in str(raised.value)
    make(root, "etc/passwd", "root:x:0:0:::\n")  # another user
    with pytest.raises(CannotServe):
        prepare(options(root, **changed))
    assert loaded == []


def exchange(sock: socket.socket, header: bytes = b"") -> None:
    with sock:
        sock.settimeout(TIMEOUT)
        sock.sendall(header + b"hello")
        sock.shutdown(socket.SHUT_WR)
        assert receive_all(sock) == b"hello"


def is_reset(sock: socket.socket, data: bytes) -> None:
    with sock:
        sock.sendall(data)
        with pytest.raises(ConnectionResetError):
            receive_all(sock)


def twistd(root: Path, *words: str) -> tuple[str, ...]:
    return (*words, "--chroot", str(root), "-n", "--pidfile=", "echod")


@needs_root
def test_by_default(root: Path) -> None:
    """In an empty directory both loopback addresses are served."""
    with Daemon("--port", "0", twistd=twistd(root)) as daemon:
        for host in ("127.0.0.1", "::1"):
            exchange(daemon.connect(host))
        daemon.terminate()
        assert daemon.wait() == 0
    assert "Traceback" not in daemon.log
    assert list(root.iterdir()) == []


@needs_root
def test_privileges_are_dropped(root: Path) -> None:
    """With --uid and --gid it listens as root, and serves as that user."""
    words = ("--uid", str(NOBODY), "--gid", str(NOBODY))
    make(root, "etc/passwd", f"nobody:x:{NOBODY}:{NOBODY}:nobody:/:/bin/false\n")
    with Daemon("--port", "0", twistd=twistd(root, *words)) as daemon:
        [dropped] = daemon.wait_for(f"set uid/gid {NOBODY}/{NOBODY}")
        for host in ("127.0.0.1", "::1"):
            exchange(daemon.connect(host))
        status = Path(f"/proc/{daemon.process.pid}/status").read_text()
        daemon.terminate()
        assert daemon.wait() == 0
    assert re.findall(r"^[UG]id:\t(\d+)", status, re.MULTILINE) == [str(NOBODY)] * 2
    assert daemon.lines.index(daemon.wait_for("listening on", 2)[1]) < daemon.lines.index(dropped)
    assert "Traceback" not in daemon.log


def last_line(*options: str, twistd: tuple[str, ...]) -> str:
    """Start a daemon that cannot serve, and return its last line."""
    daemon = Daemon(*options, twistd=twistd)
    try:
        assert daemon.wait() == 1
    finally:
        daemon.close()
    assert "Traceback" not in daemon.log
    return daemon.lines[-1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--uid", str(NOBODY), "-n", "--pidfile="), "/etc/passwd has no such user"),
        (("--pidfile=",), "stay in the foreground (-n), or mknod"),
        (("-n",), "add --pidfile= for no pid file"),
    ],
)
def test_one_line(root: Path, words: tuple[str, ...], says: str) -> None:
    """A missing file ends the start with one line, and exit status 1."""
    line = last_line(twistd=("--chroot", str(root), *words, "echod"))
    assert line.startswith("twistd echod: --")
    assert says in line


@needs_root
def test_a_port_in_use(root: Path) -> None:
    """After chroot(2), too, a port in use is a one-line error."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = str(other.getsockname()[1])
        line = last_line("--port", port, twistd=twistd(root))
    assert f"cannot listen on tcp 127.0.0.1:{port}: address already in use" in line


class Inside:
    """A daemon in ``root`` that serves over all transports, and prints what it opens late."""

    def __init__(self, root: Path, authority: Authority, *words: str) -> None:
        self.root = root
        self.context = ssl.create_default_context(cafile=authority.file)
        self.context.check_hostname = False
        self.files = authority.issue("server")
        key, certificate = self.files
        listen = (
            *("tcp:0:interface=127.0.0.1", r"tcp6:0:interface=\:\:1", "udp:0", "unix:/socket"),
            *(f"ssl:0:privateKey={key}:certKey={certificate}", "haproxy:tcp:0:interface=127.0.0.1"),
        )
        self.daemon = Daemon(
            *(word for each in listen for word in ("--listen", each)),
            *("--faulty", "unix:/faulty", "50%, after 3 bytes: delay normal 1ms 1ms"),
            *("--metrics", "tcp:0", "--drain-timeout", "2", "--verbose"),
            twistd=twistd(root, *words),
            prefix=(sys.executable, "-c", WATCHED),
        )

    def __enter__(self) -> Inside:
        try:
            self.daemon.wait_for("an exception, for its traceback")  # the reactor runs
        except BaseException:
            self.daemon.close()
            raise
        ports = re.findall(r"(?:tcp|udp|tls) ([0-9.]+|\[::1\]):(\d+)", self.daemon.log)
        addresses = [(host.strip("[]"), int(port)) for host, port in ports]
        self.tcp, self.udp, self.tls, self.proxied, self.metrics = (
            *(addresses[:2], addresses[2:4], addresses[4:6]),
            *addresses[6:],
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.close()

    def late(self, what: str) -> list[str]:
        """Return the modules or files that the daemon opened after chroot(2)."""
        return re.findall(f"late {what}: (.*)", self.daemon.log)

    def exercise(self) -> None:
        for address in self.tcp:
            exchange(socket.create_connection(address))
        for host, port in self.udp:
            with socket.socket(
                socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
            ) as sock:
                sock.settimeout(TIMEOUT)
                sock.sendto(b"hello", (host, port))
                assert sock.recv(100) == b"hello"
        for path in (self.root / "socket", *[self.root / "faulty"] * 9):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                exchange(sock)
        for version in (1, 2):
            for client in ("192.0.2.1", "2001:db8::1"):
                header = proxy_header(version, client, 40000)
                exchange(socket.create_connection(self.proxied), header)
        is_reset(socket.create_connection(self.proxied), b"GET / HTTP/1.0\r\n\r\n")
        is_reset(socket.create_connection(self.tls[0]), b"GET / HTTP/1.0\r\n\r\n")
        self.exercise_tls()
        for path in ("", "metrics"):
            for accept in ("text/html", "application/openmetrics-text; version=1.0.0", "*/*"):
                url = "http://{}:{}/".format(*self.metrics) + path
                with urlopen(Request(url, headers={"Accept": accept}), timeout=TIMEOUT) as answer:
                    assert b"echod" in answer.read()

    def exercise_tls(self) -> None:
        for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
            self.context.minimum_version = self.context.maximum_version = version
            for address in self.tls:
                with self.context.wrap_socket(socket.create_connection(address, TIMEOUT)) as sock:
                    sock.sendall(b"hello")
                    assert sock.recv(5) == b"hello"
                    sock.unwrap().close()

    def have_accept_fail(self) -> None:
        pid, limit = self.daemon.process.pid, resource.RLIMIT_NOFILE
        limits = resource.prlimit(pid, limit)
        resource.prlimit(pid, limit, (self.daemon.descriptors(), limits[1]))
        # Connections that have just ended leave descriptors for some of these.
        clients = [socket.create_connection(self.tcp[0]) for _ in range(30)]
        self.daemon.wait_for("EMFILE")
        resource.prlimit(pid, limit, limits)
        for client in clients:
            exchange(client)


@needs_root
@pytest.mark.parametrize(
    "words",
    [
        (),
        ("--reactor", "epoll", "--logger", "echod.daemon.logs.journal"),
        ("--reactor", "poll", "--logger", "echod.daemon.logs.json_lines"),
        ("--reactor", "select", "--logger", "echod.daemon.logs.journal"),
        ("--reactor", "asyncio", "--logger", "echod.daemon.logs.json_lines"),
    ],
    ids=" ".join,
)
def test_nothing_is_loaded_late(root: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    """Over all transports, from start to drain, no module or file is opened after chroot(2)."""
    with Inside(root, Authority(tmp_path), *words) as service:
        service.exercise()
        service.have_accept_fail()
        service.daemon.terminate(signal.SIGHUP)
        service.daemon.wait_for("no such file or directory")
        service.exercise_tls()
        with socket.create_connection(service.tcp[0]) as sock:
            sock.sendall(b"!")
            assert sock.recv(1) == b"!"
            service.daemon.terminate()
            assert service.daemon.wait() == 0
        assert service.late("module") == []
        assert set(service.late("file")) == {*FILES, service.files[0]}
    assert service.daemon.log.count("Traceback") == 1  # that of WATCHED
    assert list(root.iterdir()) == []


@needs_root
def test_reload_inside(root: Path, tmp_path: Path) -> None:
    """SIGHUP loads certificates from the same path in the new root."""
    with Inside(root, Authority(tmp_path)) as service:
        for file in service.files:
            (root / file.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, root / file.lstrip("/"))
        service.daemon.terminate(signal.SIGHUP)
        service.daemon.wait_for("certificates loaded")
        service.exercise_tls()
        assert service.late("module") == []
