"""The daemon as systemd starts it: socket activation, notifications, and the journal."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest

from tests import TIMEOUT
from tests.authority import Authority
from tests.programs.activation import socket_activation
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.streams.proxy import proxy_header

JOURNAL = ("-n", "--pidfile=", "--logger", "echod.daemon.logs.journal", "echod")
JSON = ("-n", "--pidfile=", "--logger", "echod.daemon.logs.json_lines", "echod")


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


@pytest.fixture
def udp() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock


@pytest.fixture
def unix(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(tmp_path / "echo"))
        sock.listen()
        yield sock


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    """The socket that NOTIFY_SOCKET names."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.bind(str(tmp_path / "notify"))
        yield sock


def connect(sock: socket.socket) -> socket.socket:
    client = socket.socket(sock.family, sock.type)
    client.settimeout(TIMEOUT)
    client.connect(sock.getsockname())
    return client


def check_echo(client: socket.socket) -> None:
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    assert receive_all(client) == b"hello"
    client.close()


def check_echo_over_tls(client: ssl.SSLSocket) -> None:
    client.sendall(b"hello")
    assert client.recv(5) == b"hello"
    client.close()


def test_restart(tcp: socket.socket, unix: socket.socket) -> None:
    """Passed sockets are served by type; a client of a restart waits in the backlog."""
    for _ in range(2):
        waiting = [connect(sock) for sock in (tcp, unix)]
        with Daemon(**socket_activation(tcp, unix, names="echod.socket:echod.socket")) as daemon:
            daemon.wait_for("listening on", 2)
            for client in (*waiting, connect(tcp), connect(unix)):
                check_echo(client)
            daemon.terminate()
            assert daemon.wait() == 0
            assert "Traceback" not in daemon.log
    assert os.path.exists(unix.getsockname())


def test_metrics(tcp: socket.socket) -> None:
    """The socket named metrics serves metrics, and the echo has its default port."""
    with Daemon("--port", "0", **socket_activation(tcp, names="metrics")) as daemon:
        daemon.wait_for("metrics on tcp")
        check_echo(daemon.connect())
        daemon.wait_for("closed")
        host, port = tcp.getsockname()
        with urlopen(f"http://{host}:{port}/metrics", timeout=TIMEOUT) as answer:
            assert b"echod_received_bytes_total 5.0\n" in answer.read()


def test_datagram_socket_for_metrics(tcp: socket.socket, udp: socket.socket) -> None:
    """A datagram socket for the metrics is one line in the log."""
    with Daemon(**socket_activation(udp, tcp, names="metrics:b")) as daemon:
        check_echo(connect(tcp))
        daemon.wait_for("descriptor 3 (metrics) is a datagram socket")


def test_datagrams(tcp: socket.socket, udp: socket.socket) -> None:
    """A datagram socket is served beside others; a datagram of a restart waits in its buffer."""
    with connect(udp) as client:
        for _ in range(2):
            client.send(b"before")
            with Daemon(**socket_activation(udp, tcp, names="echod.socket:echod.socket")) as daemon:
                assert client.recv(9) == b"before"
                client.send(b"hello")
                assert client.recv(9) == b"hello"
                check_echo(connect(tcp))
                daemon.terminate()
                assert daemon.wait() == 0
                assert "Traceback" not in daemon.log


def test_endpoint(tcp: socket.socket) -> None:
    """A socket can be chosen by its name; the others are served too."""
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        Daemon(
            "--listen", "systemd:name=a", **socket_activation(other, tcp, names="b:a")
        ) as daemon,
    ):
        daemon.wait_for("listening on", 2)
        for sock in (tcp, other):
            check_echo(connect(sock))


def test_endpoint_behind_a_proxy(tcp: socket.socket) -> None:
    """Passed sockets work behind a proxy, too: the log names the client."""
    where = "haproxy:systemd:name=a"
    with (
        Daemon("--listen", where, **socket_activation(tcp, names="a")) as daemon,
        connect(tcp) as client,
    ):
        client.sendall(proxy_header(2, "192.0.2.1", 40000) + b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"hello"
        daemon.wait_for("closed tcp 192.0.2.1:40000: finished, 5 bytes")
        assert "not served" not in daemon.log


def test_endpoint_of_several(tcp: socket.socket, unix: socket.socket) -> None:
    """All sockets of one name, such as those of one unit, are served behind a proxy."""
    where = "haproxy:systemd:name=a"
    with Daemon("--listen", where, **socket_activation(unix, tcp, names="a:a")) as daemon:
        for sock in (tcp, unix):
            client = connect(sock)
            client.sendall(proxy_header(1, "192.0.2.1", 40000))
            check_echo(client)
        daemon.wait_for("closed tcp 192.0.2.1:40000: finished, 5 bytes", 2)


def test_tls(tcp: socket.socket, tmp_path: Path) -> None:
    """Both sockets named tls are served over TLS, after SIGHUP and a restart too; others are not.

    A connection that begins during a restart waits for the next process.
    """
    authority = Authority(tmp_path)
    key, certificate = authority.issue("server")
    context = ssl.create_default_context(cafile=authority.file)

    def over_tls(sock: socket.socket) -> ssl.SSLSocket:
        return context.wrap_socket(connect(sock), server_hostname="localhost")

    where = f"ssl:systemd:name=tls:privateKey={key}:certKey={certificate}"
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as two,
    ):
        for _ in range(2):
            waiting = connect(one)
            given = socket_activation(one, tcp, two, names="tls:echod.socket:tls")
            with Daemon("--listen", where, **given) as daemon:
                daemon.wait_for("listening on tls", 2)
                daemon.wait_for("listening on tcp")
                check_echo(connect(tcp))
                check_echo_over_tls(context.wrap_socket(waiting, server_hostname="localhost"))
                for sock in (one, two):
                    check_echo_over_tls(over_tls(sock))
                authority.issue("server")
                daemon.terminate(signal.SIGHUP)
                daemon.wait_for("certificates loaded")
                check_echo_over_tls(over_tls(two))
                daemon.terminate()
                assert daemon.wait() == 0
                assert "Traceback" not in daemon.log


def test_restart_behind_a_proxy(tcp: socket.socket) -> None:
    """In a drain, a client may complete its header; a new client waits for the next process."""
    where = "haproxy:systemd:name=a"
    header = proxy_header(2, "192.0.2.1", 40000)
    clients: list[socket.socket] = []
    for _ in range(2):
        with Daemon("--listen", where, **socket_activation(tcp, names="a")) as daemon:
            begun = connect(tcp)
            begun.sendall(header[:20])
            for client in (connect(tcp), *clients):
                client.sendall(header)
                check_echo(client)
            daemon.terminate()
            daemon.wait_for("Closed)")  # the port; systemd holds its socket open
            clients = [connect(tcp) for _ in range(3)]
            begun.sendall(header[20:])
            check_echo(begun)
            assert daemon.wait() == 0
            assert "refused" not in daemon.log
    for client in clients:
        client.close()


@pytest.mark.parametrize("before", ["", "haproxy:"])
def test_endpoint_of_a_unix_socket(unix: socket.socket, before: str) -> None:
    """The file of a UNIX socket and its mode stay as systemd made them."""
    path = Path(unix.getsockname())
    path.chmod(0o600)
    where = f"{before}systemd:name=a"
    with Daemon("--listen", where, **socket_activation(unix, names="a")) as daemon:
        daemon.wait_for("listening on unix")
        with connect(unix) as client:
            client.sendall(proxy_header(1, "192.0.2.1", 1) if before else b"")
            check_echo(client)
        assert path.stat().st_mode & 0o777 == 0o600
        daemon.terminate()
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log
    assert path.is_socket()


def test_endpoint_of_datagrams(udp: socket.socket) -> None:
    """A datagram socket behind a proxy is one line, and exit status 1."""
    options = ("--listen", "haproxy:systemd:name=a")
    with contextlib.closing(Daemon(*options, **socket_activation(udp, names="a"))) as daemon:
        assert daemon.wait() == 1
        assert "(a) is a datagram socket: give it a socket unit of its own" in daemon.lines[-1]


@pytest.mark.parametrize(
    ("environ", "line"),
    [
        ({"LISTEN_FDS": "1"}, "LISTEN_FDS=1: LISTEN_PID and LISTEN_FDS come together"),
        ({"LISTEN_PID": "1", "LISTEN_FDS": "1"}, "the sockets are for another process"),
        ({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "0"}, "WATCHDOG_USEC=0: it is a whole number"),
    ],
)
def test_variables_that_do_not_fit(environ: dict[str, str], line: str) -> None:
    """Variables that contradict each other are one line, and exit status 1."""
    with contextlib.closing(Daemon("--port", "0", env={**os.environ, **environ})) as daemon:
        assert daemon.wait() == 1
        assert len(daemon.lines) == 1, daemon.lines
        assert daemon.log.startswith("twistd echod: ")
        assert line in daemon.log


def test_names_that_do_not_fit(tcp: socket.socket) -> None:
    """More names than sockets are one line, and exit status 1."""
    with contextlib.closing(Daemon(**socket_activation(tcp, names="a:b"))) as daemon:
        assert daemon.wait() == 1
        assert len(daemon.lines) == 1, daemon.lines
        assert "LISTEN_FDNAMES=a:b: 2 names for 1 descriptors" in daemon.log


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_notify(systemd: socket.socket, kind: str) -> None:
    """It notifies systemd: ready, the number of connections, alive, and stopping."""
    where = systemd.getsockname()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as abstract:
        abstract.bind(f"\0{where}")
        abstract.settimeout(TIMEOUT)
        heard, where = (systemd, where) if kind == "path" else (abstract, f"@{where}")
        environ = {**os.environ, "NOTIFY_SOCKET": where, "WATCHDOG_USEC": "100000"}
        with Daemon("--port", "0", env=environ) as daemon:
            assert heard.recv(4096).startswith(b"READY=1\nSTATUS=0 connections open")
            daemon.wait_for("listening on tcp [::1]")
            for _ in range(3):
                assert heard.recv(4096) == b"WATCHDOG=1"
            with daemon.connect() as client:
                while (word := heard.recv(4096)) == b"WATCHDOG=1":
                    pass
                assert b"STATUS=1 connection open" in word.splitlines()
                daemon.terminate()
                while (word := heard.recv(4096)) == b"WATCHDOG=1":
                    pass
                assert word.startswith(b"STOPPING=1")
                assert client.recv(1) == b""
            assert daemon.wait() == 0


def test_stuck(systemd: socket.socket) -> None:
    """A process whose reactor is stuck sends no watchdog notification."""
    environ = {**os.environ, "NOTIFY_SOCKET": systemd.getsockname(), "WATCHDOG_USEC": "100000"}
    with Daemon("--port", "0", env=environ) as daemon:
        systemd.recv(4096)
        daemon.terminate(signal.SIGSTOP)
        while select.select([systemd], [], [], 0.5)[0]:
            systemd.recv(4096)
        daemon.terminate(signal.SIGCONT)
        assert systemd.recv(4096) == b"WATCHDOG=1"


def test_journal(unix: socket.socket) -> None:
    """In the journal, each event is one line with its priority, whatever the peer's name."""
    with Daemon(twistd=JOURNAL, **socket_activation(unix, names="echod.socket")) as daemon:
        with socket.socket(socket.AF_UNIX) as client:
            # bind(2) makes a file of that name, in the daemon's directory.
            client.bind(f"{daemon.directory.name}/x\n<0>forged\x1b[2J")
            client.settimeout(TIMEOUT)
            client.connect(unix.getsockname())
            check_echo(client)
        [line] = daemon.wait_for("closed")
        assert line.startswith("<6>closed unix /")
        assert r"/x\n<0>forged\x1b[2J: finished, 5 bytes in " in line
        assert all(line.startswith("<6>") for line in daemon.lines), daemon.lines
        assert not any(":" in line.partition(" ")[0] for line in daemon.lines), "no time"


def test_journal_of_an_error(tmp_path: Path) -> None:
    """In the journal, the reason why it cannot serve has the priority of an error."""
    options = ("--listen", f"unix:{tmp_path}/none/echo")
    with contextlib.closing(Daemon(*options, twistd=JOURNAL)) as daemon:
        assert daemon.wait() == 1
        assert daemon.lines[-1].startswith("<3>twistd echod: --listen"), daemon.lines


def test_json_lines(tcp: socket.socket) -> None:
    """In JSON, each line is an object with the event's fields."""
    with contextlib.closing(
        Daemon(twistd=JSON, **socket_activation(tcp, names="echod.socket"))
    ) as daemon:
        client = connect(tcp)
        mine = "tcp {}:{}".format(*client.getsockname())
        check_echo(client)
        daemon.wait_for("finished")
        lines = [json.loads(line) for line in daemon.lines]
        [listening] = [line for line in lines if line["event"] == "listening"]
        assert listening["endpoint"] == "tcp {}:{}".format(*tcp.getsockname())
        [closed] = [line for line in lines if line["event"] == "closed"]
        assert (closed["level"], closed["peer"], closed["ending"]) == ("info", mine, "finished")
        assert (closed["bytes"], closed["unsent"]) == (5, 0)
        assert 0 < closed["seconds"] < TIMEOUT
