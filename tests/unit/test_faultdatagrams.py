"""Faults of datagrams: in memory, against a model, and over real sockets."""

from __future__ import annotations

import heapq
import itertools
import socket
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.error import MessageLengthError
from twisted.internet.task import Clock

from echod import faultdatagrams
from echod.events import Drop, Dropped, Fired
from echod.faultdatagrams import (
    HOLD,
    MAX_COPIES,
    OVERHEAD,
    FaultyDatagramPort,
    FaultyDatagrams,
)
from echod.faultplan import OF_DATAGRAMS
from echod.faults import DATAGRAM, Fault, Faults, Plan, Rule, When, when
from echod.udp import DatagramPort, EchoDatagrams
from echod.udprules import Rules
from tests import TIMEOUT
from tests.reactors import reactor_of_kind, turn
from tests.recorder import Recorder
from tests.unit.test_udp import EchoPort, FakeTransport, SlowClock

ONE, OTHER, THIRD = ("192.0.2.1", 50000), ("192.0.2.1", 50001), ("192.0.2.2", 50000)


class Memory:
    """A faulty port without a socket, on a clock that the test advances."""

    def __init__(self, *rules: Rule, seed: int = 862, **limits: float) -> None:
        self.clock, self.events, self.fired = Clock(), Recorder(), Recorder()
        self.datagrams = EchoDatagrams(
            self.clock, self.events, Rules(**{"rate": 1e6, "total_rate": 1e6, **limits})
        )
        self.faults = Faults(Plan(rules, seed), self.clock.seconds(), DATAGRAM, "udp:7")
        self.faults.observer = self.fired
        self.protocol = FaultyDatagrams(self.datagrams, self.faults)
        self.transport: Any = FakeTransport()
        self.protocol.makeConnection(self.transport)

    def send(self, *datagrams: bytes, source: tuple[str, int] = ONE) -> list[bytes]:
        """Send datagrams, and return what was sent back to any source, by now."""
        before = len(self.transport.written)
        for datagram in datagrams:
            self.protocol.datagramReceived(datagram, source)
        return [data for data, _ in self.transport.written[before:]]

    def go_to(self, moment: float) -> list[bytes]:
        """Advance the clock, stop at each timer, and return what was sent back in that time."""
        before = len(self.transport.written)
        while due := [each.getTime() for each in self.clock.calls if each.getTime() <= moment]:
            self.clock.rightNow = min(due)
            self.clock.advance(0)
        self.clock.rightNow = moment
        return [data for data, _ in self.transport.written[before:]]

    @property
    def drops(self) -> list[Drop]:
        return [event.drop for event in self.events if isinstance(event, Dropped)]


SENT = [b"", b"a", b"bcd", b"0123456789"]


@pytest.mark.parametrize(
    ("rule", "replies", "fired"),
    [
        (when.drop(), [], 4),
        (when.first(2).drop(), SENT[2:], 2),
        (when.first(2, "datagram").drop(), SENT[2:], 2),
        (when.every(2).drop(), SENT[::2], 2),
        (when.numbers(2, 3).drop(), [SENT[0], SENT[3]], 2),
        (when.chance(0).drop(), SENT, 0),
        (when.chance(1).drop(), [], 4),
        (when.at_most(3).drop(), SENT[3:], 3),
        (when.duplicate(), [each for each in SENT for _ in range(2)], 4),
        (when.truncate(3), [b"", b"a", b"bcd", b"012"], 1),
        (when.truncate(0), [b"", b"", b"", b""], 3),
        (when.pad(2), [each + b"\0\0" for each in SENT], 4),
        (when.numbers(2, 2).damage(), [b"", b"`", *SENT[2:]], 1),
        (when.reorder(), [b"a", b"", b"0123456789", b"bcd"], 2),
        (when.delay(0), SENT, 0),
    ],
    ids=lambda value: value.fault.name if isinstance(value, Rule) else "",
)
def test_fault(rule: Rule, replies: list[bytes], fired: int) -> None:
    """Each fault fires by the number of a datagram, and only if it changes the reply."""
    memory = Memory(rule)
    assert memory.send(*SENT) == replies
    assert memory.faults.rules[0].fired == len(memory.fired) == fired
    assert memory.drops == [Drop.FAULT] * (fired if rule.fault.name == "drop" else 0)
    assert memory.datagrams.answered == len(replies)
    assert memory.datagrams.bytes == sum(map(len, replies))


def test_one_bit() -> None:
    """A damaged reply differs in the lowest bit of one byte, which the seed draws."""
    places = set()
    for seed in range(200):
        [reply] = Memory(when.damage(), seed=seed).send(bytes(10))
        assert sum(reply) == 1
        places.add(reply.index(1))
    assert places == set(range(10))


def test_repeatable() -> None:
    """The same seed and datagrams give the same faults, on every machine and Python."""
    memory = Memory(when.chance(0.2).drop(), when.chance(0.2).damage(), seed=7)
    replies = memory.send(*[bytes([2 * number] * 8) for number in range(1, 21)])
    damaged = {each[0] // 2: place for each in replies for place in range(8) if each[place] % 2}
    assert set(range(1, 21)) - {each[0] // 2 for each in replies} == {3, 4, 6, 18}
    assert damaged == {13: 2, 17: 5, 20: 3}


def test_number_of_admitted_datagrams() -> None:
    """A datagram that the rules of the service drop has no number, and no rule fires for it."""
    memory = Memory(when.numbers(2, 2).drop(), rate=2)
    memory.protocol.datagramReceived(b"1", ("192.0.2.1", 7))
    memory.send(b"1", source=("192.0.2.9", 50000))
    assert memory.send(*[b"2"] * 3) == [b"2"]
    assert memory.drops == [Drop.LOW_PORT, Drop.FAULT, Drop.SOURCE_RATE]
    assert [each.connection for each in memory.fired if isinstance(each, Fired)] == [2]


def test_time_of_the_plan() -> None:
    """Times count from the moment at which the plan was set."""
    memory = Memory()
    memory.go_to(10)
    rules = when.from_time(2).at_most(1).drop(), when.between(1, 2).pad(1)
    memory.faults.set(Plan(rules), memory.clock.seconds())
    replies = []
    for moment in (10, 11, 11.9, 12, 12.1):
        memory.go_to(moment)
        replies.append(memory.send(b"x"))
    assert replies == [[b"x"], [b"x\0"], [b"x\0"], [], [b"x"]]
    assert [firing.seconds for firing in memory.faults.firings] == pytest.approx([1, 1.9, 2])


def test_rules_in_order() -> None:
    """Each rule applies to each reply that the rules before it have left."""
    assert Memory(when.pad(1), when.truncate(2)).send(b"abc") == [b"ab"]
    assert Memory(when.truncate(2), when.pad(1)).send(b"abc") == [b"ab\0"]
    memory = Memory(when.duplicate(), when.at_most(1).truncate(1), when.pad(1))
    assert memory.send(b"abc") == [b"a\0", b"abc\0"]
    assert [each.fired for each in memory.faults.rules] == [1, 1, 2]
    memory = Memory(when.drop(), when.pad(1))
    assert memory.send(b"abc") == []
    assert [each.fired for each in memory.faults.rules] == [1, 0]
    assert len(Memory(*[when.duplicate()] * 9).send(b"")) == 7 * MAX_COPIES


class TestDelay:
    def test_delay(self) -> None:
        """A delayed reply is sent when its time has come, and shorter delays overtake it."""
        memory = Memory(when.first(2).delay(1.5), when.first(1).delay(1), when.duplicate())
        assert memory.send(b"1", b"2", b"3") == [b"3", b"3"]
        assert memory.go_to(1.49) == []
        assert memory.go_to(1.5) == [b"2", b"2"]
        assert memory.go_to(9) == [b"1", b"1"]
        assert memory.datagrams.answered == 6
        assert memory.faults.counts == {"delay": 3, "duplicate": 3}

    def test_random_delay(self) -> None:
        """The copies of a reply have separate delays."""
        memory = Memory(when.duplicate(), when.delay(1, 0.5))
        assert memory.send(b"1") == []
        one, other = (call.getTime() for call in memory.clock.calls)
        assert one != other
        assert all(0.5 <= each <= 1.5 for each in (one, other))

    def test_close(self) -> None:
        """A port that closes cancels the replies that wait; it can be opened again."""
        memory = Memory(when.first(1).delay(1), when.first(2).reorder())
        memory.send(b"1", b"2")
        memory.protocol.doStop()
        assert memory.clock.calls == []
        memory.protocol.makeConnection(memory.transport)
        assert memory.send(b"3") == [b"3"]
        assert memory.faults.counts == {"delay": 1, "reorder": 0}

    @pytest.mark.parametrize("error", [OSError(1, ""), MessageLengthError("")])
    def test_send_fails(self, error: Exception) -> None:
        """A delayed reply that the kernel refuses is counted."""
        memory = Memory(when.delay(1))
        memory.send(b"1")
        memory.transport.error = error
        memory.go_to(1)
        assert memory.drops == [Drop.NOT_SENT]
        assert memory.datagrams.answered == memory.datagrams.bytes == 0

    def test_bounded_memory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Replies for which there is no space are dropped, and the space is used again."""
        monkeypatch.setattr(faultdatagrams, "MAX_WAITING", 3 * (OVERHEAD + 10))
        memory = Memory(when.first(8).delay(1), when.numbers(9, 12).reorder())
        for _ in range(2):
            memory.send(bytes(10), bytes(10), bytes(10), bytes(10))
            assert memory.drops == [Drop.NOT_SENT]
            assert memory.go_to(memory.clock.seconds() + 1) == [bytes(10)] * 3
            memory.events.clear()
        # Replies that reorder holds, of several sources.
        for port in range(50000, 50004):
            memory.send(bytes(10), source=("192.0.2.3", port))
        assert memory.drops == [Drop.NOT_SENT]
        assert memory.send(b"!", source=("192.0.2.3", 50003)) == [b"!"]
        memory.protocol.doStop()
        assert memory.clock.calls == []


class TestReorder:
    def test_overtaken(self) -> None:
        """A rule fires when the next reply to the same source has overtaken its own."""
        memory = Memory(when.first(1).reorder())
        assert memory.send(b"1") == []
        assert memory.send(b"2", source=OTHER) == [b"2"]
        assert memory.faults.counts["reorder"] == 0
        assert memory.send(b"3", b"4") == [b"3", b"1", b"4"]
        assert memory.fired == [Fired(str(memory.faults.rules[0].text), 1, 0, "udp:7")]
        assert memory.go_to(9) == []

    def test_alone(self) -> None:
        """Without a later datagram, the reply is sent after a while, and the rule has not fired."""
        memory = Memory(when.reorder())
        assert memory.send(b"1") == []
        assert memory.go_to(HOLD - 0.01) == []
        assert memory.go_to(HOLD) == [b"1"]
        assert memory.send(b"2", b"3") == [b"3", b"2"]
        assert memory.faults.counts["reorder"] == 1

    def test_limit(self) -> None:
        """Replies that are held count for the limit of their rule."""
        memory = Memory(when.at_most(2).reorder(), when.reorder())
        sources = ONE, OTHER, THIRD
        assert [memory.send(b"1", source=each) for each in sources] == [[], [], [b"1"]]
        assert [memory.send(b"2", source=each) for each in sources] == [
            [b"2", b"1"],
            [b"2", b"1"],
            [],  # the first rule is used up, and the next one applies
        ]
        assert [each.fired for each in memory.faults.rules] == [2, 0]
        assert memory.send(b"3", source=THIRD) == [b"3", b"2"]
        assert [each.fired for each in memory.faults.rules] == [2, 1]

    def test_copies(self) -> None:
        """The second copy of a reply does not overtake the first one."""
        memory = Memory(when.first(1).duplicate(), when.first(1).reorder())
        assert memory.send(b"1") == [b"1"]
        assert memory.faults.counts["reorder"] == 0
        assert memory.send(b"2") == [b"2", b"1"]
        assert memory.faults.counts["reorder"] == 1

    def test_not_answered(self) -> None:
        """A datagram without a reply does not overtake."""
        memory = Memory(when.numbers(2, 2).drop(), when.first(1).reorder())
        assert memory.send(b"1", b"2") == []
        memory.transport.error = OSError(1, "")
        memory.send(b"3")
        memory.transport.error = None
        assert memory.send(b"4") == [b"4", b"1"]
        assert memory.drops == [Drop.FAULT, Drop.NOT_SENT]

    def test_delay(self) -> None:
        """The delay of a reply comes before it is held."""
        for rules in itertools.permutations((when.first(2).delay(1), when.first(1).reorder())):
            memory = Memory(*rules)
            assert memory.send(b"1") == []
            assert memory.go_to(0.5) == []
            assert memory.send(b"2") == []
            assert memory.go_to(1 + HOLD) == [b"1"]
            assert memory.go_to(1.5) == [b"2"]

    def test_new_plan(self) -> None:
        """A reply that is held when the plan is replaced is sent in the end."""
        memory = Memory(when.reorder())
        memory.send(b"1")
        memory.faults.set(Plan(), 0.0)
        assert memory.send(b"2") == [b"2"]
        assert memory.go_to(1) == [b"1"]


def test_observer_fails() -> None:
    """An observer of firings that raises does not prevent the reply."""
    memory = Memory(when.pad(1))
    memory.faults.observer = lambda _: 1 / 0
    assert memory.send(b"1", b"2") == [b"1\0", b"2\0"]


@pytest.mark.parametrize(
    ("rule", "why"),
    [
        (when.first(2).refuse(), r"'first 2: \^refuse': refuse is a fault of stream ports"),
        (when.lasts(1).delay(1), "a fault of a datagram has no duration"),
        (when.first(1, "connection").drop(), r"'\^connection 1: drop': a datagram port has"),
        (when.first(1, "message", 8).delay(1), "neither messages nor places"),
        (when.from_byte(8).delay(1), "neither messages nor places"),
    ],
)
def test_wrong_plan(rule: Rule, why: str) -> None:
    """A rule that a port of datagrams cannot have is an error."""
    with pytest.raises(ValueError, match=why):
        Memory(rule)


def test_wrong_type() -> None:
    """Faults of another type are an error."""
    with pytest.raises(TypeError, match="faults takes Faults, not None"):
        FaultyDatagrams(EchoDatagrams(Clock()), None)  # type: ignore[arg-type]


# Times are multiples of 1/64 s, so that sums are exact.
TICK = 1 / 64
TICKS = st.integers(0, 32).map(lambda ticks: ticks * TICK)

CONDITIONS: Sequence[Callable[[When, int, int], When]] = [
    lambda when, _a, _b: when,
    lambda when, a, b: when.first(a) if a < b else when.numbers(b, a),
    lambda when, a, _: when.every(a),
    lambda when, a, _: when.chance(a / 9),
    lambda when, a, _: when.at_most(a),
    lambda when, a, _: when.from_time(a * TICK),
    lambda when, a, b: when.between(a * TICK, (a + 9 * b) * TICK),
]

FAULTS = st.builds(
    lambda name, size, ticks: Fault(
        name,
        seconds=ticks if name == "delay" else 0,
        size=size if name in ("truncate", "pad") else 0,
    ),
    st.sampled_from(OF_DATAGRAMS),
    st.integers(1, 9),
    TICKS,
)


@st.composite
def any_rule(draw: Any) -> Rule:
    number = st.integers(1, 9)
    conditions = when
    for condition in draw(st.lists(st.sampled_from(CONDITIONS), max_size=2, unique=True)):
        conditions = condition(conditions, draw(number), draw(number))
    return conditions.rule(draw(FAULTS))


ARRIVALS = st.lists(
    st.tuples(TICKS, st.sampled_from([ONE, OTHER, THIRD]), st.binary(max_size=12)), max_size=30
)

Sent = tuple[float, tuple[str, int], bytes]


class Model:
    """What a plan does to datagrams, as a list of events in the order of time."""

    def __init__(self, rules: list[Rule], seed: int) -> None:
        self.rules = Faults(Plan(tuple(rules), seed), 0.0, DATAGRAM).rules  # for their draws alone
        self.fired = [0] * len(rules)
        self.sent: list[Sent] = []
        self.dropped = 0
        self.events: list[Any] = []
        self.order = itertools.count()
        self.held: dict[Any, Any] = {}

    def run(self, arrivals: list[Sent]) -> None:
        for number, (moment, source, data) in enumerate(arrivals, 1):
            # An arrival follows the timers of its moment.
            heapq.heappush(self.events, (moment, 1, number, self.arrive, (number, source, data)))
        while self.events:
            self.now, _, _, happen, arguments = heapq.heappop(self.events)
            happen(*arguments)

    def later(self, seconds: float, happen: Any, *arguments: Any) -> None:
        event = (self.now + seconds, 0, next(self.order), happen, arguments)
        heapq.heappush(self.events, event)

    def left(self, index: int) -> float:
        times = self.rules[index].rule.when.times
        return float("inf") if times is None else times - self.fired[index]

    def arrive(self, number: int, source: Any, datagram: bytes) -> None:
        copies = [(datagram, 0.0, -1)]
        for index, active in enumerate(self.rules):
            conditions, fault = active.rule.when, active.rule.fault
            start, end = conditions.window
            if not (start <= self.now < end and conditions.after_seconds <= self.now):
                continue
            if not active.applies(number):
                continue
            made = []
            for place, (data, delay, by) in enumerate(copies):
                flip = int(active.draw(number, f"copy {place}") * len(data))
                changed = {
                    "drop": [],
                    "duplicate": [(data, delay, by)] * (2 if place < MAX_COPIES else 1),
                    "reorder": [(data, delay, index if by < 0 else by)],
                    "delay": [(data, delay + fault.seconds, by)],
                    "damage": [
                        (bytes(x ^ (at == flip) for at, x in enumerate(data)), delay, by),
                    ],
                    "truncate": [(data[: fault.size], delay, by)],
                    "pad": [(data + bytes(fault.size), delay, by)],
                }[fault.name]
                if self.left(index) <= 0 or changed == [(data, delay, by)]:
                    changed = [(data, delay, by)]
                elif fault.name != "reorder":
                    self.fired[index] += 1
                made += changed
            copies = made
        self.dropped += not copies
        for data, delay, by in copies:
            if delay:
                self.later(delay, self.due, number, source, data, by)
            else:
                self.due(number, source, data, by)

    def due(self, number: int, source: Any, data: bytes, by: int) -> None:
        holding = sum(other == by for _, _, other in self.held.values())
        if by >= 0 and source not in self.held and self.left(by) > holding:
            self.held[source] = held = number, data, by
            self.later(HOLD, self.hold_ends, source, held)
        else:
            self.send(number, source, data)

    def hold_ends(self, source: Any, held: Any) -> None:
        if self.held.get(source) is held:
            del self.held[source]
            self.send(held[0], source, held[1])

    def send(self, number: int, source: Any, data: bytes) -> None:
        self.sent.append((self.now, source, data))
        earlier, held, by = self.held.get(source, (number, b"", -1))
        if earlier < number:
            del self.held[source]
            self.fired[by] += 1
            self.send(earlier, source, held)


@given(st.lists(any_rule(), max_size=5), st.integers(0, 9), ARRIVALS)
def test_model(rules: list[Rule], seed: int, steps: list[Sent]) -> None:
    """With any plan and any datagrams, replies and counts are those of the model."""
    times = itertools.accumulate(seconds for seconds, _, _ in steps)
    arrivals = [(moment, *rest) for moment, (_, *rest) in zip(times, steps, strict=True)]
    memory = Memory(*rules, seed=seed)
    sent: list[Sent] = []
    written = memory.transport.write
    memory.transport.write = lambda data, peer: (
        sent.append((memory.clock.seconds(), peer, data)),
        written(data, peer),
    )
    for moment, source, data in arrivals:
        memory.go_to(moment)
        memory.protocol.datagramReceived(data, source)
    memory.go_to(1000)
    model = Model(rules, seed)
    model.run(arrivals)  # type: ignore[arg-type]
    assert sent == model.sent
    assert [each.fired for each in memory.faults.rules] == model.fired
    assert len(memory.fired) == sum(model.fired)
    assert memory.drops == [Drop.FAULT] * model.dropped
    assert memory.datagrams.answered == len(sent)
    assert memory.datagrams.bytes == sum(len(data) for _, _, data in sent)
    assert memory.clock.calls == []
    assert memory.protocol._replies._space == faultdatagrams.MAX_WAITING


class FaultyPort(EchoPort):
    """A FaultyDatagramPort on a real socket, with clients."""

    def __init__(self, *rules: Rule, host: str = "127.0.0.1", **limits: float) -> None:
        self.faults = Faults(Plan(rules, seed=862), 0.0, DATAGRAM)
        super().__init__("epoll", host, **limits)

    def make_port(self) -> DatagramPort:
        return FaultyDatagramPort(self.reactor, self.sock, self.datagrams, self.faults)


@pytest.mark.parametrize(
    ("listens", "asks"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("0.0.0.0", "127.0.0.2"),
        ("::", "127.0.0.3"),
        ("::", "::1"),
        ("::1", "::1"),
    ],
)
def test_real_sockets(listens: str, asks: str) -> None:
    """Over real sockets each fault fires, and replies come from the address that was asked."""
    rules = (
        when.numbers(1, 1).drop(),
        when.numbers(2, 2).duplicate(),
        when.numbers(3, 3).reorder(),
        when.numbers(5, 5).delay(1),
        when.numbers(6, 6).damage(),
        when.numbers(7, 7).truncate(1),
        when.numbers(8, 8).pad(1),
    )
    with FaultyPort(*rules, host=listens) as echo:
        client = echo.client("::1" if ":" in asks else "127.0.0.1", asks)
        for number in range(1, 10):
            client.send(b"%d" % number * 2)
        echo.turn()
        received = [client.recv(9) for _ in range(8)]
        assert received[:4] == [b"22", b"22", b"44", b"33"]
        assert received[4] in (b"76", b"67")
        assert received[5:] == [b"7", b"88\0", b"99"]
        echo.clock.advance(1)
        assert client.recv(9) == b"55"
        assert echo.datagrams.answered == 9
        assert echo.drops == [Drop.FAULT]
        assert echo.faults.counts == {rule.fault.name: 1 for rule in rules}


def test_safety_rules() -> None:
    """The rules of a port without faults apply, and datagrams that they drop have no number."""
    with FaultyPort(when.numbers(2, 2).drop(), host="0.0.0.0", rate=3) as echo:
        client = echo.client()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        client.send(b"1")
        client.sendto(b"?", ("127.255.255.255", echo.number))
        for number in range(2, 5):
            client.send(b"%d" % number)
        echo.turn()
        assert client.recv(9) == b"1"
        with pytest.raises(BlockingIOError):
            client.recv(9)
    assert echo.drops == [Drop.SENT_TO_MANY, Drop.FAULT, *[Drop.SOURCE_RATE] * 2]


def test_port_closes() -> None:
    """A port that closes cancels the replies that wait; an observer of a firing can close it."""
    with FaultyPort(when.delay(1), when.first(1).duplicate()) as echo:
        client = echo.client()
        client.send(b"1")
        echo.turn()
        echo.port.stopListening()
        assert echo.clock.calls == []
    with FaultyPort(when.duplicate(), when.reorder()) as echo:
        echo.faults.observer = lambda _: echo.port.stopListening()
        client = echo.client()
        client.send(b"1")
        echo.turn()
        assert echo.drops == [Drop.NOT_SENT]


def test_turns() -> None:
    """A port with faults reads for the time of a turn, as a port without them."""
    with FaultyPort() as echo:
        client = echo.client()
        for number in range(4):
            client.send(b"%d" % number)
        echo.datagrams.clock = SlowClock()
        echo.port.doRead()
        assert echo.datagrams.answered == 1
        echo.turn()
        assert [client.recv(9) for _ in range(4)] == [b"%d" % number for number in range(4)]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("twisted", [True, False])
def test_too_long(host: str, twisted: bool) -> None:
    """A reply that is padded beyond the longest datagram is not sent, and counted."""
    reactor, events = reactor_of_kind("epoll"), Recorder()
    datagrams = EchoDatagrams(Clock(), events)
    faults = Faults(Plan((when.numbers(2, 3).pad(1 << 30),)), 0.0, DATAGRAM)
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    port: Any
    if twisted:
        port = reactor.listenUDP(0, FaultyDatagrams(datagrams, faults), interface=host)
    else:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        sock.bind((host, 0))
        port = FaultyDatagramPort(reactor, sock, datagrams, faults)
        port.startListening()
    with socket.socket(family, socket.SOCK_DGRAM) as client:
        client.connect((host, port.getHost().port))
        client.settimeout(TIMEOUT)
        for datagram in (b"1", b"2", bytes(65_507), b"4"):
            client.send(datagram)
            turn(reactor)
        assert [client.recv(9), client.recv(9)] == [b"1", b"4"]
    assert [event.drop for event in events if isinstance(event, Dropped)] == [Drop.NOT_SENT] * 2
    assert faults.counts["pad"] == 2
    port.stopListening()
    turn(reactor)
    assert not datagrams.rules.own_ports.total()
