"""The text of fault plans: ``first 2: refuse; every 7th message of 64: delay 200ms``.

:func:`parse_plan` reads a text; ``str`` of a plan or a rule returns one. ``docs/fault-plans.rst``
has the grammar.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Any, Final

from echod.arguments import check_type
from echod.durations import LONGEST
from echod.faulterrors import SHOWN, PlanError
from echod.faultplan import (
    ARGUMENTS,
    MAX_NUMBER,
    MAX_SIZE,
    Fault,
    Plan,
    Rule,
    When,
)

_QUOTED: Final = r'"(?:\\.?|[^"\\])*(?:"|\Z)'
_CLAUSE: Final = re.compile(rf'((?:{_QUOTED}|[^";:,])*)([;:,]|\Z)', re.DOTALL)
_WORD: Final = re.compile(rf'{_QUOTED}|[^\s"]+', re.DOTALL)
_TEXT: Final = re.compile(r'"(?:[ !#-\[\]-~]|\\[nrt\\"]|\\x[0-9a-fA-F]{2})*"')

# The values in a plan: the pattern of a unit, the bounds, and a description.
_QUANTITIES: Final = {
    "COUNT": ("", 1, MAX_NUMBER, f"a whole number from 1 to {MAX_NUMBER}"),
    "SEED": ("", 0, MAX_NUMBER, f"a whole number from 0 to {MAX_NUMBER}"),
    "NTH": ("st|nd|rd|th", 1, MAX_NUMBER, "a number such as 1st, 2nd or 7th"),
    "SIZE": ("|k|M", 0, MAX_SIZE, f"a size up to {MAX_SIZE}, such as 10, 64k or 1M"),
    "RATE": ("k?B/s|MB/s", 1, MAX_SIZE, f"a rate up to {MAX_SIZE}B/s, such as 500B/s or 10kB/s"),
    "DURATION": ("m?s|m|h", 0, LONGEST, f"a duration up to {LONGEST:.0f}s, such as 200ms or 1.5s"),
    "PERCENT": ("%", 0, 1, "a percentage from 0% to 100%"),
    "TEXT": ("", 1, 0, r"text in double quotes: ASCII, \n, \r, \t, \\, \" or \xNN"),
}
_FACTORS: Final = {"k": 1000, "kB/s": 1000, "M": 10**6, "MB/s": 10**6, "m": 60, "h": 3600}
_DIVISORS: Final = {"ms": 1000, "%": 100}

# The forms of conditions and faults. A word in capitals is a value, and ``name=`` its argument.
_CONDITIONS: Final[dict[str, Callable[..., When]]] = {
    **{
        form.format(unit, of): method
        for unit, of in (
            ("numbers", ""),
            *((f"unit={unit}", "") for unit in ("connections", "datagrams", "bytes")),
            ("unit=messages", "of size=SIZE"),
        )
        for form, method in (
            ("first count=COUNT {} {}", When.first),
            ("every {} {}", When.every),
            ("every step=NTH {} {}", When.every),
            ("probability=PERCENT of {} {}", When.chance),
            ("{} number=COUNT {}", When.number),
            ("{} first=COUNT to last=COUNT {}", When.numbers),
            ("{} from first=COUNT {}", When.numbers),
        )
    },
    "first count=COUNT": When.first,
    "every step=NTH": When.every,
    "probability=PERCENT": When.chance,
    "after count=SIZE bytes": When.from_byte,
    "after seconds=DURATION": When.from_time,
    "for seconds=DURATION": When.lasts,
    "from start=DURATION to end=DURATION": When.between,
    "at most times=COUNT times": When.at_most,
    "may not fire": When.may_not_fire,
}
_FAULTS: Final = (
    *(name for name, arguments in ARGUMENTS.items() if not arguments),
    *("greet data=TEXT", "insert data=TEXT", "swallow", "swallow size=SIZE bytes"),
    *("truncate size=SIZE bytes", "pad size=SIZE bytes", "throttle size=RATE"),
    *("freeze seconds=DURATION", "slice size=SIZE bytes"),
    *("slice size=SIZE bytes every seconds=DURATION", "delay seconds=DURATION"),
    *("delay seconds=DURATION +- spread=DURATION", "delay shape=exponential seconds=DURATION"),
    "delay shape=normal seconds=DURATION spread=DURATION",
)
_SEED: Final = "seed seed=SEED"

# What can stand after each separator, and the separators that can follow it.
_AFTER: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    ",": dict.fromkeys(_CONDITIONS, (":", ",")),
    ":": dict.fromkeys(_FAULTS, (";", "")),
}
_AFTER[";"] = {**_AFTER[","], **_AFTER[":"], _SEED: (";", "")}
_EXPECTED: Final = {
    ",": "a condition, such as 'first 2' (a fault stands after ':')",
    ":": "a fault, such as 'refuse'",
    ";": "a rule, such as 'refuse', 'first 2: refuse' or '10%: refuse'",
}


def parse_plan(text: str, seed: int | None = None) -> Plan:
    """Return the plan that ``text`` describes.

    :param text: rules, separated by ``;``, for instance ``first 2: refuse; seed 7``.
    :param seed: the seed, which the text then cannot have.
    :raises PlanError: for any other text.
    :raises TypeError: for another type.
    """
    check_type("text", text, str, "a string")
    plan = Plan()
    seeds: dict[str, Any] = {} if seed is None else {"seed": seed}
    when, before = When(), ";"
    for found in _CLAUSE.finditer(text):
        words = [(each.start(), each[0]) for each in _WORD.finditer(text, *found.span(1))]
        words.append((found.end(1), found[2]))
        if found.start() and before in (";", "") and words[0][1] == "":
            continue  # the end of the text, after a rule
        form, arguments = _match(text, words, before)
        try:
            if form in _CONDITIONS:
                when = _CONDITIONS[form](when, **arguments)
            elif form != _SEED:
                rule = Rule(when, Fault(form.split()[0], **arguments))
                plan = replace(plan, rules=(*plan.rules, rule))
                when = When()
            elif seeds:
                raise ValueError("a plan has one seed")
            else:
                seeds = arguments
        except ValueError as error:
            raise PlanError(text, words[0][0], error) from None
        before = found[2]
    return replace(plan, **seeds)


def _match(text: str, words: list[tuple[int, str]], before: str) -> tuple[str, dict[str, Any]]:
    """Return the form of a clause, and its arguments.

    :param words: each with its position in the text; the last one is the separator.
    :param before: the separator before the clause.
    :raises PlanError: for words that have none of the forms.
    """
    reached = 0
    expected: dict[str, str] = {}
    for form, ends in _AFTER[before].items():
        arguments = {}
        for place, token in enumerate([*form.split(), ""]):
            name, _, kind = token.rpartition("=")
            word = words[place][1]
            try:
                arguments[name] = _value(kind, word) if kind else ends.index(word)
            except ValueError:
                break
        else:
            del arguments[""]
            if "spread" in arguments:
                arguments.setdefault("shape", "uniform")
            return form, arguments
        if place > reached:
            reached, expected = place, {}
        lacks_unit = place == reached - 1 and kind == "DURATION" and word.isdecimal()  # after 5
        if place == reached or lacks_unit:
            expected[kind] = _QUANTITIES[kind][3] if kind in _QUANTITIES else repr(kind or ends[0])
    position, word = words[reached]
    word = word[:SHOWN]
    close = get_close_matches(word, filter(str.islower, expected), 1)
    if close:
        why = f"there is no {word!r}; did you mean {close[0]!r}?"
    else:
        words_first = sorted(expected.values(), key=lambda each: each[0] != "'")
        what = " or ".join(words_first) if reached else _EXPECTED[before]
        why = f"expected {what}, not {repr(word) if word else 'the end'}"
    raise PlanError(text, position, why)


def _value(kind: str, word: str) -> Any:
    """Return the value of ``word``, or raise ValueError if it is not of the ``kind``."""
    if kind == "TEXT" and _TEXT.fullmatch(word):
        return ast.literal_eval(f"b{word}")
    if kind in _QUANTITIES:
        units, least, most, _ = _QUANTITIES[kind]
        found = re.fullmatch(rf"([0-9]+(?:\.[0-9]+)?)({units})", word)
        if found is None:
            raise ValueError(word)
        value = Fraction(found[1]) * _FACTORS.get(found[2], 1) / _DIVISORS.get(found[2], 1)
        real = kind in ("DURATION", "PERCENT")
        if least <= value <= most and (real or value.denominator == 1):
            return float(value) if real else int(value)
    elif word in (kind, kind.removesuffix("s")):
        return kind.removesuffix("s")
    raise ValueError(word)
