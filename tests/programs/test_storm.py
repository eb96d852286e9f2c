"""A storm: 1,000 clients of all kinds at once, for a minute, without a wrong byte or a leak.

``ECHOD_STORM=600 pytest -m soak tests/programs/test_storm.py -rP`` runs it for ten minutes.
"""

from __future__ import annotations

import os
import random
import selectors
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests import TIMEOUT

pytestmark = pytest.mark.soak

SECONDS = float(os.environ.get("ECHOD_STORM", "60"))

CONNECTIONS = 1000

MIB = 1 << 20

PERIOD = 65521
"""A prime: a buffer that is lost or sent twice shifts the pattern, and shows as a wrong byte."""

PATTERN = random.Random(862).randbytes(PERIOD) * (5 * MIB // PERIOD)

RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close with RST

SERVER = """
import signal, sys
from twisted.internet import reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.endpoints import serverFromString
from echod import EchoFactory
from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.deferring import accept_deferred

path = sys.argv[1]
factory = EchoFactory(stall_timeout=2, idle_timeout=30, fast_path=path != "ordinary path")

async def serve(number):
    global port
    where = f"tcp:{number}:interface=127.0.0.1:backlog=2000"
    port = await serverFromString(reactor, where).listen(factory)
    if path == "without transport":  # as on the daemon's own ports
        accept_deferred(port, ListeningSocket(port, "", None))
    print(port.getHost().port, flush=True)

async def drain():
    number = port.getHost().port
    await port.stopListening()
    await factory.drain(3)
    await serve(number)

signal.signal(signal.SIGUSR1, lambda *_: reactor.callFromThread(ensureDeferred, drain()))
ensureDeferred(serve(0))
reactor.run()
"""


class Client:
    """One connection with random behaviour: how much it sends, when it reads, how it ends."""

    def __init__(self, port: int, chance: random.Random, now: float) -> None:
        self.sock = socket.socket()
        self.sock.setblocking(False)
        self.sock.connect_ex(("127.0.0.1", port))
        self.left = int(2 ** chance.uniform(0, 22))  # 1 byte to 4 MiB
        self.sent = self.received = 0
        self.ends_with = chance.choices(["finish", "reset", "close"], [8, 1, 1])[0]
        # Some pause before they read, a few of them for longer than the stall timeout.
        self.reads_at = now + (chance.choice([0.2, 0.8, 3.5]) if chance.random() < 0.1 else 0)

    def wants(self, now: float) -> int:
        """Return the events that it waits for; 0 while it pauses."""
        writes = selectors.EVENT_WRITE if self.left else 0
        return writes | (selectors.EVENT_READ if now >= self.reads_at else 0)

    def step(self, events: int) -> str | None:
        """Send and receive once; return how the connection ended, if it has."""
        if events & selectors.EVENT_WRITE and self.left:
            at = self.sent % PERIOD
            count = self.sock.send(PATTERN[at : at + min(self.left, MIB)])
            self.sent += count
            self.left -= count
            if not self.left and self.ends_with == "finish":
                self.sock.shutdown(socket.SHUT_WR)
        if events & selectors.EVENT_READ:
            at = self.received % PERIOD
            data = self.sock.recv(MIB)
            assert data == PATTERN[at : at + len(data)], "a wrong byte came back"
            self.received += len(data)
            if not data:
                done = self.received == self.sent and not self.left
                return "whole" if done and self.ends_with == "finish" else "ended"
            if self.ends_with == "reset":
                self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
                return "left"
            if self.ends_with == "close" and self.received == self.sent and not self.left:
                return "left"
        return None


@pytest.mark.parametrize(
    ("path", "parts"), [("without transport", 4), ("fast path", 4), ("ordinary path", 2)]
)
def test_storm(path: str, parts: int) -> None:
    """1,000 connections, 1 B to 4 MiB, stalls, half-closes, resets, a drain: no wrong byte.

    At the end the server has no more descriptors, and as much memory, as after the warm-up.
    """
    chance = random.Random(862)
    seen = []
    with subprocess.Popen(
        [sys.executable, "-c", SERVER, path],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as server:
        assert server.stdout is not None
        try:
            port = int(server.stdout.readline())
            for part in range(parts):  # the first is the warm-up, and one has a drain
                storm = Storm(port, chance, server if part == parts // 2 else None)
                storm.rage(SECONDS / 8)
                print(storm.counts, end=" ")
                assert storm.counts["short"] == 0
                assert storm.counts["whole"] > CONNECTIONS / 2
                with socket.create_connection(("127.0.0.1", port), TIMEOUT) as client:
                    # A turn of the server is bounded, and handles some of the last endings.
                    for _ in range(CONNECTIONS):
                        client.sendall(b"?")
                        assert client.recv(1) == b"?"
                    status = Path(f"/proc/{server.pid}/status").read_text().splitlines()
                    [memory] = [int(line.split()[1]) for line in status if line[:6] == "VmRSS:"]
                    seen.append((memory / 1024, len(os.listdir(f"/proc/{server.pid}/fd"))))
                    print(f"{seen[-1][0]:.1f} MiB, {seen[-1][1]} descriptors")
        finally:
            server.terminate()
            _, errors = server.communicate(timeout=TIMEOUT)
    assert errors == ""
    assert seen[-1][0] - seen[0][0] < 8, seen
    # A connection whose peer has just gone may be open until its next check.
    assert max(descriptors for _, descriptors in seen) == seen[0][1], seen


class Storm:
    """CONNECTIONS at a time, each replaced when it ends, and a count of how they ended."""

    def __init__(
        self, port: int, chance: random.Random, drained: subprocess.Popen[str] | None
    ) -> None:
        self.port = port
        self.chance = chance
        self.drained = drained
        self.draining = False
        self.selector = selectors.DefaultSelector()
        self.paused: list[Client] = []
        self.count = 0
        # whole: all bytes, then FIN; left: the client ended it; cut: reset, or drained;
        # refused: reset before the first byte; short: FIN before all bytes.
        self.counts = dict.fromkeys(("whole", "left", "cut", "refused", "short", "MiB"), 0)
        self.bytes = 0

    def rage(self, seconds: float) -> None:
        """Open connections for ``seconds``, then wait until the last one has ended."""
        began = now = time.monotonic()
        while self.count or now < began + seconds:
            now = time.monotonic()
            assert now < began + seconds + 60, f"{self.count} connections have not ended"
            if self.drained is not None and now > began + seconds / 2:
                self.drained.send_signal(signal.SIGUSR1)
                self.drained, self.draining = None, True
            while self.count < CONNECTIONS and now < began + seconds:
                self.count += 1
                client = Client(self.port, self.chance, now)
                self.selector.register(client.sock, client.wants(0), client)
            for key, events in self.selector.select(0.05):
                self.step(key.data, events, now)
            awake = [client for client in self.paused if client.reads_at <= now]
            self.paused = [client for client in self.paused if client.reads_at > now]
            for client in awake:
                self.selector.register(client.sock, client.wants(now), client)
        self.selector.close()
        self.counts["MiB"] = self.bytes // MIB

    def step(self, client: Client, events: int, now: float) -> None:
        """Let the client send or receive, and count its ending."""
        try:
            how = client.step(events)
        except BlockingIOError:
            return
        except OSError:
            how = "cut" if client.received else "refused"
        if how == "ended":
            # In a drain the server may end with FIN before it has read everything.
            how = "cut" if self.draining else "short"
        wants = client.wants(now)
        if how is None and wants:
            self.selector.modify(client.sock, wants, client)
            return
        self.selector.unregister(client.sock)
        if how is None:
            self.paused.append(client)
        else:
            self.counts[how] += 1
            self.bytes += client.received
            self.count -= 1
            client.sock.close()
