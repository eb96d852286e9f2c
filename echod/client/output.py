"""Standard output and error: encode for the user's locale, and survive a failed write."""

from __future__ import annotations

import os
from collections.abc import Mapping
from io import TextIOWrapper
from typing import Final, TextIO

INITIAL: Final = "/proc/self/environ"
"""The initial environment (proc(5)): Python itself changes the locale C to C.UTF-8 (PEP 538)."""


def is_plain(environment: Mapping[str, str]) -> bool:
    """Return whether output has to be ASCII: the locale is C, and no Python variable overrides it.

    setlocale(3) has the order of the variables.
    """
    if environment.get("PYTHONIOENCODING") or environment.get("PYTHONUTF8"):
        return False
    chosen = (environment.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return next(filter(None, chosen), "C") in ("C", "POSIX")


def initial_environment() -> Mapping[str, str]:
    """Return the environment with which this process was started."""
    try:
        with open(INITIAL, "rb") as file:
            entries = os.fsdecode(file.read()).split("\0")
    except OSError:  # no /proc is mounted
        return os.environ
    return dict(entry.split("=", 1) for entry in entries if "=" in entry)


def prepare(*files: TextIO | None) -> None:
    """Make ``files`` accept any text: characters outside their encoding are escaped."""
    encoding = "ascii" if is_plain(initial_environment()) else None
    for file in files:
        if isinstance(file, TextIOWrapper):
            file.reconfigure(encoding=encoding, errors="backslashreplace")


def printable(text: str) -> str:
    """Return ``text`` with control characters escaped: one line that is safe to show."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def discard(file: TextIO) -> None:
    """Redirect a file to /dev/null: its buffer would fail to flush again at exit."""
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), file.fileno())
