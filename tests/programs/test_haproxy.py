"""A daemon behind HAProxy, which sends the client's address in a PROXY header."""

from __future__ import annotations

import random
import shutil
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests import TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

MIB = 1 << 20

CONFIGURATION = """
defaults
    mode tcp
    timeout connect 20s
    timeout client 20s
    timeout server 20s
listen echo
    bind fd@{descriptor}
    server echo {server} {options}
"""


class Balancer:
    """An HAProxy process in front of ``server``."""

    def __init__(self, server: str, options: str, host: str = "127.0.0.1") -> None:
        if shutil.which("haproxy") is None:
            pytest.skip("haproxy is not installed; .ci/run installs it")
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family) as listening:
            self.address = listening.getsockname()[:2]
            configuration = CONFIGURATION.format(
                descriptor=listening.fileno(), server=server, options=options
            )
            self.directory = tempfile.TemporaryDirectory()
            path = Path(self.directory.name, "configuration")
            path.write_text(configuration)
            self.process = subprocess.Popen(
                ["haproxy", "-db", "-q", "-f", str(path)], pass_fds=[listening.fileno()]
            )

    def __enter__(self) -> Balancer:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        self.directory.cleanup()

    def connect(self, source: str | None = None) -> socket.socket:
        return socket.create_connection(
            self.address, TIMEOUT, source_address=(source, 0) if source else None
        )


def echoed(client: socket.socket, data: bytes) -> bytes:
    """Send ``data``, half-close, and return the reply."""
    client.sendall(data)
    client.shutdown(socket.SHUT_WR)
    return receive_all(client)


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 crc32c-opt"])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_client(option: str, host: str) -> None:
    """Each byte is echoed through HAProxy, also after a half-close; the log has the client."""
    option = option.replace("crc32c-opt", "proxy-v2-options crc32c,unique-id")
    with (
        Daemon("--listen", "haproxy:tcp:0:interface=127.0.0.1") as daemon,
        Balancer(f"127.0.0.1:{daemon.port}", option, host) as balancer,
    ):
        for size in (1, 5, MIB):
            with balancer.connect() as client:
                name = f"[{host}]" if ":" in host else host
                mine = f"tcp {name}:{client.getsockname()[1]}"
                sent = random.Random(862).randbytes(size)
                assert echoed(client, sent) == sent
            daemon.wait_for(f"closed {mine}: finished, {size} bytes in")
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2"])
def test_unix(option: str, tmp_path: Path) -> None:
    """Over a UNIX socket, the log has the client's IP address, too."""
    path = tmp_path / "socket"
    with (
        Daemon("--listen", f"haproxy:unix:{path}:mode=600") as daemon,
        Balancer(f"unix@{path}", option) as balancer,
        balancer.connect() as client,
    ):
        mine = "tcp {}:{}".format(*client.getsockname())
        assert echoed(client, b"hello") == b"hello"
        daemon.wait_for(f"closed {mine}: finished, 5 bytes in")
        assert path.stat().st_mode & 0o777 == 0o600


def test_limit_for_one_client() -> None:
    """The limit per peer applies to the clients of the proxy, not to the proxy."""
    with (
        Daemon(
            *("--listen", "haproxy:tcp:0:interface=127.0.0.1", "--max-connections-per-peer", "1")
        ) as daemon,
        Balancer(f"127.0.0.1:{daemon.port}", "send-proxy-v2") as balancer,
        balancer.connect("127.0.0.1") as first,
    ):
        first.sendall(b"?")
        assert first.recv(1) == b"?"
        with balancer.connect("127.0.0.1") as second, balancer.connect("127.0.0.2") as other:
            assert echoed(other, b"hello") == b"hello"
            mine = "{}:{}".format(*second.getsockname())
            [line] = daemon.wait_for("refused 1 connection")
            assert line.endswith(f": max-connections-per-peer 1, from tcp {mine}")
        assert echoed(first, b"hello") == b"hello"


def test_health_checks() -> None:
    """A health check is unused, with a PROXY header or without; ``--verbose`` alone logs it."""
    for verbose in ([], ["--verbose"]):
        health_checks(*verbose)


def health_checks(*verbose: str) -> None:
    with Daemon("--listen", "haproxy:tcp:0:interface=127.0.0.1", *verbose) as daemon:
        where = f"127.0.0.1:{daemon.port}"
        silent = f"send-proxy-v2 check port {daemon.port} inter 50ms"
        with Balancer(where, silent) as balancer:
            time.sleep(1)  # time for some checks, which must not be logged
            with balancer.connect() as client:
                assert echoed(client, b"hello") == b"hello"
            daemon.wait_for("finished, 5 bytes")
        if verbose:
            with Balancer(where, "send-proxy-v2 check inter 50ms"):
                read = len([line for line in daemon.lines if "PROXY header" in line])
                daemon.wait_for("PROXY header", read + 3)
            daemon.wait_for(": unused, 0 bytes in", 3)
        else:
            assert len([line for line in daemon.lines if "closed" in line]) == 1
        assert "refused" not in daemon.log
        assert "Traceback" not in daemon.log


def test_without_a_header() -> None:
    """A client without a PROXY header is reset and counted: no traceback, no echo."""
    with Daemon("--listen", "haproxy:tcp:0:interface=127.0.0.1") as daemon:
        for sent in (
            b"hello",
            b"PROXY TCP4 \xff\xfe 192.0.2.1 1 1\r\nhello",
            b"\r\n\r\n\0\r\nQUOT\n",
        ):
            with daemon.connect() as client:
                client.sendall(sent)
                with pytest.raises(ConnectionResetError):
                    receive_all(client)
        daemon.terminate()  # which logs the pending summary
        daemon.wait()
        assert sum("proxy-header" in line for line in daemon.lines) == 2
        assert "refused 1 connection: proxy-header 1, from tcp 127.0.0.1:" in daemon.log
        assert "refused 2 connections: proxy-header 2, the last from tcp 127.0.0.1:" in daemon.log
        assert "Traceback" not in daemon.log


@pytest.mark.parametrize("behind", ["udp:7", "ssl:7", "haproxy:tcp:7", "", "tcp:http", "unix:"])
def test_unsupported_endpoints(behind: str) -> None:
    """An endpoint that haproxy: cannot wrap is refused in one line that has the whole option."""
    daemon = Daemon("--listen", f"haproxy:{behind}")
    try:
        assert daemon.wait() == 2
    finally:
        daemon.close()
    assert f"twistd echod: --listen 'haproxy:{behind}': " in daemon.lines[-1]
    assert "Traceback" not in daemon.log
