"""The aims of echod's speed, and whether the figures of ``speed.py`` meet them."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final, NamedTuple

from losses import table
from servers import BLOCKS, PEERS
from units import SATURATED, SCENARIOS, TITLES, Round, number, of, spread, unit


class Aim(NamedTuple):
    """A bound on a figure of a server, or on its ratio to that of another server.

    :ivar below: a bound on the other server's figure, above which the machine hides differences.
    """

    scenario: str
    figure: str
    other: str = ""
    least: float | None = None
    most: float | None = None
    server: str = "echod"
    below: float | None = None


AIMS: Final = (
    Aim("message-1", "p50", "uvloop", most=1.05, below=45),  # microseconds
    Aim("message-1", "cpu", "uvloop", most=1.2),
    Aim("message-50", "cpu", "uvloop", most=0.95),
    Aim("message-50", "cpu", "c", most=1.15),
    Aim("message-500", "cpu", "uvloop", most=0.95),
    Aim("message-500", "cpu", "c", most=1.15),
    Aim("short", "cpu", "uvloop", most=1.3),
    Aim("short", "cpu", "twisted", most=1.0, server="echod-log"),
    Aim("idle", "kib", most=0.6),
    Aim("flood", "p99", most=1000),
    Aim("tls", "p99", most=10_000, server="echod-tls"),
    *(
        Aim(scenario, "cpu", other, most=most)
        for scenario in ("bulk-1", "bulk")
        for other, most in (("c", 0.75), ("c-splice", 1.2))
    ),
    *(
        Aim(scenario, "mb", other, least=1.0)
        for scenario in ("bulk-1", "bulk")
        for other in ("uvloop", "c")
    ),
    *(Aim(name, "p50", "c", most=1.15) for name in BLOCKS),
    Aim("udp", "cpu", "c-udp", most=1.6, server="echod-udp"),
)


def aims(rounds: Sequence[Round]) -> str:
    """Return the table of the aims, and of the figures that meet or miss them."""
    rows = []
    for aim in AIMS:
        servers = rounds[0].get(aim.scenario, {})
        if aim.server not in servers or (aim.other and aim.other not in servers):
            continue
        values = of(rounds, aim.scenario, aim.server, aim.figure)
        (factor, suffix), subject = unit(aim.scenario, aim.figure), PEERS[aim.server].title
        if aim.other:
            others = of(rounds, aim.scenario, aim.other, aim.figure)
            values = [mine / other for mine, other in zip(values, others, strict=True)]
            factor, suffix, subject = 1, "", f"{subject} / {PEERS[aim.other].title}"
        how, bound = ("at most", aim.most) if aim.most is not None else ("at least", aim.least)
        assert bound is not None
        bound *= factor
        middle = median(values)
        reached = middle <= bound if aim.most is not None else middle >= bound
        title = f"{TITLES[aim.figure]}: {SCENARIOS[aim.scenario][0]}"
        aimed = f"{how} {number(bound)}{suffix}"
        rows.append([title, subject, spread(values) + suffix, aimed, verdict(rounds, aim, reached)])
    return table([["figure", "", "median (least..most)", "aim", ""]], rows) if rows else ""


def verdict(rounds: Sequence[Round], aim: Aim, reached: bool) -> str:
    """Return whether an aim is met, or why the figures do not show it."""

    def middle(server: str, figure: str) -> float:
        return median(of(rounds, aim.scenario, server, figure))

    if aim.below is not None and middle(aim.other, aim.figure) > aim.below:
        return "the machine is too slow"
    if not reached and aim.figure == "mb" and middle(aim.server, "load") > SATURATED:
        return "the load is the limit"
    return "met" if reached else "missed"
