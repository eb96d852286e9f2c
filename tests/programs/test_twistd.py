"""The real daemon in a process of its own, used as people use it."""

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


def refused(*options: str, prefix: tuple[str, ...] = ()) -> str:
    """Start a daemon that cannot serve, and return its one line."""
    daemon = Daemon(*options, prefix=prefix)
    began = time.monotonic()
    try:
        status = daemon.wait()
    finally:
        daemon.close()
    assert status == 1, daemon.log
    assert time.monotonic() - began < 10  # it takes one; a busy machine takes longer
    assert "Traceback" not in daemon.log
    lines = [line for line in daemon.lines if "twistd echod: " in line]
    assert lines == daemon.lines[-1:], daemon.log
    return lines[0]


def test_where_it_listens() -> None:
    """The log says exactly where it listens: by default both loopbacks, on one port."""
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
    """What is piped into nc, ncat or socat comes back, and they exit by themselves."""
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
    """Each connection is one line when it ends: peer, ending, bytes, seconds."""
    with Daemon("--port", "0") as daemon:
        with daemon.connect() as client:
            mine = "{}:{}".format(*client.getsockname())
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        [line] = daemon.wait_for("closed")
        assert f"closed tcp {mine}: finished, 5 bytes in 0." in line


def test_quiet() -> None:
    """With --quiet there is no line for a connection."""
    with Daemon("--port", "0", "--quiet") as daemon:
        with daemon.connect() as client:
            client.shutdown(socket.SHUT_WR)
            receive_all(client)
        daemon.terminate()
        daemon.wait()
        assert "closed" not in daemon.log


def test_listen(tmp_path: Path) -> None:
    """--listen takes any endpoints, several of them."""
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
    """Bad input gets one line, and exit status 1 (test_wrong_command_lines.py has more)."""
    assert "takes no arguments, not 'stray'" in refused("stray")


def test_port_in_use(tmp_path: Path) -> None:
    """A port in use gets one line; what was opened before it is closed, its files removed."""
    path = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        assert "address already in use" in refused("--port", str(port))
        taken = f"tcp:{port}:interface=127.0.0.1"
        line = refused("--listen", f"unix:{path}", "--listen", taken)
        assert f"--listen {taken!r}: cannot listen on tcp 127.0.0.1:{port}" in line
    assert list(tmp_path.iterdir()) == []


def test_port_that_needs_rights() -> None:
    """A port that needs rights gets one line that names the right."""
    if int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text()) <= 7:
        pytest.skip("on this system every port is free to all")
    without = (
        ("setpriv", "--bounding-set", "-net_bind_service", "--inh-caps", "-net_bind_service")
        if os.geteuid() == 0
        else ()
    )
    line = refused("--port", "7", prefix=without)
    assert "tcp 127.0.0.1:7: permission denied: " in line
    assert "CAP_NET_BIND_SERVICE" in line


def test_daemonized(tmp_path: Path) -> None:
    """Without -n the waiting parent is told, exits with status 1, and no pid file stays."""
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
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it is gone already
        daemon = os.pidfd_open(int((tmp_path / "pid").read_text()))
        select.select([daemon], [], [], TIMEOUT)  # it tells its parent first, and then cleans up
        os.close(daemon)
    assert not (tmp_path / "pid").exists()


def network(setup: str) -> tuple[str, ...]:
    """Return how to run a command in a network of its own, after ``setup``."""
    inside = ("unshare", "--net", "--map-root-user", "sh", "-c", f'{setup} && exec "$@"', "sh")
    if (
        shutil.which("ip") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("needs ip (Debian's iproute2) and leave to make a network namespace")
    return inside


def test_link_local() -> None:
    """An address that is local to a link is served with its zone, over TCP and UDP."""
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
    """Where the machine has no IPv6 it says so in one line, and serves IPv4."""
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
    """At :: clients of both families are served; an IPv4 client is logged and counted as itself."""
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


def owe(daemon: Daemon, size: int) -> tuple[socket.socket, bytes]:
    """Connect, send ``size`` bytes and finish, reading nothing; return when all were taken."""
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
    """Who has connected and sent before the signal, and was not accepted yet, is served too."""
    with Daemon("--listen", listen) as daemon:
        with daemon.connect() as client:  # it serves, and so knows what SIGTERM means
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
def test_signal_delivers_what_is_owed(number: int) -> None:
    """SIGTERM, SIGINT and SIGHUP: a slow reader gets every byte, then FIN, and the daemon goes."""
    with Daemon("--port", "0", "--drain-timeout", "20") as daemon:
        client, sent = owe(daemon, 4 * MIB)
        with client:
            daemon.terminate(number)
            daemon.wait_for("received SIG")
            assert receive_all(client) == sent
        assert daemon.wait() == 0
        assert "finished, 4194304 bytes" in daemon.log


def flood(daemon: Daemon) -> tuple[socket.socket, int]:
    """Connect, and send without reading until nobody takes any more; return how much."""
    client = daemon.connect()
    sent = 0
    while select.select([], [client], [], 0.5)[1]:
        sent += client.send(bytes(1 << 16))
        assert sent < 64 * MIB, "it takes and takes"
    return client, sent


def test_deadline_of_a_drain() -> None:
    """What is owed past the deadline ends in RST: never a FIN on a short reply."""
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
def test_signals_in_one_turn(reactor: str, numbers: tuple[int, ...]) -> None:
    """Several signals in one turn of the reactor: the drain does not wait, and nothing fails."""
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
    """A signal that is ignored when the daemon starts, as by nohup(1), does not stop it."""

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
def test_signal_while_it_starts(number: int, tmp_path: Path) -> None:
    """A signal while the service starts stops it as soon as it has, with status 0."""
    (tmp_path / "slow.py").write_text(
        "import os, signal, sys\n"
        "from twisted.logger import textFileLogObserver\n"
        "def log():\n"
        f"    os.kill(os.getpid(), {int(number)})\n"
        "    return textFileLogObserver(sys.stdout)\n"
    )
    daemon = Daemon(
        *("--port", "0"),
        twistd=("-n", "--logger", "slow.log", "echod"),  # twistd calls it after the service maker
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    with daemon:
        assert daemon.wait() == 0
        assert "listening on" in daemon.log
        assert "Traceback" not in daemon.log


def test_signals_while_it_hangs(tmp_path: Path) -> None:
    """A second signal ends a start that does not come to an end."""
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


def test_idle_connections_do_not_hold_up_the_exit() -> None:
    """SIGTERM with 500 idle connections: each is closed cleanly, in less than a second."""
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
        assert took < 5, took  # the figure itself is the soak tests'
        assert "Traceback" not in daemon.log


def test_out_of_descriptors() -> None:
    """With 64 descriptors and 200 clients: those inside go on, the others are refused.

    The refusals are counted, at most a line a second, and when there is room others
    come in.
    """
    with Daemon(
        "--port",
        "0",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64)),
    ) as daemon:
        inside: list[socket.socket] = []
        outside = 0
        began = time.monotonic()
        for _ in range(200):
            client: Any = None
            try:
                client = daemon.connect()
                client.sendall(b"hello")
                assert client.recv(5, socket.MSG_WAITALL) == b"hello"
            except OSError:
                outside += 1
                if client is not None:
                    client.close()
            else:
                inside.append(client)
        assert 20 < len(inside) < 64
        assert len(inside) + outside == 200
        for client in inside:
            client.sendall(b"still here")
            assert client.recv(10, socket.MSG_WAITALL) == b"still here"
        inside.pop().close()
        daemon.wait_for("closed")
        with daemon.connect() as newcomer:
            newcomer.sendall(b"hello")
            assert newcomer.recv(5, socket.MSG_WAITALL) == b"hello"
        for client in inside:
            client.close()
        daemon.wait_for("closed", len(inside) + 2)
        seconds = time.monotonic() - began

        daemon.terminate()  # which sums up what is not told yet
        daemon.wait()
        told = [line.partition("refused ")[2].split() for line in daemon.lines if "refused" in line]
        assert sum(int(words[0]) for words in told) == outside
        assert len(told) <= seconds + 2
        assert "EMFILE" not in daemon.log
        assert "Traceback" not in daemon.log


def test_resets_in_mid_transfer() -> None:
    """300 resets in mid-transfer leave no descriptor, no traceback, and a neighbour undisturbed."""
    with Daemon("--port", "0") as daemon, daemon.connect() as neighbour:
        for _ in range(3):  # by the third, the fast path has its descriptor
            neighbour.sendall(b"x")
            assert neighbour.recv(1) == b"x"
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
    """--help prints one usage line, each option once, and three examples at the end."""
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
    assert [line[:18] for line in examples.splitlines()] == ["  twistd -n echod "] * 3 + [""]


def test_a_late_reader_after_a_long_pause() -> None:
    """64 MiB and SHUT_WR, the reader asleep for the first second: every byte, then FIN."""
    with Daemon("--port", "0") as daemon, daemon.connect() as client:
        sent = random.Random(862).randbytes(64 * MIB)
        sender = threading.Thread(
            target=lambda: (client.sendall(sent), client.shutdown(socket.SHUT_WR))
        )
        sender.start()
        sender.join(1)  # the pause itself is what is tested
        assert receive_all(client) == sent
        sender.join()


def test_import_is_light() -> None:
    """To import echod and build the factory installs no reactor, and needs Twisted alone."""
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
    """Return a socket that is connected to the daemon's UDP port."""
    port = int(daemon.wait_for("listening on udp 127.0.0.1")[0].rpartition(":")[2])
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.connect(("127.0.0.1", port))
    return sock


def test_udp() -> None:
    """``--listen udp:`` answers datagrams, on both loopbacks, beside other endpoints."""
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
    """The README's way to try it works."""
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
    """At a stop what has come is answered, and the port is closed at once."""
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
    """A UDP port that is taken is told in one line, and the other ports are closed again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        said = refused("--listen", "tcp:0", "--listen", f"udp:{port}")
        assert f"cannot listen on udp 127.0.0.1:{port}: address already in use: stop" in said


def test_not_answered_is_logged() -> None:
    """What is not answered is summed up in the log, by reason."""
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
