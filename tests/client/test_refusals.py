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
from echod.client.reactor import PreciseReactor
from echod.client.replies import DatagramReplies, MessageTally
from echod.client.target import parse_target
from tests import TIMEOUT
from tests.client.memory import echod_client
from tests.programs.mirrors import Mirror

Found = tuple[int, tuple[str, int]]


@pytest.fixture
def refusing() -> Iterator[list[Found]]:
    """Two addresses that answer with ICMP: they are connected elsewhere, and so stay taken."""
    with ExitStack() as stack:
        found: list[Found] = []
        for _ in range(2):
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sock.bind(("127.0.0.1", 0))
            sock.connect(sock.getsockname())
            found.append((socket.AF_INET, sock.getsockname()))
        yield found


@pytest.fixture(scope="module")
def good() -> Iterator[Found]:
    with Mirror("plain", "--udp") as mirror:
        yield socket.AF_INET, ("127.0.0.1", mirror.port)


NO_WAY: Found = (socket.AF_INET, ("255.255.255.255", 7))  # not without SO_BROADCAST


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
    refusing: list[Found],
    good: Found,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An address that refuses gives way to the next, and no message is lost by that."""
    found = [*refusing[:count], NO_WAY, good]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(list(found)))
    outcome = echod_client(*command, "udp:echo.example:7", "--json")
    result = outcome.result
    assert (outcome.status, result["errors"], result["lost"]) == (0, {}, 0)
    assert result["address"] == f"127.0.0.1:{good[1][1]}"
    assert result["sent"] == result["received"] > 0


def test_line(refusing: list[Found], good: Found, monkeypatch: pytest.MonkeyPatch) -> None:
    """A line says that an address refuses, and which is the next."""
    found = [refusing[0], good]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(found))
    _, out, _ = echod_client("ping", "-c", 1, "udp:echo.example:7")
    one, two = (f"127.0.0.1:{port}" for _, (_, port) in (refusing[0], good))
    assert out.splitlines()[:2] == [
        f"echo of udp:echo.example:7 ({one}) over UDP, 64 bytes a message",
        f"{one} refused, trying {two}",
    ]


@pytest.mark.parametrize("last", [True, False])
def test_all_refuse(last: bool, refusing: list[Found], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all refuse, or there is no way to the others, that is counted and the messages lost."""
    found = refusing if last else [refusing[0], NO_WAY]
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(list(found)))
    outcome = echod_client("ping", "-c", 1, "-W", 0.2, "udp:echo.example:7", "--json")
    result = outcome.result
    assert (outcome.status, result["errors"], result["lost"]) == (1, {"refused": 1}, 1)
    assert result["address"] == f"127.0.0.1:{refusing[last][1][1]}"


def test_refused_while_sending(refusing: list[Found]) -> None:
    """Where sending meets the refusal, each message goes to the address that takes it, once."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        reactor = PreciseReactor()
        connector = Connector(reactor, parse_target("udp:echo.example:7"), 1.0)
        connector._addresses = [*refusing, (socket.AF_INET, peer.getsockname())]
        sockets = EpollReader(reactor, reactor, 64)
        channel = connector.datagrams(sockets, dont_fragment=False)
        datagrams = DatagramPayloads(64)
        channel.use(DatagramReplies(MessageTally(1.0), datagrams, lambda *_: None))
        for _ in range(3):  # on loopback, each send but the first meets the refusal of the last
            channel.begin(reactor.seconds())
        peer.settimeout(TIMEOUT)
        assert [datagrams.find(peer.recv(100), 3) for _ in range(3)] == [(0, 0), (1, 0), (2, 0)]
        assert (connector.errors, channel.sent) == ({}, 3)
        channel.close()
        sockets.close()
        reactor.removeAll()


def test_not_after_a_reply(refusing: list[Found], good: Found) -> None:
    """An address that has answered before is not given up when it refuses: the service has gone."""
    reactor = PreciseReactor()
    connector = Connector(reactor, parse_target("udp:echo.example:7"), 1.0)
    connector._addresses = [refusing[0], good]
    sockets = EpollReader(reactor, reactor, 64)
    channel = connector.datagrams(sockets, dont_fragment=False, is_unanswered=lambda: False)
    channel.receive_failed(ConnectionRefusedError(111, "Connection refused"))
    assert connector.errors == {"refused": 1}
    assert connector.address == f"127.0.0.1:{refusing[0][1][1]}"
    channel.close()
    sockets.close()
    reactor.removeAll()
