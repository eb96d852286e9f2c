"""``--listen ssl:`` in a daemon process, with openssl, socat and stunnel."""

from __future__ import annotations

import contextlib
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from echod.protocol import MAX_BUFFERED
from tests import TIMEOUT
from tests.authority import Authority
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.programs.test_twistd import refused

MIB = 1 << 20


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def ssl_port(authority: Authority, more: str = "") -> str:
    key, certificate = authority.issue("server")
    return f"ssl:0:privateKey={key}:certKey={certificate}{more}"


def serving(authority: Authority, *options: str, more: str = "") -> Daemon:
    return Daemon("--listen", ssl_port(authority, more), *options)


def connect(
    daemon: Daemon, authority: Authority, *, own: tuple[str, str] | None = None, **options: Any
) -> ssl.SSLSocket:
    """Connect and do the handshake, with the client key and certificate ``own`` if given."""
    context = ssl.create_default_context(cafile=authority.file)
    if own:
        context.load_cert_chain(own[1], own[0])
    sock = socket.socket()
    for name, value in options.items():
        sock.setsockopt(socket.SOL_SOCKET, getattr(socket, name), value)
    sock.settimeout(TIMEOUT)
    sock.connect(("127.0.0.1", daemon.tls_port))
    try:
        return context.wrap_socket(sock, server_hostname="localhost")
    except BaseException:
        sock.close()
        raise


def echo(client: ssl.SSLSocket, data: bytes) -> bytes:
    """Send ``data``, and return as many bytes of the reply."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(1 << 16)
        assert part
        received += part
    return received


def serial(client: ssl.SSLSocket) -> Any:
    """Return the serial number of the service's certificate."""
    certificate: Any = client.getpeercert()
    return certificate["serialNumber"]


STUNNEL = """
client = yes
foreground = quiet
[echo]
connect = 127.0.0.1:{port}
accept = 127.0.0.1:{free}
verifyChain = yes
CAfile = {ca}
"""


@contextlib.contextmanager
def stunnel(daemon: Daemon, authority: Authority, directory: Path) -> Iterator[int]:
    """Run a stunnel client of the service, and yield the port on which it listens."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        free = other.getsockname()[1]
    config = directory / "stunnel.conf"
    config.write_text(STUNNEL.format(port=daemon.tls_port, free=free, ca=authority.file))
    with subprocess.Popen(["stunnel", str(config)]) as process:
        try:
            deadline = time.monotonic() + TIMEOUT
            while True:
                with contextlib.suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", free)).close()
                    break
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield free
        finally:
            process.kill()


def needs(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed; .ci/run installs it")


S_CLIENT = "openssl s_client -quiet -verify_return_error -CAfile {ca} -connect 127.0.0.1:{port}"


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_openssl(authority: Authority, version: str) -> None:
    """Openssl s_client gets back its input. It does not exit by itself."""
    needs("openssl")
    with serving(authority) as daemon:
        command = S_CLIENT.format(ca=authority.file, port=daemon.tls_port).split()
        for data in (b"hello", random.Random(862).randbytes(MIB)):
            with subprocess.Popen(
                [*command, version],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            ) as process:
                assert process.stdin is not None
                assert process.stdout is not None
                process.stdin.write(data)
                process.stdin.close()
                received = process.stdout.read(len(data))
                process.kill()
            assert received == data


def test_openssl_exit_at_eof(authority: Authority) -> None:
    """Openssl s_client that exits at EOF prints the replies that arrive before."""
    needs("openssl")
    with serving(authority) as daemon:
        command = S_CLIENT.format(ca=authority.file, port=daemon.tls_port)
        done = subprocess.run(
            f"(printf hello; sleep 0.5) | {command} -no_ign_eof 2>/dev/null",
            shell=True,
            stdout=subprocess.PIPE,
            timeout=TIMEOUT,
            check=True,
        )
        assert done.stdout == b"hello"
        daemon.wait_for(": finished, 5 bytes")


def test_old_tls(authority: Authority) -> None:
    """TLS 1.1 is refused."""
    needs("openssl")
    with serving(authority) as daemon:
        command = S_CLIENT.format(ca=authority.file, port=daemon.tls_port).split()
        done = subprocess.run(
            [*command, "-tls1_1", "-cipher", "DEFAULT@SECLEVEL=0"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=TIMEOUT,
            check=False,
        )
        assert done.returncode == 1
        assert b"alert protocol version" in done.stderr
        daemon.wait_for("refused 1 connection: tls-handshake 1")


@pytest.mark.parametrize("size", [5, MIB, 20 * MIB])
def test_socat(authority: Authority, size: int) -> None:
    """Socat gets back its input, and exits by itself."""
    needs("socat")
    with serving(authority) as daemon:
        data = random.Random(862).randbytes(size)
        for host in ("127.0.0.1", "[::1]"):
            there = f"OPENSSL:{host}:{daemon.tls_port},cafile={authority.file}"
            done = subprocess.run(
                ["socat", "-t", "20", "-", there],
                input=data,
                stdout=subprocess.PIPE,
                timeout=TIMEOUT,
                check=True,
            )
            assert done.stdout == data
        assert len(daemon.wait_for(f": finished, {size} bytes", 2)) == 2


def test_stunnel(authority: Authority, tmp_path: Path) -> None:
    """Through stunnel, a plain TCP client gets back its input after a half-close."""
    needs("stunnel")
    with serving(authority) as daemon, stunnel(daemon, authority, tmp_path) as port:
        for data in (b"hello", random.Random(862).randbytes(8 * MIB)):
            with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
                sender = threading.Thread(
                    target=lambda sock, data: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)),
                    args=(client, data),
                )
                sender.start()
                received = b""
                while part := client.recv(1 << 20):
                    received += part
                sender.join()
            assert received == data


def test_late_reader(authority: Authority) -> None:
    """A client that sends 64 MiB and reads a second later gets each byte."""
    needs("socat")
    sent = random.Random(862).randbytes(64 * MIB)
    with serving(authority) as daemon:
        there = f"OPENSSL:localhost:{daemon.tls_port},cafile={authority.file},pf=ip4"
        with subprocess.Popen(
            ["socat", "-t", "20", "-", there], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            pipe = process.stdin

            def send() -> None:
                pipe.write(sent)
                pipe.close()

            sender = threading.Thread(target=send)
            sender.start()
            sender.join(1)  # the pause before reading
            received = process.stdout.read()
            sender.join()
        assert received == sent
        daemon.wait_for(f": finished, {64 * MIB} bytes")


def test_resets(authority: Authority) -> None:
    """200 resets, in handshakes and in transfers, leave no descriptor and no traceback."""
    linger = b"\1\0\0\0\0\0\0\0"  # on, 0 seconds: close is RST (socket(7))
    with serving(authority) as daemon, connect(daemon, authority) as neighbour:
        assert echo(neighbour, b"x") == b"x"
        before = daemon.descriptors()
        for number in range(100):
            with connect(daemon, authority, SO_SNDBUF=1 << 20) as client:
                assert echo(client, b"x") == b"x"  # so that it is not unused
                client.send(bytes(1 << 14) * (number % 8 + 1))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
                client.send(b"\x16\x03\x01\x02\x00\x01"[: number % 6 + 1])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        daemon.wait_for(": lost, ", 100)
        assert echo(neighbour, b"still here") == b"still here"
        daemon.terminate()
        daemon.wait_for("draining")
        assert daemon.descriptors() <= before
        daemon.wait()
        lines = [each.partition("refused ")[2] for each in daemon.lines if "refused" in each]
        assert sum(int(line.split()[0]) for line in lines) == 100
        assert "Traceback" not in daemon.log


def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    """With clientCA, a client needs a certificate of that authority.

    With TLS 1.3, a client reads the refusal after its handshake (RFC 8446 4.4.2.4).
    """
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority(other, "stranger").issue("client")
    with serving(authority, more=f":clientCA={authority.file}") as daemon:
        with connect(daemon, authority, own=authority.issue("client")) as client:
            assert echo(client, b"hello") == b"hello"
        for own in (None, stranger):
            # an alert, or the reset that follows it
            with (
                pytest.raises((ssl.SSLError, ConnectionResetError)),
                connect(daemon, authority, own=own) as client,
            ):
                echo(client, b"hello")
        daemon.terminate()
        daemon.wait()
        assert "Traceback" not in daemon.log
        assert daemon.log.count("tls-handshake 1") == 2
        assert daemon.log.count("closed tls") == 1


def test_half_a_handshake(authority: Authority) -> None:
    """An incomplete handshake is reset after --handshake-timeout, and logged."""
    with serving(authority, "--handshake-timeout", "0.5") as daemon:
        with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01")
            began = time.monotonic()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert 0.4 < time.monotonic() - began < 5
        daemon.wait_for("refused 1 connection: handshake-timeout 1")


def how_it_ends(client: socket.socket, sent: bytes, *, finishes: bool) -> str:
    """Send ``sent``, half-close if ``finishes``, and return how the service ends the connection."""
    try:
        client.sendall(sent)
        if finishes:
            with contextlib.suppress(OSError):  # reset before that
                client.shutdown(socket.SHUT_WR)
        return f"FIN after {receive_all(client)!r}"
    except (ConnectionResetError, BrokenPipeError):
        return "RST"


def test_plaintext(authority: Authority) -> None:
    """A plain-text client is reset and counted, never closed with FIN."""
    inputs = (b"h", b"hello", b"hello\n", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"\x16\x03")
    with serving(authority, "--handshake-timeout", "3") as daemon:
        for sent in inputs:
            for finishes in (True, False):
                with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
                    assert how_it_ends(client, sent, finishes=finishes) == "RST", sent
        with connect(daemon, authority) as client:
            assert echo(client, b"hello") == b"hello"
        daemon.terminate()
        daemon.wait()
        lines = [line for line in daemon.lines if "refused" in line]
        counts = re.findall(r"(?:tls-handshake|handshake-timeout) (\d+)", "\n".join(lines))
        assert sum(map(int, counts)) == 2 * len(inputs)
        assert "Traceback" not in daemon.log


def test_alert_and_reset(authority: Authority) -> None:
    """A client below TLS 1.2 gets an alert, then RST."""
    hello = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + bytes(32) + b"\0\0\2\x00\x2f\1\0"
    with serving(authority) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
            client.sendall(hello)
            assert client.recv(100)[:1] == b"\x15"  # an alert (RFC 8446 5.1)
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        daemon.wait_for("refused 1 connection: tls-handshake 1")


def flood(client: ssl.SSLSocket, limit: int) -> int:
    """Send until all buffers are full; return the number of bytes."""
    client.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError, ssl.SSLWantWriteError):
        while sent < limit:
            sent += client.send(bytes(1 << 14))
    return sent


def count_all(client: ssl.SSLSocket) -> int:
    """Receive until the closing alert, and return the number of bytes."""
    client.settimeout(TIMEOUT)
    received = 0
    while part := client.recv(1 << 20):
        received += len(part)
    return received


def test_stalled(authority: Authority) -> None:
    """A TLS peer that does not read its replies is reset after --stall-timeout."""
    with serving(authority, "--stall-timeout", "1") as daemon:
        with connect(daemon, authority) as client:
            assert flood(client, 64 * MIB) < 64 * MIB
            daemon.wait_for(": stalled, ")
            with socket.socket(fileno=client.detach()) as below:
                below.setblocking(True)
                with pytest.raises(ConnectionResetError):
                    receive_all(below)
        assert "not sent back" in daemon.log


def test_idle(authority: Authority) -> None:
    """An idle TLS peer gets the closing alert and FIN, without having to answer."""
    with (
        serving(authority, "--idle-timeout", "0.5") as daemon,
        connect(daemon, authority) as client,
    ):
        assert echo(client, b"hello") == b"hello"
        assert client.recv(1) == b""  # the closing alert: without one, recv raises
        daemon.wait_for(": idle, 5 bytes")


def test_many_that_never_read(authority: Authority) -> None:
    """100 TLS peers that never read use no more than the allowed memory."""
    with serving(authority, "--quiet") as daemon:
        clients = [connect(daemon, authority, SO_RCVBUF=4096) for _ in range(100)]
        before = daemon.rss()
        threads = [threading.Thread(target=flood, args=(client, 64 * MIB)) for client in clients]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        grown = daemon.rss() - before
        for client in clients:
            client.close()
        assert 0 < grown < 100 * MAX_BUFFERED


def test_drain(authority: Authority) -> None:
    """A drain closes idle TLS peers, and others once they have read their replies."""
    with serving(authority, "--drain-timeout", "20") as daemon:
        with connect(daemon, authority) as idle, connect(daemon, authority) as busy:
            sent = flood(busy, 4 * MIB)
            daemon.terminate()
            daemon.wait_for("draining")
            assert idle.recv(1) == b""
            assert count_all(busy) >= sent
        daemon.wait()
        assert daemon.log.count(": drained, ") == 2


def test_reload(authority: Authority) -> None:
    """After SIGHUP, new connections get the new certificate, and open ones continue.

    A certificate that cannot be loaded is logged, and the previous one stays.
    """
    with serving(authority) as daemon:
        with connect(daemon, authority) as old:
            first = serial(old)
            authority.issue("server")
            daemon.terminate(signal.SIGHUP)
            daemon.wait_for("certificates loaded")
            with connect(daemon, authority) as new:
                second = serial(new)
                assert second != first
                assert echo(new, b"hello") == b"hello"
            Path(authority.issue("server")[1]).write_text("nothing")
            daemon.terminate(signal.SIGHUP)
            [line] = daemon.wait_for("#critical")
            assert "server.pem: there is no certificate (PEM) in it; the old cert" in line
            with connect(daemon, authority) as newer:
                assert serial(newer) == second
            assert echo(old, b"still here") == b"still here"
        daemon.terminate()
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log


def test_reload_under_load(authority: Authority) -> None:
    """20 reloads, with 8 long connections and many short ones: no byte is lost."""
    with serving(authority, "--quiet") as daemon:
        over = threading.Event()
        failures: list[BaseException] = []
        count = [0, 0]

        def exchange() -> None:
            try:
                with connect(daemon, authority) as client:
                    while not over.is_set():
                        assert echo(client, b"x" * 20_000) == b"x" * 20_000
                        count[0] += 1
            except BaseException as error:
                failures.append(error)

        def reconnect() -> None:
            try:
                while not over.is_set():
                    with connect(daemon, authority) as client:
                        assert echo(client, b"hello") == b"hello"
                        count[1] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=each) for each in [exchange] * 8 + [reconnect] * 2]
        for thread in threads:
            thread.start()
        for number in range(20):
            authority.issue("server")
            daemon.terminate(signal.SIGHUP)
            daemon.wait_for("certificates loaded", number + 1)
        over.set()
        for thread in threads:
            thread.join()
        assert failures == []
        assert min(count) > 0
        assert "Traceback" not in daemon.log


def test_reload_during_drain(authority: Authority) -> None:
    """SIGHUP during a drain reloads the certificates, and resets no connection."""
    with serving(authority, "--drain-timeout", "20") as daemon:
        with connect(daemon, authority) as busy:
            sent = flood(busy, 64 * MIB)
            daemon.terminate()
            daemon.wait_for("draining")
            daemon.terminate(signal.SIGHUP)
            daemon.wait_for("certificates loaded")
            assert count_all(busy) >= sent
        daemon.wait()


@pytest.mark.parametrize(
    ("description", "error"),
    [
        ("ssl", "it has no port; it takes ssl:PORT:private"),
        ("ssl:0:certKey={cert}", "it has no privateKey="),
        ("ssl:0:privateKey={key}:certKey=/none", "/none: no such file or directory"),
        ("ssl:0:privateKey={key}:certKey={late}", "the certificate of 'CN=late' expired on 2"),
        ("ssl:0:privateKey={key}:certKey={other}", "other.pem: is not the certificate of the key"),
        ("ssl:0:privateKey={key}:certKey={key}", "there is no certificate (PEM) in it"),
    ],
)
def test_bad_input(authority: Authority, description: str, error: str) -> None:
    """A wrong certificate gets one line that names file and cause, and exit status 1.

    The status is 2 for a wrong description.
    """
    from datetime import timedelta  # noqa: PLC0415 - here alone

    key, cert = authority.issue("server")
    _, late = authority.issue("late", valid=timedelta(seconds=-5))
    _, other = authority.issue("other")
    files = {"key": key, "cert": cert, "late": late, "other": other}
    expected = 2 if error.startswith("it has no") else 1
    assert error in refused("--listen", description.format(**files), expected=expected)
