"""Datagrams received and sent back one by one, and in batches."""

from __future__ import annotations

import contextlib
import ctypes
import socket
import sys
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock, patch

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from echod import udp
from echod.events import Drop
from echod.udporigin import (
    NAME_SPACE,
    ancillary_space,
    origin_of,
    parse_ancillary,
    reply_source,
)
from echod.udpsocket import BATCH, BatchExchange, SingleExchange
from tests.unit.test_udp import EchoPort

IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
ADDRESS, BROADCAST, INTERFACE = b"\xc0\0\2\1", b"\xc0\0\2\xff", b"\7\0\0\0"
LINK, GLOBAL, GROUP = b"\xfe\x80" + bytes(14), b"\x20\1" + bytes(14), b"\xff\2" + bytes(14)


@pytest.mark.parametrize(
    ("received", "sent"),
    [
        ((IP, 8, INTERFACE + ADDRESS + ADDRESS), (IP, 8, bytes(4) + ADDRESS + bytes(4))),
        ((IP, 8, INTERFACE + ADDRESS + BROADCAST), None),
        ((IP6, 50, GLOBAL + INTERFACE), (IP6, 50, GLOBAL + bytes(4))),
        ((IP6, 50, LINK + INTERFACE), (IP6, 50, LINK + INTERFACE)),
        ((IP6, 50, GROUP + INTERFACE), None),
    ],
)
def test_reply_source(received: Any, sent: Any) -> None:
    """A unicast destination becomes the reply's source address; a multicast one gets no reply."""
    assert reply_source([received]) == (None if sent is None else [sent])


def received_and_sent_back(exchange: Any) -> list[tuple[Any, ...]]:
    """Echo all datagrams that have arrived, and return the sender, peer and size of each."""
    found = []
    with contextlib.suppress(BlockingIOError):
        while True:
            origins, sizes = exchange.receive()
            assert len(origins) == len(sizes) <= exchange.limit
            sent = exchange.send_back(0, [origin.source for origin in origins])
            assert sent == len(origins)
            for origin, size in zip(origins, sizes, strict=True):
                found.append((origin.sender, origin.peer, size))
    return found


ADDRESSES = st.sampled_from(
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("::1", "::1"),
        ("::", "::1"),
        ("::", "127.0.0.2"),
    ]
)


class ExchangeTests(SynchronousTestCase):
    @given(
        ADDRESSES,
        st.lists(st.tuples(st.integers(0, 2), st.binary(max_size=99)), max_size=BATCH + 9),
    )
    def test_same(self, addresses: tuple[str, str], sent: list[tuple[int, bytes]]) -> None:
        """Both report the same senders, peers and sizes, and send back the same, in order."""
        listens, asks = addresses
        with EchoPort(host=listens) as echo:
            clients = [echo.client("::1" if ":" in asks else "127.0.0.1", asks) for _ in range(3)]
            found = []
            space = ancillary_space(echo.sock)
            for exchange in SingleExchange(echo.sock, space), BatchExchange(echo.sock, space):
                for number, datagram in sent:
                    clients[number].send(datagram)
                found.append(received_and_sent_back(exchange))
                replies = [clients[number].recv(99) for number, _ in sent]
                self.assertEqual(replies, [datagram for _, datagram in sent])
            self.assertEqual(found[0], found[1])
            self.assertEqual([size for *_, size in found[0]], [len(each) for _, each in sent])


@pytest.mark.parametrize(
    ("host", "needed"),
    [
        ("127.0.0.1", False),
        ("127.0.0.2", False),
        ("::1", False),
        ("::ffff:127.0.0.1", False),
        ("0.0.0.0", True),
        ("::", True),
        ("127.255.255.255", True),
        ("224.0.0.1", True),
    ],
)
def test_ancillary_space(host: str, needed: bool) -> None:
    """A socket bound to the address of one host replies from it, without ancillary data."""
    with EchoPort(host=host) as echo:
        assert bool(ancillary_space(echo.sock)) is needed
        if not needed:
            asker = echo.client(
                "::1" if host == "::1" else "127.0.0.1", host.removeprefix("::ffff:")
            )
            asker.send(b"?")
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
                sock.sendto(b"?", ("127.255.255.255", echo.number))
            echo.turn()
            assert asker.recv(9) == b"?"
            assert (echo.datagrams.answered, echo.drops) == (1, [])


def test_refused_reply_in_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that the kernel refuses is counted, and the others of its batch are sent."""
    monkeypatch.setattr(udp, "FEW", -1)
    with EchoPort() as echo:
        client = echo.client()
        batches: Any = echo.port._batches
        receive = batches.receive

        def receive_one_from_a_broadcast_address() -> Any:
            received = receive()
            batches._rows[batches._rows.nbytes // BATCH + 4 :][:4] = b"\x7f\xff\xff\xff"
            return received

        monkeypatch.setattr(batches, "receive", receive_one_from_a_broadcast_address)
        for datagram in (b"1", b"2", b"3", b"4"):
            client.send(datagram)
        echo.port.doRead()
        assert [client.recv(9) for _ in range(3)] == [b"1", b"3", b"4"]
        assert echo.drops == [Drop.BROADCAST]
        assert (echo.datagrams.answered, echo.datagrams.bytes) == (3, 3)


def test_unknown_destination_in_a_batch() -> None:
    """A datagram without ancillary data gets no reply, and the others theirs, each from its own."""
    with EchoPort(host="0.0.0.0") as echo:
        clients = [echo.client("127.0.0.1", f"127.0.0.{number}") for number in (1, 2, 3)]
        batches: Any = echo.port._batches
        for client in clients:
            client.send(b"?")
        receive = batches.receive

        def receive_one_without() -> Any:
            receive()
            row = batches._row
            batches._rows[row + NAME_SPACE : 2 * row] = bytes(row - NAME_SPACE)
            rows = [bytes(batches._rows[at * row :][:row]) for at in range(3)]
            return list(map(origin_of, rows)), [1, 1, 1]

        with patch.object(batches, "receive", side_effect=[receive_one_without()]):
            echo.port._echo(batches)
        assert [clients[number].recv(9) for number in (0, 2)] == [b"?", b"?"]
        assert echo.drops == [Drop.NOT_SENT]


def without_ctypes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)


def without_recvmmsg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: SimpleNamespace())


def without_executable_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", Mock(side_effect=MemoryError))


def with_a_filter(monkeypatch: pytest.MonkeyPatch) -> None:
    class Filtered:
        """A system call that a filter refuses."""

        def __call__(self, *_: object) -> int:
            ctypes.set_errno(1)
            return -1

    libc = SimpleNamespace(recvmmsg=Filtered(), sendmmsg=Filtered())
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: libc)


@pytest.mark.parametrize(
    "prepare", [without_ctypes, without_recvmmsg, without_executable_memory, with_a_filter]
)
def test_without_batches(prepare: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the system calls are not available, many datagrams are echoed one by one."""
    prepare(monkeypatch)
    with EchoPort() as echo:
        client = echo.client()
        for number in range(2 * BATCH):
            client.send(b"%d" % number)
        echo.turn()
        assert [int(client.recv(9)) for _ in range(2 * BATCH)] == list(range(2 * BATCH))


def test_parse_ancillary() -> None:
    """Items are found at their alignment, up to the first zeros, and up to the end."""
    with_padding = socket.CMSG_SPACE(1)
    control = bytearray(2 * with_padding)
    for at in 0, with_padding:
        control[at : at + 17] = (17).to_bytes(8, sys.byteorder) + bytes(8) + b"!"
    items = [(0, 0, b"!")] * 2
    assert list(parse_ancillary(bytes(control))) == items
    assert list(parse_ancillary(bytes(control + bytes(99)))) == items
