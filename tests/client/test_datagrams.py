"""DatagramChannel over kernel sockets: lengths, ICMP errors, and the choice of an address."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.protocol import DatagramProtocol

from echod.client.connector import Connector
from echod.client.datagrams import DatagramChannel
from echod.client.load import Load
from echod.client.payloads import MAX_DATAGRAM, DatagramPayloads
from echod.client.replies import DatagramReplies
from echod.client.sockets import SocketOptions
from echod.client.target import parse_target
from tests import TIMEOUT
from tests.client.bench import Bench


class Connected:
    """A UDP channel, and the socket at its other end."""

    def __init__(self, bench: Bench, size: int = 64, transmit_stamps: bool = False) -> None:
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))
        self.reader = bench.reader(size, transmit_stamps)
        self.errors: Counter[str] = Counter()
        options = SocketOptions(dont_fragment=True)
        sock = options.open(socket.AF_INET, socket.SOCK_DGRAM, self.peer.getsockname())
        self.channel = DatagramChannel(sock, self.reader, self.errors)
        self.channel.use(DatagramReplies(bench.tally, DatagramPayloads(size), bench.reply))

    def close(self) -> None:
        self.peer.close()
        self.channel.close()
        self.channel.close()
        self.reader.close()


@pytest.fixture
def connected(bench: Bench) -> Iterator[Connected]:
    made = Connected(bench)
    yield made
    made.close()


def test_empty_datagram(bench: Bench, connected: Connected) -> None:
    """An empty datagram is unexpected; it is not EOF."""
    connected.channel.begin(0.0)
    data, address = connected.peer.recvfrom(100)
    connected.peer.sendto(b"", address)
    connected.peer.sendto(data, address)
    bench.until(lambda: bench.replied)
    assert bench.tally.unexpected == 1
    assert list(connected.channel.outstanding()) == []


def test_start_of_the_round_trip(bench: Bench, connected: Connected) -> None:
    """A round trip starts when the datagram is due, otherwise after the datagram is built."""
    built: list[float] = []
    build = connected.channel.replies.message

    def message() -> bytes:
        data = build()
        built.append(bench.reactor.seconds())
        return data

    connected.channel.replies.message = message  # type: ignore[method-assign]
    connected.channel.begin(5.0)
    connected.channel.begin()
    due, since = connected.channel.outstanding()
    assert due == 5.0
    assert built[1] <= since <= bench.reactor.seconds()


def test_transmit_stamp(bench: Bench) -> None:
    """A round trip starts at the kernel's stamp of the datagram, also if it is read later."""
    connected = Connected(bench, transmit_stamps=True)
    channel = connected.channel
    before = bench.reactor.seconds()
    channel.begin()
    [since] = channel.outstanding()
    assert connected.reader.stamps.used
    assert before < since < bench.reactor.seconds()
    channel._socket.send(channel.replies.message())
    channel.replies.begun(before)
    bench.until(lambda: before not in channel.outstanding())
    assert before < list(channel.outstanding())[1] < bench.reactor.seconds()
    connected.close()


class Full(socket.socket):
    """A socket whose send queue is full."""

    def send(self, *_: object) -> int:
        raise OSError(errno.ENOBUFS, "No buffer space available")


def test_transmit_stamp_after_an_error(bench: Bench) -> None:
    """After a datagram that could not be sent, stamps start round trips again."""
    connected = Connected(bench, transmit_stamps=True)
    channel = connected.channel
    real = channel._socket
    channel.begin()
    with Full(fileno=os.dup(real.fileno())) as channel._socket:
        channel.begin(0.0)
    channel._socket = real
    before = bench.reactor.seconds()
    for _ in range(2):
        channel.begin(0.0)
    assert all(before < each < bench.reactor.seconds() for each in list(channel.outstanding())[2:])
    connected.close()


def test_unused_transmit_stamp(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stamp that cannot be used does not change the start of the round trip."""
    connected = Connected(bench, transmit_stamps=True)
    monkeypatch.setattr(connected.reader.stamps, "date", lambda _, now: now)
    connected.channel.begin(5.0)
    assert list(connected.channel.outstanding()) == [5.0]
    connected.close()


def test_longer_datagram(bench: Bench) -> None:
    """A reply that is longer than its datagram is damaged, whatever the size."""
    connected = Connected(bench, 5000)
    connected.channel.begin(0.0)
    data, address = connected.peer.recvfrom(6000)
    connected.peer.sendto(data + b"!", address)
    bench.until(lambda: bench.replied)
    assert (bench.tally.damaged, bench.tally.damaged_bytes) == (1, 1)
    connected.close()


def test_closed_by_a_reply(bench: Bench) -> None:
    """After a reply that closes the last channel, the closed epoll set is not polled again."""
    connected = Connected(bench)

    def close(number: int, since: float, now: float, damaged: int) -> None:
        bench.replied.append(number)
        connected.channel.close()
        connected.reader.close()

    connected.channel.use(DatagramReplies(bench.tally, DatagramPayloads(64), close))
    connected.channel.begin(0.0)
    data, address = connected.peer.recvfrom(100)
    connected.peer.sendto(data, address)
    select.select([connected.reader], [], [], TIMEOUT)
    connected.reader.doRead()
    assert bench.replied == [0]
    connected.peer.close()


def test_dropped_replies(bench: Bench, connected: Connected) -> None:
    """Replies for which the receive buffer has no space are counted, also after closing."""
    channel, count = connected.channel, 100
    channel._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # the minimum
    for _ in range(count):
        channel.begin()
        connected.peer.sendto(*connected.peer.recvfrom(100))
    bench.until(lambda: len(bench.replied) + channel.dropped == count)
    dropped = channel.dropped
    assert 0 < dropped < count
    channel.close()
    assert channel.dropped == dropped


def test_not_sent(bench: Bench, connected: Connected) -> None:
    """A datagram that the kernel does not send is an error, and counts as dropped here."""
    connected.channel._socket = Full(fileno=connected.channel._socket.detach())
    connected.channel.begin()
    assert (connected.channel.sent, connected.channel.dropped) == (1, 1)
    assert connected.errors == {"not_sent": 1}


class Together(DatagramProtocol):
    """A UDP service that sends all replies at once, when it has all messages."""

    transport: Any

    def __init__(self, count: int) -> None:
        self.count = count
        self.held: list[tuple[bytes, Any]] = []

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.held.append((datagram, addr))
        if len(self.held) == self.count:
            for each in self.held:
                self.transport.write(*each)


def test_dropped_here(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reply that this machine drops is not a lost message."""
    monkeypatch.setattr("echod.client.sockets.SO_RCVBUFFORCE", socket.SO_RCVBUF)
    monkeypatch.setattr("echod.client.sockets.RECEIVE_BUFFER", 1)  # the kernel's minimum
    count = 10
    port = bench.reactor.listenUDP(0, Together(count), interface="127.0.0.1")
    connector = Connector(bench.reactor, parse_target(f"udp:127.0.0.1:{port.getHost().port}"), 1.0)
    run = Load(connector, 64, connections=1, duration=0.25, rate=40, on_interval=lambda _: None)
    bench.result(Deferred.fromCoroutine(run.run()))
    bench.result(port.stopListening())
    assert run.tally.received + run.tally.dropped_here == run.tally.sent == count
    assert run.tally.received > 0
    assert run.tally.dropped_here > 0
    assert run.tally.lost == 0


class Twice(DatagramProtocol):
    """A UDP service that answers each datagram, and once more in the next turn of the reactor."""

    transport: Any

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        self.transport.write(datagram, addr)
        self.bench.reactor.callLater(0, self.transport.write, datagram, addr)


def test_duplicate_of_the_last_reply(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last reply, the run waits for a duplicate of it, but not beyond the timeout."""
    monkeypatch.setattr("echod.client.measurement.DUPLICATES", 10 * TIMEOUT)
    port = bench.reactor.listenUDP(0, Twice(bench), interface="127.0.0.1")
    connector = Connector(bench.reactor, parse_target(f"udp:127.0.0.1:{port.getHost().port}"), 0.2)
    run = Load(connector, 64, connections=1, duration=0.02, rate=100, on_interval=lambda _: None)
    bench.result(Deferred.fromCoroutine(run.run()))
    bench.result(port.stopListening())
    assert (run.tally.received, run.tally.duplicated) == (2, 2)


def test_refused(bench: Bench, connected: Connected) -> None:
    """A send that meets the refusal of an earlier datagram is repeated."""
    connected.peer.close()
    for _ in range(3):
        connected.channel.begin(0.0)
    bench.until(lambda: connected.errors["refused"] == 3)
    assert connected.channel.sent == 3


def test_too_long(bench: Bench) -> None:
    """A datagram that is too long for the path is counted as such."""
    connected = Connected(bench, MAX_DATAGRAM + 1)
    connected.channel.begin(0.0)
    assert connected.errors == {"too_long": 1}
    connected.close()


def test_address_without_a_route(bench: Bench) -> None:
    """The first address with a route is used; if none has one, an error is raised."""
    connector = Connector(bench.reactor, parse_target("udp:127.0.0.1:7"), 1.0)
    bad, good = (socket.AF_INET6, ("::ffff:0:0:0:0:0%", 7)), (socket.AF_INET, ("127.0.0.1", 7))
    connector._addresses = [(socket.AF_INET6, ("127.0.0.1", 7)), good]
    reader = bench.reader(10)
    connector.datagrams(reader).close()
    assert connector.address == "127.0.0.1:7"
    connector._addresses = [bad]
    with pytest.raises(OSError, match=r"."):
        connector.datagrams(reader)
    reader.close()
