"""The decisions for one stream: the same in pieces of any size, and as a model says."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import islice, pairwise
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from echod.faultplan import Choice, Fault, Plan, Rule, When, when
from echod.faults import Faults
from echod.faultstream import Item, StreamFaults

DATA = bytes(range(256)) * 2


def through(
    rules: Iterable[Rule], pieces: Iterable[bytes], seed: int = 0, number: int = 1
) -> tuple[list[Item], list[tuple[str, int, int]]]:
    """Return what is sent, and the firings, for the connection ``number`` of a new port."""
    faults = Faults(Plan(tuple(rules), seed), 0.0)
    for _ in range(number):
        stream = StreamFaults(faults)
    stream.opened = 0.0
    sent = list(stream.begin(0.0))
    for piece in pieces:
        sent += stream.receive(piece, 0.0)
    sent += stream.end(0.0)
    return sent, [
        (each.fired.rule, each.fired.connection, each.fired.offset) for each in faults.firings
    ]


def joined(items: Iterable[Item]) -> list[Any]:
    """Return the items without their times, with neighbouring bytes joined."""
    found: list[Any] = []
    for _, item in items:
        if isinstance(item, bytes) and found and isinstance(found[-1], bytes):
            found[-1] += item
        elif item != b"":
            found.append(item)
    return found


def cut(data: bytes, places: Iterable[int]) -> list[bytes]:
    """Cut ``data`` at ``places``."""
    return [
        data[start:end] for start, end in pairwise([0, *sorted(places), len(data)]) if end > start
    ]


choices = st.builds(
    Choice,
    st.sampled_from(["message", "byte"]),
    st.integers(1, 90),
    first=st.integers(1, 5),
    last=st.none() | st.integers(5, 40),
    step=st.integers(1, 60),
    chance=st.sampled_from([1.0, 1.0, 0.5, 0.05, 0.0]),
)
faults = st.one_of(
    st.sampled_from(["damage", "silent", "reset", "close", "half-close"]).map(Fault),
    st.builds(Fault, st.sampled_from(["swallow", "truncate"]), size=st.integers(0, 100)),
    st.builds(Fault, st.just("insert"), data=st.binary(min_size=1, max_size=3)),
    st.builds(Fault, st.sampled_from(["throttle", "slice"]), size=st.integers(1, 100)),
)
times = st.none() | st.integers(1, 3)
conditions = st.builds(When, where=st.none() | choices, times=times) | st.builds(
    When, after_bytes=st.integers(0, 300), times=times
)
rules = st.builds(Rule, conditions, faults)
places = st.lists(st.integers(0, 400), max_size=12)


class AnyPiecesTests(SynchronousTestCase):
    @given(st.lists(rules, max_size=3), st.integers(0, 400), places, st.integers(0, 99))
    def test_pieces(self, plan: list[Rule], size: int, at: list[int], seed: int) -> None:
        """What is sent and what has fired do not depend on the sizes of the receives."""
        data = DATA[:size]
        whole, fired = through(plan, cut(data, []), seed)
        pieces, fired_in_pieces = through(plan, cut(data, [min(each, size) for each in at]), seed)
        self.assertEqual(joined(pieces), joined(whole))
        self.assertEqual(fired_in_pieces, fired)

    @given(st.lists(rules, max_size=3), places)
    def test_times(self, plan: list[Rule], at: list[int]) -> None:
        """No item is due before it was received."""
        sent, _ = through(plan, cut(DATA, at))
        self.assertTrue(all(due >= 0 for due, _ in sent))


class ModelTests(SynchronousTestCase):
    @given(choices, faults, st.integers(0, 400))
    def test_units(self, where: Choice, fault: Fault, size: int) -> None:
        """A rule for messages or bytes does to each chosen one what its name says."""
        if where.unit == "byte":
            where = Choice("byte", 1, where.first, where.last, where.step, where.chance)
        if where.chance < 1 or (fault.name == "swallow" and fault.size > where.size):
            return
        sent, _ = through([Rule(When(where=where), fault)], [DATA[:size]])
        expected: list[Any] = [b""]
        for number, start in enumerate(range(0, size, where.size), 1):
            part = DATA[start : min(start + where.size, size)]
            if where.next(number) != number:
                expected[-1] += part
            elif fault.name in ("reset", "close", "half-close"):
                expected.append(fault)
                break
            elif fault.name == "insert":
                expected[-1] += fault.data + part
            elif fault.name == "truncate":
                expected[-1] += part[: fault.size]
            elif fault.name == "swallow":
                expected[-1] += part[fault.size or where.size :]
            elif fault.name != "silent":
                expected[-1] += part
        got = joined(sent)
        self.assertIs(got.pop(), None)
        expected = [each for each in expected if each != b""]
        if fault.name != "damage":
            self.assertEqual(got, expected)
            return
        changed = [
            place
            for place, (a, b) in enumerate(zip(b"".join(got), DATA[:size], strict=True))
            if a != b
        ]
        chosen = {place // where.size + 1 for place in changed}
        self.assertEqual(len(chosen), len(changed))
        self.assertTrue(all(where.next(number) == number for number in chosen))
        complete = {n for n in range(1, size // where.size + 1) if where.next(n) == n}
        self.assertLessEqual(complete, chosen)

    def test_probability(self) -> None:
        """A probability is that of each connection, message or byte; the seed decides."""
        for seed in range(3):
            rule = when.chance(0.1, "byte").damage()
            _, fired = through([rule], [bytes(10_000)], seed)
            self.assertTrue(900 < len(fired) < 1100, len(fired))
            self.assertEqual(through([rule], [bytes(10_000)], seed)[1], fired)
            self.assertNotEqual(through([rule], [bytes(10_000)], seed + 1)[1], fired)
            self.assertNotEqual(through([rule], [bytes(10_000)], seed, 2)[1], fired)

    def test_known_decisions(self) -> None:
        """The decisions of a seed are the same on every machine and every Python."""
        plan = [when.chance(0.3).chance(0.02, "message", 8).damage()]
        fired = [
            (connection, offset)
            for number in range(1, 9)
            for _, connection, offset in through(plan, [bytes(800)], 7, number)[1]
        ]
        self.assertEqual(fired, [(3, 720), (3, 739), (4, 586), (6, 697), (7, 480), (7, 772)])

    def test_probability_of_zero(self) -> None:
        """A rule with the probability 0 never fires."""
        self.assertEqual(through([when.chance(0, "byte").damage()], [DATA])[1], [])

    def test_short_messages(self) -> None:
        """A message that is not longer than what a rule keeps is left as it is."""
        sent, fired = through([when.every(1, "message", 10).truncate(10)], [DATA])
        self.assertEqual((joined(sent), fired), ([DATA, None], []))

    def test_overlapping(self) -> None:
        """A place within the bytes that an earlier firing has swallowed is left out."""
        _, fired = through([when.every(1, "message", 10).swallow(25)], [bytes(100)])
        self.assertEqual([offset for *_, offset in fired], [0, 30, 60, 90])

    def test_end_of_the_reply(self) -> None:
        """A fault that ends the reply is the last to fire, whatever the sizes of the receives."""
        damage, more = when.every(1, "byte").damage(), when.from_time(1).insert(b"!")
        for end in (when.from_byte(3).reset(), when.from_byte(3).half_close()):
            for size in (1, 2, 512):
                pieces = cut(DATA, range(0, len(DATA), size))
                sent, fired = through([damage, more, end, damage], pieces)
                self.assertEqual(joined(sent), [DATA[:3], end.fault, None])
                self.assertEqual([offset for *_, offset in fired], [0, 0, 1, 1, 2, 2, 3])
        sent, fired = through([when.close(), when.greet(b"!")], [DATA])
        self.assertEqual((len(joined(sent)), len(fired)), (2, 1))

    def test_composition(self) -> None:
        """Each rule works on the reply as the rules before it have left it."""
        insert, damage = when.from_byte(2).insert(b"xy"), when.every(3, "byte").damage()
        self.assertEqual(joined(through([insert, damage], [b"abcdef"])[0])[0], b"abyyceef")
        self.assertEqual(joined(through([damage, insert], [b"abcdef"])[0])[0], b"abxybdeg")


class TimeTests(SynchronousTestCase):
    """Conditions of time, on a clock that the test sets."""

    def stream(self, *rules: Rule) -> StreamFaults:
        self.faults = Faults(Plan(rules, 0), 100.0)
        stream = StreamFaults(self.faults)
        stream.opened = 105.0
        return stream

    def test_after(self) -> None:
        """A rule begins some time after the connection was opened, without a byte."""
        reset = when.from_time(2).reset()
        stream = self.stream(reset)
        self.assertEqual((list(stream.begin(105)), stream.due(105)), ([], 107))
        self.assertEqual(list(stream.begin(107)), [(107, reset.fault)])
        self.assertEqual(stream.due(107), math.inf)

    def test_after_bytes_and_time(self) -> None:
        """With both, it begins when both hold."""
        stream = self.stream(when.from_byte(3).from_time(2).insert(b"!"))
        self.assertEqual(stream.due(105), math.inf)
        self.assertEqual(joined(stream.receive(b"abcd", 106)), [b"abcd"])
        self.assertEqual(stream.due(106), 107)
        self.assertEqual(joined(stream.begin(107)), [b"!"])

    def test_late_timer(self) -> None:
        """A byte that arrives after the time, and before the timer, is late enough."""
        stream = self.stream(when.from_time(2).insert(b"!"))
        self.assertEqual(joined(stream.receive(b"abc", 108)), [b"!abc"])

    def test_window(self) -> None:
        """A window is a part of the life of the port."""
        stream = self.stream(when.between(7, 8).every(1, "message", 2).damage())
        self.assertEqual(joined(stream.receive(b"aa", 106.9)), [b"aa"])
        self.assertNotEqual(joined(stream.receive(b"aa", 107)), [b"aa"])
        self.assertEqual(joined(stream.receive(b"aa", 108)), [b"aa"])
        self.assertEqual(self.faults.counts, {"damage": 1})

    def test_window_that_is_over(self) -> None:
        """A rule whose window is over never fires."""
        stream = self.stream(when.between(0, 1).reset())
        self.assertEqual((list(stream.begin(105)), stream.due(105)), ([], math.inf))

    def test_lasting(self) -> None:
        """A fault ends after its time."""
        stream = self.stream(when.lasts(2).silent())
        list(stream.begin(105))
        self.assertEqual(joined(stream.receive(b"abc", 106.9)), [])
        self.assertEqual(joined(stream.receive(b"abc", 107)), [b"abc"])

    def test_delay_of_messages(self) -> None:
        """A late message has its delay from the time when it was received."""
        stream = self.stream(when.every(2, "message", 2).delay(5))
        self.assertEqual(list(stream.receive(b"abc", 106)), [(106, b"ab"), (111, b"c")])
        self.assertEqual(list(stream.receive(b"def", 107)), [(112, b"d"), (107, b"ef")])

    def test_delay_of_the_end(self) -> None:
        """A delay of the whole connection delays its end, too."""
        stream = self.stream(when.delay(5))
        list(stream.begin(105))
        self.assertEqual(list(stream.end(106)), [(111, None)])

    def test_distributions(self) -> None:
        """The delays of a distribution have its mean, and none is negative."""
        for rule, mean in [
            (when.delay(2, 1), 2),
            (when.delay(2, 1, "normal"), 2),
            (when.delay(2, shape="exponential"), 2),
        ]:
            stream = self.stream(rule)
            list(stream.begin(105))
            items = [item for _ in range(2000) for item in stream.receive(b"a", 106)]
            delays = [due - 106 for due, _ in items]
            self.assertTrue(all(each >= 0 for each in delays))
            self.assertLess(abs(sum(delays) / 2000 - mean), 0.2)
            self.assertGreater(len({*delays}), 1900)


class BoundedStepTests(SynchronousTestCase):
    """Each item takes few steps, so that the caller can pause between them."""

    def test_growth(self) -> None:
        """Rules that multiply the bytes of each other yield often, whatever the last one does."""
        every = when.every(1, "byte")
        insert = every.insert(b"xx")
        never = [every.from_time(9).damage(), every.swallow(10**9), every.at_most(1).damage()]
        for last in [when.silent(), every.swallow(), *never]:
            stream = StreamFaults(Faults(Plan((*[insert] * 40, last)), 0.0))
            stream.opened = 0.0
            list(stream.begin(0.0))
            items = stream.receive(bytes(65536), 0.0)
            self.assertEqual(len(list(islice(items, 1000))), 1000)
