"""UDP: who is answered, and who is not."""

from __future__ import annotations

import heapq
import random
import socket
from typing import Any

import pytest
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IListeningPort, IReadDescriptor
from twisted.internet.task import Clock
from zope.interface.verify import verifyObject

from echod.events import Drop, Dropped
from echod.udp import (
    BATCH,
    SOURCES,
    DatagramEcho,
    DatagramPort,
    EchoDatagrams,
    Rules,
    address_of,
    asked,
    source_of,
)
from tests import TIMEOUT
from tests.reactors import REACTORS, reactor_of_kind, turn
from tests.recorder import Recorder

GOOD = "192.0.2.1"
HOUR = 3600.0
SO_TIMESTAMP = 29  # of asm-generic/socket.h; Python has no name for it

# One row a rule: where a datagram comes from, what becomes of it, and where that is from.
SOURCE_RULES = [
    ("an ephemeral port", GOOD, 50000, None),  # RFC 862
    ("the least that is answered", GOOD, 1024, None),  # RFC 6335 6: below are System Ports
    ("the most there is", GOOD, 65535, None),  # RFC 768
    ("no port, for who wants no answer", GOOD, 0, Drop.NO_PORT),  # RFC 768
    ("an echo service", GOOD, 7, Drop.LOW_PORT),  # CVE-1999-0103
    ("a chargen service", GOOD, 19, Drop.LOW_PORT),  # CVE-1999-0103
    ("the last of the System Ports", GOOD, 1023, Drop.LOW_PORT),  # RFC 6335 6
    ("below NFS", GOOD, 2048, None),
    ("NFS", GOOD, 2049, Drop.NFS_PORT),  # inetd(8) of OpenBSD
    ("above NFS", GOOD, 2050, None),
    ("another echod, or this one", GOOD, 65432, Drop.OWN_PORT),  # CVE-2024-2169
    ("multicast", "224.0.0.1", 50000, Drop.MULTICAST),  # RFC 1122 3.2.1.3
    ("the last multicast", "239.255.255.255", 50000, Drop.MULTICAST),
    ("multicast, IPv6", "ff02::1", 50000, Drop.MULTICAST),  # RFC 4291 2.7
    ("multicast, IPv6, on one interface", "ff02::1%lo", 50000, Drop.MULTICAST),
    ("limited broadcast", "255.255.255.255", 50000, Drop.BROADCAST),  # RFC 1122 3.2.1.3
    ("no address", "0.0.0.0", 50000, Drop.UNSPECIFIED),  # RFC 1122 3.2.1.3
    ("no address, IPv6", "::", 50000, Drop.UNSPECIFIED),  # RFC 4291 2.5.2
    ("loopback, IPv6", "::1", 50000, None),
    ("link-local, IPv6", "fe80::1%lo", 50000, None),
    ("multicast, on a dual-stack socket", "::ffff:224.0.0.1", 50000, Drop.MULTICAST),
    ("IPv4, on a dual-stack socket", "::ffff:192.0.2.1", 50000, None),  # RFC 4291 2.5.5.2
]


@pytest.mark.parametrize(
    ("host", "port", "drop"),
    [row[1:] for row in SOURCE_RULES],
    ids=[row[0] for row in SOURCE_RULES],
)
def test_source(host: str, port: int, drop: Drop | None) -> None:
    """Who could answer in turn, or would be many, is not answered."""
    rules = Rules()
    rules.own_ports[65432] += 1
    assert rules.drop(host, port, 0.0) is drop


def answers(rules: Rules, seconds: float, every: float, host: str = GOOD) -> list[Drop | None]:
    """Return what becomes of datagrams that come at that pace, for so long."""
    return [rules.drop(host, 50000, number * every) for number in range(int(seconds / every))]


@pytest.mark.parametrize("rate", [0.2, 1, 100, 12345.6])
def test_rate(rate: float) -> None:
    """A source is answered at its rate, after as many at once as that is in a second."""
    every = 1 / (rate * 8)
    found = answers(Rules(rate=rate, total_rate=1e9), 10 / min(rate, 1), every)
    seconds = len(found) * every
    assert found.count(None) == pytest.approx(rate * seconds + max(rate, 1), rel=0.02, abs=1)
    assert set(found) == {None, Drop.SOURCE_RATE}


def test_rate_is_not_less() -> None:
    """Who keeps to the rate is always answered."""
    assert set(answers(Rules(rate=100), 60, 1 / 100)) == {None}


def test_burst_comes_back() -> None:
    """Who has been silent for a second has all of it again, and not more."""
    rules = Rules(rate=100)
    for began in (0.0, 1.0, 3600.0):
        found = [rules.drop(GOOD, 50000, began) for _ in range(150)]
        assert found == [None] * 100 + [Drop.SOURCE_RATE] * 50


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8::1", "2001:db8::2", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%lo", "fe80::2%lo", True),
    ],
)
def test_one_source(one: str, other: str, same: bool) -> None:
    """One source is an IPv4 address, or an IPv6 /64, which is what one site has."""
    rules = Rules(rate=1)
    assert rules.drop(one, 50000, 0.0) is None
    assert rules.drop(other, 50000, 0.0) is (Drop.SOURCE_RATE if same else None)


def test_total_rate() -> None:
    """All together are answered at a rate, too."""
    rules = Rules(rate=100, total_rate=1000)
    found = [
        rules.drop(f"192.0.2.{number}", 50000, moment / 100)
        for moment in range(1000)
        for number in range(100)
    ]
    assert found.count(None) == pytest.approx(1000 * 11, rel=0.01)
    assert set(found) == {None, Drop.TOTAL_RATE}


@pytest.mark.parametrize(("each", "every"), [(50, 0.1), (15, 1.0)])
def test_known_sources_are_spared(each: int, every: float) -> None:
    """However many new sources are forged, who asks once a second at least is answered."""
    rules = Rules()
    chance = random.Random(862)
    assert rules.drop(GOOD, 50000, 0.0) is None
    for moment in range(1, int(every * 10_000) + 1):
        now = moment / 1000
        for _ in range(each):
            rules.drop(str(IPv4(chance)), 50000, now)
        if moment % int(every * 1000) == 0:
            assert rules.drop(GOOD, 50000, now) is None


def IPv4(chance: random.Random) -> str:
    return socket.inet_ntoa(bytes([chance.randrange(1, 224), *chance.randbytes(3)]))


def test_sources_are_bounded() -> None:
    """What is kept of sources does not grow; who came last is kept."""
    rules = Rules(rate=1, total_rate=1e6)
    for number in range(2 * SOURCES):
        host = str(IPv6Address("UDP", f"2001:db8:{number >> 16:x}:{number & 0xFFFF:x}::1", 1).host)
        assert rules.drop(host, 50000, 0.0) is None
    assert len(rules._sources) == len(rules._flows) == SOURCES
    assert source_of.cache_info().currsize <= SOURCES
    assert rules.drop(host, 50000, 0.0) is Drop.SOURCE_RATE


@pytest.mark.parametrize("every", [0.01, 0.2, 0.4])
def test_no_pause(every: float) -> None:
    """A source that never pauses, as a loop, is not answered any more after an hour."""
    rules = Rules()
    found = answers(rules, HOUR + 60, every)
    assert found.index(Drop.NO_PAUSE) * every == pytest.approx(HOUR, abs=1)
    assert set(found[found.index(Drop.NO_PAUSE) :]) == {Drop.NO_PAUSE}
    assert rules.drop(GOOD, 50000, HOUR + 60 + 0.6) is None


@pytest.mark.parametrize(
    ("delay", "forged", "ends"),
    [(0.001, 1, True), (0.01, 10, True), (0.2, 1, True), (0.4, 10, True), (0.4, 1, False)],
)
def test_loop_over_a_path(delay: float, forged: int, ends: bool) -> None:
    """A loop between two services never costs more than the rate, and ends, or is very slow.

    Each datagram takes ``delay`` seconds from the one to the other, and again back. One that
    comes to each service less than twice a second is like a client that asks now and then.
    """
    services = {"192.0.2.1": Rules(), "192.0.2.2": Rules()}
    one, other = services
    # When it arrives, where, and from where.
    way = [(number * delay / forged, one, other) for number in range(forged)]
    answered: list[float] = []
    dropped: set[Drop] = set()
    while way and way[0][0] < 2 * HOUR:
        now, here, there = heapq.heappop(way)
        drop = services[here].drop(there, 50000, now)
        if drop is None:
            answered.append(now)
            heapq.heappush(way, (now + delay, there, here))
        else:
            dropped.add(drop)
    assert dropped <= {Drop.SOURCE_RATE, Drop.NO_PAUSE}
    assert bool(way) is not ends
    assert (answered[-1] <= HOUR + 1) is ends
    for began in (0, 1, 10, 1000, 3000):
        within = [each for each in answered if began <= each < began + 10]
        assert len(within) <= (2 * (100 * 10 + 100) if ends else 26)


def test_no_pause_of_many_at_one_address() -> None:
    """Clients that share an address each have their own pauses; a loop among them ends."""
    rules = Rules()
    found: dict[int, set[Drop | None]] = {port: set() for port in (50000, 50001, 50002, 60000)}
    for moment in range(int(2 * HOUR)):
        for number, port in enumerate(found):
            for part in (0, 0.4, 0.8) if port == 60000 else (number / 3,):
                found[port].add(rules.drop(GOOD, port, moment + part))
    loop = found.pop(60000)
    assert loop == {None, Drop.NO_PAUSE}
    assert set.union(*found.values()) == {None}


def test_pauses() -> None:
    """Who asks once a second is answered for ever."""
    assert set(answers(Rules(), 3 * HOUR, 1.0)) == {None}


@pytest.mark.parametrize("name", ["rate", "total_rate", "longest"])
@pytest.mark.parametrize("value", [0, -1, 1e-320, 1e300, float("inf"), float("nan")])
def test_what_a_rule_takes(name: str, value: float) -> None:
    """A rate or a time out of bounds is refused when the rules are made."""
    with pytest.raises(ValueError, match=rf"^{name} takes a number of .*, 0\.001 to \d+, not "):
        Rules(**{name: value})


class Answering:
    """A DatagramPort on a real socket, in a reactor that is turned by hand."""

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
        self.port = DatagramPort(self.reactor, self.sock, self.datagrams)
        self.port.startListening()
        self.number = self.port.getHost().port
        self.clients: list[socket.socket] = []

    def __enter__(self) -> Answering:
        return self

    def __exit__(self, *_: object) -> None:
        self.port.stopListening()
        for client in self.clients:
            client.close()

    def client(self, host: str = "127.0.0.1", to: str | None = None) -> socket.socket:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        client = socket.socket(family, socket.SOCK_DGRAM)
        client.bind((host, 0))
        # So that the kernel gives it what comes from there, and nothing else.
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


@pytest.fixture(params=REACTORS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize(("host", "most"), [("127.0.0.1", 65_507), ("::1", 65_527)])
def test_each_comes_back(kind: str, host: str, most: int) -> None:
    """A datagram of any size comes back as it was, an empty one too (RFC 862, RFC 768)."""
    chance = random.Random(862)
    with Answering(kind, host) as answering:
        client = answering.client(host)
        for size in (0, 1, 2, 1472, 1473, 65_507, most, chance.randrange(most)):
            sent = chance.randbytes(size)
            client.send(sent)
            answering.turn()
            assert client.recv(70_000) == sent
        assert answering.datagrams.answered == 8
    assert answering.drops == []


@pytest.mark.parametrize(
    ("listens", "asks"),
    [
        ("0.0.0.0", ["127.0.0.1", "127.0.0.2", "127.200.0.3"]),
        ("::", ["::1", "127.0.0.1", "127.0.0.2"]),
        ("127.0.0.2", ["127.0.0.2"]),
    ],
)
def test_from_the_address_that_was_asked(kind: str, listens: str, asks: list[str]) -> None:
    """On a machine of many addresses, the answer comes from that which was asked."""
    with Answering(kind, listens) as answering:
        for host in asks:
            source = "::1" if ":" in host else "127.0.0.1"
            client = answering.client(source, host)
            client.send(host.encode())
            answering.turn()
            assert client.recv(100) == host.encode()


# By their numbers, because socket has not all of them: SO_TIMESTAMP, SO_TIMESTAMPNS and
# SO_RXQ_OVFL of socket(7), IP_RECVTOS and IP_RECVTTL of ip(7).
@pytest.mark.parametrize("option", [(1, 29), (1, 35), (1, 40), (0, 13), (0, 12)])
@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_what_else_comes_along(option: tuple[int, int], host: str) -> None:
    """What who made the socket asked the kernel for, as Timestamping= does, is no matter."""
    with Answering(host=host) as answering:
        answering.sock.setsockopt(*option, 1)
        client = answering.client(host)
        client.send(b"?")
        answering.turn()
        assert client.recv(9) == b"?"


def test_answers_no_broadcast() -> None:
    """Also to a socket that systemd passes with Broadcast=yes, the kernel refuses one (EACCES)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        port = DatagramPort(reactor_of_kind("epoll"), sock, EchoDatagrams(Clock()))
        port.startListening()
        with pytest.raises(PermissionError):
            sock.sendto(b"?", ("127.255.255.255", 50000))
        port.stopListening()


@pytest.mark.parametrize("size", [4096, 3 << 20])
def test_room_in_the_kernel(size: int) -> None:
    """The kernel is asked for more room, but never for less, as where ReceiveBuffer= gave it."""
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
def test_sent_to_many(kind: str, listens: str, timestamps: int) -> None:
    """What was sent to a broadcast address is not answered, on a port of both families too."""
    with Answering(kind, listens) as answering:
        answering.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, timestamps)
        client = answering.client()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.sendto(b"?", ("127.255.255.255", answering.number))
        client.send(b"!")
        answering.turn()
        assert client.recv(9) == b"!"
    assert answering.drops == [Drop.SENT_TO_MANY]


@pytest.mark.parametrize(
    ("listens", "asks"),
    [("0.0.0.0", "127.0.0.2"), ("::", "127.0.0.2"), ("::", "::1")],
)
def test_timestamps(listens: str, asks: str) -> None:
    """A socket that tells more of a datagram, as Timestamping= in systemd.socket(5), is served."""
    with Answering(host=listens) as answering:
        answering.sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMP, 1)
        client = answering.client("::1" if ":" in asks else "127.0.0.1", asks)
        for _ in range(2):
            client.send(b"?")
            answering.turn()
            assert client.recv(9) == b"?"


def test_many_at_once() -> None:
    """A turn of the reactor answers a bounded number, and none is forgotten."""
    with Answering() as answering:
        client = answering.client()
        for number in range(3 * BATCH):
            client.send(b"%d" % number)
        answering.port.doRead()
        assert answering.datagrams.answered == BATCH
        answering.turn()
        assert [client.recv(9) for _ in range(3 * BATCH)] == [
            b"%d" % number for number in range(3 * BATCH)
        ]
        assert answering.datagrams.bytes == sum(len(str(each)) for each in range(3 * BATCH))


def test_not_answered() -> None:
    """What is not answered is told once, and the next one is."""
    with Answering(rate=2) as answering:
        client = answering.client()
        for _ in range(4):
            client.send(b"?")
        answering.turn()
        answering.clock.advance(1)
        client.send(b"!")
        answering.turn()
        assert [client.recv(9) for _ in range(3)] == [b"?", b"?", b"!"]
        host, number = client.getsockname()
    assert answering.events == [
        Dropped(Drop.SOURCE_RATE, IPv4Address("UDP", host, number)) for _ in range(2)
    ]


@pytest.mark.parametrize("forged", [b"", b"x" * 1000])
def test_two_answer_each_other(forged: bytes) -> None:
    """A loop between two services ends with what each may answer at once (CVE-2024-2169)."""
    with Answering(rate=100) as one, Answering(rate=100) as other:
        # As if it came from the other: an address is all that is known of who sends.
        one.sock.sendto(forged, ("127.0.0.1", other.number))
        for _ in range(1000):
            one.turn()
        assert one.datagrams.answered + other.datagrams.answered == 200
        assert one.drops + other.drops == [Drop.SOURCE_RATE]


def test_two_of_the_same_port() -> None:
    """Two services on the usual port never answer each other at all."""
    with Answering(host="127.0.0.1") as one:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.2", one.number))
        sock.sendto(b"?", ("127.0.0.1", one.number))
        one.turn()
        assert one.drops == [Drop.OWN_PORT]
        sock.close()


class Refusing:
    """A socket that has one datagram, and cannot send."""

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
def test_kernel_refuses(number: int, drop: Drop) -> None:
    """An answer that the kernel does not take is counted, and the next datagram is looked at."""
    events = Recorder()
    sock: Any = Refusing(number)
    port = DatagramPort(Any, sock, EchoDatagrams(Clock(), events))  # type: ignore[arg-type]
    port.doRead()
    assert [event.drop for event in events if isinstance(event, Dropped)] == [drop]


IP, IP6 = socket.IPPROTO_IP, socket.IPPROTO_IPV6
ONE, MANY, SOME = b"\xc0\0\2\1", b"\xc0\0\2\xff", b"\7\0\0\0"
LINK, GLOBAL, GROUP = b"\xfe\x80" + bytes(14), b"\x20\1" + bytes(14), b"\xff\2" + bytes(14)


@pytest.mark.parametrize(
    ("told", "answer"),
    [
        ((IP, 8, SOME + ONE + ONE), (IP, 8, bytes(4) + ONE + bytes(4))),
        ((IP, 8, SOME + ONE + MANY), None),
        ((IP6, 50, GLOBAL + SOME), (IP6, 50, GLOBAL + bytes(4))),
        ((IP6, 50, LINK + SOME), (IP6, 50, LINK + SOME)),
        ((IP6, 50, GROUP + SOME), None),
    ],
)
def test_asked(told: Any, answer: Any) -> None:
    """What was sent to one address is answered from it, and what was sent to many is not."""
    assert asked([told]) == (None if answer is None else [answer])


def test_is_a_port() -> None:
    """It is what a reactor reads from, and what a service stops."""
    with Answering() as answering:
        assert verifyObject(IListeningPort, answering.port)
        assert verifyObject(IReadDescriptor, answering.port)
        assert answering.port.logPrefix() == "echod"
        assert answering.number in answering.datagrams.rules.own_ports
    assert answering.number not in answering.datagrams.rules.own_ports
    assert answering.sock.fileno() == -1


def test_kernel_drops_are_counted() -> None:
    """What the kernel has no room for is counted by it, and told, also when the port is closed."""
    with Answering() as answering:
        client = answering.client()
        for _ in range(200):
            client.send(bytes(60_000))
        answering.turn()
        answered = answering.datagrams.answered
        assert 0 < answered < 200
        assert answering.datagrams.kernel_dropped() == 200 - answered
    assert answering.datagrams.kernel_dropped() == 200 - answered


def test_kernel_drops_of_a_socket_that_stays() -> None:
    """What the kernel had dropped before, at a socket of systemd's, is not counted again."""
    with Answering() as answering, answering.sock.dup() as sock:
        client = answering.client()
        for _ in range(200):
            client.send(bytes(60_000))
        answering.port.stopListening()
        dropped = answering.datagrams.kernel_dropped()
        assert dropped > 0
        again = DatagramPort(answering.reactor, sock.dup(), answering.datagrams)
        again.startListening()
        assert answering.datagrams.kernel_dropped() == dropped
        client.send(bytes(60_000))
        assert answering.datagrams.kernel_dropped() == dropped + 1
        again.stopListening()
        assert answering.datagrams.kernel_dropped() == dropped + 1


def test_kernel_drops_that_are_not_told() -> None:
    """A kernel that does not tell how many it has dropped is no obstacle."""

    class Silent(Refusing):
        def getsockopt(self, *_: object) -> bytes:
            raise self.error

    sock: Any = Silent(92)
    assert DatagramPort(Any, sock, EchoDatagrams(Clock())).kernel_dropped() == 0  # type: ignore[arg-type]


def test_stops_twice() -> None:
    """A port that is stopped again, as when the reactor was first, is left as it is."""
    with Answering() as answering:
        answering.port.stopListening()
        answering.port.stopListening()
        assert not answering.datagrams.rules.own_ports


def test_observer_fails() -> None:
    """What an observer raises costs nobody an answer."""
    with Answering(rate=1) as answering:
        answering.datagrams.observer = lambda _: 1 / 0
        client, other = answering.client(), answering.client("127.0.0.9", "127.0.0.1")
        for _ in range(2):
            client.send(b"?")
        other.send(b"?")
        answering.turn()
        assert other.recv(9) == b"?"


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


def test_embedded() -> None:
    """As a DatagramProtocol it keeps the same rules, and counts the same."""
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
    assert not datagrams.rules.own_ports


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_embedded_in_twisted(host: str) -> None:
    """On Twisted's own port, each comes back whole, and who is not answered is told as it is."""
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
    assert not datagrams.rules.own_ports


def test_address_of() -> None:
    """A socket address is told as Twisted writes it."""
    assert address_of(("::1", 7, 0, 3)) == IPv6Address("UDP", "::1", 7, 0, 3)
    assert address_of(("::1", 7)) == IPv6Address("UDP", "::1", 7)
    assert address_of((GOOD, 7)) == IPv4Address("UDP", GOOD, 7)
