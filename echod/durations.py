"""Durations as an operator types them: ``10m``, ``1.5s``, ``250ms``, or a number of seconds."""

from __future__ import annotations

import re
from typing import Final

from echod.numbers import NUMBER

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
"""Seconds in each unit. A number without a unit is in seconds."""

SHORTEST: Final = 0.001
"""Seconds: the shortest timeout. Timers below a millisecond cost more than they are worth."""

LONGEST: Final = 250_000 * 3600.0
"""Seconds: the longest timeout, about thirty years."""

DURATION: Final = re.compile(rf"({NUMBER})(ms|s|m|h)?", re.IGNORECASE | re.ASCII)


def parse_duration(text: str, least: float = SHORTEST, most: float = LONGEST) -> float:
    """Return the seconds that ``text`` stands for.

    :param text: a number and a unit: ms, s, m or h; without a unit, seconds.
    :param least: seconds: the shortest duration allowed; 0 allows 0.
    :param most: seconds: the longest duration allowed.
    :raises ValueError: for any other text; the message says which durations are allowed.
    """
    found = DURATION.fullmatch(text)
    seconds = float(found[1]) * UNITS[(found[2] or "s").lower()] if found else -1.0
    if not least <= seconds <= most:
        raise ValueError(
            f"takes a duration from {format_duration(least)} to {format_duration(most)}, "
            f"such as 250ms, 30s, 10m or 2h, not {text!r}"
        )
    return seconds


def format_duration(seconds: float) -> str:
    """Return ``seconds`` in the largest unit in which it is a whole number."""
    for unit in ("h", "m", "s"):
        if seconds and seconds % UNITS[unit] == 0:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"
