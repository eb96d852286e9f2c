"""The values of options: numbers with a unit, times, names of files."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from decimal import Decimal
from math import inf
from typing import Any, Final

from echod.client.search import Bound
from echod.durations import LONGEST, parse_duration
from echod.numbers import parse_rate, parse_whole_number

PERCENTILES: Final = ("p50", "p90", "p99", "p99.9", "p99.99", "max")

LARGEST: Final = 1 << 27
"""Maximum bytes of a message. The client keeps at least two payloads of this size in memory."""

ESCAPE: Final = re.compile(rb"\\(?:x[0-9a-fA-F]{2}|[nrt\\])")
"""The escapes of printf(1) in a payload; other text is taken as it is."""

PLOTS: Final = (".svg", ".png")

DSCP: Final = {"le": 1, "ef": 46, "va": 44} | {
    **{f"cs{each}": 8 * each for each in range(8)},
    **{f"af{one}{two}": 8 * one + 2 * two for one in range(1, 5) for two in range(1, 4)},
}
"""The names of code points (RFC 2474, RFC 2597, RFC 3246, RFC 5865, RFC 8622)."""

UNITS: Final = {"k": 1000, "K": 1000, "M": 10**6, "G": 10**9, "Ki": 1024, "Mi": 2**20, "Gi": 2**30}
"""Decimal and binary units of numbers (IEC 80000-13)."""

WITH_UNIT: Final = re.compile(rf"([0-9]{{1,9}}(?:\.[0-9]{{1,6}})?)({'|'.join(UNITS)})")


def in_units(parse: Callable[..., Any], text: str, **bounds: Any) -> Any:
    """Return the number that ``parse`` finds in ``text``, which may end in a unit."""
    found = WITH_UNIT.fullmatch(text)
    if found:
        product = Decimal(found[1]) * UNITS[found[2]]
        with suppress(ValueError):  # the call below quotes the text as typed
            return parse(f"{product.normalize():f}", **bounds)
    return parse(text, **bounds)


rate = functools.partial(in_units, parse_rate, of="messages", least=0.001, most=1e9)
whole = functools.partial(functools.partial, in_units, parse_whole_number)
"""Returns a parser of whole numbers for the bounds ``least`` and ``most``."""


def tos(text: str) -> int:
    """Return the byte of DSCP and ECN, which may be hexadecimal, as for ping(8)."""
    is_hexadecimal = re.fullmatch("0[xX][0-9a-fA-F]{1,2}", text)
    return int(text, 16) if is_hexadecimal else int(whole(least=0, most=255)(text))


def dscp(text: str) -> int:
    """Return the byte of DSCP and ECN for a code point, a number or a name."""
    point = DSCP.get(text.lower())
    return (whole(least=0, most=63)(text) if point is None else point) << 2


def time_to_run(text: str) -> float:
    """Return seconds; infinity for 0."""
    return inf if text in ("0", "0s") else parse_duration(text)


def start_time(text: str) -> float:
    """Return the UNIX time of a time of today, or of a time in ISO 8601.

    Without an offset from UTC, it is a local time.
    """
    now = datetime.now().astimezone()
    iso = f"{now:%Y-%m-%d}T{text}" if "-" not in text else text.replace("Z", "+00:00")
    try:
        seconds = datetime.fromisoformat(iso).timestamp()
    except (ValueError, OverflowError):
        seconds = inf
    if not seconds <= now.timestamp() + LONGEST:
        raise ValueError(f"takes a time such as 14:30 or 2030-01-31T14:30:00+01:00, not {text!r}")
    if seconds <= now.timestamp():
        raise ValueError(f"takes a time to come, not {text!r}: now it is {now:%c %z}")
    return seconds


def ramp(text: str) -> tuple[float, float]:
    """Return the two rates that ``100:10k`` stands for."""
    first, colon, last = text.partition(":")
    if not colon:
        raise ValueError(f"takes two rates, such as 100:10k, not {text!r}")
    return rate(first), rate(last)


def bound(text: str) -> Bound:
    """Return the bound that ``p99=5ms`` stands for."""
    percentile, _, time = text.partition("=")
    if percentile not in PERCENTILES or not time:
        names = ", ".join(PERCENTILES)
        raise ValueError(f"takes one of {names} and a time, such as p99=5ms, not {text!r}")
    return Bound(percentile, parse_duration(time, least=1e-6))


def is_kernel_clock(text: str) -> bool:
    """Return whether ``--clock`` selects the kernel's stamps."""
    if text not in ("kernel", "user"):
        raise ValueError(f"takes kernel or user, not {text!r}")
    return text == "kernel"


def payload(text: str) -> bytes:
    """Return the bytes that ``TEXT`` or ``@FILE`` stands for.

    :raises ValueError: if there are none or too many.
    :raises OSError: if the file cannot be read.
    """
    if text.startswith("@"):
        with open(text[1:], "rb") as file:
            found = file.read(LARGEST + 1)
    else:
        found = ESCAPE.sub(
            lambda each: each[0].decode("unicode_escape").encode("latin-1"), os.fsencode(text)
        )
    if not 1 <= len(found) <= LARGEST:
        raise ValueError(f"takes 1 to {LARGEST:,} bytes, not {text!r}")
    return found


def plot_file(name: str) -> str:
    """Return the name of a plot's file, which ends in .svg or .png; by default in .svg."""
    base = os.path.basename(name).lower()
    if base and not os.path.splitext(base)[1] and base not in PLOTS:
        return f"{name}.svg"
    if not name.lower().endswith(PLOTS):
        raise ValueError(f"takes a file that ends in .svg or .png, not {name!r}")
    return name


def not_empty(text: str) -> str:
    """Return ``text``: empty, it comes from a variable of the shell that is not set."""
    if not text:
        raise ValueError("takes a value that is not empty")
    return text


PARSERS: Final[dict[str, Callable[[str], Any]]] = {
    "TIME": parse_duration,
    "TIME|0": time_to_run,
    "WHEN": start_time,
    "N": whole(least=1, most=1 << 62),
    "BYTES": whole(least=1, most=LARGEST),
    "SOCKETS": whole(least=1, most=1 << 20),
    "HOPS": whole(least=1, most=255),
    "RATE": rate,
    "FROM:TO": ramp,
    "P=TIME": bound,
    "BYTE": tos,
    "DSCP": dscp,
    "ADDRESS": not_empty,
    "CLOCK": is_kernel_clock,
    "TEXT|@FILE": payload,
    "PLOT": plot_file,
    "FILE": not_empty,
}
"""The parsers of values, by the placeholder in the help. The message of their ValueError follows
the name of the option."""
