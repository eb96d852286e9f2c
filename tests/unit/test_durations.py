"""Durations: each unit, and a one-line error for any other text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from echod.durations import LONGEST, SHORTEST, UNITS, format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        *(("250ms", 0.25), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("30", 30), (".5", 0.5)),
        *(("5.", 5), ("10M", 600), ("1e3", 1000), ("1e-3s", 0.001)),
    ],
)
def test_units(text: str, seconds: float) -> None:
    """A number has one of four units, or is in seconds."""
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    [
        *("", "m", "10 m", "1d", "-1s", "+1", "1_0", "nan", "inf", "0", "0.0009", "1e-320", "1e9"),
        *("250001h", "1e999", "10m30s", "\N{ARABIC-INDIC DIGIT THREE}", "1\n"),
    ],
)
def test_invalid(text: str) -> None:
    """Any other text is refused, and the message says what is allowed."""
    with pytest.raises(ValueError, match=r"from 1ms to 250000h, such as .*, not "):
        parse_duration(text)


def test_bounds() -> None:
    """A caller may allow 0, or set other bounds."""
    assert parse_duration("0", least=0) == 0
    with pytest.raises(ValueError, match="from 10s to 1m"):
        parse_duration("9s", least=10, most=60)


@given(st.floats(SHORTEST, LONGEST), st.sampled_from(sorted(UNITS)))
def test_round_trip(seconds: float, unit: str) -> None:
    """A duration written in any unit is parsed back, to the precision of the text."""
    given_text = f"{seconds / UNITS[unit]:.12g}{unit}"
    assert math.isclose(parse_duration(given_text, least=0, most=math.inf), seconds, rel_tol=1e-9)


@given(st.floats(0, LONGEST))
def test_format_round_trip(seconds: float) -> None:
    """A formatted duration can be parsed."""
    assert math.isclose(parse_duration(format_duration(seconds), least=0), seconds, rel_tol=1e-5)
