"""Plans of faults: what a rule chooses, its text, and the values that it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.faultgrammar import parse_plan
from echod.faultplan import (
    DATAGRAM,
    MAX_NUMBER,
    MAX_SIZE,
    STREAM,
    TLS,
    Choice,
    Fault,
    Plan,
    Rule,
    When,
    when,
)

RULES = [
    (when.refuse(), "refuse"),
    (when.first(2).reset(), "first 2: reset"),
    (when.first(1).close(), "number 1: close"),
    (when.first(2, "connection").half_close(), "first 2 connections: half-close"),
    (when.every(7).silent(), "every 7th: silent"),
    (when.every().deaf(), "every number: deaf"),
    (when.every(1, "datagram").drop(), "every datagram: drop"),
    (when.every(2, "datagram").duplicate(), "every 2nd datagram: duplicate"),
    (when.every(13, "datagram").reorder(), "every 13th datagram: reorder"),
    (when.every(21, "message", 64).damage(), "every 21st message of 64: damage"),
    (when.every(103, "byte").swallow(), "every 103rd byte: swallow"),
    (when.number(3, "message", 64).swallow(), "message 3 of 64: swallow"),
    (when.numbers(3, 5, "message", 64).swallow(8), "messages 3 to 5 of 64: swallow 8 bytes"),
    (when.numbers(3, 5).insert(b'a"b'), r'numbers 3 to 5: insert "a\"b"'),
    (when.numbers(3, unit="connection").refuse(), "connections from 3: refuse"),
    (when.chance(0.053).reset(), "5.3%: reset"),
    (when.chance(0.1, "message", 64).delay(0.2), "10% of messages of 64: delay 200ms"),
    (when.from_byte(100).truncate(0), "after 100 bytes: truncate 0 bytes"),
    (when.from_time(2).close(), "after 2s: close"),
    (when.from_time(0.5).lasts(90).throttle(10_000), "after 500ms, for 90s: throttle 10000B/s"),
    (when.between(0, 10).freeze(1), "from 0s to 10s: freeze 1s"),
    (when.at_most(3).may_not_fire().pad(9), "at most 3 times, may not fire: pad 9 bytes"),
    (when.greet(b"\r\n\t\x00\xff\\"), r'greet "\r\n\t\x00\xff\\"'),
    (when.delay(0.2, 0.05), "delay 200ms +- 50ms"),
    (when.delay(0.2, 0.05, "normal"), "delay normal 200ms 50ms"),
    (when.delay(0.2, shape="exponential"), "delay exponential 200ms"),
    (when.slice(10), "slice 10 bytes"),
    (when.slice(10, 0.005), "slice 10 bytes every 5ms"),
    (when.stall(), "stall"),
    (when.abort(), "abort"),
    (when.certificate("expired"), "expired"),
    (when.no_close_notify(), "no-close-notify"),
    (when.old_version(), "old-version"),
    (
        when.numbers(3, 90).every(5).chance(0.5).first(8, "byte").every(2, "byte").damage(),
        "numbers 3 to 90, every 5th, 50%, first 8 bytes, every 2nd byte: damage",
    ),
    (
        when.every(2).first(9, "connection").close(),
        "first 9 connections, every 2nd connection: close",
    ),
]


@pytest.mark.parametrize(("rule", "text"), RULES, ids=[text for _, text in RULES])
def test_text(rule: Rule, text: str) -> None:
    """Each condition and fault has a text, from which the same rule is made."""
    assert str(rule) == text
    assert parse_plan(text).rules == (rule,)


COUNTS = st.integers(1, MAX_NUMBER)
SECONDS = st.floats(0, 250_000 * 3600.0)
SIZES = st.integers(1, MAX_SIZE)
CHANCES = st.floats(0, 1)
DATA = st.binary(min_size=1)


@st.composite
def choices(draw: Callable[..., Any], units: list[str]) -> Choice:
    unit = draw(st.sampled_from(units))
    first = draw(COUNTS)
    return Choice(
        unit,
        draw(SIZES) if unit == "message" else 1,
        draw(st.sampled_from((1, first))),
        draw(st.none() | st.integers(first, MAX_NUMBER)),
        draw(st.just(1) | COUNTS),
        draw(st.just(1.0) | CHANCES),
    )


FAULTS = st.one_of(
    st.sampled_from(("refuse", "half-close", "damage", "self-signed", "drop")).map(Fault),
    st.builds(Fault, st.sampled_from(("greet", "insert")), data=DATA),
    st.builds(Fault, st.sampled_from(("throttle", "truncate", "pad", "swallow")), size=SIZES),
    st.builds(Fault, st.sampled_from(("truncate", "swallow")), size=st.just(0)),
    st.builds(Fault, st.sampled_from(("freeze", "delay")), SECONDS),
    st.builds(Fault, st.just("delay"), SECONDS, SECONDS, st.sampled_from(("uniform", "normal"))),
    st.builds(Fault, st.just("delay"), SECONDS, shape=st.just("exponential")),
    st.builds(Fault, st.just("slice"), SECONDS, size=SIZES),
)


@st.composite
def rules(draw: Callable[..., Any]) -> Rule:
    where = draw(st.none() | choices(["message", "byte"]))
    conditions = When(
        which=draw(st.none() | choices(["", "connection", "datagram"])),
        where=where,
        after_bytes=draw(st.integers(0, MAX_SIZE)) if draw(st.booleans()) and not where else None,
        after_seconds=draw(SECONDS),
        lasting=draw(st.just(math.inf) | SECONDS),
        times=draw(st.none() | COUNTS),
        can_be_unused=draw(st.booleans()),
    )
    if draw(st.booleans()):
        conditions = conditions.between(*sorted((draw(SECONDS), draw(SECONDS))))
    return conditions.rule(draw(FAULTS))


PLANS = st.builds(Plan, st.lists(rules(), max_size=4).map(tuple), st.integers(0, MAX_NUMBER))


@given(PLANS)
def test_text_of_any_plan(plan: Plan) -> None:
    """The text of each plan is printable ASCII, and parses to an equal plan."""
    text = str(plan)
    assert text.isascii()
    assert text.isprintable()
    assert parse_plan(text) == plan


@given(
    st.builds(
        Choice,
        first=st.integers(1, 30),
        last=st.none() | st.integers(30, 60),
        step=st.integers(1, 9),
    ),
    st.integers(1, 70),
)
def test_next(choice: Choice, number: int) -> None:
    """The next number is the lowest multiple of the step that is within the bounds."""
    last = choice.last or 200
    chosen = [n for n in range(choice.first, last + 1) if n % choice.step == 0 and n >= number]
    assert choice.next(number) == (chosen[0] if chosen else None)


WRONG = [
    (lambda: Choice("packet"), "unit"),
    (lambda: Choice(first=3, last=2), "last"),
    (lambda: Fault("explode"), "explode"),
    (lambda: Fault("delay", 1, shape="square"), "square"),
    (lambda: Fault("delay", 1, 1), "spread"),
    (lambda: Fault("delay", math.nan), "delay"),
    (lambda: Fault("refuse", 1), "seconds"),
    (lambda: Fault("greet"), "byte"),
    (lambda: Fault("throttle"), "throttle"),
    (lambda: when.first(0), "first takes"),
    (lambda: when.chance(10), "chance takes a number, 0 to 1, not 10"),
    (lambda: when.first(2).first(3), "once"),
    (lambda: when.first(2).numbers(4), "once"),
    (lambda: when.from_time(2).from_time(3), "once"),
    (lambda: when.first(2, "connection").every(3, "datagram"), "connections"),
    (lambda: when.first(2, "message", 64).every(3, "message", 65), "messages"),
    (lambda: when.first(2, "message", 64).every(3, "byte"), "bytes"),
    (lambda: when.first(2, "message"), "a message needs its size"),
    (lambda: when.first(2, "byte").from_byte(9), "place"),
    (lambda: when.between(2, 1), "between"),
    (lambda: Plan(seed=-1), "seed"),
    (lambda: Plan((when.reset(),) * 201), "200 rules"),
    (lambda: parse_plan("reset; " * 201), r"\^reset.* 200 rules"),
    (lambda: Plan((when.stall(),)).check(STREAM), "stall"),
    (lambda: Plan((when.drop(),)).check(TLS), "drop"),
    (lambda: Plan((when.every(2, "datagram").close(),)).check(STREAM), "datagrams"),
    (lambda: Plan((when.from_byte(2).drop(),)).check(DATAGRAM), "places"),
    (lambda: Plan((when.from_byte(2).refuse(),)).check(STREAM), "refuse.* accept"),
    (lambda: Plan((when.from_time(2).abort(),)).check(TLS), "abort.* accept"),
]


@pytest.mark.parametrize(("make", "named"), WRONG)
def test_wrong_values(make: Callable[[], object], named: str) -> None:
    """A wrong value is refused with a line that names it."""
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Plan(when.reset()), "rules takes a tuple of rules"),
        (lambda: Plan((when.first(2),)), "rules takes a tuple of rules, each with a fault"),
        (lambda: parse_plan(b"reset"), "text takes a string"),
    ],
)
def test_wrong_types(make: Callable[[], object], named: str) -> None:
    """A value of another type is refused with a line that names it."""
    with pytest.raises(TypeError, match=named):
        make()


@pytest.mark.parametrize(
    ("fault", "draw", "seconds"),
    [
        (Fault("delay", 0.2), 0.9, 0.2),
        (Fault("delay", 0.2, 0.1, "uniform"), 0.0, 0.1),
        (Fault("delay", 0.2, 0.3, "uniform"), 0.0, 0.0),
        (Fault("delay", 0.2, 0.1, "normal"), 0.5, 0.2),
        (Fault("delay", 0.2, 0.1, "normal"), 0.0, 0.2),
        (Fault("delay", 0.2, 0.0, "exponential"), 0.0, 0.0),
        (Fault("delay", 0.2, 0.0, "exponential"), 1 - 1 / math.e, 0.2),
    ],
)
def test_delays(fault: Fault, draw: float, seconds: float) -> None:
    """A random number decides the delay, by the distribution."""
    assert fault.delay_of(draw) == pytest.approx(seconds)


def test_add() -> None:
    """The builder passes each rule to a callable, which is not a part of the rule."""
    added: list[Rule] = []
    rule = When(add=added.append).first(2).refuse()
    assert added == [rule] == [when.first(2).refuse()]
    assert rule.when.add is None
