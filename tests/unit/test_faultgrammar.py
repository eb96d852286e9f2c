"""The text of plans: mistakes, each one line with a caret, and random texts."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.faulterrors import PlanError
from echod.faultgrammar import parse_plan
from echod.faultplan import Plan, when
from tests.unit.test_faultplan import PLANS

# Each with a caret before the word that is wrong, and a part of what the error says.
WRONG = [
    ("^", "expected a rule"),
    ("^;", "expected a rule"),
    ("refuse;^;", "expected a rule"),
    ("refuse;^; reset", "expected a rule"),
    ("^: refuse", "expected a rule"),
    ("^, first 2: refuse", "expected a rule"),
    ("first 2,^: refuse", "expected a condition"),
    ("first 2,^", "expected a condition"),
    ("first 2:^", "expected a fault"),
    ("first 2:^; refuse", "expected a fault"),
    # Unknown words.
    ("^refsue", "did you mean 'refuse'"),
    ("first 2: ^refsue", "did you mean 'refuse'"),
    ("^frist 2: refuse", "did you mean 'first'"),
    ("first 2 ^conections: refuse", "did you mean 'connections'"),
    ("^Refuse", "did you mean 'refuse'"),
    ("refuse; first 2: ^explode", "expected a fault"),
    ("first 2 ^packets: refuse", "expected 'numbers' or 'connections'"),
    ("every 7th ^mesage of 64: damage", "did you mean 'messages'"),
    ("^caf\xe9", "expected a rule"),
    ("^\0: refuse", "expected a rule"),
    ("first 2: refuse ^\ud800", "expected ';'"),
    # Words too many or too few.
    ("first^: refuse", "expected a whole number"),
    ("first 2 ^refuse", "or ':'"),
    ("first 2^", "or ':'"),
    ("first 2^; refuse", "or ':'"),
    ("refuse^: first 2", "expected ';'"),
    ("refuse^, first 2", "expected ';'"),
    ("first 2, ^refuse", "a fault stands after ':'"),
    ("first 2: ^every 7th: refuse", "expected a fault"),
    ("first 2: refuse^, reset", "expected ';'"),
    ("refuse ^reset", "expected ';'"),
    ("refuse ^2", "expected ';'"),
    ("every message^: damage", "expected 'of'"),
    ("every message of^: damage", "expected a size"),
    ("messages 3 of 64 ^to 5: damage", "expected ':'"),
    ("at most 3^: reset", "expected 'times'"),
    ("may not^: reset", "expected 'fire'"),
    ("from 1s ^until 2s: reset", "expected 'to'"),
    ("delay^", "or a duration"),
    ("delay 200ms +-^", "expected a duration"),
    ("delay normal 200ms^", "expected a duration"),
    ("truncate 10^", "expected 'bytes'"),
    ("slice 10 bytes ^each 5ms", "expected ';' or 'every'"),
    # Numbers.
    ("first ^0: refuse", "from 1 to 1000000000000"),
    ("first ^-2: refuse", "from 1 to 1000000000000"),
    ("first ^2.5: refuse", "a whole number"),
    ("first ^two: refuse", "a whole number"),
    ("first ^\u0663: refuse", "a whole number"),
    ("first ^1000000000001: refuse", "from 1 to 1000000000000"),
    ("every ^7: reset", "7th"),
    ("every ^0th connection: reset", "7th"),
    ("^150%: reset", "expected a rule"),
    ("^150%, first 2: reset", "expected a rule"),
    ("^10: reset", "expected a rule"),
    ("10% of message^: reset", "expected 'of'"),
    ("after 5^: close", "expected 'bytes' or a duration"),
    ("after ^5kB: close", "expected a size"),
    ("for ^5: deaf", "expected a duration"),
    ("delay ^200", "or a duration"),
    ("delay ^200us", "or a duration"),
    ("delay ^300000h", "up to 900000000s"),
    ("delay ^-1s", "or a duration"),
    ("throttle ^10", "expected a rate"),
    ("throttle ^0B/s", "expected a rate"),
    ("truncate ^2G bytes", "expected a size"),
    ("truncate ^1.5 bytes", "expected a size"),
    ("pad ^9999999999 bytes", "up to 1073741824"),
    ("seed ^-1", "a whole number from 0"),
    ("seed^", "a whole number from 0"),
    # Texts.
    ("greet^", "text in double quotes"),
    ("greet ^hello", "text in double quotes"),
    ('greet ^"hello', "text in double quotes"),
    ('greet ^"hello; refuse', "text in double quotes"),
    (r'greet ^"hello\"', "text in double quotes"),
    ('greet ^"hello\\', "text in double quotes"),
    (r'greet ^"\q"', "text in double quotes"),
    (r'greet ^"\x4"', "text in double quotes"),
    ('greet ^"caf\xe9"', "text in double quotes"),
    ('greet ^"a\nb"', "text in double quotes"),
    ('greet "a"^"b"', "expected ';'"),
    # Values that do not go together: the caret is before the clause.
    ('first 2: ^greet ""', "at least one byte"),
    ("^slice 0 bytes", "slice takes a whole number"),
    ("^messages 5 to 3 of 64: damage", "last takes a whole number"),
    ("^from 2s to 1s: reset", "between takes"),
    ("first 2, ^first 3: refuse", "each condition once"),
    ("after 1s, ^after 2s: reset", "each condition once"),
    ("after 10 bytes, ^every byte: damage", "one place"),
    ("first 2 connections, ^every 3rd datagram: reset", "connections"),
    ("seed 1; ^seed 2", "one seed"),
    ("first 2: ^seed 2", "expected a fault"),
]


@pytest.mark.parametrize(("marked", "why"), WRONG, ids=[marked for marked, _ in WRONG])
def test_mistakes(marked: str, why: str) -> None:
    """Each mistake is one line: the place, what is wrong, and what would be right."""
    before, _, after = marked.partition("^")
    with pytest.raises(PlanError) as caught:
        parse_plan(before + after)
    assert caught.value.position == len(before)
    line = str(caught.value)
    assert why in line
    assert line.isascii()
    assert line.isprintable()
    escaped = (ascii(part)[1:-1].replace(r"\\", "\\") for part in (before, after))
    if len(marked) < 30:
        assert line.startswith("'{}^{}': ".format(*escaped))


def test_long_plan() -> None:
    """Of a long plan, the line shows the part around the mistake."""
    with pytest.raises(PlanError) as caught:
        parse_plan("refuse; " * 100 + "refsue" + "; refuse" * 100)
    shown = "'...fuse; refuse; refuse; refuse; ^refsue; refuse; refuse; refuse...'"
    assert str(caught.value).startswith(shown)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    ("text", "plan"),
    [
        ("refuse;", Plan((when.refuse(),), 0)),
        ("  first\n2  :  refuse ; ", Plan((when.first(2).refuse(),), 0)),
        ("after 1.5k byte: close", Plan((when.from_byte(1500).close(),), 0)),
        ("after 10m: close", Plan((when.from_time(600).close(),), 0)),
        ("throttle 0.5MB/s", Plan((when.throttle(500_000),), 0)),
        ('insert ";:,"', Plan((when.insert(b";:,"),), 0)),
        (r'insert "\"\x3b"', Plan((when.insert(b'";'),), 0)),
        ("100%: drop", Plan((when.every().drop(),), 0)),
        ("refuse; reset", Plan((when.refuse(), when.reset()), 0)),
    ],
)
def test_notations(text: str, plan: Plan) -> None:
    """Spaces, line breaks, multiples of units and quoted separators."""
    assert parse_plan(text, 0) == plan


def test_seed() -> None:
    """A seed is in the text or given beside it; without one, each plan has one of its own."""
    assert parse_plan("seed 7") == parse_plan("seed 7;") == Plan((), 7)
    assert parse_plan("refuse").seed != parse_plan("refuse").seed
    with pytest.raises(PlanError, match="one seed"):
        parse_plan("refuse; seed 7", 7)
    with pytest.raises(PlanError, match="expected a rule"):
        parse_plan("", 7)


def check(text: str) -> None:
    """Parse ``text``: the plan has a text that parses, or the error is one line."""
    error = None
    try:
        plan = parse_plan(text)
    except PlanError as raised:
        error = raised
    if error is None:
        assert parse_plan(str(plan)) == plan
    else:
        assert 0 <= error.position <= len(text)
        assert str(error).isascii()
        assert str(error).isprintable()


@given(st.text() | st.text('0123456789. "\\%;:,abefirst+-kMm\n\0'))
def test_any_text(text: str) -> None:
    """No text raises another exception."""
    check(text)


WORDS = "first every 2 7th of messages message bytes 64 10% after 2s to for from at most times may "
WORDS += 'not fire refuse delay greet swallow slice +- normal seed , , : : ; " \\ "a" \0 9% 0.5k'


@given(st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join))
def test_any_words(text: str) -> None:
    """No sequence of words raises another exception."""
    check(text)


@given(PLANS, st.data())
def test_changed_plans(plan: Plan, data: st.DataObject) -> None:
    """No plan with characters that are changed, taken out or put in raises another exception."""
    text = str(plan)
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(text)))
        end = min(len(text), start + data.draw(st.integers(0, 3)))
        text = text[:start] + data.draw(st.text(max_size=3)) + text[end:]
    check(text)


@pytest.mark.parametrize(
    "repeated", ['"', "\\", '"\\', ",", ":", ";", " ", "9", "first ", "a", '""']
)
def test_long_texts(repeated: str) -> None:
    """A long text is parsed in linear time: the longest argument of a command line has 128 KiB."""
    for prefix in ("", 'greet "', "first ", "delay "):
        with contextlib.suppress(PlanError):
            parse_plan(prefix + repeated * (131_072 // len(repeated)))
