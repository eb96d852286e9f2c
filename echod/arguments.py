"""Checks for constructors: a wrong argument is refused in one line, when the object is made."""

from __future__ import annotations

import math
from collections.abc import Callable

from zope.interface.interface import InterfaceClass


def check_type(name: str, value: object, kind: type | tuple[type, ...], takes: str) -> None:
    """Raise TypeError where ``value`` is not an instance of ``kind``.

    :param takes: what the argument takes, for the message.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} takes {takes}, not {value!r}")


def check_callable(name: str, value: object, takes: str) -> None:
    """Raise TypeError where ``value`` cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} takes {takes}, not {value!r}")


def check_provider(name: str, value: object, interface: InterfaceClass) -> None:
    """Raise TypeError where ``value`` does not provide ``interface``."""
    if not interface.providedBy(value):
        raise TypeError(f"{name} takes a provider of {interface.__name__}, not {value!r}")


def check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise TypeError where ``value`` is not an int, ValueError where it is out of bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    _check_bounds(name, value, least, most, "a whole number")


def check_number(
    name: str, value: object, least: float, most: float, unit: str = "seconds"
) -> None:
    """Raise TypeError where ``value`` is not a number, ValueError where it is out of bounds.

    :param unit: what is counted, for the message.
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} takes a number of {unit}, not {value!r}")
    _check_bounds(name, value, least, most, f"a number of {unit}")


def _check_bounds(name: str, value: float, least: float, most: float, takes: str) -> None:
    if not least <= value <= most or value == math.inf:  # NaN is not within bounds, either
        bounds = f"{least:.15g} or more" if most == math.inf else f"{least:.15g} to {most:.15g}"
        raise ValueError(f"{name} takes {takes}, {bounds}, not {value!r}")


def unless_none(check: Callable[..., None], name: str, value: object, *rest: object) -> None:
    """Call ``check``, unless ``value`` is ``None``, which stands for the default."""
    if value is not None:
        check(name, value, *rest)
