"""Each fault on each transport: the report of ``echod-client`` and the counters agree to the unit.

Each of many connections sends one message, or one socket sends many datagrams. Every third of them
meets the fault. All else comes back unchanged and in time.
"""

from __future__ import annotations

import json
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from echod.peer import EchoPeer
from tests.authority import Authority
from tests.client.memory import target_of
from tests.programs.daemon import Daemon
from tests.programs.test_echod_client import CLIENT

SOAK = 10_000
"""Connections or datagrams of each test of ``tox -e soak``; the others have :data:`FEW`."""

FEW = 61

OUTCOMES = ("lost", "late", "damaged", "duplicated", "reordered", "unexpected", "under_way")

STREAMS = {
    "refuse": "errors lost?",  # the message may be sent before the reset comes
    "after 32 bytes: reset": "errors lost",
    "after 32 bytes: close": "errors lost",
    "after 32 bytes: half-close": "errors lost",
    "silent": "lost",
    "deaf": "lost",
    'after {late}s: greet "!"': "unexpected damaged? slow?",
    "delay {late}s": "slow",
    "throttle {rate}B/s": "slow",
    "byte 9: freeze {late}s": "slow",
    "slice 10 bytes every 1ms": "",
    "byte 9: damage": "damaged",
    "after 32 bytes: swallow": "lost",
    'after 32 bytes: insert "!"': "damaged unexpected?",  # the end of a reply that is too long
    "truncate 32 bytes": "lost",
}
"""Faults of streams, and the counts of the client that are the number of faulty connections.

Those with a question mark can be any.
"""

TLS = {
    **STREAMS,
    "abort": "errors",
    "wrong-name": "errors",
    "expired": "errors",
    "self-signed": "errors",
    "old-version": "errors",
}

UDP = {
    "drop": "lost",
    "duplicate": "duplicated",
    "reorder": "reordered",
    "delay {late}s": "slow reordered",
    "damage": "damaged",
    "truncate 8 bytes": "damaged",
    "pad 10 bytes": "damaged",
}

TRANSPORTS = {"tcp": STREAMS, "tcp6": STREAMS, "unix": STREAMS, "tls": TLS, "udp": UDP}


CASES = [(transport, fault) for transport, faults in TRANSPORTS.items() for fault in faults]


class Ports:
    """A daemon with a port for each case.

    :ivar count: connections or datagrams, of which a third meet the fault.
    :ivar late: seconds that a late reply takes, and no other reply.
    """

    def __init__(self, count: int, directory: Path) -> None:
        self.count, self.late = count, 1 + count // 1000
        authority = Authority(directory)
        self.roots = directory / "roots"
        self.roots.mkdir()
        shutil.copy(authority.file, self.roots)
        loopback = "0:interface=127.0.0.1"
        endpoints = {
            "tcp": f"tcp:{loopback}",
            "tcp6": "tcp6:0:interface=\\:\\:1",
            "tls": f"ssl:{loopback}:privateKey={authority.key_file}:certKey={authority.file}",
            "udp": f"udp:{loopback}",
        }
        options = ["--metrics", f"tcp:{loopback}", "--udp-rate", "1000000"]
        for number, (transport, fault) in enumerate(CASES):
            endpoint = endpoints.get(transport, f"unix:{directory / str(number)}")
            options += ["--faulty", endpoint, self.plan(fault)]
        self.daemon = Daemon(*options, "--udp-total-rate", "1000000")

    def plan(self, fault: str) -> str:
        """Return the rule of a port: the fault may have a place before it."""
        rule = f"every 3rd{',' if ': ' in fault else ':'} {fault}"
        if "greet" in fault:  # while all wait for their reply; that of the last comes much later
            last = f"connection {self.count}: delay {self.late}s"
            rule = f"for {2 * self.late}s: deaf; {last}; {rule}"
        return rule.format(late=self.late, rate=64 // self.late)

    def name(self, transport: str, fault: str) -> str:
        """Return the name of the port, which has its address."""
        line = self.daemon.wait_for("FAULTY", len(CASES))[CASES.index((transport, fault))]
        return re.findall(r"FAULTY (\S+ \S+): ", line)[0]

    def target(self, transport: str, name: str) -> str:
        """Return the TARGET for ``echod-client``."""
        address = name.split()[1]
        port = address.rpartition(":")[2]
        prefix = {"unix": "unix:", "udp": "udp:"}.get(transport, "")
        return (
            f"tls:localhost:{port}:trustRoots={self.roots}"
            if transport == "tls"
            else prefix + address
        )

    def fired(self, name: str) -> int:
        """Return how often the last rule of a port has fired, by the metrics."""
        [line] = self.daemon.wait_for("metrics on")
        with urlopen(f"http://{line.split()[-1]}/metrics") as response:
            found = re.findall(
                rf'^echod_faults_fired_total{{.*port="{re.escape(name)}".*rule="every.*}} (.*)$',
                response.read().decode(),
                re.MULTILINE,
            )
        [count] = found
        return int(float(count))


@pytest.fixture(scope="module", params=[FEW, pytest.param(SOAK, marks=pytest.mark.soak)])
def ports(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Ports]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    ports = Ports(request.param, tmp_path_factory.mktemp("faults"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with ports.daemon:
        yield ports


def load(target: str, count: int, timeout: float, *options: object) -> Any:
    command = [CLIENT, "load", target, "-n", count, "-d", 0, "-W", timeout, "--json", *options]
    run = subprocess.run(
        [str(word) for word in command], capture_output=True, text=True, timeout=300, check=False
    )
    assert not run.stderr or " connections could not be made: " in run.stderr
    return json.loads(run.stdout)


def test_same_firings(echo_peer: EchoPeer) -> None:
    """Two ports with the same seed fire at the same places, under load."""
    peers = [echo_peer(seed=862) for _ in range(2)]
    for peer in peers:
        peer.plan("30% of connections, 20% of messages of 64: damage")
    with ThreadPoolExecutor(2) as pool:  # each of the 100 connections has 50 messages
        ran = [
            pool.submit(load, target_of(peer), 5000, 10, "-C", 100, "-r", 5000) for peer in peers
        ]
    firings = [sorted((each.connection, each.offset) for each in peer.firings) for peer in peers]
    assert firings[0] == firings[1]
    assert len(firings[0]) > 200
    for each in ran:
        result = each.result()
        assert (result["damaged"], result["received"]) == (len(firings[0]), 5000 - len(firings[0]))


@pytest.mark.parametrize(("transport", "fault"), CASES)
def test_fault(transport: str, fault: str, ports: Ports) -> None:
    """What the client counts is what the rule has counted, and nothing else is wrong."""
    counts = TRANSPORTS[transport][fault].split()
    name = ports.name(transport, fault)
    timeout = 3 * ports.late + 2 if "slow" in " ".join(counts) else ports.late
    rate = ("-r", 2000) if transport == "udp" else ("-C", ports.count)
    result = load(ports.target(transport, name), ports.count, timeout, *rate)
    chosen = ports.count // 3
    assert ports.fired(name) == chosen
    found = {each: result[each] for each in OUTCOMES}
    slow = sum(
        count for seconds, count in result["latency_histogram"] if seconds >= 0.9 * ports.late
    )
    found |= {"errors": sum(result["errors"].values()), "slow": slow}
    wrong = {each: count for each, count in found.items() if count and f"{each}?" not in counts}
    assert wrong == {each: chosen for each in counts if not each.endswith("?")}
