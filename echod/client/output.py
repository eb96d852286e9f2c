"""Standard output and error: what the user's locale can show, and what is left when both fail."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Final, TextIO

INITIAL: Final = "/proc/self/environ"
"""The environment at the start (proc(5)): Python changes a locale of C to C.UTF-8 (PEP 538)."""


def is_plain(environment: Mapping[str, str]) -> bool:
    """Tell whether the locale is C, the one of ASCII, and Python was not asked for more.

    See setlocale(3) for the order of the variables.
    """
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8"):
        return False
    chosen = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, chosen), "C") in ("C", "POSIX")


def initial_environment() -> Mapping[str, str]:
    """Return the environment that this process was started with."""
    try:
        with open(INITIAL, "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError:  # no /proc is mounted
        return os.environ
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def prepare(*files: TextIO | None) -> None:
    """Have ``files`` take any text, in ASCII where the locale is C: the rest is escaped."""
    encoding = "ascii" if is_plain(initial_environment()) else None
    for file in files:
        if isinstance(file, TextIOWrapper):
            file.reconfigure(encoding=encoding, errors="backslashreplace")


def printable(text: str) -> str:
    """Return ``text`` as one line that a terminal shows as it is, whatever the user typed."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def discard(file: TextIO) -> None:
    """Redirect a file to /dev/null: flushing its buffer would fail again when Python ends."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)
