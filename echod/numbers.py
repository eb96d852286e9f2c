"""Numbers as an operator types them: whole numbers, and rates per second."""

from __future__ import annotations

import re
from typing import Final

NUMBER: Final = r"(?:[0-9]+\.?[0-9]*(?:e[+-]?[0-9]{1,3})?|\.[0-9]+)"
"""The pattern of a number that is not negative. float() would accept ``inf`` and ``1_0`` too."""


def parse_whole_number(text: str, least: int, most: int) -> int:
    """Return the whole number that ``text`` stands for.

    :raises ValueError: for any other text; the message says which numbers are allowed.
    """
    # int() accepts digits of other scripts, and refuses more than some thousands of them.
    if not re.fullmatch("[0-9]{1,20}", text) or not least <= int(text) <= most:
        raise ValueError(f"takes a whole number from {least} to {most}, not {text!r}")
    return int(text)


def parse_rate(text: str, of: str, least: float, most: float) -> float:
    """Return the rate per second that ``text`` stands for.

    :param of: the things that are counted, in the plural, for the error message.
    :raises ValueError: for any other text; the message says which rates are allowed.
    """
    if not re.fullmatch(NUMBER, text, re.IGNORECASE | re.ASCII) or not least <= float(text) <= most:
        raise ValueError(
            f"takes a number of {of} a second from {least:g} to {most:.0f}, not {text!r}"
        )
    return float(text)
