"""The client's end of connections and UDP sockets, over the kernel, in a reactor turned by hand."""

from __future__ import annotations

import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from twisted.internet import defer
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionLost
from twisted.python.failure import Failure

from echod.client.connector import Connector
from echod.client.datagrams import DatagramChannel
from echod.client.epoll import EpollReader
from echod.client.payloads import DatagramPayloads, contents
from echod.client.reactor import PreciseReactor
from echod.client.replies import DatagramReplies, MessageTally, StreamReplies
from echod.client.streams import StreamChannel
from echod.client.target import parse_target, udp_socket
from echod.client.tcp import ConnectAttempt
from tests import TIMEOUT
from tests.client.memory import silent_port
from tests.reactors import turn

RESET = struct.pack("ii", 1, 0)


class Bench:
    """A reactor, and what is told of replies."""

    def __init__(self) -> None:
        self.reactor: Any = PreciseReactor()
        self.tally = MessageTally(10.0)
        self.replied: list[int] = []

    def reply(self, number: int, since: float, now: float, damaged: int) -> None:
        self.replied.append(number)
        self.tally.reply(since, now, damaged)

    def until(self, what: Callable[[], Any]) -> None:
        give_up = time.monotonic() + TIMEOUT
        while not what():
            assert time.monotonic() < give_up, "it does not happen"
            turn(self.reactor, 0.001)

    def result(self, deferred: Deferred[Any]) -> Any:
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.until(lambda: results)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]


@pytest.fixture
def bench() -> Bench:
    return Bench()


class Connected:
    """A channel, and the socket at its other end."""

    def __init__(self, bench: Bench, size: int, count: int = 1) -> None:
        self.sockets = EpollReader(bench.reactor, bench.reactor, size)
        self.channels: list[StreamChannel] = []
        self.peers: list[socket.socket] = []
        self.ends: list[str] = []
        with socket.create_server(("127.0.0.1", 0)) as listening:
            connector = Connector(
                bench.reactor, parse_target(f"127.0.0.1:{listening.getsockname()[1]}"), 10.0
            )
            bench.result(Deferred.fromCoroutine(connector.find()))
            for _ in range(count):
                connecting = Deferred.fromCoroutine(connector.channel(self.sockets))
                channel = bench.result(connecting)
                self.peers.append(listening.accept()[0])
                self.peers[-1].settimeout(TIMEOUT)
                channel.use(StreamReplies(bench.tally, contents(size), bench.reply))
                channel.ended.addCallback(self.ends.append)
                self.channels.append(channel)

    def close(self) -> None:
        for peer in self.peers:
            peer.close()
        for channel in self.channels:
            channel.abort()


@pytest.fixture
def connect(bench: Bench) -> Iterator[Callable[..., Connected]]:
    made: list[Connected] = []

    def build(size: int, count: int = 1) -> Connected:
        made.append(Connected(bench, size, count))
        return made[-1]

    yield build
    for connected in made:
        connected.close()
        bench.until(lambda connected=connected: len(connected.ends) == len(connected.channels))
        connected.sockets.close()


def echo(peer: socket.socket, count: int) -> None:
    """Receive so many bytes, and send them back."""
    while count:
        part = peer.recv(min(count, 1 << 16))
        peer.sendall(part)
        count -= len(part)


def test_at_once(bench: Bench, connect: Any) -> None:
    """A message is with the kernel when it is begun: no turn of the reactor is needed."""
    connected = connect(100)
    connected.channels[0].begin(bench.reactor.seconds())
    echo(connected.peers[0], 100)
    bench.until(lambda: bench.replied)
    bench.tally.sum_up()
    assert bench.replied == [0]
    assert bench.tally.received == 1


def test_urgent_reply(bench: Bench, connect: Any) -> None:
    """A reply that is sent as urgent data is whole (RFC 6093)."""
    connected = connect(3)
    [channel], [peer] = connected.channels, connected.peers
    for number in range(2):
        channel.begin(bench.reactor.seconds())
        peer.send(peer.recv(3), socket.MSG_OOB)
        bench.until(lambda number=number: bench.replied == list(range(number + 1)))
    assert bench.tally.damaged == 0


def test_more_than_the_kernel_takes(bench: Bench, connect: Any) -> None:
    """What the kernel does not take at once is sent later, in order, and once."""
    size, many = 1_000_000, 20
    connected = connect(size)
    channel, peer = connected.channels[0], connected.peers[0]
    for _ in range(many):
        channel.begin(bench.reactor.seconds())
    assert channel.sent == len(list(channel.outstanding())) == many
    peer.setblocking(False)
    buffered = bytearray()

    def go_on() -> bool:
        with suppress(BlockingIOError):
            buffered.extend(peer.recv(1 << 20))
        with suppress(BlockingIOError):
            del buffered[: peer.send(buffered)]
        return len(bench.replied) == many

    bench.until(go_on)
    assert bench.tally.damaged == 0


def test_no_room(bench: Bench, connect: Any) -> None:
    """Where the kernel has no room at all, the message is sent when there is."""
    connected = connect(1000)
    channel, peer = connected.channels[0], connected.peers[0]
    filler = 0
    with suppress(BlockingIOError):
        while True:
            filler += channel._socket.send(bytes(1 << 16))
    channel.begin(0.0)
    peer.setblocking(False)

    def take_filler() -> bool:
        nonlocal filler
        with suppress(BlockingIOError):
            filler -= len(peer.recv(filler))
        return not filler

    bench.until(take_filler)
    bench.until(lambda: can_read(peer))
    peer.setblocking(True)
    echo(peer, 1000)
    bench.until(lambda: bench.replied)


@pytest.mark.parametrize("rounds", [1, 8])
def test_many_connections(
    bench: Bench, connect: Any, rounds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More connections than one round takes, or one turn, all get theirs."""
    monkeypatch.setattr("echod.client.epoll.ROUNDS", rounds)
    connected = connect(10, count=100)
    for channel, peer in zip(connected.channels, connected.peers, strict=True):
        channel.begin(bench.reactor.seconds())
        echo(peer, 10)
    bench.until(lambda: len(bench.replied) == 100)


def test_one_that_another_ends(bench: Bench, connect: Any) -> None:
    """Who is ended by what another has received is not asked any more in that round."""
    connected = connect(10, count=2)
    first, second = connected.channels

    def end_the_other(number: int, since: float, now: float, damaged: int) -> None:
        for channel in connected.channels:
            cast_transport(channel).connectionLost(Failure(ConnectionLost()))

    for channel in (first, second):
        channel.use(StreamReplies(bench.tally, contents(10), end_the_other))
        channel.begin(0.0)
    for peer in connected.peers:
        echo(peer, 10)
    bench.until(lambda: len(connected.ends) == 2)
    assert connected.ends == ["reset", "reset"]


def cast_transport(channel: StreamChannel) -> Any:
    return channel.transport


def test_a_false_alarm(bench: Bench, connect: Any) -> None:
    """A socket that was ready, and has nothing after all, is waited for again."""
    connected = connect(10)
    channel = connected.channels[0]
    receive = channel.receive

    def nothing(size: int) -> bytes:
        channel.receive = receive
        raise BlockingIOError

    channel.receive = nothing
    channel.begin(0.0)
    echo(connected.peers[0], 10)
    bench.until(lambda: bench.replied)


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    peer.close()


def test_reset(bench: Bench, connect: Any) -> None:
    """A reset is one, where it is met in receiving."""
    connected = connect(10)
    reset(connected.peers[0])
    bench.until(lambda: connected.ends)
    assert connected.ends == ["reset"]


def test_reset_that_sending_meets(bench: Bench, connect: Any) -> None:
    """And where it is met in sending, though the socket tells it once; what came before counts."""
    connected = connect(10)
    channel = connected.channels[0]
    channel.begin(0.0)
    echo(connected.peers[0], 10)
    reset(connected.peers[0])
    channel.begin(0.0)
    assert connected.ends == []
    bench.until(lambda: connected.ends)
    assert connected.ends == ["reset"]


def test_waiting_messages_at_the_end(bench: Bench, connect: Any) -> None:
    """Messages for which there was no room go with the connection."""
    connected = connect(100_000)
    channel = connected.channels[0]
    for _ in range(200):
        channel.begin(0.0)
    reset(connected.peers[0])
    bench.until(lambda: connected.ends)
    assert channel.sent == 200


def test_service_that_only_finishes(bench: Bench, connect: Any) -> None:
    """A service that finishes, and reads no more, has closed, whatever was still to be sent."""
    connected = connect(100_000)
    for _ in range(200):
        connected.channels[0].begin(0.0)
    connected.peers[0].shutdown(socket.SHUT_WR)
    bench.until(lambda: connected.ends)
    assert connected.ends == ["closed"]


def test_close(bench: Bench, connect: Any) -> None:
    """Closing is a half-close, and the end of the other side ends it; again does nothing."""
    connected = connect(10)
    connected.channels[0].close()
    connected.channels[0].close()
    bench.until(lambda: can_read(connected.peers[0]))
    assert connected.peers[0].recv(10) == b""
    connected.peers[0].close()
    bench.until(lambda: connected.ends)
    assert connected.ends == [""]
    connected.channels[0].close()


def can_read(sock: socket.socket) -> bool:
    return bool(select.select([sock], [], [], 0)[0])


def test_name_of_the_log(bench: Bench, connect: Any) -> None:
    """A log would call them by the command's name."""
    sockets = EpollReader(bench.reactor, bench.reactor, 10)
    assert sockets.logPrefix() == "echod-client"
    assert (
        ConnectAttempt(bench.reactor, socket.AF_INET, ("127.0.0.1", 1)).logPrefix()
        == "echod-client"
    )
    sockets.connectionLost(Failure(ConnectionLost()))
    sockets.close()


def test_connecting_fails_at_once(bench: Bench) -> None:
    """A connection that the kernel refuses to begin fails with its reason."""
    # Nobody can connect to a broadcast address, not even to that of loopback.
    endpoint = ConnectAttempt(bench.reactor, socket.AF_INET, ("127.255.255.255", 9))
    with pytest.raises(OSError, match=r"."):
        bench.result(endpoint.connect(None))  # type: ignore[arg-type]


def test_no_descriptor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one for which there is no socket."""

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("echod.client.tcp.socket.socket", none_left)
    endpoint = ConnectAttempt(bench.reactor, socket.AF_INET, ("127.0.0.1", 1))
    with pytest.raises(OSError, match="Too many open files"):
        bench.result(endpoint.connect(None))  # type: ignore[arg-type]


def test_no_descriptor_for_the_reactor(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """So does one for which the reactor has none left, of its own."""

    def none_left(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bench.reactor, "adoptStreamConnection", none_left)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        endpoint = ConnectAttempt(bench.reactor, socket.AF_INET, listening.getsockname())
        with pytest.raises(OSError, match="Too many open files"):
            bench.result(endpoint.connect(None))  # type: ignore[arg-type]
    assert endpoint.fileno() == -1


def test_connecting_is_given_up() -> None:
    """A connection that is not made in time is given up, and its socket closed."""
    bench = Bench()
    with silent_port() as target:
        connector = Connector(bench.reactor, parse_target(target), 0.1)
        sockets = EpollReader(bench.reactor, bench.reactor, 10)
        bench.result(Deferred.fromCoroutine(connector.find()))
        with pytest.raises(defer.TimeoutError):
            bench.result(Deferred.fromCoroutine(connector.channel(sockets)))
        sockets.close()


class Datagram:
    """A UDP channel, and the socket at its other end."""

    def __init__(self, bench: Bench, size: int = 64) -> None:
        self.peer = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.peer.bind(("127.0.0.1", 0))
        self.sockets = EpollReader(bench.reactor, bench.reactor, size)
        self.errors: Counter[str] = Counter()
        sock = udp_socket(socket.AF_INET, self.peer.getsockname(), dont_fragment=True)
        self.channel = DatagramChannel(sock, self.sockets, self.errors)
        self.channel.use(DatagramReplies(bench.tally, DatagramPayloads(size), bench.reply))

    def close(self) -> None:
        self.peer.close()
        self.channel.close()
        self.channel.close()
        self.sockets.close()


@pytest.fixture
def datagram(bench: Bench) -> Iterator[Datagram]:
    made = Datagram(bench)
    yield made
    made.close()


def test_empty_datagram(bench: Bench, datagram: Datagram) -> None:
    """A datagram without a byte is one that nobody asked for, and no end."""
    datagram.channel.begin(0.0)
    data, address = datagram.peer.recvfrom(100)
    datagram.peer.sendto(b"", address)
    datagram.peer.sendto(data, address)
    bench.until(lambda: bench.replied)
    assert bench.tally.unexpected == 1
    assert list(datagram.channel.outstanding()) == []


def test_longer_datagram(bench: Bench) -> None:
    """A datagram that comes back longer than it left is damaged, of whatever size."""
    datagram = Datagram(bench, 5000)
    datagram.channel.begin(0.0)
    data, address = datagram.peer.recvfrom(6000)
    datagram.peer.sendto(data + b"!", address)
    bench.until(lambda: bench.replied)
    assert (bench.tally.damaged, bench.tally.damaged_bytes) == (1, 1)
    datagram.close()


def test_closed_by_what_it_has_received(bench: Bench) -> None:
    """Who ends all by what has come is not asked any more."""
    datagram = Datagram(bench)

    def close(number: int, since: float, now: float, damaged: int) -> None:
        bench.replied.append(number)
        datagram.channel.close()
        datagram.sockets.close()

    datagram.channel.use(DatagramReplies(bench.tally, DatagramPayloads(64), close))
    datagram.channel.begin(0.0)
    data, address = datagram.peer.recvfrom(100)
    datagram.peer.sendto(data, address)
    select.select([datagram.sockets], [], [], TIMEOUT)
    datagram.sockets.doRead()
    assert bench.replied == [0]
    datagram.peer.close()


def test_nobody_there(bench: Bench, datagram: Datagram) -> None:
    """When sending meets the refusal of the last datagram, this one is sent all the same."""
    datagram.peer.close()
    for _ in range(3):
        datagram.channel.begin(0.0)
    bench.until(lambda: datagram.errors["refused"] == 3)
    assert datagram.channel.sent == 3


def test_too_long(bench: Bench) -> None:
    """A datagram that is longer than the path takes is counted as such."""
    datagram = Datagram(bench, 65_508)
    datagram.channel.begin(0.0)
    assert datagram.errors == {"too_long": 1}
    datagram.close()


def test_way_without_a_route(bench: Bench) -> None:
    """Of several addresses, the first to which there is a way is taken; else the reason is told."""
    connector = Connector(bench.reactor, parse_target("udp:127.0.0.1:7"), 1.0)
    none, good = (socket.AF_INET6, ("::ffff:0:0:0:0:0%", 7)), (socket.AF_INET, ("127.0.0.1", 7))
    connector._addresses = [(socket.AF_INET6, ("127.0.0.1", 7)), good]
    sockets = EpollReader(bench.reactor, bench.reactor, 10)
    connector.datagrams(sockets, dont_fragment=False).close()
    assert connector.address == "127.0.0.1:7"
    connector._addresses = [none]
    with pytest.raises(OSError, match=r"."):
        connector.datagrams(sockets, dont_fragment=False)
    sockets.close()


def test_second_address(bench: Bench) -> None:
    """Of several addresses, the first that answers is taken, and from then on that alone."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and does not listen
        connector = Connector(bench.reactor, parse_target("127.0.0.1:7"), 1.0)
        good = (socket.AF_INET, listening.getsockname())
        connector._addresses = [(socket.AF_INET, unused.getsockname()), good]
        sockets = EpollReader(bench.reactor, bench.reactor, 10)
        for _ in range(2):
            channel = bench.result(Deferred.fromCoroutine(connector.channel(sockets)))
            assert connector._addresses == [good]
            channel.abort()
            bench.result(channel.ended)
        sockets.close()


def test_descriptors_above_1023(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where select(2) cannot wait, the reactor waits as Twisted's own does."""

    def refuse(*_: object) -> None:
        raise ValueError("filedescriptor out of range in select()")

    bench = Bench()
    monkeypatch.setattr("select.select", refuse)
    called: list[bool] = []
    bench.reactor.callLater(0.01, called.append, True)
    bench.until(lambda: called)
