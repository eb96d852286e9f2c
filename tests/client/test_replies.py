"""Matching replies to messages: damaged, late, duplicated, reordered and lost ones."""

from __future__ import annotations

import random
import tracemalloc
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from echod.client import replies
from echod.client.payloads import MASK, DatagramPayloads
from echod.client.replies import WINDOW, DatagramReplies, MessageTally, StreamReplies

Call = tuple[int, float, float, int]
"""The arguments of one call of a ReplyCallback."""


def send(replies: StreamReplies | DatagramReplies, since: float) -> bytes:
    """Begin the next message, as a channel does, and return it."""
    message = replies.message()
    replies.begun(since)
    return message


class Run:
    """A tally, and the replies that were reported; :meth:`end` returns the final counts."""

    def __init__(self, timeout: float = 1.0) -> None:
        self.tally = MessageTally(timeout)
        self.calls: list[Call] = []

    def reply(self, number: int, since: float, now: float, damaged: int) -> None:
        self.calls.append((number, since, now, damaged))
        self.tally.reply(since, now, damaged)

    def end(self, sent: int, under_way: int = 0) -> MessageTally:
        tally = self.tally
        tally.sent, tally.under_way = sent, under_way
        tally.sum_up()
        return adds_up(tally)


def adds_up(tally: MessageTally) -> MessageTally:
    """Check that each message has exactly one outcome, and return ``tally``."""
    outcomes = tally.received + tally.late + tally.damaged + tally.lost + tally.under_way
    assert tally.sent == outcomes
    assert tally.lost >= 0
    assert tally.times.count == tally.received + tally.late
    return tally


def test_tally() -> None:
    """A reply is received, late, or damaged; a message without a reply is lost or under way."""
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


def test_damaged_reply_has_no_time() -> None:
    """The round-trip times exclude those of damaged replies."""
    tally = MessageTally(1.0)
    tally.reply(0.0, 0.5, 1)
    assert tally.sum_up().count == tally.times.count == 0


def test_sum_up_twice() -> None:
    """sum_up() returns each reply once, and adds it to the total once."""
    tally = MessageTally(1.0)
    tally.sent = 3
    tally.reply(0.0, 0.1, 0)
    tally.count(0.3)  # as reply() does for a right one
    assert tally.sum_up().count == 2
    assert tally.sum_up().count == 0
    tally.reply(0.0, 2.0, 0)
    assert tally.sum_up().most == 2.0
    assert (tally.received, tally.late, tally.times.count, tally.times.least) == (2, 1, 3, 0.1)
    adds_up(tally)


MESSAGES = [b"one.", b"two!", b"abcd"]


class Model:
    """The expected result for a connection, computed byte by byte."""

    def __init__(self, messages: Sequence[bytes]) -> None:
        self._messages = messages
        self._size = len(messages[0])
        self._since: deque[float] = deque()
        self._at = 0
        self._damaged = 0
        self.unexpected = 0
        self.calls: list[Call] = []

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
                self.calls.append((number, self._since.popleft(), now, self._damaged))
                self._damaged = 0


@given(st.data())
def test_streams(data: st.DataObject) -> None:
    """Each reply is matched to its message, and each of its wrong bytes is counted.

    This holds for any sequence of sends and receives, however the stream is split, and whichever
    bytes are damaged, missing or inserted.
    """
    run, model = Run(), Model(MESSAGES)
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    service = bytearray()  # bytes on their way back
    now = 0.0
    steps = st.sampled_from(["send", "send", "receive", "damage", "insert"])
    for step in data.draw(st.lists(steps)):
        now += 1.0
        if step == "send":
            model.send(now)
            service += send(stream, now)
        elif step == "receive":
            length = data.draw(st.sampled_from([1, 3, 4, 5, 8, 100]))
            part = bytes(service[:length])
            del service[:length]
            model.received(part, now)
            stream.received(part, now)
        elif step == "insert":
            at = data.draw(st.integers(0, len(service)))
            service[at:at] = data.draw(st.binary(max_size=9))
        elif service:
            at = data.draw(st.integers(0, len(service) - 1))
            service[at : at + 1] = data.draw(st.binary(max_size=1))
    assert run.calls == model.calls
    assert run.tally.unexpected == model.unexpected
    assert stream.finished == len(run.calls)
    under_way = len(list(stream.outstanding()))
    tally = run.end(stream.sent, under_way)
    assert tally.lost == 0
    assert stream.sent == len(run.calls) + under_way


@given(st.data(), st.integers(1, 9), st.integers(0, 20))
def test_any_split(data: st.DataObject, size: int, count: int) -> None:
    """Replies are right however the stream is split into reads."""
    source = random.Random(data.draw(st.integers(0, 9)))
    messages = [source.randbytes(size) for _ in range(3)]
    run = Run()
    stream = StreamReplies(run.tally, messages, run.reply)
    sent = b"".join(send(stream, float(number)) for number in range(count))
    places = sorted(data.draw(st.sets(st.integers(0, len(sent)))))
    for first, last in zip([0, *places], [*places, len(sent)], strict=True):
        stream.received(sent[first:last], 20.0)
    assert run.calls == [(number, number, 20.0, 0) for number in range(count)]
    assert list(stream.outstanding()) == []
    assert run.end(count).lost == run.tally.unexpected == 0


def test_send() -> None:
    """The messages repeat in order, and each is outstanding from its time until its reply."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    assert [send(stream, at) for at in (0.0, 0.5, 1.0, 2.0)] == [*MESSAGES, MESSAGES[0]]
    assert list(stream.outstanding()) == [0.0, 0.5, 1.0, 2.0]
    assert next(iter(reversed(stream.outstanding()))) == 2.0
    stream.received(b"one.tw", 3.0)
    assert list(stream.outstanding()) == [0.5, 1.0, 2.0]
    assert (stream.sent, stream.finished) == (4, 1)


def test_another_message() -> None:
    """A duplicated message in place of the next one is damage."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    for _ in range(3):
        send(stream, 0.0)
    stream.received(b"one.one.abcd", 1.0)
    assert run.calls == [(0, 0.0, 1.0, 0), (1, 0.0, 1.0, 4), (2, 0.0, 1.0, 0)]
    tally = run.end(stream.sent)
    assert (tally.received, tally.damaged, tally.damaged_bytes) == (2, 1, 4)


def test_missing_byte() -> None:
    """A missing byte shifts the rest of the stream, and the last reply stays incomplete."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    for _ in range(3):
        send(stream, 0.0)
    stream.received(b"one.to!abcd", 1.0)
    assert [damaged for *_, damaged in run.calls] == [0, 3]
    assert run.end(stream.sent).lost == 1


def test_unexpected_bytes() -> None:
    """Bytes received before a message was sent, or after the last reply, are unexpected."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    stream.received(b"one.", 0.0)
    assert (run.tally.unexpected, run.calls) == (4, [])
    send(stream, 1.0)
    stream.received(b"one.two!x", 1.0)
    assert (run.tally.unexpected, len(run.calls)) == (9, 1)
    stream.received(b"", 1.0)
    assert run.end(stream.sent).received == 1


class Exchange:
    """The datagrams of one socket and their replies."""

    def __init__(self, size: int = 64) -> None:
        self.run = Run()
        self.tally = self.run.tally
        self.datagrams = DatagramPayloads(size)
        self.replies = DatagramReplies(self.tally, self.datagrams, self.run.reply)

    def send(self, count: int) -> list[bytes]:
        return [send(self.replies, 0.0) for _ in range(count)]

    def receive(self, *datagrams: bytes, now: float = 0.5) -> None:
        for each in datagrams:
            self.replies.received(each, now)

    def end(self) -> MessageTally:
        return self.run.end(self.replies.sent)

    @property
    def numbers(self) -> list[int]:
        return [number for number, *_ in self.run.calls]


@pytest.fixture
def exchange() -> Exchange:
    return Exchange()


def test_datagrams(exchange: Exchange) -> None:
    """Each reply is matched to its datagram."""
    sent = [send(exchange.replies, since) for since in (0.0, 0.25, 0.5)]
    assert len(set(sent)) == 3
    assert list(exchange.replies.outstanding()) == [0.0, 0.25, 0.5]
    exchange.receive(*sent[:2])
    assert exchange.run.calls == [(0, 0.0, 0.5, 0), (1, 0.25, 0.5, 0)]
    assert list(reversed(exchange.replies.outstanding())) == [0.5]
    exchange.receive(sent[2])
    tally = exchange.end()
    assert (tally.received, tally.lost, tally.duplicated, tally.reordered) == (3, 0, 0, 0)


def test_duplicate(exchange: Exchange) -> None:
    """Each further reply to a datagram counts as duplicated, and not as received."""
    one, two = exchange.send(2)
    exchange.receive(one, one, two, one, two)
    assert exchange.numbers == [0, 1]
    tally = exchange.end()
    assert (tally.received, tally.duplicated, tally.reordered) == (2, 3, 0)
    assert tally.unexpected == 0


def test_again(exchange: Exchange) -> None:
    """again() yields outstanding datagrams that are not late, and restarts their round trips."""
    sent = [send(exchange.replies, since) for since in (0.0, 4.5, 5.0)]
    exchange.receive(sent[1], now=5.0)
    assert list(exchange.replies.again(5.5)) == [sent[2]]
    assert list(exchange.replies.outstanding()) == [0.0, 5.5]
    exchange.receive(sent[2], now=5.75)
    assert exchange.run.calls[-1] == (2, 5.5, 5.75, 0)


def test_reordered(exchange: Exchange) -> None:
    """A reply that arrives after that to a later datagram counts as reordered and as received."""
    sent = exchange.send(5)
    exchange.receive(*(sent[number] for number in (0, 3, 1, 2, 4)))
    assert exchange.numbers == [0, 3, 1, 2, 4]
    tally = exchange.end()
    assert (tally.received, tally.reordered, tally.lost) == (5, 2, 0)


def test_late(exchange: Exchange) -> None:
    """A reply after the timeout is late: neither received nor lost."""
    one, _ = exchange.send(2)
    exchange.receive(one, now=1.5)
    tally = exchange.end()
    assert (tally.received, tally.late, tally.lost) == (0, 1, 1)


def test_lost(exchange: Exchange) -> None:
    """A datagram without a reply is lost; later replies do not count as reordered."""
    sent = exchange.send(5)
    exchange.receive(sent[1], sent[4])
    tally = exchange.end()
    assert (tally.received, tally.lost, tally.reordered) == (2, 3, 0)


def test_damaged(exchange: Exchange) -> None:
    """A wrong reply is damaged; a right one to the same datagram after it is a duplicate."""
    one, two = exchange.send(2)
    exchange.receive(one[:20] + b"wrong" + one[25:], one, two[:-8])
    assert exchange.numbers == [0, 1]
    tally = exchange.end()
    assert (tally.damaged, tally.duplicated, tally.received, tally.lost) == (2, 1, 0, 0)
    assert 8 < tally.damaged_bytes <= 13


def test_unexpected(exchange: Exchange) -> None:
    """A datagram that was not sent, or not yet, is unexpected; so is an empty one."""
    exchange.send(2)
    exchange.receive(b"", b"hello", DatagramPayloads(64).build(0), exchange.datagrams.build(2))
    assert exchange.run.calls == []
    tally = exchange.end()
    assert (tally.unexpected, tally.lost) == (4, 2)


def test_given_up(exchange: Exchange, monkeypatch: pytest.MonkeyPatch) -> None:
    """Above MAX_OUTSTANDING the oldest datagram is lost, and its reply unexpected."""
    monkeypatch.setattr(replies, "MAX_OUTSTANDING", 3)
    sent = exchange.send(5)
    assert len(list(exchange.replies.outstanding())) == 3
    exchange.receive(*sent)
    assert exchange.numbers == [2, 3, 4]
    tally = exchange.end()
    assert (tally.received, tally.lost, tally.unexpected) == (3, 2, 2)


def test_duplicate_after_the_window(exchange: Exchange) -> None:
    """A duplicate is recognised within WINDOW datagrams; after that it is unexpected."""
    first, second = exchange.send(2)
    exchange.receive(first, second)
    exchange.replies.sent = WINDOW  # all of them lost
    exchange.receive(send(exchange.replies, 0.0))
    exchange.receive(first, second)
    assert exchange.numbers == [0, 1, WINDOW]
    assert (exchange.tally.unexpected, exchange.tally.duplicated) == (1, 1)


@settings(max_examples=50)
@given(st.integers(0, 30), st.data())
def test_any_network(count: int, data: st.DataObject) -> None:
    """Whatever the network does, each datagram has one outcome, and each reply counts once."""
    exchange = Exchange()
    sent = exchange.send(count)
    received = data.draw(st.lists(st.integers(0, count - 1))) if count else []
    expected: dict[int, tuple[float, int]] = {}
    reordered = 0
    for turn, number in enumerate(received):
        now = data.draw(st.sampled_from([0.5, 1.5]))
        damaged = data.draw(st.integers(0, 3))
        reply = bytearray(sent[number])
        for at in range(8, 8 + damaged):
            reply[at] ^= 1 + turn % 255
        exchange.receive(bytes(reply), now=now)
        if number not in expected:
            reordered += number < max(expected, default=-1)
            expected[number] = now, damaged
    tally = exchange.end()
    assert exchange.run.calls == [
        (number, 0.0, now, damaged) for number, (now, damaged) in expected.items()
    ]
    assert tally.received == sum(each == (0.5, 0) for each in expected.values())
    assert tally.late == sum(each == (1.5, 0) for each in expected.values())
    assert tally.damaged_bytes == sum(damaged for _, damaged in expected.values())
    assert tally.lost == count - len(expected)
    assert tally.duplicated == len(received) - len(expected)
    assert (tally.reordered, tally.unexpected) == (reordered, 0)


def test_callback_may_send() -> None:
    """The callback is called before the next reply is matched, and may send a message."""
    run = Run()
    sent: list[bytes] = []

    def reply(number: int, since: float, now: float, damaged: int) -> None:
        run.reply(number, since, now, damaged)
        if number < 3:
            sent.append(send(stream, now))

    stream = StreamReplies(run.tally, MESSAGES, reply)
    sent.append(send(stream, 0.0))
    for number in range(4):
        assert number == stream.finished
        stream.received(sent[number], float(number))
    assert run.end(stream.sent).received == 4


@pytest.mark.parametrize("size", [64, 65_507])
def test_many_exchange(size: int) -> None:
    """A socket that has sent little takes little memory: there may be thousands."""
    run, many = Run(), 20
    tracemalloc.start()
    exchange = [DatagramReplies(run.tally, DatagramPayloads(size), run.reply) for _ in range(many)]
    for each in exchange:
        each.received(send(each, 0.0), 0.5)
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.calls) == many
    assert grown < many * 250_000


def test_datagram_of_the_future() -> None:
    """A datagram with a number that is not sent yet is unexpected, even if none was sent."""
    run, datagrams = Run(), DatagramPayloads(64)
    DatagramReplies(run.tally, datagrams, run.reply).received(datagrams.build(5), 0.5)
    assert (run.tally.unexpected, run.calls) == (1, [])


def test_transmitted_message() -> None:
    """A transmit stamp starts the round trip of the last message later, and never earlier."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    stream.transmitted(MASK, 9.0)  # nothing is sent
    send(stream, 1.0)
    send(stream, 2.0)
    stream.transmitted(3, 9.0)  # the first message
    stream.transmitted(5, 9.0)  # a part of the last one
    stream.transmitted(7, 1.5)
    assert list(stream.outstanding()) == [1.0, 2.0]
    stream.transmitted(7, 2.5)
    assert list(stream.outstanding()) == [1.0, 2.5]
    stream.received(b"".join(MESSAGES[:2]), 3.0)
    stream.transmitted(7, 2.75)  # too late
    assert [since for _, since, _, _ in run.calls] == [1.0, 2.5]


def test_retransmitted_message() -> None:
    """A round trip begins at the first transmission: TCP stamps each retransmission, too."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply)
    for end in (3, 7):
        send(stream, float(end))
        stream.transmitted(end, end + 0.1)
        stream.transmitted(end, end + 0.3)
    assert list(stream.outstanding()) == [3.1, 7.1]


def test_transmitted_datagram() -> None:
    """A transmit stamp starts the round trip of the last datagram later, and never earlier."""
    exchange = Exchange()
    exchange.replies.transmitted(MASK, 9.0)  # nothing is sent
    sent = [send(exchange.replies, since) for since in (1.0, 2.0)]
    exchange.replies.transmitted(0, 9.0)  # the first datagram
    exchange.replies.transmitted(1, 1.5)
    assert list(exchange.replies.outstanding()) == [1.0, 2.0]
    exchange.replies.transmitted(1, 2.5)
    assert list(exchange.replies.outstanding()) == [1.0, 2.5]
    exchange.receive(*sent, now=3.0)
    exchange.replies.transmitted(1, 2.75)  # too late
    assert list(exchange.replies.outstanding()) == []


def test_stamp_before_the_start() -> None:
    """A reply has the time at which it is received, if its stamp is before its message."""
    run = Run()
    stream = StreamReplies(run.tally, MESSAGES, run.reply, lambda: 5.5)
    for _ in range(2):
        send(stream, 5.0)
    stream.received(MESSAGES[0], 4.0)
    stream.received(b"????", 4.0)
    payloads = DatagramPayloads(64)
    datagrams = DatagramReplies(run.tally, payloads, run.reply, lambda: 5.5)
    datagrams.received(send(datagrams, 5.0), 4.0)
    assert [now for _, _, now, _ in run.calls] == [5.5, 5.5, 5.5]
