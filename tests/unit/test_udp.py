"""UDP echo over real sockets, in a reactor that the test turns by hand."""

from __future__ import annotations

import random
import socket
import sys
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from echod import udp
from echod.events import Drop, Dropped
from echod.turns import TURN
from echod.udp import FEW, DatagramEcho, DatagramPort, EchoDatagrams, udp_address
from echod.udprules import Rules
from echod.udpsocket import BATCH
from tests import TIMEOUT
from tests.reactors import REACTORS, reactor_of_kind, turn
from tests.recorder import Recorder

GOOD = "192.0.2.1"
SO_TIMESTAMP = 29  # of asm-generic/socket.h; Python has no name for it


class EchoPort:
    """A DatagramPort on a real socket, with clients."""

    def __init__(self, kind: str = "epoll", host: str = "127.0.0.1", **rules: float) -> None:
        self.reactor = reactor_of_kind(kind)
        self.events = Recorder()
        self.clock = Clock()
        self.datagrams = EchoDatagrams(
            self.clock, self.events, Rules(**{"rate": 1e6, "total_rate": 1e6, **rules})
        )
        self.family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self.sock = socket.socket(self.family, socket.SOCK_DGRAM)
        self.sock.bind((host, 0))
        self.port = self.make_port()
        self.port.startListening()
        self.port.doRead()
        self.number = self.port.getHost().port
        self.clients: list[socket.socket] = []

    def make_port(self) -> DatagramPort:
        return DatagramPort(self.reactor, self.sock, self.datagrams)

    def __enter__(self) -> EchoPort:
        return self

    def __exit__(self, *_: object) -> None:
        self.port.stopListening()
        for client in self.clients:
            client.close()

    def client(self, host: str = "127.0.0.1", to: str | None = None) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.bind((host, 0))
        # Connected: the kernel delivers datagrams from that address only.
        client.connect((host if to is None else to, self.number))
        client.setblocking(False)
        self.clients.append(client)
        return client

    def turn(self) -> None:
        for _ in range(3):
            turn(self.reactor)

    @property
    def drops(self) -> list[Drop]:
        return [event.drop for event in self.events if isinstance(event, Dropped)]


@pytest.fixture(params=["one by one", "in batches"], autouse=True)
def few(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Receive all datagrams in one way: turns have few of them, or many, even if there are none."""
    monkeypatch.setattr(udp, "FEW", sys.maxsize if request.param == "one by one" else -1)


@pytest.fixture(params=REACTORS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("host", "most"), [("127.0.0.1", 65_507), ("::1", 65_527)])
def test_any_size(kind: str, host: str, most: int) -> None:
    """A datagram of any size is echoed, an empty one too (RFC 862, RFC 768)."""
    chance = random.Random(862)
    with EchoPort(kind, host) as echo:
        client = echo.client(host)
        for size in (0, 1, 2, 1472, 1473, 65_507, most, chance.randrange(most)):
            sent = chance.randbytes(size)
            client.send(sent)
            echo.turn()
            assert client.recv(70_000) == sent
        assert echo.datagrams.answered == 8
    assert echo.drops == []


@pytest.mark.parametrize(
    ("listens", "asks"),
    [
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.200.0.3"]),
        ("::", ["::1", "127.0.0.1", "127.0.0.2"]),
        ("127.0.0.2", ["127.0.0.2"]),
    ],
)
def test_source_address_of_replies(kind: str, listens: str, asks: list[str]) -> None:
    """A reply comes from the address that the datagram was sent to, of the many that a host has."""
    with EchoPort(kind, listens) as echo:
        for host in asks:
            source = "::1" if ":" in host else "127.0.0.1"
            client = echo.client(source, host)
            client.send(host.encode())
            echo.turn()
            assert client.recv(100) == host.encode()


# As numbers, because the socket module lacks some: SO_TIMESTAMP, SO_TIMESTAMPNS and
# SO_RXQ_OVFL of socket(7), IP_RECVTOS and IP_RECVTTL of ip(7).
@pytest.mark.parametrize("option", [(1, 29), (1, 35), (1, 40), (0, 13), (0, 12)])
@pytest.mark.parametrize("host", ["0.0.0.0", "::", "127.0.0.1"])
def test_other_ancillary_data(option: tuple[int, int], host: str) -> None:
    """Other ancillary data, as Timestamping= in a socket unit enables, is ignored."""
    with EchoPort(host=host) as echo:
        echo.sock.setsockopt(*option, 1)
        client = echo.client("::1" if ":" in host else "127.0.0.1")
        client.send(b"?")
        echo.turn()
        assert client.recv(9) == b"?"


def test_no_reply_to_broadcast() -> None:
    """The kernel refuses broadcasts (EACCES), on a systemd socket with Broadcast=yes too."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        port = DatagramPort(reactor_of_kind("epoll"), sock, EchoDatagrams(Clock()))
        port.startListening()
        with pytest.raises(PermissionError):
            sock.sendto(b"?", ("127.255.255.255", 50000))
        port.stopListening()


@pytest.mark.parametrize("size", [4096, 3 << 20])
def test_receive_buffer(size: int) -> None:
    """The receive buffer is enlarged, but one enlarged by ReceiveBuffer= is never shrunk."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        before = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        port = DatagramPort(reactor_of_kind("epoll"), sock, EchoDatagrams(Clock()))
        port.startListening()
        after = sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        assert after > before if size == 4096 else after == before
        port.stopListening()


@pytest.mark.parametrize("listens", ["0.0.0.0", "::"])
@pytest.mark.parametrize("timestamps", [0, 1])
def test_broadcast(kind: str, listens: str, timestamps: int) -> None:
    """A broadcast datagram gets no reply, on a dual-stack port either."""
    with EchoPort(kind, listens) as echo:
        echo.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, timestamps)
        client = echo.client()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"?", ("127.255.255.255", echo.number))
        client.send(b"!")
        echo.turn()
        assert client.recv(9) == b"!"
    assert echo.drops == [Drop.SENT_TO_MANY]


@pytest.mark.parametrize(
    ("listens", "asks"),
    [("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.2"), ("::", "::1")],
)
def test_timestamping(listens: str, asks: str) -> None:
    """A socket with timestamps, as Timestamping= in systemd.socket(5) makes it, works."""
    with EchoPort(host=listens) as echo:
        echo.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        client = echo.client("::1" if ":" in asks else "127.0.0.1", asks)
        for _ in range(2):
            client.send(b"?")
            echo.turn()
            assert client.recv(9) == b"?"


class SlowClock(Clock):
    """A clock on which each look takes 0.6 of a turn's time."""

    def seconds(self) -> float:
        self.rightNow += TURN * 0.6
        return self.rightNow


def test_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many datagrams are echoed in order, in batches, until the time of a turn is used up."""
    monkeypatch.setattr(udp, "FEW", FEW)
    with EchoPort() as echo:
        client = echo.client()
        sent = [b"%d" % number for number in range(4 * BATCH)]
        for datagram in sent[: FEW + 1]:
            client.send(datagram)
        echo.port.doRead()
        for datagram in sent[FEW + 1 :]:
            client.send(datagram)
        echo.datagrams.clock = SlowClock()
        echo.port.doRead()
        assert echo.datagrams.answered == FEW + 1 + 2 * BATCH
        echo.turn()
        assert [client.recv(9) for _ in sent] == sent
        assert echo.datagrams.bytes == sum(map(len, sent))


def test_dropped_event() -> None:
    """Each datagram without a reply is one event, and later datagrams are echoed again."""
    with EchoPort(rate=2) as echo:
        client = echo.client()
        for _ in range(4):
            client.send(b"?")
        echo.turn()
        echo.clock.advance(1)
        client.send(b"!")
        echo.turn()
        assert [client.recv(9) for _ in range(3)] == [b"?", b"?", b"!"]
        host, number = client.getsockname()
    assert echo.events == [
        Dropped(Drop.SOURCE_RATE, IPv4Address("UDP", host, number)) for _ in range(2)
    ]


@pytest.mark.parametrize("forged", [b"", b"x" * 1000])
def test_loop_of_two_services(forged: bytes) -> None:
    """A loop between two services ends after the burst of each (CVE-2024-2169)."""
    with EchoPort(rate=100) as one, EchoPort(rate=100) as other:
        # A datagram that pretends to come from the other service.
        one.sock.sendto(forged, ("127.0.0.1", other.number))
        for _ in range(1000):
            one.turn()
        assert one.datagrams.answered + other.datagrams.answered == 200
        assert one.drops + other.drops == [Drop.SOURCE_RATE]


def test_two_services_on_one_port() -> None:
    """Two services with the same port number never reply to each other."""
    with EchoPort(host="127.0.0.1") as one:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.2", one.number))
        sock.sendto(b"?", ("127.0.0.1", one.number))
        one.turn()
        assert one.drops == [Drop.OWN_PORT]
        sock.close()


class FailingSocket:
    """A socket that receives one datagram, and fails to send."""

    family = socket.AF_INET

    def __init__(self, number: int) -> None:
        self.error = OSError(number, "")
        self.left = [OSError(111, "")]

    def getsockname(self) -> Any:
        return ("0.0.0.0", 9)

    def fileno(self) -> int:
        return 9

    def recvmsg_into(self, buffers: Any, space: int) -> Any:
        if self.left:
            raise self.left.pop()
        self.left.append(BlockingIOError())
        return 1, [(socket.IPPROTO_IP, 8, bytes(4) + b"1234" * 2)], 0, (GOOD, 50000)

    def sendmsg(self, *_: object) -> None:
        raise self.error


@pytest.mark.parametrize(
    ("number", "drop"), [(13, Drop.BROADCAST), (11, Drop.NOT_SENT), (1, Drop.NOT_SENT)]
)
def test_send_fails(number: int, drop: Drop) -> None:
    """A reply that the kernel refuses is counted, and the next datagram is read."""
    events = Recorder()
    sock: Any = FailingSocket(number)
    port = DatagramPort(Any, sock, EchoDatagrams(Clock(), events))  # type: ignore[arg-type]
    for _ in range(2):
        port.doRead()
    assert [event.drop for event in events if isinstance(event, Dropped)] == [drop]


def test_interfaces() -> None:
    """The port provides the interfaces of reactors and services, and clears its entry on close."""
    with EchoPort() as echo:
        assert verifyObject(IListeningPort, echo.port)
        assert verifyObject(IReadDescriptor, echo.port)
        assert echo.port.logPrefix() == "echod"
        assert echo.datagrams.rules.own_ports[echo.number] == 1
    assert echo.datagrams.rules.own_ports[echo.number] == 0
    assert echo.sock.fileno() == -1


def test_kernel_drops() -> None:
    """Datagrams dropped for want of buffer space are counted, after the port is closed too."""
    with EchoPort() as echo:
        client = echo.client()
        for _ in range(200):
            client.send(bytes(60_000))
        echo.turn()
        answered = echo.datagrams.answered
        assert 0 < answered < 200
        assert echo.datagrams.kernel_dropped() == 200 - answered
    assert echo.datagrams.kernel_dropped() == 200 - answered


def test_kernel_drops_before_listening() -> None:
    """Earlier drops of a socket that systemd keeps open are not counted again."""
    with EchoPort() as echo, echo.sock.dup() as sock:
        client = echo.client()
        for _ in range(200):
            client.send(bytes(60_000))
        echo.port.stopListening()
        dropped = echo.datagrams.kernel_dropped()
        assert dropped > 0
        again = DatagramPort(echo.reactor, sock.dup(), echo.datagrams)
        again.startListening()
        assert echo.datagrams.kernel_dropped() == dropped
        client.send(bytes(60_000))
        assert echo.datagrams.kernel_dropped() == dropped + 1
        again.stopListening()
        assert echo.datagrams.kernel_dropped() == dropped + 1


def test_kernel_without_drop_counter() -> None:
    """A kernel without the option SO_MEMINFO counts as no drops."""

    class WithoutMeminfo(FailingSocket):
        def getsockopt(self, *_: object) -> bytes:
            raise self.error

    sock: Any = WithoutMeminfo(92)
    assert DatagramPort(Any, sock, EchoDatagrams(Clock())).kernel_dropped() == 0  # type: ignore[arg-type]


def test_stop_twice() -> None:
    """Stopping a port that is stopped does nothing."""
    with EchoPort() as echo:
        echo.port.stopListening()
        echo.port.stopListening()
        assert echo.datagrams.rules.own_ports == {echo.number: 0}


def test_observer_fails() -> None:
    """An observer that raises does not keep the next client from its reply."""
    with EchoPort(rate=1) as echo:
        echo.datagrams.observer = lambda _: 1 / 0
        client, other = echo.client(), echo.client("127.0.0.9", "127.0.0.1")
        for _ in range(2):
            client.send(b"?")
        other.send(b"?")
        echo.turn()
        assert other.recv(9) == b"?"


def test_observer_closes_the_port() -> None:
    """A port that an observer closes between two datagrams fails without a traceback."""
    with EchoPort(rate=1) as echo:
        client, other = echo.client(), echo.client("127.0.0.9", "127.0.0.1")
        echo.datagrams.observer = lambda _: echo.port.stopListening()
        for sender in (client, client, other):
            sender.send(b"?")
        echo.turn()
        assert client.recv(9) == b"?"
        assert echo.sock.fileno() == -1


class FakeTransport:
    def __init__(self) -> None:
        self.written: list[Any] = []
        self.error: OSError | None = None

    def getHost(self) -> IPv4Address:
        return IPv4Address("UDP", "127.0.0.1", 65432)

    def write(self, datagram: bytes, addr: Any) -> None:
        if self.error:
            raise self.error
        self.written.append((datagram, addr))


def test_datagram_protocol() -> None:
    """DatagramEcho keeps the same rules and counters."""
    events = Recorder()
    datagrams = EchoDatagrams(Clock(), events)
    protocol = DatagramEcho(datagrams)
    transport: Any = FakeTransport()
    protocol.makeConnection(transport)
    protocol.datagramReceived(b"hello", (GOOD, 50000))
    protocol.datagramReceived(b"hello", (GOOD, 65432))
    transport.error = OSError(1, "")
    protocol.datagramReceived(b"hello", (GOOD, 50000))
    assert transport.written == [(b"hello", (GOOD, 50000))]
    assert (datagrams.answered, datagrams.bytes) == (1, 5)
    assert [event.drop for event in events if isinstance(event, Dropped)] == [
        Drop.OWN_PORT,
        Drop.NOT_SENT,
    ]
    protocol.doStop()
    assert not datagrams.rules.own_ports.total()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_twisted_port(host: str) -> None:
    """On Twisted's own port, datagrams of any size are echoed whole, and drops are events."""
    reactor, events = reactor_of_kind("epoll"), Recorder()
    datagrams = EchoDatagrams(Clock(), events, Rules(rate=4))
    port = reactor.listenUDP(0, DatagramEcho(datagrams), interface=host)
    sent = [random.Random(862).randbytes(size) for size in (0, 8192, 8193, 65_507, 1)]
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((host, port.getHost().port))
        client.settimeout(TIMEOUT)
        for datagram in sent:
            client.send(datagram)
            turn(reactor)
        assert [client.recv(70_000) for _ in range(4)] == sent[:4]
        address = IPv6Address if ":" in host else IPv4Address
        here = address("UDP", *client.getsockname()[:2])
    assert events == [Dropped(Drop.SOURCE_RATE, here)]
    port.stopListening()
    turn(reactor)
    assert not datagrams.rules.own_ports.total()


def test_udp_address() -> None:
    """A socket address becomes a Twisted address."""
    assert udp_address(("::1", 7, 0, 3)) == IPv6Address("UDP", "::1", 7, 0, 3)
    assert udp_address(("::1", 7)) == IPv6Address("UDP", "::1", 7)
    assert udp_address((GOOD, 7)) == IPv4Address("UDP", GOOD, 7)
