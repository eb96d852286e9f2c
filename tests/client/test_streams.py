"""StreamChannel over kernel sockets: sending, receiving, and every way in which it ends."""

from __future__ import annotations

import select
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from echod.client.connector import Connector
from echod.client.payloads import contents
from echod.client.replies import StreamReplies
from echod.client.streams import StreamChannel
from echod.client.target import parse_target
from echod.transport import unsent
from tests import TIMEOUT
from tests.client.bench import Bench
from tests.client.memory import tls_target

RESET = struct.pack("ii", 1, 0)


class Connected:
    """Channels, and the sockets at their other ends."""

    def __init__(
        self, bench: Bench, size: int, count: int = 1, transmit_stamps: bool = False
    ) -> None:
        self.reader = bench.reader(size, transmit_stamps)
        self.channels: list[StreamChannel] = []
        self.peers: list[socket.socket] = []
        self.endings: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as listener:
            target = parse_target(f"127.0.0.1:{listener.getsockname()[1]}")
            connector = Connector(bench.reactor, target, 10.0)
            bench.result(Deferred.fromCoroutine(connector.resolve()))
            for _ in range(count):
                channel = bench.result(Deferred.fromCoroutine(connector.channel(self.reader)))
                self.peers.append(listener.accept()[0])
                self.peers[-1].settimeout(TIMEOUT)
                channel.use(StreamReplies(bench.tally, contents(size), bench.reply))
                channel.ended.addCallback(self.endings.append)
                self.channels.append(channel)

    @property
    def pair(self) -> tuple[StreamChannel, socket.socket]:
        [channel], [peer] = self.channels, self.peers
        return channel, peer

    def end(self, bench: Bench) -> None:
        for peer in self.peers:
            peer.close()
        for channel in self.channels:
            channel.abort()
        bench.until(lambda: len(self.endings) == len(self.channels))
        self.reader.close()


@pytest.fixture
def connect(bench: Bench) -> Iterator[Callable[..., Connected]]:
    made: list[Connected] = []

    def build(size: int, count: int = 1) -> Connected:
        made.append(Connected(bench, size, count))
        return made[-1]

    yield build
    for connected in made:
        connected.end(bench)


def echo(peer: socket.socket, count: int) -> None:
    """Receive ``count`` bytes, and send them back."""
    while count:
        part = peer.recv(min(count, 1 << 16))
        peer.sendall(part)
        count -= len(part)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


def can_read(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_send_at_once(bench: Bench, connect: Any) -> None:
    """begin() gives the message to the kernel, without a turn of the reactor."""
    channel, peer = connect(100).pair
    channel.begin(bench.reactor.seconds())
    echo(peer, 100)
    bench.until(lambda: bench.replied)
    bench.tally.sum_up()
    assert bench.replied == [0]
    assert bench.tally.received == 1


def test_start_of_the_round_trip(bench: Bench, connect: Any) -> None:
    """A round trip starts when the message is due, otherwise when it is passed to the kernel."""
    channel, _ = connect(100).pair
    before = bench.reactor.seconds()
    channel.begin(5.0)
    channel.begin()
    due, since = channel.outstanding()
    assert due == 5.0
    assert before <= since <= bench.reactor.seconds()


def test_transmit_stamp(bench: Bench) -> None:
    """The kernel's stamp of a message starts its round trip."""
    connected = Connected(bench, 100, transmit_stamps=True)
    channel, _ = connected.pair
    for count in (1, 2):
        before = bench.reactor.seconds()
        channel.begin(0.0)
        assert before < list(channel.outstanding())[count - 1] < bench.reactor.seconds()
    connected.end(bench)


def test_urgent_reply(bench: Bench, connect: Any) -> None:
    """A reply sent as urgent data is received in order and complete (RFC 6093)."""
    channel, peer = connect(3).pair
    for number in range(2):
        channel.begin(bench.reactor.seconds())
        peer.send(peer.recv(3), socket.MSG_OOB)
        bench.until(lambda number=number: bench.replied == list(range(number + 1)))
    assert bench.tally.damaged == 0


def test_more_than_the_send_queue_takes(bench: Bench, connect: Any) -> None:
    """Messages beyond the kernel's send queue are sent later, in order, once."""
    size, count = 1_000_000, 20
    channel, peer = connect(size).pair
    for _ in range(count):
        channel.begin(bench.reactor.seconds())
    assert channel.sent == len(list(channel.outstanding())) == count
    peer.setblocking(False)
    buffered = bytearray()

    def echo_some() -> bool:
        with suppress(BlockingIOError):
            buffered.extend(peer.recv(1 << 20))
        with suppress(BlockingIOError):
            del buffered[: peer.send(buffered)]
        return len(bench.replied) == count

    bench.until(echo_some)
    assert bench.tally.damaged == 0


def test_send_queue_full(bench: Bench, connect: Any) -> None:
    """With a full send queue, the message is sent as soon as there is space."""
    channel, peer = connect(1000).pair
    filler = 0
    with suppress(BlockingIOError):
        while True:
            filler += channel._socket.send(bytes(1 << 16))  # type: ignore[union-attr]
    channel.begin(0.0)
    peer.setblocking(False)

    def receive_filler() -> bool:
        nonlocal filler
        with suppress(BlockingIOError):
            filler -= len(peer.recv(filler))
        return not filler

    bench.until(receive_filler)
    bench.until(lambda: can_read(peer))
    peer.setblocking(True)
    echo(peer, 1000)
    bench.until(lambda: bench.replied)


@pytest.mark.parametrize("turn", [-1.0, 1.0])
def test_many_connections(
    bench: Bench, connect: Any, turn: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All replies are received from more connections than fit in a round, or in a turn."""
    monkeypatch.setattr("echod.client.epoll.TURN", turn)
    connected = connect(10, count=100)
    for channel, peer in zip(connected.channels, connected.peers, strict=True):
        channel.begin(bench.reactor.seconds())
        echo(peer, 10)
    bench.until(lambda: len(bench.replied) == 100)


def test_removed_during_a_round(bench: Bench, connect: Any) -> None:
    """A channel that a reply to another one ends is not read any more in that round."""
    connected = connect(10, count=2)

    def end_both(number: int, since: float, now: float, damaged: int) -> None:
        for channel in connected.channels:
            channel.transport.connectionLost(Failure(ConnectionLost()))

    for channel in connected.channels:
        channel.use(StreamReplies(bench.tally, contents(10), end_both))
        channel.begin(0.0)
    for peer in connected.peers:
        echo(peer, 10)
    bench.until(lambda: len(connected.endings) == 2)
    assert connected.endings == ["reset", "reset"]


def test_spurious_readiness(bench: Bench, connect: Any) -> None:
    """A socket that is reported as ready, but has no data, is polled again."""
    channel, peer = connect(10).pair
    receive = channel.receive

    def receive_nothing(*_: object) -> Any:
        channel.receive = receive
        raise BlockingIOError

    channel.receive = receive_nothing
    channel.begin(0.0)
    echo(peer, 10)
    bench.until(lambda: bench.replied)


def test_reset_while_receiving(bench: Bench, connect: Any) -> None:
    """A reset that a receive meets is reported as a reset."""
    connected = connect(10)
    reset(connected.peers[0])
    bench.until(lambda: connected.endings)
    assert connected.endings == ["reset"]


def test_reset_while_sending(bench: Bench, connect: Any) -> None:
    """A reset that a send meets is reported as a reset, though the socket reports it once."""
    connected = connect(10)
    channel, peer = connected.pair
    channel.begin(0.0)
    echo(peer, 10)
    reset(peer)
    channel.begin(0.0)
    assert connected.endings == []
    bench.until(lambda: connected.endings)
    assert connected.endings == ["reset"]


def test_reset_with_waiting_messages(bench: Bench, connect: Any) -> None:
    """Messages that wait for space when the connection is reset still count as sent."""
    connected = connect(100_000)
    channel, peer = connected.pair
    for _ in range(200):
        channel.begin(0.0)
    reset(peer)
    bench.until(lambda: connected.endings)
    assert channel.sent == 200


def test_service_finishes_without_reading(bench: Bench, connect: Any) -> None:
    """A service that sends FIN and reads no more has closed, with messages still to be sent."""
    connected = connect(100_000)
    channel, peer = connected.pair
    for _ in range(200):
        channel.begin(0.0)
    peer.shutdown(socket.SHUT_WR)
    bench.until(lambda: connected.endings)
    assert connected.endings == ["closed"]


def test_close(bench: Bench, connect: Any) -> None:
    """close() half-closes, and the service's FIN ends the connection. Repeated, it does nothing."""
    connected = connect(10)
    channel, peer = connected.pair
    channel.close()
    channel.close()
    bench.until(lambda: can_read(peer))
    assert peer.recv(10) == b""
    peer.close()
    bench.until(lambda: connected.endings)
    assert connected.endings == [""]
    channel.close()


def test_tls(bench: Bench) -> None:
    """Over TLS, a message reaches the kernel at once, and its reply has the kernel's time."""
    with tls_target() as target:
        reader = bench.reader(100, transmit_stamps=True)
        connector = Connector(bench.reactor, parse_target(target), 10.0)
        bench.result(Deferred.fromCoroutine(connector.resolve()))
        channel = bench.result(Deferred.fromCoroutine(connector.channel(reader)))
        channel.use(StreamReplies(bench.tally, contents(100), bench.reply))
        count = 0
        while not reader.stamps.used:  # the kernel begins to stamp some milliseconds after
            count += 1
            channel.begin()
            assert not unsent(channel.transport)
            bench.until(lambda count=count: len(bench.replied) == count)
        assert not channel.has_transmit_stamps
        channel.close()
        for _ in range(2):  # sends the closing alert, and then nothing
            channel.begin()
        assert bench.result(channel.ended) == ""
        assert len(bench.replied) == count
        reader.close()
