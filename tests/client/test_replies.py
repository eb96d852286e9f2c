"""Which reply belongs to which message: what comes back damaged, late, twice, or not at all."""

from __future__ import annotations

import random
import tracemalloc
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echod.client import replies
from echod.client.payloads import DatagramPayloads
from echod.client.replies import WINDOW, DatagramReplies, MessageTally, ReplyCallback, StreamReplies

Told = tuple[int, float, float, int]


class Run:
    """Replies, and who is told of them; :meth:`end` says what became of all messages."""

    def __init__(self, timeout: float = 1.0) -> None:
        self.tally = MessageTally(timeout)
        self.told: list[Told] = []

    def reply(self, number: int, since: float, now: float, damaged: int) -> None:
        self.told.append((number, since, now, damaged))
        self.tally.reply(since, now, damaged)

    def end(self, sent: int, under_way: int = 0) -> MessageTally:
        tally = self.tally
        tally.sent, tally.under_way = sent, under_way
        tally.sum_up()
        return adds_up(tally)


def adds_up(tally: MessageTally) -> MessageTally:
    """Check that each message became one thing, and return ``tally``."""
    became = tally.received + tally.late + tally.damaged + tally.lost + tally.under_way
    assert tally.sent == became
    assert tally.lost >= 0
    assert tally.times.count == tally.received + tally.late
    return tally


def test_tally() -> None:
    """A reply is received, or late, or damaged; what did not come is lost, or still under way."""
    tally = MessageTally(1.0)
    tally.sent = 7
    for since, now, damaged in [(0, 0.5, 0), (0, 1.0, 0), (0.5, 1.6, 0), (0, 0.1, 3), (0, 9, 2)]:
        tally.reply(since, now, damaged)
    recent = tally.sum_up()
    assert (tally.received, tally.late, tally.damaged, tally.damaged_bytes) == (2, 1, 2, 5)
    assert adds_up(tally).lost == 2
    tally.under_way = 1
    assert adds_up(tally).lost == 1
    assert (recent.count, recent.least, recent.most) == (3, 0.5, 1.1)  # also the late one


def test_no_time_of_a_damaged_reply() -> None:
    """How long a damaged reply took is not among the times: it is none to what was asked."""
    tally = MessageTally(1.0)
    tally.reply(0.0, 0.5, 1)
    assert tally.sum_up().count == tally.times.count == 0


def test_sum_up_twice() -> None:
    """Each reply is summed up once, and in all once."""
    tally = MessageTally(1.0)
    tally.sent = 3
    tally.reply(0.0, 0.1, 0)
    tally.count(0.3)  # the same, where it is known to be right
    assert tally.sum_up().count == 2
    assert tally.sum_up().count == 0
    tally.reply(0.0, 2.0, 0)
    assert tally.sum_up().most == 2.0
    assert (tally.received, tally.late, tally.times.count, tally.times.least) == (2, 1, 3, 0.1)
    adds_up(tally)


MESSAGES = [b"one.", b"two!", b"abcd"]


class Model:
    """What is expected of a connection, byte by byte."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = messages
        self._size = len(messages[0])
        self._since: deque[float] = deque()
        self._at = 0
        self._damaged = 0
        self.unexpected = 0
        self.told: list[Told] = []

    def send(self, since: float) -> None:
        self._since.append(since)

    def received(self, data: bytes, now: float) -> None:
        for byte in data:
            if not self._since:
                self.unexpected += 1
                continue
            number, at = divmod(self._at, self._size)
            self._damaged += byte != self._messages[number % len(self._messages)][at]
            self._at += 1
            if self._at % self._size == 0:
                self.told.append((number, self._since.popleft(), now, self._damaged))
                self._damaged = 0


@given(st.data())
def test_streams(data: st.DataObject) -> None:
    """Each reply is the one to its message, and each of its bytes that is wrong counts.

    However the stream is cut, whatever is damaged, missing or there besides, whoever is first.
    """
    run, model = Run(), Model(MESSAGES)
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    service = bytearray()  # what has not come back yet
    now = 0.0
    for what in data.draw(st.lists(st.sampled_from(["send", "send", "come", "wrong", "extra"]))):
        now += 1.0
        if what == "send":
            model.send(now)
            service += stream.send(now)
        elif what == "come":
            length = data.draw(st.sampled_from([1, 3, 4, 5, 8, 100]))
            part = bytes(service[:length])
            del service[:length]
            model.received(part, now)
            stream.received(part, now)
        elif what == "extra":
            at = data.draw(st.integers(0, len(service)))
            service[at:at] = data.draw(st.binary(max_size=9))
        elif service:
            at = data.draw(st.integers(0, len(service) - 1))
            service[at : at + 1] = data.draw(st.binary(max_size=1))
    assert run.told == model.told
    assert run.tally.unexpected == model.unexpected
    assert stream.finished == len(run.told)
    under_way = len(list(stream.outstanding()))
    tally = run.end(stream.sent, under_way)
    assert tally.lost == 0
    assert stream.sent == len(run.told) + under_way


@given(st.data(), st.integers(1, 9), st.integers(0, 20))
def test_any_cutting(data: st.DataObject, size: int, count: int) -> None:
    """However what comes back is cut into parts, all of it is right."""
    source = random.Random(data.draw(st.integers(0, 9)))
    messages = [source.randbytes(size) for _ in range(3)]
    run = Run()
    stream = StreamReplies(run.tally, messages, run.reply)
    sent = b"".join(stream.send(float(number)) for number in range(count))
    places = sorted(data.draw(st.sets(st.integers(0, len(sent)))))
    for first, last in zip([0, *places], [*places, len(sent)], strict=True):
        stream.received(sent[first:last], 20.0)
    assert run.told == [(number, number, 20.0, 0) for number in range(count)]
    assert list(stream.outstanding()) == []
    assert run.end(count).lost == run.tally.unexpected == 0


def test_send() -> None:
    """The messages follow each other, over and over, and are outstanding from their times on."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    assert [stream.send(at) for at in (0.0, 0.5, 1.0, 2.0)] == [*MESSAGES, MESSAGES[0]]
    assert list(stream.outstanding()) == [0.0, 0.5, 1.0, 2.0]
    assert next(iter(reversed(stream.outstanding()))) == 2.0
    stream.received(b"one.tw", 3.0)
    assert list(stream.outstanding()) == [0.5, 1.0, 2.0]
    assert (stream.sent, stream.finished) == (4, 1)


def test_another_message() -> None:
    """A message that comes again in place of the next, or one that was lost, is a wrong one."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    for _ in range(3):
        stream.send(0.0)
    stream.received(b"one.one.abcd", 1.0)
    assert run.told == [(0, 0.0, 1.0, 0), (1, 0.0, 1.0, 4), (2, 0.0, 1.0, 0)]
    tally = run.end(stream.sent)
    assert (tally.received, tally.damaged, tally.damaged_bytes) == (2, 1, 4)


def test_missing_byte() -> None:
    """After a byte that is missing all is out of its place, and the last reply does not come."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    for _ in range(3):
        stream.send(0.0)
    stream.received(b"one.to!abcd", 1.0)
    assert [damaged for *_, damaged in run.told] == [0, 3]
    assert run.end(stream.sent).lost == 1


def test_nobody_asked() -> None:
    """What comes before anything was sent, or after all has come back, is unexpected."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    stream.received(b"one.", 0.0)
    assert (run.tally.unexpected, run.told) == (4, [])
    stream.send(1.0)
    stream.received(b"one.two!x", 1.0)
    assert (run.tally.unexpected, len(run.told)) == (9, 1)
    stream.received(b"", 1.0)
    assert run.end(stream.sent).received == 1


class EpollReader:
    """Replies to the datagrams of one socket."""

    def __init__(self, size: int = 64) -> None:
        self.run = Run()
        self.tally = self.run.tally
        self.datagrams = DatagramPayloads(size)
        self.replies = DatagramReplies(self.tally, self.datagrams, self.run.reply)

    def send(self, count: int) -> list[bytes]:
        return [self.replies.send(0.0) for _ in range(count)]

    def come(self, *datagrams: bytes, now: float = 0.5) -> None:
        for each in datagrams:
            self.replies.received(each, now)

    def end(self) -> MessageTally:
        return self.run.end(self.replies.sent)

    @property
    def numbers(self) -> list[int]:
        return [number for number, *_ in self.run.told]


@pytest.fixture
def sockets() -> EpollReader:
    return EpollReader()


def test_datagrams(sockets: EpollReader) -> None:
    """Each reply is the one to its datagram."""
    sent = [sockets.replies.send(since) for since in (0.0, 0.25, 0.5)]
    assert len(set(sent)) == 3
    assert list(sockets.replies.outstanding()) == [0.0, 0.25, 0.5]
    sockets.come(*sent[:2])
    assert sockets.run.told == [(0, 0.0, 0.5, 0), (1, 0.25, 0.5, 0)]
    assert list(reversed(sockets.replies.outstanding())) == [0.5]
    sockets.come(sent[2])
    tally = sockets.end()
    assert (tally.received, tally.lost, tally.duplicated, tally.reordered) == (3, 0, 0, 0)


def test_duplicate(sockets: EpollReader) -> None:
    """What comes again counts apart, each time, and is no second reply."""
    one, two = sockets.send(2)
    sockets.come(one, one, two, one, two)
    assert sockets.numbers == [0, 1]
    tally = sockets.end()
    assert (tally.received, tally.duplicated, tally.reordered) == (2, 3, 0)
    assert tally.unexpected == 0


def test_again(sockets: EpollReader) -> None:
    """What an address has refused is sent to another, and counts from then on, if it is in time."""
    sent = [sockets.replies.send(since) for since in (0.0, 4.5, 5.0)]
    sockets.come(sent[1], now=5.0)
    assert list(sockets.replies.again(5.5)) == [sent[2]]
    assert list(sockets.replies.outstanding()) == [0.0, 5.5]
    sockets.come(sent[2], now=5.75)
    assert sockets.run.told[-1] == (2, 5.5, 5.75, 0)


def test_reordered(sockets: EpollReader) -> None:
    """What comes after one that was sent later counts apart, and is received."""
    sent = sockets.send(5)
    sockets.come(*(sent[number] for number in (0, 3, 1, 2, 4)))
    assert sockets.numbers == [0, 3, 1, 2, 4]
    tally = sockets.end()
    assert (tally.received, tally.reordered, tally.lost) == (5, 2, 0)


def test_late(sockets: EpollReader) -> None:
    """What comes after the timeout is late: not received, and not lost."""
    one, _ = sockets.send(2)
    sockets.come(one, now=1.5)
    tally = sockets.end()
    assert (tally.received, tally.late, tally.lost) == (0, 1, 1)


def test_lost(sockets: EpollReader) -> None:
    """What does not come is lost, and one that comes after it is not reordered."""
    sent = sockets.send(5)
    sockets.come(sent[1], sent[4])
    tally = sockets.end()
    assert (tally.received, tally.lost, tally.reordered) == (2, 3, 0)


def test_damaged(sockets: EpollReader) -> None:
    """What comes back wrong is damaged; when it comes right after that, it is a duplicate."""
    one, two = sockets.send(2)
    sockets.come(one[:20] + b"wrong" + one[25:], one, two[:-8])
    assert sockets.numbers == [0, 1]
    tally = sockets.end()
    assert (tally.damaged, tally.duplicated, tally.received, tally.lost) == (2, 1, 0, 0)
    assert 8 < tally.damaged_bytes <= 13


def test_unexpected(sockets: EpollReader) -> None:
    """What was not sent, or not yet, is unexpected; so is a datagram without a byte."""
    sockets.send(2)
    sockets.come(b"", b"hello", DatagramPayloads(64).build(0), sockets.datagrams.build(2))
    assert sockets.run.told == []
    tally = sockets.end()
    assert (tally.unexpected, tally.lost) == (4, 2)


def test_given_up(sockets: EpollReader, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of too many that are waited for the first is given up: it is lost, whatever still comes."""
    monkeypatch.setattr(replies, "MAX_OUTSTANDING", 3)
    sent = sockets.send(5)
    assert len(list(sockets.replies.outstanding())) == 3
    sockets.come(*sent)
    assert sockets.numbers == [2, 3, 4]
    tally = sockets.end()
    assert (tally.received, tally.lost, tally.unexpected) == (3, 2, 2)


def test_long_ago(sockets: EpollReader) -> None:
    """What comes again is known for so many datagrams; after that it is unexpected."""
    first, second = sockets.send(2)
    sockets.come(first, second)
    sockets.replies.sent = WINDOW  # of which none came back
    sockets.come(sockets.replies.send(0.0))
    sockets.come(first, second)
    assert sockets.numbers == [0, 1, WINDOW]
    assert (sockets.tally.unexpected, sockets.tally.duplicated) == (1, 1)


@settings(max_examples=50)
@given(st.integers(0, 30), st.data())
def test_any_network(count: int, data: st.DataObject) -> None:
    """Whatever a network does, each datagram became one thing, and each reply is counted once."""
    sockets = EpollReader()
    sent = sockets.send(count)
    arrivals = data.draw(st.lists(st.integers(0, count - 1))) if count else []
    expected: dict[int, tuple[float, int]] = {}
    reordered = 0
    for turn, number in enumerate(arrivals):
        now = data.draw(st.sampled_from([0.5, 1.5]))
        damaged = data.draw(st.integers(0, 3))
        reply = bytearray(sent[number])
        for at in range(8, 8 + damaged):
            reply[at] ^= 1 + turn % 255
        sockets.come(bytes(reply), now=now)
        if number not in expected:
            reordered += number < max(expected, default=-1)
            expected[number] = now, damaged
    tally = sockets.end()
    assert sockets.run.told == [
        (number, 0.0, now, damaged) for number, (now, damaged) in expected.items()
    ]
    assert tally.received == sum(each == (0.5, 0) for each in expected.values())
    assert tally.late == sum(each == (1.5, 0) for each in expected.values())
    assert tally.damaged_bytes == sum(damaged for _, damaged in expected.values())
    assert tally.lost == count - len(expected)
    assert tally.duplicated == len(arrivals) - len(expected)
    assert (tally.reordered, tally.unexpected) == (reordered, 0)


def test_reply_is_told_what_is_known() -> None:
    """Who is told of a reply is told before the next one is taken: it may send one then."""
    run = Run()
    sent: list[bytes] = []

    def reply(number: int, since: float, now: float, damaged: int) -> None:
        run.reply(number, since, now, damaged)
        if number < 3:
            sent.append(stream.send(now))

    telling: ReplyCallback = reply
    stream = StreamReplies(run.tally, MESSAGES, telling)
    sent.append(stream.send(0.0))
    for number in range(4):
        assert number == stream.finished
        stream.received(sent[number], float(number))
    assert run.end(stream.sent).received == 4


@pytest.mark.parametrize("size", [64, 65_507])
def test_many_sockets(size: int) -> None:
    """A socket that has sent little takes little memory: there may be thousands."""
    run, many = Run(), 20
    tracemalloc.start()
    sockets = [DatagramReplies(run.tally, DatagramPayloads(size), run.reply) for _ in range(many)]
    for each in sockets:
        each.received(each.send(0.0), 0.5)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.told) == many
    assert grown < many * 250_000


def test_datagram_of_the_future() -> None:
    """One that is not sent yet is unexpected, however little was sent."""
    run, datagrams = Run(), DatagramPayloads(64)
    DatagramReplies(run.tally, datagrams, run.reply).received(datagrams.build(5), 0.5)
    assert (run.tally.unexpected, run.told) == (1, [])
