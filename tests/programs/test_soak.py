"""Large figures: minutes of load on a real daemon. ``tox -e soak`` runs them."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from urllib.request import urlopen

import pytest

from echod.events import Drop
from echod.udp import RECEIVE_BUFFER
from echod.udpsocket import SO_MEMINFO
from tests import TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

pytestmark = pytest.mark.soak

MIB = 1 << 20
KIB = 1 << 10

DATAGRAM_OVERHEAD = 1280
"""The kernel accounts for a datagram with at most this many bytes and twice its size."""


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    with Daemon("--port", "0", "--quiet") as daemon:
        yield daemon


def round_trip(client: socket.socket, data: bytes = b"?") -> float:
    """Send and receive ``data``, and return the round-trip time in seconds."""
    began = time.monotonic()
    client.sendall(data)
    assert client.recv(len(data), socket.MSG_WAITALL) == data
    return time.monotonic() - began


def test_6_bytes_and_half_close(daemon: Daemon) -> None:
    """1,000 clients that send 6 bytes and half-close at once: no reply is lost."""
    for _ in range(1000):
        with daemon.connect() as client:
            client.sendall(b"hello\n")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello\n"


@pytest.mark.parametrize("largest", [64 * MIB, MIB])
def test_64_mib_and_half_close(daemon: Daemon, largest: int) -> None:
    """64 MiB in one write, or in writes of 1 B to 1 MiB, read a second late: same SHA-256."""
    chance = random.Random(862)
    sent = chance.randbytes(64 * MIB)
    with daemon.connect() as client:

        def send() -> None:
            at = 0
            while at < len(sent):
                size = largest if largest == 64 * MIB else int(2 ** chance.uniform(0, 20))
                client.sendall(sent[at : at + size])
                at += size
            client.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        sender.join(1)  # for a second the client does not read
        received = receive_all(client)
        sender.join()
    assert hashlib.sha256(received).digest() == hashlib.sha256(sent).digest()


FLOOD = """
import select, socket, sys, time
floods = {}
poll = select.poll()
for _ in range(100):
    sock = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    sock.setblocking(False)
    floods[sock.fileno()] = sock
    poll.register(sock, select.POLLOUT)
print("connected", flush=True)
end = time.monotonic() + 30
while time.monotonic() < end:
    for number, _ in poll.poll(100):
        try:
            floods[number].send(bytes(64 * 1024))
        except BlockingIOError:
            pass
"""


def test_peers_that_never_read(daemon: Daemon) -> None:
    """100 peers send for 30 s and never read: 25 MiB of memory, and others wait under 50 ms.

    One echo in a thousand may take longer: the machine may delay it. The slowest is printed.
    """
    most, times = 0, []
    with daemon.connect() as neighbour:
        round_trip(neighbour)
        before = daemon.rss()
        # In another process, so that its GIL does not delay the measurement.
        with subprocess.Popen(
            [sys.executable, "-c", FLOOD, str(daemon.port)], stdout=subprocess.PIPE
        ) as flood:
            assert flood.stdout is not None
            assert flood.stdout.readline() == b"connected\n"
            while flood.poll() is None:
                times.append(round_trip(neighbour))
                most = max(most, daemon.rss())
    times.sort()
    print(
        f"{(most - before) / MIB:.1f} MiB more; slowest of {len(times)} echoes: {times[-1]:.4f} s"
    )
    assert flood.returncode == 0
    assert most - before < 25 * MIB, most - before
    assert times[-1 - len(times) // 1000] < 0.050, times[-1 - len(times) // 1000 :]


def test_1000_idle_connections_and_sigterm() -> None:
    """SIGTERM with 1,000 idle connections: exit within 1 s, and each connection ends with FIN."""
    with Daemon("--port", "0", "--quiet") as daemon:
        clients = [daemon.connect() for _ in range(1000)]
        round_trip(clients[-1])
        began = time.monotonic()
        daemon.terminate()
        daemon.wait()
        took = time.monotonic() - began
        assert [client.recv(1) for client in clients] == [b""] * 1000
        for client in clients:
            client.close()
    assert took < 1, took


def test_300_resets() -> None:
    """300 resets in mid-transfer: flat memory, no leaked descriptor, no traceback."""
    with Daemon("--port", "0") as daemon, daemon.connect() as neighbour:
        seen: list[tuple[int, int]] = []
        for again in range(1, 5):
            for _ in range(300):
                with daemon.connect() as client:
                    client.setblocking(False)
                    client.send(bytes(MIB))
                    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            daemon.wait_for("closed", 300 * again)
            round_trip(neighbour)
            seen.append((daemon.rss(), daemon.descriptors()))
        assert seen[-1][0] - seen[0][0] < 2 * MIB, seen
        assert seen[-1][1] == seen[0][1], seen
        assert "Traceback" not in daemon.log


def test_100_000_connections(daemon: Daemon) -> None:
    """100,000 connections, one after another: flat memory, no leaked descriptor, no traceback."""
    seen: list[tuple[int, int]] = []
    neighbour = daemon.connect()
    for _ in range(3):  # the third round trip is on the fast path, which opens a descriptor
        round_trip(neighbour)
    for count in range(100_000):
        # Several source addresses: a closed connection holds its port in TIME_WAIT.
        source = (f"127.{100 + os.getpid() % 100}.{count // 10_000}.1", 0)
        with daemon.connect(source_address=source) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"
        if count % 10_000 == 9_999:
            round_trip(neighbour)  # after which the server has closed the last connection
            seen.append((daemon.rss(), daemon.descriptors()))
    neighbour.close()
    assert seen[-1][0] - seen[0][0] < 2 * MIB, seen
    assert seen[-1][1] == seen[0][1], seen
    assert "Traceback" not in daemon.log


def test_1_000_000_echoes(daemon: Daemon) -> None:
    """1,000,000 echoes on 50 connections: flat memory, no leaked descriptor, no traceback."""
    clients = [daemon.connect() for _ in range(50)]
    seen: list[tuple[int, int]] = []
    for count in range(20_000):
        message = count.to_bytes(64, "big")
        for client in clients:
            client.sendall(message)
        for client in clients:
            assert client.recv(64, socket.MSG_WAITALL) == message
        if count % 2_000 == 1_999:
            seen.append((daemon.rss(), daemon.descriptors()))
    for client in clients:
        client.close()
    assert seen[-1][0] - seen[0][0] < 2 * MIB, seen
    assert seen[-1][1] == seen[0][1], seen
    assert "Traceback" not in daemon.log


def test_10_000_idle_connections() -> None:
    """10,000 idle connections take 2 KiB each, and every one is served.

    After the first echo Twisted's transport keeps some more memory, which is bounded, too.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = 10_100
    if hard < needed:
        pytest.skip(f"RLIMIT_NOFILE is {hard}, and this needs {needed} in each process")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    clients = []
    try:
        with Daemon("--port", "0", "--quiet") as daemon:
            while len(clients) < 100:  # the first connections also pay for one-time allocations
                clients.append(daemon.connect())
            round_trip(clients[-1])
            before = daemon.rss()
            while len(clients) < 10_000:
                clients.append(daemon.connect(source_address=(f"127.1.{len(clients) % 9}.1", 0)))
            round_trip(clients[-1])
            each = (daemon.rss() - before) / (len(clients) - 100)
            for client in clients:
                round_trip(client)
            after = (daemon.rss() - before) / (len(clients) - 100)
    finally:
        for client in clients:
            client.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    print(f"{each:.0f} bytes for each idle connection, {after:.0f} after each has answered")
    assert each < 2 * KIB, each
    assert after < 2.5 * KIB, after


CLIENT = """
import os, resource, sys
from twisted.internet.endpoints import clientFromString
from twisted.internet.task import react
from echod import EchoClientFactory

async def main(reactor):
    data = os.urandom(256 * 1024 * 1024)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    client = await clientFromString(reactor, sys.argv[1]).connect(EchoClientFactory())
    assert await client.echo(data, timeout=60) is data
    await client.close()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)

react(main)
"""


def test_256_mib_in_one_call(daemon: Daemon) -> None:
    """EchoClient.echo() of 256 MiB receives all of it with less than 16 MiB of memory."""
    done = subprocess.run(
        [sys.executable, "-c", CLIENT, f"tcp:127.0.0.1:{daemon.port}"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) * KIB < 16 * MIB, done.stdout


class Sources:
    """20 sockets, each with an address of its own, that send datagrams and check the replies.

    :ivar outstanding: the payloads that each socket has sent without a reply, with their counts.
    :ivar in_flight: bytes that the kernel accounts for outstanding datagrams, at most.
    :ivar receive_buffer: bytes that the kernel holds for one socket.
    """

    def __init__(self, port: int) -> None:
        self.chance = random.Random(862)
        self.outstanding: dict[socket.socket, Counter[bytes]] = {}
        self.poll = select.epoll()
        self.sent = self.received = self.in_flight = 0
        for number in range(1, 21):
            sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
            sock.bind((f"127.0.1.{number}", 0))
            sock.connect(("127.0.0.1", port))
            self.outstanding[sock] = Counter()
            self.poll.register(sock, select.EPOLLIN)
        self.socks = {sock.fileno(): sock for sock in self.outstanding}
        # As much as the kernel allows; the daemon's socket has the same.
        self.receive_buffer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

    def close(self) -> None:
        for sock in self.outstanding:
            sock.close()
        self.poll.close()

    def send(self) -> None:
        """Send a datagram of random size, most of them small, from a random socket."""
        kinds = [int(2 ** self.chance.uniform(0, 11)), self.chance.randrange(65_508), 0, 65_507]
        [size] = self.chance.choices(kinds, (97, 2, 0.5, 0.5))
        data = self.chance.randbytes(size)
        sock = self.chance.choice([*self.outstanding])
        sock.send(data)
        self.outstanding[sock][data] += 1
        self.sent += 1
        self.in_flight += DATAGRAM_OVERHEAD + 2 * size

    def receive(self, seconds: float) -> bool:
        """Receive replies, each to an outstanding datagram; return whether one has arrived."""
        ready = self.poll.poll(seconds)
        for number, _ in ready:
            sock = self.socks[number]
            data = sock.recv(70_000)
            assert self.outstanding[sock][data] > 0, "a second reply, or one to no datagram"
            self.outstanding[sock][data] -= 1
            self.received += 1
            self.in_flight -= DATAGRAM_OVERHEAD + 2 * len(data)
        return bool(ready)

    def dropped(self) -> int:
        """Return how many replies overflowed the receive buffers (SO_MEMINFO in socket(7))."""
        infos = [sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36) for sock in self.outstanding]
        return sum(int.from_bytes(each[32:], sys.byteorder) for each in infos)


def samples(daemon: Daemon) -> dict[str, float]:
    """Return the metrics of ``daemon`` by name."""
    where = daemon.wait_for("metrics on tcp")[0].rpartition(":")[2]
    with urlopen(f"http://127.0.0.1:{where}/metrics") as reply:
        lines = reply.read().decode().splitlines()
    split = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in split}


@pytest.mark.parametrize("share", [0.5, 4], ids=["buffers suffice", "buffers overflow"])
def test_100_000_datagrams(share: float) -> None:
    """100,000 datagrams from 20 sources, 0 to 65,507 bytes: each gets one reply, or is counted.

    The kernel counts the datagrams that overflow a receive buffer, such as that of a stopped
    daemon. If the buffers suffice, it drops none.
    """
    rates = ("--udp-rate", "1e5", "--udp-total-rate", "1e6")
    options = ("--listen", "udp:0:interface=0.0.0.0", "--metrics", "tcp:0:interface=127.0.0.1")
    with Daemon(*options, *rates) as daemon:
        sources = Sources(int(daemon.wait_for("listening on udp")[0].rpartition(":")[2]))
        try:
            while sources.sent < 100_000:
                if share > 1:
                    daemon.terminate(signal.SIGSTOP)
                while sources.in_flight < share * sources.receive_buffer and sources.sent < 100_000:
                    sources.send()
                daemon.terminate(signal.SIGCONT)
                if share < 1:
                    assert sources.receive(TIMEOUT)
                else:
                    while sources.receive(0.1):
                        pass
                    sources.in_flight = 0  # a reply that is missing by now has been dropped
            while sources.receive(1):
                pass
            by_us, metrics = sources.dropped(), samples(daemon)
            outstanding = sum(sum(each.values()) for each in sources.outstanding.values())
        finally:
            sources.close()
    by_kernel = metrics["echod_datagrams_kernel_dropped_total"]
    print(f"{sources.received} came back, {by_kernel:.0f} + {by_us} were dropped by the kernel")
    assert sources.received + by_kernel + by_us == sources.sent
    assert outstanding == by_kernel + by_us
    assert metrics["echod_datagrams_answered_total"] == sources.received + by_us
    reasons = [
        metrics[name] for name in metrics if name.startswith("echod_datagrams_dropped_total")
    ]
    assert reasons == [0] * len(Drop)
    assert (by_kernel > 0) == (share > 1)
