"""PlanError: a mistake in a plan of faults, as one line with a caret."""

from __future__ import annotations

from typing import Final

SHOWN: Final = 30
"""Characters of a plan before and after the caret of an error message."""


class PlanError(ValueError):
    """A mistake in a plan: one line, with a caret before the wrong word.

    :ivar position: characters of the text before the mistake.
    """

    def __init__(self, text: str, position: int, why: object) -> None:
        before, after = text[:position], text[position:]
        start = f"...{before[-SHOWN:]}" if len(before) > SHOWN else before
        end = f"{after[:SHOWN]}..." if len(after) > SHOWN else after
        line = f"'{start}^{end}': {why}"
        super().__init__("".join(c if " " <= c <= "~" else ascii(c)[1:-1] for c in line))
        self.position = position
