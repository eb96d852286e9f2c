"""``twistd echod`` as a process: options, signals, limits, and everyday tools."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tests import TIMEOUT
from tests.programs.daemon import TWISTD, Daemon
from tests.programs.sockets import receive_all
from tests.streams.proxy import proxy_header

MIB = 1 << 20


def refused(*options: str, prefix: tuple[str, ...] = (), expected: int = 1) -> str:
    """Start a daemon that cannot serve, and return its error line."""
    daemon = Daemon(*options, prefix=prefix)
    began = time.monotonic()
    try:
        status = daemon.wait()
    finally:
        daemon.close()
    assert status == expected, daemon.log
    assert time.monotonic() - began < 10  # about 1 s, unless the machine is busy
    assert "Traceback" not in daemon.log
    lines = [line for line in daemon.lines if "twistd echod: " in line]
    assert lines == daemon.lines[-1:], daemon.log
    return lines[0]


def test_default_addresses() -> None:
    """By default the daemon listens on one port of both loopback addresses, and logs each."""
    with Daemon("--port", "0") as daemon:
        lines = [line.partition("] ")[2] for line in daemon.wait_for("listening on", 2)]
        assert lines == [
            f"listening on tcp 127.0.0.1:{daemon.port}",
            f"listening on tcp [::1]:{daemon.port}",
        ]
        for host in ("127.0.0.1", "::1"):
            with daemon.connect(host) as client:
                client.sendall(b"hello")
                client.shutdown(socket.SHUT_WR)
                assert receive_all(client) == b"hello"
        assert "Starting factory" not in daemon.log


@pytest.mark.parametrize(
    "command",
    [
        ("nc", "-N", "127.0.0.1", "{port}"),
        ("ncat", "127.0.0.1", "{port}"),
        ("socat", "-t", "20", "-", "tcp:127.0.0.1:{port}"),
        ("socat", "-t", "20", "-", "tcp6:[::1]:{port}"),
    ],
    ids=" ".join,
)
def test_tools(command: tuple[str, ...]) -> None:
    """nc, ncat and socat get back their input, and exit by themselves."""
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; .ci/run installs it")
    with Daemon("--port", "0") as daemon:
        for data in (b"hello", random.Random(862).randbytes(MIB)):
            done = subprocess.run(
                [word.format(port=daemon.port) for word in command],
                input=data,
                stdout=subprocess.PIPE,
                timeout=TIMEOUT,
                check=True,
            )
            assert done.stdout == data


def test_a_line_for_each_connection() -> None:
    """A closed connection is one line: peer, ending, bytes, seconds."""
    with Daemon("--port", "0") as daemon:
        with daemon.connect() as client:
            mine = "{}:{}".format(*client.getsockname())
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        [line] = daemon.wait_for("closed")
        assert f"closed tcp {mine}: finished, 5 bytes in 0." in line


def test_quiet() -> None:
    """With --quiet, a connection has no line."""
    with Daemon("--port", "0", "--quiet") as daemon:
        with daemon.connect() as client:
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        daemon.terminate()
        daemon.wait()
        assert "closed" not in daemon.log


def test_listen(tmp_path: Path) -> None:
    """--listen can be repeated, with any kinds of endpoint."""
    path = tmp_path / "socket"
    with Daemon("--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{path}") as daemon:
        daemon.wait_for(f"listening on unix {path}")
        with daemon.connect() as client, socket.socket(socket.AF_UNIX) as neighbour:
            neighbour.connect(str(path))
            for sock in (client, neighbour):
                sock.sendall(b"hello")
                sock.shutdown(socket.SHUT_WR)
                assert receive_all(sock) == b"hello"
        daemon.terminate()
        assert daemon.wait() == 0
        assert not path.exists()


def test_bad_input() -> None:
    """A wrong option gets one line and exit status 2; more in test_wrong_command_lines.py."""
    assert "takes no arguments, not 'stray'" in refused("stray", expected=2)


def test_port_in_use(tmp_path: Path) -> None:
    """A port in use gets one line; ports that were open are closed, and socket files removed."""
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "address already in use" in refused("--port", str(port))
        taken = f"tcp:{port}:interface=127.0.0.1"
        line = refused("--listen", f"unix:{path}", "--listen", taken)
        assert f"--listen {taken!r}: cannot listen on tcp 127.0.0.1:{port}" in line
    assert list(tmp_path.iterdir()) == []


def test_privileged_port() -> None:
    """A privileged port gets one line that names the capability."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 7:
        pytest.skip("on this machine, no port is privileged")
    without = (
        ("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service")
        if os.geteuid() == 0
        else ()
    )
    line = refused("--port", "7", prefix=without)
    assert "tcp 127.0.0.1:7: permission denied: " in line
    assert "CAP_NET_BIND_SERVICE" in line


def test_daemonized(tmp_path: Path) -> None:
    """Without -n, a failed start ends the parent with status 1, and leaves no pid file."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = subprocess.run(
            [
                *(str(TWISTD), "--pidfile=pid", "--logfile=log"),
                *("echod", "--port", str(other.getsockname()[1])),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert done.returncode == 1
    assert "twistd echod: --port: cannot listen" in done.stderr
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the daemon has ended already
        daemon = os.pidfd_open(int((tmp_path / "pid").read_text()))
        select.select([daemon], [], [], TIMEOUT)  # it notifies its parent before it cleans up
        os.close(daemon)
    assert not (tmp_path / "pid").exists()


def network(setup: str) -> tuple[str, ...]:
    """Return a command prefix that runs ``setup``, then a command, in a new network namespace."""
    inside = ("unshare", "--net", "--map-root-user", "sh", "-c", f'{setup} && exec "$@"', "sh")
    if (
        shutil.which("ip") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs ip (Debian's iproute2), and permission to make a network namespace")
    return inside


def test_link_local() -> None:
    """A link-local address with its zone is served over TCP and UDP."""
    setup = "ip link set lo up && ip address add fe80::7/64 dev lo nodad"
    with Daemon(
        *("--listen", r"tcp6:65432:interface=fe80\:\:7%lo"),
        *("--listen", r"udp:65432:interface=fe80\:\:7%lo"),
        prefix=network(setup),
    ) as daemon:
        daemon.wait_for("listening on udp [fe80::7%lo]:65432")
        for kind in ("TCP6", "UDP6"):
            target = f"{kind}:[fe80::7%lo]:65432"
            enter = ("nsenter", "--net", "--user", "--target", str(daemon.process.pid))
            client = subprocess.run(
                [*enter, "socat", "-t5", "-", target],
                input=b"hello",
                capture_output=True,
                timeout=TIMEOUT,
                check=True,
            )
            assert client.stdout == b"hello"


def test_no_ipv6() -> None:
    """On a machine without IPv6, the daemon logs that in one line, and serves IPv4."""
    setup = "echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && ip link set lo up"
    with Daemon("--port", "0", prefix=network(setup)) as daemon:
        daemon.wait_for("listening on")
        assert len(daemon.wait_for("this machine has no IPv6: serving IPv4 only")) == 1
        daemon.terminate()
        daemon.wait()
        assert "listening on tcp [::1]" not in daemon.log


@pytest.mark.parametrize(
    "options",
    [
        ("--listen", r"tcp6:0:interface=\:\:"),
        ("--port", "0", "--interface", "::"),
        ("--listen", r"haproxy:tcp6:0:interface=\:\:"),
    ],
    ids=" ".join,
)
def test_both_families(options: tuple[str, ...]) -> None:
    """A listener on :: serves both families; an IPv4 client is logged and counted as IPv4."""
    proxied = "haproxy" in options[1]
    with Daemon(*options, "--max-connections-per-peer", "1") as daemon:
        assert daemon.wait_for("listening on")[0].endswith(f"listening on tcp [::]:{daemon.port}")
        for number, (host, name) in enumerate((("127.0.0.1", "127.0.0.1"), ("::1", "[::1]"))):
            header = proxy_header(1, f"::ffff:{host}" if "." in host else host, 1) * proxied
            with daemon.connect(host) as client, daemon.connect(host) as second:
                for sock in (client, second):
                    sock.sendall(header + b"hello")
                assert client.recv(5, socket.MSG_WAITALL) == b"hello"
                with pytest.raises(ConnectionResetError):
                    receive_all(second)
                mine, other = (
                    f"tcp {name}:{1 if proxied else sock.getsockname()[1]}"
                    for sock in (client, second)
                )
            daemon.wait_for(f"closed {mine}: ")
            refused = daemon.wait_for("refused 1 connection", number + 1)[number]
            assert refused.endswith(f"max-connections-per-peer 1, from {other}")
        assert "ffff" not in daemon.log


def send_unread(daemon: Daemon, size: int) -> tuple[socket.socket, bytes]:
    """Connect, send ``size`` bytes, and half-close, without reading a reply."""
    client = daemon.connect()
    sent = random.Random(862).randbytes(size)
    client.sendall(sent)
    client.shutdown(socket.SHUT_WR)
    return client, sent


@pytest.mark.parametrize(
    ("listen", "header"),
    [("tcp:0", b""), ("haproxy:tcp:0:interface=127.0.0.1", proxy_header(2, "192.0.2.1", 40000))],
)
def test_signal_before_accept(listen: str, header: bytes) -> None:
    """Connections in the backlog at the time of the signal are served, too."""
    with Daemon("--listen", listen) as daemon:
        with daemon.connect() as client:  # the daemon serves, so its signal handlers are installed
            client.sendall(header + b"!")
            assert client.recv(1) == b"!"
        daemon.process.send_signal(signal.SIGSTOP)
        clients = [daemon.connect() for _ in range(300)]
        for client in clients:
            client.sendall(header + b"hello")
            client.shutdown(socket.SHUT_WR)
        daemon.terminate()
        daemon.process.send_signal(signal.SIGCONT)
        for client in clients:
            with client:
                assert receive_all(client) == b"hello"
        daemon.wait()
        assert daemon.log.count("finished, 5 bytes") == 300


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_and_slow_reader(number: int) -> None:
    """After SIGTERM, SIGINT or SIGHUP, a slow reader gets each byte, then FIN."""
    with Daemon("--port", "0", "--drain-timeout", "20") as daemon:
        client, sent = send_unread(daemon, 4 * MIB)
        with client:
            daemon.terminate(number)
            daemon.wait_for("received SIG")
            assert receive_all(client) == sent
        assert daemon.wait() == 0
        assert "finished, 4194304 bytes" in daemon.log


def flood(daemon: Daemon) -> tuple[socket.socket, int]:
    """Connect, and send until all buffers are full; return the number of bytes."""
    client = daemon.connect()
    sent = 0
    while select.select([], [client], [], 0.5)[1]:
        sent += client.send(bytes(1 << 16))
        assert sent < 64 * MIB, "there is no back-pressure"
    return client, sent


def test_deadline_of_a_drain() -> None:
    """At the deadline of a drain, a short reply ends with RST, never with FIN."""
    with Daemon("--port", "0", "--drain-timeout", "0.5") as daemon:
        client, _ = flood(daemon)
        with client:
            daemon.terminate()
            daemon.wait()
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        assert "aborted" in daemon.log


@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGHUP])
def test_second_signal(second: int) -> None:
    """A second signal ends the drain at once."""
    with Daemon("--port", "0", "--drain-timeout", "1000") as daemon:
        client, _ = flood(daemon)
        with client:
            daemon.terminate()
            daemon.wait_for("draining, for 1000 s at most: open connections: 1")
            daemon.terminate(second)
            daemon.wait()
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        assert "aborted" in daemon.log
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("reactor", ["epoll", "poll", "select", "asyncio"])
@pytest.mark.parametrize(
    "numbers",
    [
        (signal.SIGTERM, signal.SIGINT),
        (signal.SIGINT, signal.SIGHUP),
        (signal.SIGHUP, signal.SIGTERM, signal.SIGINT),
    ],
)
def test_signals_in_one_iteration(reactor: str, numbers: tuple[int, ...]) -> None:
    """Several signals in one reactor iteration end the drain, without a traceback."""
    command = ("-n", "--reactor", reactor, "echod")
    with Daemon("--port", "0", "--drain-timeout", "1000", twistd=command) as daemon:
        client, _ = flood(daemon)
        with client:
            daemon.process.send_signal(signal.SIGSTOP)
            for number in numbers:
                daemon.process.send_signal(number)
            daemon.process.send_signal(signal.SIGCONT)
            assert daemon.wait() == 0
            with pytest.raises(ConnectionResetError):
                receive_all(client)
        assert daemon.log.count("shutting down") == 1
        assert daemon.log.count("not waiting any longer") == 1
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_ignored_signal(number: int) -> None:
    """A signal that is ignored at the start, as under nohup(1), stays ignored."""

    def ignore() -> None:
        signal.signal(number, signal.SIG_IGN)

    with Daemon("--port", "0", preexec_fn=ignore) as daemon:
        for _ in range(2):
            with daemon.connect() as client:
                client.sendall(b"x")
                assert client.recv(1) == b"x"
            daemon.terminate(number)
        other = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
        daemon.terminate(other)
        assert daemon.wait() == 0
        assert daemon.log.count("received SIG") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_signal_during_start(number: int, tmp_path: Path) -> None:
    """A signal during the start stops the service after it, with status 0."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, sys\n"
        "from twisted.logger import textFileLogObserver\n"
        "def log():\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return textFileLogObserver(sys.stdout)\n"
    )
    daemon = Daemon(
        *("--port", "0"),
        twistd=("-n", "--logger", "slow.log", "echod"),  # called after the service maker
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    with daemon:
        assert daemon.wait() == 0
        assert "listening on" in daemon.log
        assert "Traceback" not in daemon.log


def test_signals_during_hanging_start(tmp_path: Path) -> None:
    """A second signal ends a start that hangs."""
    (tmp_path / "slow.py").write_text(
        "import time\n"
        "def log():\n"
        "    print('waiting', flush=True)\n"
        f"    time.sleep({10 * TIMEOUT})\n"
    )
    daemon = Daemon(
        twistd=("-n", "--logger", "slow.log", "echod"),
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    try:
        daemon.wait_for("waiting")
        daemon.terminate()
        daemon.terminate(signal.SIGINT)
        assert daemon.wait() in {-signal.SIGTERM, -signal.SIGINT}
        assert daemon.log == "waiting"
    finally:
        daemon.close()


def test_drain_of_idle_connections() -> None:
    """A drain of 500 idle connections closes each with FIN, at once."""
    with Daemon("--port", "0", "--quiet") as daemon:
        clients = [daemon.connect() for _ in range(500)]
        clients[-1].sendall(b"x")
        assert clients[-1].recv(1) == b"x"  # all are accepted
        began = time.monotonic()
        daemon.terminate()
        daemon.wait()
        took = time.monotonic() - began
        assert all(client.recv(1) == b"" for client in clients)
        for client in clients:
            client.close()
        assert took < 5, took  # the soak tests have the exact figure
        assert "Traceback" not in daemon.log


def test_out_of_descriptors() -> None:
    """With 64 descriptors and 200 clients, the first ones are served, and the others refused.

    Refusals are counted in at most one line per second. A closed connection makes room for another.
    """
    with Daemon(
        "--port",
        "0",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    ) as daemon:
        served: list[socket.socket] = []
        refusals = 0
        began = time.monotonic()
        for _ in range(200):
            client: Any = None
            try:
                client = daemon.connect()
                client.sendall(b"hello")
                assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            except OSError:
                refusals += 1
                if client is not None:
                    client.close()
            else:
                served.append(client)
        assert 20 < len(served) < 64
        assert len(served) + refusals == 200
        for client in served:
            client.sendall(b"still here")
            assert client.recv(10, socket.MSG_WAITALL) == b"still here"
        served.pop().close()
        daemon.wait_for("closed")
        with daemon.connect() as newcomer:
            newcomer.sendall(b"hello")
            assert newcomer.recv(5, socket.MSG_WAITALL) == b"hello"
        for client in served:
            client.close()
        daemon.wait_for("closed", len(served) + 2)
        seconds = time.monotonic() - began

        daemon.terminate()  # which logs the pending summary
        daemon.wait()
        lines = [each.partition("refused ")[2] for each in daemon.lines if "refused" in each]
        assert sum(int(line.split()[0]) for line in lines) == refusals
        assert len(lines) <= seconds + 2
        assert "EMFILE" not in daemon.log
        assert "Traceback" not in daemon.log


def test_resets_in_mid_transfer() -> None:
    """300 resets in mid-transfer leave no descriptor, and disturb no other client."""
    with Daemon("--port", "0") as daemon, daemon.connect() as neighbour:
        for _ in range(3):  # from the third byte on, the fast path serves it
            neighbour.sendall(b"x")
            assert neighbour.recv(1) == b"x"
        neighbour.sendall(bytes(MIB // 8))  # after which the pipe of splice(2) is open
        left = MIB // 8
        while left:
            left -= len(neighbour.recv(left))
        before = daemon.descriptors()
        linger = b"\1\0\0\0\0\0\0\0"  # on, 0 seconds: close is RST (socket(7))
        for _ in range(300):
            with daemon.connect() as client:
                client.setblocking(False)
                client.send(bytes(MIB))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        daemon.wait_for("closed", 300)
        neighbour.sendall(b"hello")
        assert neighbour.recv(5, socket.MSG_WAITALL) == b"hello"
        assert daemon.descriptors() == before
        assert "Traceback" not in daemon.log


def test_help_is_printed_once() -> None:
    """--help prints one usage line, each option once, and four examples."""
    done = subprocess.run(
        [str(TWISTD), "-n", "echod", "--help"],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=True,
        env=os.environ | {"COLUMNS": "100"},
    )
    assert done.stdout.startswith("Usage: twistd [options of twistd] echod [options]\n")
    assert done.stdout.count("Usage") == done.stdout.count("  --port=PORT ") == 1
    *_, examples = done.stdout.partition("Examples:\n")
    assert [line[:18] for line in examples.splitlines()] == ["  twistd -n echod "] * 4 + [""]


def test_late_reader() -> None:
    """A client that sends 64 MiB and reads a second later gets each byte, then FIN."""
    with Daemon("--port", "0") as daemon, daemon.connect() as client:
        sent = random.Random(862).randbytes(64 * MIB)
        sender = threading.Thread(
            target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR))
        )
        sender.start()
        sender.join(1)  # the pause before reading
        assert receive_all(client) == sent
        sender.join()


def test_import_is_light() -> None:
    """Importing echod and building a factory installs no reactor and imports Twisted alone."""
    code = (
        "import sys; before = set(sys.modules); import twisted.internet.tcp, "
        "twisted.internet.task, twisted.internet.endpoints; twisted = set(sys.modules); "
        "import echod, echod.testing; echod.EchoFactory(); "
        "assert 'twisted.internet.reactor' not in sys.modules; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - twisted}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT, check=True
    )
    new = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert new <= {"echod", "twisted"}, new


def udp(daemon: Daemon) -> socket.socket:
    """Return a socket connected to the daemon's UDP port."""
    port = int(daemon.wait_for("listening on udp 127.0.0.1")[0].rpartition(":")[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock


def test_udp() -> None:
    """``--listen udp:`` answers datagrams on both loopback addresses, beside other endpoints."""
    with Daemon("--listen", "udp:0", "--listen", "tcp:0:interface=127.0.0.1") as daemon:
        for _ in range(3):
            with udp(daemon) as sock:
                sock.send(b"hello")
                assert sock.recv(9) == b"hello"
                port = sock.getpeername()[1]
        assert f"listening on udp [::1]:{port}" in daemon.log
        with daemon.connect() as client:
            client.sendall(b"x")
            assert client.recv(1) == b"x"
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("address", ["UDP4:127.0.0.1", "UDP6:[::1]"])
def test_udp_with_socat(address: str) -> None:
    """Socat gets its datagram back, as in the README."""
    if not shutil.which("socat"):
        pytest.skip("socat is not installed")
    with Daemon("--listen", "udp:0") as daemon, udp(daemon) as sock:
        port = sock.getpeername()[1]
        ended = subprocess.run(
            ["socat", "-t", "1", "-", f"{address}:{port}"],
            input=b"hello",
            capture_output=True,
            timeout=TIMEOUT,
            check=True,
        )
        assert ended.stdout == b"hello"


def test_udp_stops() -> None:
    """A stop answers the datagrams that have arrived, and closes the port."""
    with Daemon("--listen", "udp:0") as daemon, udp(daemon) as sock:
        sock.send(b"?")
        assert sock.recv(9) == b"?"
        daemon.process.send_signal(signal.SIGSTOP)
        for number in range(90):
            sock.send(b"%d" % number)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGCONT)
        assert [sock.recv(9) for _ in range(90)] == [b"%d" % number for number in range(90)]
        daemon.wait()
        assert "Traceback" not in daemon.log


def test_udp_port_in_use() -> None:
    """A UDP port in use gets one line."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        line = refused("--listen", "tcp:0", "--listen", f"udp:{port}")
        assert f"cannot listen on udp 127.0.0.1:{port}: address already in use: stop" in line


def test_dropped_datagrams_are_logged() -> None:
    """Datagrams that are not answered are logged, by reason."""
    with Daemon("--listen", "udp:0", "--udp-rate", "1") as daemon, udp(daemon) as sock:
        for _ in range(3):
            sock.send(b"?")
        assert sock.recv(9) == b"?"
        [line, *_] = daemon.wait_for("did not answer")
        host, port = sock.getsockname()
        assert line.endswith(f"source-rate 1, from udp {host}:{port}")
        daemon.terminate()
        daemon.wait()
        lines = [each for each in daemon.lines if "did not answer" in each]
        assert [line.partition("answer ")[2].split()[0] for line in lines] == ["1", "1"]
