"""Faulty ports of the daemon: each kind of endpoint, and what shows that a port is faulty."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import socket
import ssl
import sys
from collections.abc import Callable
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from tests import TIMEOUT
from tests.authority import Authority
from tests.programs.activation import socket_activation
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

JSON = (sys.executable, "-m", "echod", "--logger", "echod.daemon.logs.json_lines")
PLAN = "first 2: refuse; seed 7"
DROP = "first 2: drop; seed 7"


def addresses(daemon: Daemon) -> list[str]:
    """Return the addresses of the faulty ports."""
    return [line.partition("FAULTY ")[2].partition(": ")[0] for line in daemon.wait_for("FAULTY ")]


def exchange(connecting: Callable[[], socket.socket], header: bytes = b"") -> bytes:
    """Return the reply to «hello», or nothing if the connection is reset."""
    try:
        with connecting() as sock:
            sock.settimeout(TIMEOUT)
            sock.sendall(header + b"hello")
            sock.shutdown(socket.SHUT_WR)
            return receive_all(sock)
    except OSError as error:  # of connect(2), send(2) or recv(2); ENOTCONN: of shutdown(2)
        if isinstance(error, ConnectionError) or error.errno == errno.ENOTCONN:
            return b""
        raise


def connect(address: str, directory: str) -> socket.socket:
    """Connect to an address as it is in the log."""
    kind, _, where = address.partition(" ")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(os.path.join(directory, where))
        return sock
    host, _, port = where.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), TIMEOUT)


@pytest.mark.parametrize(
    ("endpoint", "header"),
    [
        ("tcp:0:interface=127.0.0.1", b""),
        (r"tcp6:0:interface=\:\:1", b""),
        ("unix:socket", b""),
        ("haproxy:tcp:0:interface=127.0.0.1", b"PROXY TCP4 192.0.2.1 192.0.2.2 40000 7\r\n"),
    ],
)
def test_streams(endpoint: str, header: bytes) -> None:
    """The plan of a stream endpoint decides which connections are refused; the counts agree."""
    with Daemon("--faulty", endpoint, PLAN) as daemon:
        [address] = addresses(daemon)
        directory = daemon.directory.name
        replies = [exchange(lambda: connect(address, directory), header) for _ in range(4)]
        assert replies == [b"", b"", b"hello", b"hello"]
        daemon.terminate()
        assert daemon.wait() == 0
    assert f"{address}: first 2: refuse: firings: 2" in daemon.log


def test_tls(tmp_path: Path) -> None:
    """The faults of a TLS endpoint are those of its plain text, on each of its addresses."""
    authority = Authority(tmp_path)
    key, cert = authority.issue("server")
    endpoint = f"ssl:0:privateKey={key}:certKey={cert}"
    context = ssl.create_default_context(cafile=authority.file)
    with Daemon("--faulty", endpoint, "first 2: swallow 2 bytes") as daemon:
        [both] = addresses(daemon)
        replies = []
        for address in (*both.split(", "), both.split(", ")[0]):
            sock = connect(address, "")
            with context.wrap_socket(sock, server_hostname="localhost") as secure:
                secure.settimeout(TIMEOUT)
                secure.sendall(b"hello")
                replies.append(secure.recv(10))
    assert replies == [b"llo", b"llo", b"hello"]


def test_handshake(tmp_path: Path) -> None:
    """A TLS endpoint has faults of the handshake, too."""
    key, cert = Authority(tmp_path).issue("server")
    endpoint = f"ssl:0:privateKey={key}:certKey={cert}:interface=127.0.0.1"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with Daemon("--faulty", endpoint, "first 1: abort") as daemon:
        [address] = addresses(daemon)
        with connect(address, "") as sock, pytest.raises(ConnectionResetError):
            context.wrap_socket(sock)
        with connect(address, "") as sock:
            context.wrap_socket(sock).close()


def test_datagrams() -> None:
    """The plan of a UDP endpoint decides which datagrams are dropped."""
    with Daemon("--faulty", "udp:0:interface=127.0.0.1", DROP) as daemon:
        [address] = addresses(daemon)
        assert answered(int(address.rpartition(":")[2])) == [b"3", b"4"]


def answered(port: int) -> list[bytes]:
    """Send four datagrams, and return the replies: the last datagram is answered last."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.connect(("127.0.0.1", port))
        for number in range(1, 5):
            sock.send(b"%d" % number)
        replies = [sock.recv(10)]
        while replies[-1] != b"4":
            replies.append(sock.recv(10))
        return replies


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_passed(kind: socket.SocketKind) -> None:
    """A socket from systemd can have faults, beside one without."""
    with (
        socket.socket(socket.AF_INET, kind) as faulty,
        socket.create_server(("127.0.0.1", 0)) as plain,
    ):
        faulty.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            faulty.listen()
        plan = PLAN if kind == socket.SOCK_STREAM else DROP
        passed = socket_activation(faulty, plain, names="a:b")
        with Daemon("--faulty", "systemd:name=a", plan, **passed) as daemon:
            [address] = addresses(daemon)
            if kind == socket.SOCK_STREAM:
                replies = [exchange(lambda: connect(address, "")) for _ in range(3)]
                assert replies == [b"", b"", b"hello"]
            else:
                assert answered(faulty.getsockname()[1]) == [b"3", b"4"]
            replies = [
                exchange(lambda: socket.create_connection(plain.getsockname())) for _ in range(3)
            ]
            assert replies == [b"hello"] * 3


def test_beside_a_port_without_faults() -> None:
    """With --port, the port without faults is served, too, and no connection of it is refused."""
    faulty = ("--faulty", "tcp:0:interface=127.0.0.1", PLAN)
    with Daemon(*faulty, "--port", "0", "--metrics", "tcp:0") as daemon:
        [address] = addresses(daemon)
        assert [exchange(daemon.connect) for _ in range(3)] == [b"hello"] * 3
        assert [exchange(lambda: connect(address, "")) for _ in range(3)] == [b"", b"", b"hello"]
        page = "http://" + daemon.wait_for("metrics on tcp")[0].rpartition(" ")[2]
        status = re.sub(" +", " ", get(f"{page}/"))
        assert f" {address} FAULTY\n" in status
        assert f" {address} first 2: refuse: 2\n" in status
        metrics = get(f"{page}/metrics")
        labels = f'fault="refuse",port="{address}",rule="first 2: refuse"'
        assert f"echod_faults_fired_total{{{labels}}} 2.0\n" in metrics
        assert "\nechod_faulty_ports 1.0\n" in metrics
        assert '\nechod_connections_refused_total{reason="fault"} 2.0\n' in metrics


def get(url: str) -> str:
    with urlopen(url, timeout=TIMEOUT) as reply:
        return str(reply.read().decode())


def test_control() -> None:
    """A plan that is replaced over HTTP applies to the next connection, and is logged."""
    options = ("--control", "tcp:0", "--faulty", "tcp:0:interface=127.0.0.1", "refuse; seed 7")
    with Daemon(*options) as daemon:
        [address] = addresses(daemon)
        assert exchange(lambda: connect(address, "")) == b""
        url = "http://" + daemon.wait_for("control on tcp")[0].rpartition(" ")[2] + "/faults/0"
        body = json.dumps({"plan": "damage", "seed": 8}).encode()
        request = Request(url, body, {"Content-Type": "application/json"}, method="PUT")
        with urlopen(request, timeout=TIMEOUT) as reply:
            assert json.load(reply)["plan"] == "damage; seed 8"
        assert exchange(lambda: connect(address, "")) == b"iello"
        with urlopen(url, timeout=TIMEOUT) as reply:
            assert json.load(reply)["rules"][0]["fired"] == 1
        assert "FAULTY " + address + ": damage (seed 8)" in daemon.log


def test_limits() -> None:
    """The limits count the connections of all ports; one above them has no number in the plan."""
    options = ("--port", "0", "--max-connections", "1", "--metrics", "tcp:0")
    with Daemon("--faulty", "tcp:0:interface=127.0.0.1", "number 1: damage", *options) as daemon:
        [address] = addresses(daemon)
        with daemon.connect() as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
            assert exchange(lambda: connect(address, "")) == b""
        daemon.wait_for("finished")
        assert exchange(lambda: connect(address, "")) == b"iello"


def test_only_faulty() -> None:
    """Without --port, only the faulty port is open; without --faulty, none is faulty."""
    with Daemon("--faulty", "tcp:0:interface=127.0.0.1", PLAN) as daemon:
        assert len(daemon.wait_for("listening on")) == 1
        daemon.terminate()
        daemon.wait()
    with Daemon("--port", "0") as daemon:
        assert "FAULTY" not in daemon.log


def test_json() -> None:
    """The JSON log has the plan, with --verbose each firing, and at the end the counts."""
    options = ("--verbose", "--faulty", "tcp:0:interface=127.0.0.1", PLAN)
    with contextlib.closing(Daemon(*options, command=JSON)) as daemon:
        [line] = [json.loads(line) for line in daemon.wait_for('"faulty"')]
        for _ in range(3):
            exchange(lambda: connect(line["port"], ""))
        daemon.terminate()
        daemon.wait()
    port = line["port"]
    assert (line["level"], line["plan"], line["seed"]) == ("warn", "first 2: refuse", 7)
    logged = [json.loads(line) for line in daemon.lines]
    fields = ("port", "rule", "connection", "offset", "count")
    assert [
        (each["event"], *(each.get(name) for name in fields))
        for each in logged
        if each["event"] in ("fired", "fault-count")
    ] == [
        ("fired", port, "first 2: refuse", 1, 0, None),
        ("fired", port, "first 2: refuse", 2, 0, None),
        ("fault-count", port, "first 2: refuse", None, None, 2),
    ]


def test_systemd(tmp_path: Path) -> None:
    """The status for systemd begins with FAULTY."""
    where = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(where)
        systemd.settimeout(TIMEOUT)
        environ = {**os.environ, "NOTIFY_SOCKET": where}
        with Daemon("--faulty", "tcp:0:interface=127.0.0.1", PLAN, env=environ):
            assert systemd.recv(4096) == b"READY=1\nSTATUS=FAULTY, 0 connections open"


def test_drain() -> None:
    """A faulty port is drained as any other: an open connection ends at a quiet moment."""
    with Daemon(
        "--faulty", "tcp:0:interface=127.0.0.1", "first 2: refuse; at most 1 times: damage"
    ) as daemon:
        [address] = addresses(daemon)
        for _ in range(2):
            exchange(lambda: connect(address, ""))
        with connect(address, "") as sock:
            sock.sendall(b"hello")
            received = sock.recv(1)
            daemon.terminate()
            assert received + receive_all(sock) == b"iello"
        assert daemon.wait() == 0
