"""Durations: each unit, and a one-line error for any other text."""

from __future__ import annotations

import math

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from echod.durations import LONGEST, SHORTEST, UNITS, format_duration, parse_duration


class DurationTests(SynchronousTestCase):
    def test_units(self) -> None:
        """A number has one of four units, or is in seconds."""
        for text, seconds in [
            *(("250ms", 0.25), ("1.5s", 1.5), ("10m", 600), ("2h", 7200), ("30", 30), (".5", 0.5)),
            *(("5.", 5), ("10M", 600), ("1e3", 1000), ("1e-3s", 0.001)),
        ]:
            self.assertAlmostEqual(parse_duration(text), seconds)

    def test_invalid(self) -> None:
        """Any other text is refused, and the message says what is allowed."""
        for text in [
            *("", "m", "10 m", "1d", "-1s", "+1", "1_0", "nan", "inf", "0", "0.0009", "1e-320"),
            *("1e9", "250001h", "1e999", "10m30s", "\N{ARABIC-INDIC DIGIT THREE}", "1\n"),
        ]:
            with self.assertRaisesRegex(ValueError, r"from 1ms to 250000h, such as .*, not "):
                parse_duration(text)

    def test_bounds(self) -> None:
        """A caller may allow 0, or set other bounds."""
        self.assertEqual(parse_duration("0", least=0), 0)
        with self.assertRaisesRegex(ValueError, "from 10s to 1m"):
            parse_duration("9s", least=10, most=60)

    @given(st.floats(SHORTEST, LONGEST), st.sampled_from(sorted(UNITS)))
    def test_round_trip(self, seconds: float, unit: str) -> None:
        """A duration written in any unit is parsed back, to the precision of the text."""
        parsed = parse_duration(f"{seconds / UNITS[unit]:.12g}{unit}", least=0, most=math.inf)
        self.assertTrue(math.isclose(parsed, seconds, rel_tol=1e-9))

    @given(st.floats(0, LONGEST))
    def test_format_round_trip(self, seconds: float) -> None:
        """A formatted duration can be parsed."""
        parsed = parse_duration(format_duration(seconds), least=0)
        self.assertTrue(math.isclose(parsed, seconds, rel_tol=1e-5))
