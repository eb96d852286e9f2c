"""Datagrams with forged sources, on a link between two network namespaces (as root).

The service runs in one namespace; forge.py and flood.py run in the other.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import ROOT, TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.forge import packet

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("ip"), reason="needs root and ip(8)"
)

PORT = 65432
FORGE = str(ROOT / "tests" / "programs" / "forge.py")
HERE, THERE, BROADCAST = "10.86.2.1", "10.86.2.2", "10.86.2.255"
"""The service's first address, the other end's address, and the network's broadcast address."""

MORE = ["10.86.2.11", "10.86.2.12"]
HERE6, THERE6, MORE6 = "fd86:2::1", "fd86:2::2", ["fd86:2::11", "fd86:2::12"]
LINK, THERE_LINK = "fe80::86:1", "fe80::86:2"
"""Their link-local addresses."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=TIMEOUT)


@pytest.fixture(scope="module")
def spaces() -> Iterator[tuple[str, str]]:
    """Create two linked namespaces with addresses, and return their names."""
    here, there = (f"echod-{name}-{os.getpid()}" for name in ("here", "there"))
    try:
        for space in (here, there):
            ip("netns", "add", space)
            ip("-n", space, "link", "set", "lo", "up")
        ip("link", "add", "echod0", "netns", here, "type", "veth", "peer", "echod0", "netns", there)
        for space, addresses in (
            (here, [HERE, *MORE, HERE6, *MORE6, LINK]),
            (there, [THERE, THERE6, THERE_LINK]),
        ):
            # No generated link-local address, which would first go through duplicate detection.
            ip("-n", space, "link", "set", "echod0", "addrgenmode", "none")
            for address in addresses:
                if ":" in address:
                    ip("-n", space, "addr", "add", f"{address}/64", "dev", "echod0", "nodad")
                else:
                    ip("-n", space, "addr", "add", f"{address}/24", "brd", "+", "dev", "echod0")
            ip("-n", space, "link", "set", "echod0", "up")
            # No source filter, as behind a router without ingress filtering (RFC 2827).
            for name in ("all", "echod0"):
                setting = f"/proc/sys/net/ipv4/conf/{name}/rp_filter"
                ip("netns", "exec", space, "sh", "-c", f"echo 0 >{setting}")
        ip("-n", here, "route", "add", "default", "via", THERE)
        ip("-n", there, "route", "add", "default", "via", HERE)
        yield here, there
    finally:
        for space in (here, there):
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)


class Service:
    """A daemon in one namespace, and a sender of forged datagrams in the other."""

    def __init__(self, spaces: tuple[str, str], *options: str) -> None:
        self.here, self.there = spaces
        self.options = options

    def __enter__(self) -> Service:
        self.daemon = Daemon(*self.options, prefix=("ip", "netns", "exec", self.here))
        self.daemon.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.daemon.close()

    def forge(self, *rows: list[Any]) -> list[list[Any]]:
        """Send datagrams and then one that is not forged; return the replies to the former."""
        shown = subprocess.run(
            ["ip", "-n", self.here, "-j", "link", "show", "echod0"],
            check=True, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        [link] = json.loads(shown.stdout)
        real = [THERE, 50000, HERE, PORT, "real", 1]
        ran = subprocess.run(
            ["ip", "netns", "exec", self.there, sys.executable, FORGE, "echod0", link["address"]],
            input=json.dumps([*rows, real]),
            check=False, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
        assert (ran.returncode, ran.stderr) == (0, "")
        return json.loads(ran.stdout)[:-1]

    def dropped(self) -> Counter[str]:
        """Stop the daemon, and return the number of datagrams that it dropped, by reason."""
        self.daemon.terminate()
        self.daemon.wait()
        found: Counter[str] = Counter()
        for line in self.daemon.lines:
            if "did not answer" in line:
                for reason, count in re.findall(r"([a-z-]+) (\d+)[,:]", line.partition(": ")[2]):
                    found[reason] += int(count)
        return found


ANY = ("--listen", f"udp:{PORT}:interface=0.0.0.0", "--udp-rate", "1e6")
BOTH_KINDS = ("--listen", rf"udp:{PORT}:interface=\:\:", "--udp-rate", "1e6")


@pytest.mark.parametrize("options", [ANY, BOTH_KINDS], ids=["IPv4", "dual stack"])
@pytest.mark.parametrize(
    ("source", "port", "reason"),
    [
        ("192.0.2.1", 0, "no-port"),
        ("192.0.2.1", 7, "low-port"),
        ("192.0.2.1", 1023, "low-port"),
        ("192.0.2.1", 2049, "nfs-port"),
        ("192.0.2.1", PORT, "own-port"),
        (BROADCAST, 50000, "broadcast"),
    ],
)
def test_forged(
    spaces: tuple[str, str], options: tuple[str, ...], source: str, port: int, reason: str
) -> None:
    """A forged datagram gets no reply, and is counted once, by reason."""
    with Service(spaces, *options) as service:
        assert service.forge([source, port, HERE, PORT, "?", 1]) == []
        assert service.dropped() == {reason: 1}


@pytest.mark.parametrize("options", [ANY, BOTH_KINDS], ids=["IPv4", "dual stack"])
@pytest.mark.parametrize("source", ["224.0.0.1", "255.255.255.255", "0.0.0.0", "127.0.0.1", HERE])
def test_martian(spaces: tuple[str, str], options: tuple[str, ...], source: str) -> None:
    """The kernel drops datagrams from impossible sources, and counts them (RFC 1812 5.3.7)."""
    with Service(spaces, *options) as service:
        assert service.forge([source, 50000, HERE, PORT, "?", 1]) == []
        assert service.dropped() == {}


@pytest.mark.parametrize(
    ("source", "reasons"), [("::", {"unspecified": 1}), ("ff02::1", {}), ("::1", {}), (HERE6, {})]
)
def test_martian_of_ipv6(spaces: tuple[str, str], source: str, reasons: dict[str, int]) -> None:
    """For IPv6 it does too, except for the unspecified address, which echod drops."""
    with Service(spaces, *BOTH_KINDS) as service:
        assert service.forge([source, 50000, HERE6, PORT, "?", 1]) == []
        assert service.dropped() == reasons


def test_sent_to_many(spaces: tuple[str, str]) -> None:
    """A datagram to a broadcast or multicast address gets no reply, and is counted."""
    many = [BROADCAST, "255.255.255.255", "224.0.0.1"]
    # An IPv6 socket gets no IPv4 multicast unless it joins the group.
    for options, count in ((ANY, 3), (BOTH_KINDS, 2)):
        with Service(spaces, *options) as service:
            assert service.forge(*[["192.0.2.1", 50000, each, PORT, "?", 1] for each in many]) == []
            assert service.dropped() == {"sent-to-many": count}
    with Service(spaces, *BOTH_KINDS) as service:
        assert service.forge(["fd86:2::9", 50000, "ff02::1", PORT, "?", 1]) == []
        assert service.dropped() == {"sent-to-many": 1}


@pytest.mark.parametrize("options", [ANY, BOTH_KINDS], ids=["IPv4", "dual stack"])
def test_each_address_answers_for_itself(spaces: tuple[str, str], options: tuple[str, ...]) -> None:
    """On a wildcard, a reply comes from the address that was asked, link-local ones included."""
    asked = [(THERE, each) for each in [HERE, *MORE]]
    if options is BOTH_KINDS:
        asked += [(THERE6, each) for each in [HERE6, *MORE6]] + [(THERE_LINK, LINK)]
    with Service(spaces, *options) as service:
        answers = service.forge(*[[source, 50001, each, PORT, each, 1] for source, each in asked])
    assert answers == [[each, PORT, source, 50001, each, 1] for source, each in asked]


def test_zone(spaces: tuple[str, str]) -> None:
    """echod-client reports a link-local address with its interface."""
    listen = ("--listen", rf"tcp6:{PORT}:interface=\:\:", "--listen", rf"udp:{PORT}:interface=\:\:")
    client = [str(Path(sys.executable).with_name("echod-client")), "ping", "-c", "1", "--json"]
    with Service(spaces, *listen):
        for target in (f"[{LINK}%echod0]:{PORT}", f"udp:[{LINK}%echod0]:{PORT}"):
            ran = subprocess.run(
                ["ip", "netns", "exec", spaces[1], *client, target],
                check=True, capture_output=True, text=True, timeout=TIMEOUT,
            )  # fmt: skip
            assert json.loads(ran.stdout)["address"] == f"[{LINK}%echod0]:{PORT}"


def received(space: str) -> int:
    """Return the number of datagrams that sockets of a namespace have received (proc_net(5))."""
    read = ["ip", "netns", "exec", space, "cat", "/proc/net/snmp"]
    ran = subprocess.run(read, check=True, capture_output=True, text=True, timeout=TIMEOUT)
    names, values = [line.split() for line in ran.stdout.splitlines() if line.startswith("Udp:")]
    return int(values[names.index("InDatagrams")])


def send_as(space: str, source: tuple[str, int], destination: tuple[str, int]) -> None:
    """Send one datagram from a namespace with any source."""
    _, data = packet(*source, *destination, b"?")
    words = [sys.executable, "-c", SEND, data.hex(), destination[0]]
    subprocess.run(["ip", "netns", "exec", space, *words], check=True, timeout=TIMEOUT)


SEND = """
import socket, sys
raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
raw.sendto(bytes.fromhex(sys.argv[1]), (sys.argv[2], 0))
"""


def test_two_echods(spaces: tuple[str, str]) -> None:
    """One forged datagram between two echods on the default port is dropped, and starts no loop."""
    before = [received(space) for space in spaces]
    default = ("--listen", f"udp:{PORT}:interface=0.0.0.0")
    with Service(spaces, *default) as one, Service(spaces[::-1], *default) as other:
        send_as(other.here, (THERE, PORT), (HERE, PORT))
        one.daemon.wait_for("did not answer")
        assert one.dropped() == {"own-port": 1}
        assert other.dropped() == {}
    assert [received(space) for space in spaces] == [before[0] + 1, before[1]]


@pytest.mark.parametrize("interface", ["0.0.0.0", r"\:\:"])
def test_two_echods_on_odd_ports(spaces: tuple[str, str], interface: str) -> None:
    """On other ports the rate limit ends the loop after a burst from each, and counts one drop."""
    before = sum(map(received, spaces))
    with (
        Service(spaces, "--listen", f"udp:40001:interface={interface}") as one,
        Service(spaces[::-1], "--listen", f"udp:50002:interface={interface}") as other,
    ):
        began = time.monotonic()
        send_as(other.here, (THERE, 50002), (HERE, 40001))
        until_one(lambda: one.daemon.log.count("did not") + other.daemon.log.count("did not"))
        seconds = time.monotonic() - began
        dropped = one.dropped() + other.dropped()
    count = sum(map(received, spaces)) - before
    print(f"{count} datagrams were received in {seconds:.2f} s, until one got no reply")
    assert dropped == {"source-rate": 1}
    # Each replies to a burst of 100 and to 100 a second, and drops the next datagram.
    assert 200 < count < 203 + 200 * seconds


def until_one(count: Callable[[], int]) -> None:
    """Wait until ``count`` is not zero; no event says which of two logs has the line."""
    deadline = time.monotonic() + TIMEOUT
    while not count():
        assert time.monotonic() < deadline, "the loop does not end"
        time.sleep(0.01)


def test_one_echod_of_two_ports(spaces: tuple[str, str]) -> None:
    """A forged datagram from one port of an echod to another port of it gets no reply."""
    before = received(spaces[0])
    ports = [("--listen", f"udp:{number}:interface=0.0.0.0") for number in (40001, 40003)]
    with Service(spaces, *ports[0], *ports[1]) as service:
        send_as(service.here, (HERE, 40003), (HERE, 40001))
        service.daemon.wait_for("did not answer")
        assert service.dropped() == {"own-port": 1}
    assert received(spaces[0]) == before + 1


@pytest.mark.soak
@pytest.mark.parametrize(
    ("options", "reasons"),
    [((), {"total-rate"}), (("--udp-total-rate", "1e6"), set())],
    ids=["default rates", "all answered"],
)
def test_a_million_forged_sources(
    spaces: tuple[str, str], options: tuple[str, ...], reasons: set[str]
) -> None:
    """1,000,000 datagrams, each from another source: flat memory, and a real client is served.

    Memory is flat once the tables are full. The limit is less than 4 bytes a source.
    """
    flood = [sys.executable, str(ROOT / "tests" / "programs" / "flood.py"), HERE, str(PORT)]
    seen = []
    with (
        # ANY has a --udp-rate that never limits the real client.
        Service(spaces, *ANY, *options) as service,
        subprocess.Popen(
            ["ip", "netns", "exec", service.there, *flood, "10", "100_000", "2000"],
            stdout=subprocess.PIPE,
        ) as flooding,
    ):
        assert flooding.stdout is not None
        for line in flooding.stdout:
            first, answered, asks = json.loads(line)
            seen.append(service.daemon.rss())
        found = service.dropped()
    print(f"resident after each 100,000, KiB: {[each // 1024 for each in seen]}; {dict(found)}")
    print(f"of {asks} real datagrams {answered} were answered, {first} at the first try")
    assert flooding.returncode == 0
    assert len(seen) == 10
    assert max(seen[3:]) - min(seen[3:]) < 3 * 2**20
    assert answered == asks == 500
    assert first > 0.99 * asks
    assert set(found) == reasons
