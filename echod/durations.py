"""Durations as an operator types them: ``10m``, ``1.5s``, ``250ms``, or a number of seconds."""

from __future__ import annotations

import re
from typing import Final

from echod.numbers import NUMBER

UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
"""Seconds of each unit; without a unit, a number is in seconds."""

SHORTEST: Final = 0.001
"""Seconds of the shortest timeout: below a millisecond, timers cost more than they tell."""

LONGEST: Final = 250_000 * 3600.0
"""Seconds of the longest timeout, about thirty years."""

DURATION: Final = re.compile(f"({NUMBER})(ms|s|m|h)?", re.IGNORECASE | re.ASCII)


def parse_duration(text: str, least: float = SHORTEST, most: float = LONGEST) -> float:
    """Return the seconds that ``text`` stands for.

    :param text: a number, and a unit of ms, s, m or h; without a unit, seconds.
    :param least: seconds of the shortest duration allowed; 0 allows 0.
    :param most: seconds of the longest one allowed.
    :raises ValueError: with a message that says what is allowed, for anything else.
    """
    found = DURATION.fullmatch(text)
    seconds = float(found[1]) * UNITS[(found[2] or "s").lower()] if found else -1.0
    if not least <= seconds <= most:
        raise ValueError(
            f"takes a duration from {as_duration(least)} to {as_duration(most)}, "
            f"such as 250ms, 30s, 10m or 2h, not {text!r}"
        )
    return seconds


def as_duration(seconds: float) -> str:
    """Return ``seconds`` in the unit that an operator would write them in."""
    for unit in ("h", "m", "s"):
        if seconds and seconds % UNITS[unit] == 0:
            return f"{seconds / UNITS[unit]:.0f}{unit}"
    return f"{seconds * 1000:g}ms" if 0 < seconds < 1 else f"{seconds:g}s"
