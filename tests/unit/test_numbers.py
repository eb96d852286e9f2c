"""Numbers on the command line: whole numbers, and rates per second."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from echod.numbers import parse_rate, parse_whole_number


class WholeNumberTests(SynchronousTestCase):
    def test_valid(self) -> None:
        """Both bounds are allowed, and leading zeros."""
        for text, number in (("0", 0), ("007", 7), ("65535", 65535)):
            self.assertEqual(parse_whole_number(text, 0, 65535), number)
        self.assertEqual(parse_whole_number(str(1 << 62), 1, 1 << 62), 1 << 62)

    def test_invalid(self) -> None:
        """Any other text is refused, and the message says which numbers are allowed."""
        for text in ("", "-1", "+1", "1.5", "1_0", " 1", "65536", "1\n", "\u0667", "9" * 5000):
            error = self.assertRaises(ValueError, parse_whole_number, text, 0, 65535)
            self.assertEqual(str(error), f"takes a whole number from 0 to 65535, not {text!r}")


class RateTests(SynchronousTestCase):
    def rate(self, text: str) -> float:
        return parse_rate(text, of="messages", least=0.001, most=1e9)

    def test_valid(self) -> None:
        """A rate is a number with or without a fraction and an exponent."""
        for text, value in (("0.001", 0.001), (".5", 0.5), ("5.", 5), ("1e3", 1000), ("1E9", 1e9)):
            self.assertEqual(self.rate(text), value)

    def test_invalid(self) -> None:
        """Any other text is refused, and the message says which rates are allowed."""
        takes = "takes a number of messages a second from 0.001 to 1000000000, not"
        for text in ("", "0", "-1", "1_0", "nan", "inf", "9e99", "1e-320", "10/s", "\u0667"):
            error = self.assertRaises(ValueError, self.rate, text)
            self.assertEqual(str(error), f"{takes} {text!r}")
