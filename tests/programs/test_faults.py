"""Each fault on each transport: the report of ``echod-client`` and the counters agree to the unit.

Each of many connections sends one message, or one socket sends many datagrams. Every third of them
meets the fault. All else comes back unchanged and in time. ``ECHOD_FAULTS=10000 pytest
tests/programs/test_faults.py`` has 10,000 connections for each fault (25 minutes, without xdist);
``tox -e soak`` has 10,000 for all faults of a transport, which takes a minute.
"""

from __future__ import annotations

import json
import os
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

COUNT = int(os.environ.get("ECHOD_FAULTS", "61"))
"""Connections or datagrams for each fault."""

SOAK = 10_000
"""Connections for all faults of a transport, in ``tox -e soak``; half as many over TLS."""

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

Those with a question mark are any number up to that of the faulty connections.
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

TCP6 = {fault: STREAMS[fault] for fault in ("refuse", "after 32 bytes: reset", "byte 9: damage")}
"""Only the address differs from TCP over IPv4."""

TRANSPORTS = {"tcp": STREAMS, "tcp6": TCP6, "unix": STREAMS, "tls": TLS, "udp": UDP}


CASES = [(transport, fault) for transport, faults in TRANSPORTS.items() for fault in faults]


class Ports:
    """A daemon with a port for each of ``plans``, which have a transport each.

    :ivar late: seconds that a late reply takes, and no other reply.
    """

    def __init__(self, plans: list[tuple[str, str]], late: int, directory: Path) -> None:
        self.plans, self.late = plans, late
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
        for number, (transport, plan) in enumerate(plans):
            endpoint = endpoints.get(transport, f"unix:{directory / str(number)}")
            options += ["--faulty", endpoint, plan.format(late=late, rate=64 // late)]
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self.daemon = Daemon(*options, "--udp-total-rate", "1000000")
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    def name(self, number: int) -> str:
        """Return the name of a port, which has its address."""
        line = self.daemon.wait_for("FAULTY", len(self.plans))[number]
        return re.findall(r"FAULTY (\S+ \S+): ", line)[0]

    def target(self, number: int) -> str:
        """Return the TARGET for ``echod-client``."""
        transport = self.plans[number][0]
        address = self.name(number).split()[1]
        port = address.rpartition(":")[2]
        prefix = {"unix": "unix:", "udp": "udp:"}.get(transport, "")
        return (
            f"tls:localhost:{port}:trustRoots={self.roots}"
            if transport == "tls"
            else prefix + address
        )

    def fired(self, number: int) -> list[int]:
        """Return how often each rule of a port has fired, by the metrics."""
        [line] = self.daemon.wait_for("metrics on")
        with urlopen(f"http://{line.split()[-1]}/metrics") as response:
            found = re.findall(
                rf'^echod_faults_fired_total{{.*port="{re.escape(self.name(number))}".*}} (.*)$',
                response.read().decode(),
                re.MULTILINE,
            )
        return [int(float(count)) for count in found]


def rule_of(which: str, fault: str) -> str:
    """Return the rule that has ``fault``, for connections or datagrams."""
    return f"{which}{',' if ': ' in fault else ':'} {fault}"


@pytest.fixture(scope="module")
def ports(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ports]:
    plans, late = [], 1 + COUNT // 1000
    for transport, fault in CASES:
        plan = rule_of("every 3rd", fault)
        if "greet" in fault:  # while all wait for their reply; that of the last comes much later
            last = f"connection {COUNT}: delay {{late}}s"
            plan = f"for {2 * late}s: deaf; {last}; {plan}"
        plans.append((transport, plan))
    ports = Ports(plans, late, tmp_path_factory.mktemp("faults"))
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


def measure(ports: Ports, number: int, count: int, timeout: float, *more: object) -> dict[str, int]:
    """Return what the client counts on a port, by its name in :data:`STREAMS`."""
    options = ["-r", 2000] if ports.plans[number][0] == "udp" else ["-C", count, *more]
    result = load(ports.target(number), count, timeout, *options)
    slow = [count for seconds, count in result["latency_histogram"] if seconds >= 0.9 * ports.late]
    found = {each: result[each] for each in OUTCOMES}
    print(result["errors"])  # shown if the test fails
    return {**found, "errors": sum(result["errors"].values()), "slow": sum(slow)}


@pytest.mark.parametrize(("transport", "fault"), CASES)
def test_fault(transport: str, fault: str, ports: Ports) -> None:
    """What the client counts is what the rule has counted, and nothing else is wrong."""
    number = CASES.index((transport, fault))
    counts = TRANSPORTS[transport][fault].split()
    timeout = 3 * ports.late + 2
    if "lost" in counts:  # the client waits as long; a handshake may take a second under load
        timeout = 3 * ports.late if transport == "tls" else ports.late
    found = measure(ports, number, COUNT, timeout)
    chosen = COUNT // 3
    assert ports.fired(number)[-1] == chosen
    wrong = {each: count for each, count in found.items() if count and f"{each}?" not in counts}
    assert wrong == {each: chosen for each in counts if not each.endswith("?")}


@pytest.mark.soak
@pytest.mark.parametrize(
    ("transport", "count"), [("tcp", SOAK), ("unix", SOAK), ("tls", SOAK // 2)]
)
def test_all_faults(transport: str, count: int, tmp_path: Path) -> None:
    """Each fault of a transport meets some of the connections: the sums agree to the unit."""
    faults = TRANSPORTS[transport]
    # At a fixed rate, no reply is late because of the others. The client sends the messages of the
    # connections that it cannot make on the first ones, which have no fault.
    share = count // 2 // len(faults)
    rules = [
        rule_of(f"connections {first} to {first + share - 1}", fault)
        for first, fault in zip(range(count // 2, count, share), faults, strict=False)
    ]
    ports = Ports([(transport, "; ".join(rules))], 3, tmp_path)
    with ports.daemon:
        found = measure(ports, 0, count, 3 * ports.late, "-r", 5000)
        assert ports.fired(0) == [share] * len(faults)
    counts = " ".join(faults.values()).split()
    for each, number in found.items():
        least = share * counts.count(each)
        assert least <= number <= least + share * counts.count(f"{each}?"), (each, found)
