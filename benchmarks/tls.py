"""Speed of echod over TLS: ``python benchmarks/tls.py``.

Each round starts two servers on 127.0.0.1: ``twistd -n echod --listen ssl:``, and the "TCP Echo
Server" of asyncio's manual with ``ssl=``. They get the same load in turns: messages on a few
connections, each compared and sent again when it comes back. The load needs as much time for
encryption as the server, so that the server is not always busy. So the main figure is the number of
bytes that a server echoes in a second of its own CPU time; in a second of elapsed time it is less.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from datetime import datetime, timedelta, timezone
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Final, NamedTuple

from counting import cpu_clock, spread
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from echoes import EchoServerProtocol
from losses import HOST, announce, give_up_after, table
from servers import BACKLOG, CORES, LISTENS, LOAD_CORE, SERVER_CORE, TWISTD

WHOLE: Final = 300  # seconds after which the benchmark gives up
SIZE: Final = 16 * 1024  # bytes of a message: one record of TLS
CONNECTIONS: Final = 8
AIM: Final = 0.8
KEY, CERTIFICATE = "key.pem", "certificate.pem"
ECHOD, ASYNCIO = "echod", "asyncio"


class Size(NamedTuple):
    """The amount of work."""

    rounds: int
    messages: int  # on each connection, in a run
    runs: int  # of each server, in a round


FULL: Final = Size(rounds=7, messages=1000, runs=3)
SHORT: Final = Size(rounds=1, messages=20, runs=1)


def write_files(directory: Path) -> None:
    """Write a key and a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / KEY).write_bytes(private)
    (directory / CERTIFICATE).write_bytes(certificate.public_bytes(pem))


async def serve_asyncio(directory: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(directory / CERTIFICATE, directory / KEY)
    server = await asyncio.get_running_loop().create_server(
        EchoServerProtocol, HOST, 0, backlog=BACKLOG, ssl=context
    )
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


class Server:
    """A server process on its own core, and its peers."""

    def __init__(self, name: str, directory: Path) -> None:
        self.name = name
        files = f"privateKey={directory / KEY}:certKey={directory / CERTIFICATE}"
        command = {
            ECHOD: (*TWISTD, "echod", "--quiet", "--listen", f"ssl:0:{files}:interface={HOST}"),
            ASYNCIO: (sys.executable, str(Path(__file__).resolve()), "--serve", str(directory)),
        }[name]
        self._closing = ExitStack()
        os.sched_setaffinity(0, SERVER_CORE)
        try:
            self._process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        finally:
            os.sched_setaffinity(0, LOAD_CORE)
        self._closing.callback(self._process.communicate)
        self._closing.callback(self._process.kill)

    def ready(self, trusted: Path) -> None:
        """Wait until it listens, and open the connections."""
        assert self._process.stdout is not None
        line = "no output"
        for line in self._process.stdout:
            if found := LISTENS.search(line):
                break
        else:
            raise RuntimeError(f"{self.name} does not listen: {line.rstrip()}")
        context = ssl.create_default_context(cafile=str(trusted))
        self._clock = cpu_clock(self._process.pid)
        self._peers = []
        for _ in range(CONNECTIONS):
            peer = socket.create_connection((HOST, int(found[1])))
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            over = context.wrap_socket(peer, server_hostname="localhost")
            self._peers.append(self._closing.enter_context(over))

    def close(self) -> None:
        self._closing.close()

    def run(self, messages: int) -> tuple[float, float]:
        """Echo ``messages`` messages on each connection; return elapsed and CPU seconds."""
        message = random.Random(862).randbytes(SIZE)
        began, spent = time.perf_counter(), time.clock_gettime(self._clock)
        for peer in self._peers:
            peer.sendall(message)
        for left in reversed(range(messages)):
            for peer in self._peers:
                if receive(peer) != message:
                    raise RuntimeError(f"{self.name}: a wrong byte has come back")
                if left:
                    peer.sendall(message)
        return time.perf_counter() - began, time.clock_gettime(self._clock) - spent


def receive(peer: ssl.SSLSocket) -> bytes:
    """Receive one message."""
    received = peer.recv(SIZE)
    while len(received) < SIZE:
        part = peer.recv(SIZE - len(received))
        if not part:
            raise RuntimeError("a connection has ended")
        received += part
    return received


def measure(order: list[str], size: Size, directory: Path) -> dict[str, tuple[float, float]]:
    """Return for each server its MB/s, and its CPU time of a message in microseconds."""
    with ExitStack() as closing:
        servers = []
        for name in order:
            servers.append(Server(name, directory))
            closing.callback(servers[-1].close)
        for server in servers:
            server.ready(directory / CERTIFICATE)
            server.run(max(1, size.messages // 10))  # warm up
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in order}
        for server in servers * size.runs:
            seconds[server.name].append(server.run(size.messages))
    count = size.messages * CONNECTIONS
    return {
        name: (
            count * SIZE / median(each[0] for each in runs) / 1e6,
            median(each[1] for each in runs) / count * 1e6,
        )
        for name, runs in seconds.items()
    }


def report(rounds: list[dict[str, tuple[float, float]]]) -> str:
    """Return the table, the ratios, and a verdict on the aim."""
    rows = [
        [
            name,
            f"{median(each[name][1] for each in rounds):.1f} µs",
            f"{median(SIZE / each[name][1] for each in rounds):.0f}",
            f"{median(each[name][0] for each in rounds):.0f}",
        ]
        for name in (ECHOD, ASYNCIO)
    ]
    cpu = [each[ASYNCIO][1] / each[ECHOD][1] for each in rounds]
    clock = [each[ECHOD][0] / each[ASYNCIO][0] for each in rounds]
    met = "met" if median(cpu) >= AIM else "not met"
    return "\n".join(
        (
            table([["server", "CPU a message", "MB/s of CPU time", "MB/s by the clock"]], rows),
            "",
            f"MB/s of CPU time, echod / asyncio: {spread(cpu)}; aim: at least {AIM:.3f}: {met}.",
            f"MB/s by the clock, echod / asyncio: {spread(clock)}.",
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Compare echod over TLS with asyncio on 127.0.0.1, print a reST table."
    )
    parser.add_argument("--short", action="store_true", help="too little to mean much, for CI")
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        asyncio.run(serve_asyncio(arguments.serve))
        return
    size = SHORT if arguments.short else FULL
    give_up_after(WHOLE)
    signal.signal(signal.SIGINT, lambda *_: sys.exit(130))
    with tempfile.TemporaryDirectory() as directory:
        write_files(Path(directory))
        # The two servers take turns at being first.
        orders = islice(cycle([[ECHOD, ASYNCIO], [ASYNCIO, ECHOD]]), size.rounds)
        try:
            rounds = [measure(order, size, Path(directory)) for order in orders]
        except (OSError, RuntimeError) as error:
            sys.exit(f"tls.py: {error}")
    print(report(rounds))
    print(
        f"{size.rounds} rounds; {CONNECTIONS} connections, {SIZE // 1024} KiB a message; server "
        f"and load on {'a core each' if CORES[1:] else 'one core'}.\n"
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"Twisted {version('twisted')}, pyOpenSSL {version('pyopenssl')}, "
        f"{ssl.OPENSSL_VERSION} (asyncio), {platform.system()} {platform.release()}."
    )


if __name__ == "__main__":
    main()
