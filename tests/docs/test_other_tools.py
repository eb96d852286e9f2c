"""docs/fault-tools.rst: each plan is valid, and those for toxics work."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from docutils import nodes
from twisted.internet.protocol import Factory

from echod.faultgrammar import parse_plan
from echod.faults import DATAGRAM, STREAM
from echod.faulty import FaultyEchoFactory
from echod.testing import MemoryNetwork, Peer
from tests import ROOT
from tests.docs.test_all import section, tree

TOOLS = tree(ROOT / "docs" / "fault-tools.rst")


def plans(part: nodes.Element) -> dict[str, str]:
    """Return the plan of each row that has one, by the text of its first cell."""
    rows: list[Any] = [
        row.children for body in part.findall(nodes.tbody) for row in body.findall(nodes.row)
    ]
    return {
        " ".join(cells[0].astext().split()): " ".join(literal.astext().split())
        for cells in rows
        for literal in cells[1].findall(nodes.literal)
    }


@pytest.mark.parametrize(("argument", "plan"), plans(TOOLS).items())
def test_plans(argument: str, plan: str) -> None:
    """Each plan is one for a port of streams, or of datagrams where the row says so."""
    serves = DATAGRAM if "UDP" in argument or "udp" in argument else STREAM
    parse_plan(plan).check(serves)


class Toxic:
    """One connection to a port with the plan of a toxic, on which 1,000 bytes were sent."""

    def __init__(self, plan: str) -> None:
        self.network = MemoryNetwork()
        self.factory = FaultyEchoFactory(parse_plan(plan))
        self.network.server_endpoint().listen(self.factory)
        self.peer = self.connect()

    def connect(self) -> Peer:
        connected: list[Peer] = []
        endpoint = self.network.client_endpoint()
        endpoint.connect(Factory.forProtocol(Peer)).addCallback(connected.append)
        [peer] = connected
        self.network.settle()
        if peer.ended is None:
            peer.send(SENT)
            self.network.settle()
        return peer

    def after(self, seconds: float) -> tuple[int, str | None]:
        """Let time pass, and return the number of bytes received, and how the connection ended."""
        self.network.advance(seconds)
        assert SENT.startswith(bytes(self.peer.received))
        return len(self.peer.received), self.peer.ended


SENT = bytes(range(250)) * 4


def late(toxic: Toxic) -> None:
    """Nothing comes for 200 ms, then everything."""
    assert toxic.after(0.19) == (0, None)
    assert toxic.after(0.02) == (1000, None)


def jitter(toxic: Toxic) -> None:
    """The messages come after 150 to 250 ms."""
    assert toxic.after(0.149) == (0, None)
    assert toxic.after(0.11) == (1000, None)


def refused(toxic: Toxic) -> None:
    """The connection is reset before any byte."""
    assert toxic.after(0) == (0, "RST")


def limited(toxic: Toxic) -> None:
    """1,000 bytes take 100 ms at 10 kB/s."""
    received, _ = toxic.after(0.05)
    assert 400 <= received <= 700
    assert toxic.after(0.06) == (1000, None)


def late_end(toxic: Toxic) -> None:
    """The end is late."""
    assert toxic.after(0) == (64, None)
    toxic.peer.finish()
    assert toxic.after(0.19) == (64, None)
    assert toxic.after(0.02) == (1000, "FIN")


def silent(toxic: Toxic) -> None:
    """Nothing ever comes."""
    assert toxic.after(100) == (0, None)


def closed_later(toxic: Toxic) -> None:
    """Nothing comes, and the connection is closed after 5 s."""
    assert toxic.after(4.9) == (0, None)
    assert toxic.after(0.2) == (0, "FIN")


def reset(toxic: Toxic) -> None:
    """The connection is reset at the first byte."""
    assert toxic.after(0.1) == (0, "RST")


def reset_later(toxic: Toxic) -> None:
    """Nothing comes, and the connection is reset after 2 s."""
    assert toxic.after(1.9) == (0, None)
    assert toxic.after(0.2) == (0, "RST")


def sliced(toxic: Toxic) -> None:
    """10 bytes come every millisecond."""
    assert toxic.after(0) == (10, None)
    assert toxic.after(0.0011) == (20, None)
    assert toxic.after(0.1) == (1000, None)


def cut(toxic: Toxic) -> None:
    """100 bytes come, and FIN."""
    assert toxic.after(0.1) == (100, "FIN")


def some(toxic: Toxic) -> None:
    """About half of the connections are late."""
    peers = [toxic.peer, *(toxic.connect() for _ in range(200))]
    assert 70 < sum(not peer.received for peer in peers) < 131


def deaf(toxic: Toxic) -> None:
    """Nothing is read."""
    assert toxic.after(100) == (0, None)
    assert [each.received for each in toxic.factory.connections] == [0]


TOXICS: dict[str, Callable[[Toxic], None]] = {
    "latency latency=200": late,
    "latency latency=200 jitter=50": jitter,
    "down": refused,
    "bandwidth rate=10": limited,
    "slow_close delay=200": late_end,
    "timeout timeout=0": silent,
    "timeout timeout=5000": closed_later,
    "reset_peer timeout=0": reset,
    "reset_peer timeout=2000": reset_later,
    "slicer average_size=10 delay=1000": sliced,
    "limit_data bytes=100": cut,
    "toxicity=0.5": some,
    "stream=upstream": deaf,
}


@pytest.mark.parametrize(("argument", "plan"), plans(section(TOOLS, "Toxiproxy")).items())
def test_toxics(argument: str, plan: str) -> None:
    """The plan does what the toxic does; each row has a check."""
    TOXICS[argument](Toxic(plan))
