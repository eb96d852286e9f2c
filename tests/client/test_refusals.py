"""UDP targets with several addresses, of which some refuse."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from twisted.internet.defer import succeed

from echod.client.connector import Connector
from echod.client.epoll import EpollReader
from echod.client.payloads import DatagramPayloads
from echod.client.replies import DatagramReplies, MessageTally
from echod.client.runner import PreciseReactor
from echod.client.target import parse_target
from echod.peer import EchoPeer
from tests import TIMEOUT
from tests.client.memory import echod_client

Resolved = tuple[int, tuple[str, int]]


@pytest.fixture
def refusing() -> Iterator[list[Resolved]]:
    """Two addresses that refuse: their sockets are connected to themselves, and keep the ports."""
    with ExitStack() as stack:
        addresses: list[Resolved] = []
        for _ in range(2):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            sock.connect(sock.getsockname())
            addresses.append((socket.AF_INET, sock.getsockname()))
        yield addresses


@pytest.fixture(scope="module")
def good() -> Iterator[Resolved]:
    with EchoPeer("udp") as peer:
        yield socket.AF_INET, (peer.host, peer.port)


NO_ROUTE: Resolved = (socket.AF_INET, ("255.255.255.255", 7))  # needs SO_BROADCAST


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize(
    "command",
    [
        ("ping", "-c", 1),
        ("ping", "-c", 5, "-i", 0.001),
        ("load", "-d", 0.2, "-C", 3),
        ("load", "-d", 0.2, "-C", 3, "-r", 200),
    ],
)
def test_next_address(
    command: tuple[Any, ...],
    count: int,
    refusing: list[Resolved],
    good: Resolved,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """After an address that refuses the next one is used, and no message is lost."""
    addresses = [*refusing[:count], NO_ROUTE, good]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(list(addresses)))
    outcome = echod_client(*command, "udp:echo.example:7", "--json")
    result = outcome.result
    assert (outcome.status, result["errors"], result["lost"]) == (0, {}, 0)
    assert result["address"] == f"127.0.0.1:{good[1][1]}"
    assert result["sent"] == result["received"] > 0


def test_line(refusing: list[Resolved], good: Resolved, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line names the address that refuses, and the next one."""
    addresses = [refusing[0], good]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(addresses))
    _, out, _ = echod_client("ping", "-c", 1, "udp:echo.example:7")
    one, two = (f"127.0.0.1:{port}" for _, (_, port) in (refusing[0], good))
    assert out.splitlines()[:2] == [
        f"echo of udp:echo.example:7 ({one}) over UDP, 64 bytes a message",
        f"{one} refused, trying {two}",
    ]


@pytest.mark.parametrize("last", [True, False])
def test_all_refuse(last: bool, refusing: list[Resolved], monkeypatch: pytest.MonkeyPatch) -> None:
    """If no address is left, the refusal is counted, and the messages are lost."""
    addresses = refusing if last else [refusing[0], NO_ROUTE]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(list(addresses)))
    outcome = echod_client("ping", "-c", 1, "-W", 0.2, "udp:echo.example:7", "--json")
    result = outcome.result
    assert (outcome.status, result["errors"], result["lost"]) == (1, {"refused": 1}, 1)
    assert result["address"] == f"127.0.0.1:{refusing[last][1][1]}"


def test_refused_while_sending(refusing: list[Resolved]) -> None:
    """A refusal that a send meets moves all messages to the next address, each once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        reactor = PreciseReactor()
        connector = Connector(reactor, parse_target("udp:echo.example:7"), 1.0)
        connector._addresses = [*refusing, (socket.AF_INET, peer.getsockname())]
        reader = EpollReader(reactor, reactor, 64)
        channel = connector.datagrams(reader)
        datagrams = DatagramPayloads(64)
        channel.use(DatagramReplies(MessageTally(1.0), datagrams, lambda *_: None))
        for _ in range(3):  # on loopback, each send meets the refusal of the one before
            channel.begin(reactor.seconds())
        peer.settimeout(TIMEOUT)
        assert [datagrams.find(peer.recv(100), 3) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
        assert (connector.errors, channel.sent) == ({}, 3)
        channel.close()
        reader.close()
        reactor.removeAll()


def test_not_after_a_reply(refusing: list[Resolved], good: Resolved) -> None:
    """An address that has answered is kept when it refuses: the service has stopped."""
    reactor = PreciseReactor()
    connector = Connector(reactor, parse_target("udp:echo.example:7"), 1.0)
    connector._addresses = [refusing[0], good]
    reader = EpollReader(reactor, reactor, 64)
    channel = connector.datagrams(reader, is_unanswered=lambda: False)
    channel.receive_failed(ConnectionRefusedError(111, "Connection refused"))
    assert connector.errors == {"refused": 1}
    assert connector.address == f"127.0.0.1:{refusing[0][1][1]}"
    channel.close()
    reader.close()
    reactor.removeAll()
