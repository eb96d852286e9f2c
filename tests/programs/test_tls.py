"""``--listen ssl:`` in a real daemon, used with the tools that people use."""

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
    """Connect, and do the handshake; with ``own`` key and certificate, if asked for."""
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


def said(client: ssl.SSLSocket, data: bytes) -> bytes:
    """Send ``data``, and return what comes back for it."""
    client.sendall(data)
    received = b""
    while len(received) < len(data):
        part = client.recv(1 << 16)
        assert part
        received += part
    return received


def serial(client: ssl.SSLSocket) -> Any:
    """Return what tells the service's certificate from others."""
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
    """Run a stunnel to the service, and yield the port where it listens."""
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
    """What is piped into openssl s_client comes back. It does not leave by itself."""
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


def test_openssl_that_leaves(authority: Authority) -> None:
    """What openssl s_client gives back before it leaves is all that it was told by then."""
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
    """What is piped into socat comes back, and it exits by itself."""
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
    """Through stunnel, what a plain TCP client sends before it finishes comes back."""
    needs("stunnel")
    with serving(authority) as daemon, stunnel(daemon, authority, tmp_path) as port:
        for data in (b"hello", random.Random(862).randbytes(8 * MIB)):
            with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
                sender = threading.Thread(
                    target=lambda to, what: (to.sendall(what), to.shutdown(socket.SHUT_WR)),
                    args=(client, data),
                )
                sender.start()
                received = b""
                while part := client.recv(1 << 20):
                    received += part
                sender.join()
            assert received == data


def test_a_reader_that_stalls_for_a_while(authority: Authority) -> None:
    """64 MiB and the closing alert, the reader asleep for the first second: every byte."""
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
            sender.join(1)  # the pause itself is what is tested
            received = process.stdout.read()
            sender.join()
        assert received == sent
        daemon.wait_for(f": finished, {64 * MIB} bytes")


def test_resets(authority: Authority) -> None:
    """200 resets, in handshakes and in mid-transfer, leave no descriptor and no traceback."""
    linger = b"\1\0\0\0\0\0\0\0"  # on, 0 seconds: close is RST (socket(7))
    with serving(authority) as daemon, connect(daemon, authority) as neighbour:
        assert said(neighbour, b"x") == b"x"
        before = daemon.descriptors()
        for number in range(100):
            with connect(daemon, authority, SO_SNDBUF=1 << 20) as client:
                assert said(client, b"x") == b"x"  # or else it may count as unused
                client.send(bytes(1 << 14) * (number % 8 + 1))
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
                client.send(b"\x16\x03\x01\x02\x00\x01"[: number % 6 + 1])
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        daemon.wait_for(": lost, ", 100)
        assert said(neighbour, b"still here") == b"still here"
        daemon.terminate()
        daemon.wait_for("draining")
        assert daemon.descriptors() <= before
        daemon.wait()
        told = [line.partition("refused ")[2].split() for line in daemon.lines if "refused" in line]
        assert sum(int(words[0]) for words in told) == 100
        assert "Traceback" not in daemon.log


def test_client_certificates(authority: Authority, tmp_path: Path) -> None:
    """With clientCA, who shows a certificate of that authority is served, and nobody else.

    With TLS 1.3 a client is told so only when it reads (RFC 8446 4.4.2.4).
    """
    other = tmp_path / "other"
    other.mkdir()
    stranger = Authority(other, "stranger").issue("client")
    with serving(authority, more=f":clientCA={authority.file}") as daemon:
        with connect(daemon, authority, own=authority.issue("client")) as client:
            assert said(client, b"hello") == b"hello"
        for own in (None, stranger):
            # told in the handshake's alert, or by the reset behind it
            with (
                pytest.raises((ssl.SSLError, ConnectionResetError)),
                connect(daemon, authority, own=own) as client,
            ):
                said(client, b"hello")
        daemon.terminate()
        daemon.wait()
        assert "Traceback" not in daemon.log
        assert daemon.log.count("tls-handshake 1") == 2
        assert daemon.log.count("closed tls") == 1


def test_half_a_handshake(authority: Authority) -> None:
    """A handshake that stops half-way is reset after --handshake-timeout, and counted."""
    with serving(authority, "--handshake-timeout", "0.5") as daemon:
        with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
            client.sendall(b"\x16\x03\x01\x02\x00\x01")
            began = time.monotonic()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert 0.4 < time.monotonic() - began < 5
        daemon.wait_for("refused 1 connection: handshake-timeout 1")


def how_it_ends(client: socket.socket, sent: bytes, *, finishes: bool) -> str:
    """Send, finish sending if told to, and return how the service ends the connection."""
    try:
        client.sendall(sent)
        if finishes:
            with contextlib.suppress(OSError):  # reset before that
                client.shutdown(socket.SHUT_WR)
        return f"FIN after {receive_all(client)!r}"
    except (ConnectionResetError, BrokenPipeError):
        return "RST"


def test_plaintext(authority: Authority) -> None:
    """Plaintext is reset and counted, never answered by FIN; TLS clients are served."""
    said_ = (b"h", b"hello", b"hello\n", b"GET / HTTP/1.1\r\n\r\n", bytes(100_000), b"\x16\x03")
    with serving(authority, "--handshake-timeout", "3") as daemon:
        for sent in said_:
            for finishes in (True, False):
                with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
                    assert how_it_ends(client, sent, finishes=finishes) == "RST", sent
        with connect(daemon, authority) as client:
            assert said(client, b"hello") == b"hello"
        daemon.terminate()
        daemon.wait()
        told = [line for line in daemon.lines if "refused" in line]
        counts = re.findall(r"(?:tls-handshake|handshake-timeout) (\d+)", "\n".join(told))
        assert sum(map(int, counts)) == 2 * len(said_)
        assert "Traceback" not in daemon.log


def test_alert_and_reset(authority: Authority) -> None:
    """A client that cannot do TLS 1.2 reads the alert that says so, and then sees RST."""
    hello = b"\x16\x03\x01\x00\x2d\x01\x00\x00\x29\x03\x01" + bytes(32) + b"\0\0\2\x00\x2f\1\0"
    with serving(authority) as daemon:
        with socket.create_connection(("127.0.0.1", daemon.tls_port), TIMEOUT) as client:
            client.sendall(hello)
            assert client.recv(100)[:1] == b"\x15"  # an alert (RFC 8446 5.1)
            with pytest.raises(ConnectionResetError):
                client.recv(100)
        daemon.wait_for("refused 1 connection: tls-handshake 1")


def flood(client: ssl.SSLSocket, limit: int) -> int:
    """Send without reading until nobody takes any more; return how much that was."""
    client.settimeout(0.3)
    sent = 0
    with contextlib.suppress(TimeoutError, ssl.SSLWantWriteError):
        while sent < limit:
            sent += client.send(bytes(1 << 14))
    return sent


def count_all(client: ssl.SSLSocket) -> int:
    """Receive until the closing alert, and return how many bytes that were."""
    client.settimeout(TIMEOUT)
    received = 0
    while part := client.recv(1 << 20):
        received += len(part)
    return received


def test_stalled(authority: Authority) -> None:
    """A TLS peer that does not read what it is owed is reset after --stall-timeout."""
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
    """An idle TLS peer gets the closing alert and FIN, also if it does not answer."""
    with (
        serving(authority, "--idle-timeout", "0.5") as daemon,
        connect(daemon, authority) as client,
    ):
        assert said(client, b"hello") == b"hello"
        assert client.recv(1) == b""  # by an alert: an end without one raises
        daemon.wait_for(": idle, 5 bytes")


def test_many_who_never_read(authority: Authority) -> None:
    """100 TLS peers that send and never read cost what they are allowed to, and no more."""
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
    """SIGTERM: idle TLS peers get the closing alert, who is owed bytes gets them first."""
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
    """SIGHUP: who connects then gets the new certificate, who is connected stays.

    What cannot be loaded is told in one line, and the certificate before stays.
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
                assert said(new, b"hello") == b"hello"
            Path(authority.issue("server")[1]).write_text("nothing")
            daemon.terminate(signal.SIGHUP)
            [line] = daemon.wait_for("#critical")
            assert "server.pem: there is no certificate (PEM) in it; the cert" in line
            with connect(daemon, authority) as newer:
                assert serial(newer) == second
            assert said(old, b"still here") == b"still here"
        daemon.terminate()
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log


def test_reload_under_load(authority: Authority) -> None:
    """20 reloads while 8 peers talk and others come and go: nobody loses a byte."""
    with serving(authority, "--quiet") as daemon:
        over = threading.Event()
        failures: list[BaseException] = []
        count = [0, 0]

        def talk() -> None:
            try:
                with connect(daemon, authority) as client:
                    while not over.is_set():
                        assert said(client, b"x" * 20_000) == b"x" * 20_000
                        count[0] += 1
            except BaseException as error:
                failures.append(error)

        def come_and_go() -> None:
            try:
                while not over.is_set():
                    with connect(daemon, authority) as client:
                        assert said(client, b"hello") == b"hello"
                        count[1] += 1
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=each) for each in [talk] * 8 + [come_and_go] * 2]
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


def test_hang_up_in_a_drain(authority: Authority) -> None:
    """SIGHUP in a drain loads certificates too, and cuts nobody off."""
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
    ("description", "says"),
    [
        ("ssl", "a port takes a whole number from 0 to 65535, not ''; it takes ssl:PORT:private"),
        ("ssl:0:certKey={cert}", "it has no privateKey="),
        ("ssl:0:privateKey={key}:certKey=/none", "/none: no such file or directory"),
        ("ssl:0:privateKey={key}:certKey={late}", "the certificate of 'CN=late' expired on 2"),
        ("ssl:0:privateKey={key}:certKey={other}", "other.pem: is not the certificate of the key"),
        ("ssl:0:privateKey={key}:certKey={key}", "there is no certificate (PEM) in it"),
    ],
)
def test_bad_input(authority: Authority, description: str, says: str) -> None:
    """What cannot be served with gets one line that names file and cause, and exit status 1."""
    from datetime import timedelta  # noqa: PLC0415 - here alone

    key, cert = authority.issue("server")
    _, late = authority.issue("late", valid=timedelta(seconds=-5))
    _, other = authority.issue("other")
    files = {"key": key, "cert": cert, "late": late, "other": other}
    assert says in refused("--listen", description.format(**files))
