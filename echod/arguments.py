"""Checks of arguments: constructors refuse a wrong type or value with a one-line error."""

from __future__ import annotations

import math
from collections.abc import Callable

from zope.interface.interface import InterfaceClass


def check_type(name: str, value: object, kind: type | tuple[type, ...], takes: str) -> None:
    """Raise TypeError if ``value`` is not an instance of ``kind``.

    :param takes: a description of the expected value, for the error message.
    """
    if not isinstance(value, kind):
        raise TypeError(f"{name} takes {takes}, not {value!r}")


def check_callable(name: str, value: object, takes: str) -> None:
    """Raise TypeError if ``value`` cannot be called."""
    if not callable(value):
        raise TypeError(f"{name} takes {takes}, not {value!r}")


def check_provider(name: str, value: object, interface: InterfaceClass) -> None:
    """Raise TypeError if ``value`` does not provide ``interface``."""
    if not interface.providedBy(value):
        raise TypeError(f"{name} takes a provider of {interface.__name__}, not {value!r}")


def check_whole(name: str, value: object, least: int, most: float = math.inf) -> None:
    """Raise TypeError if ``value`` is not an int, ValueError if it is out of bounds."""
    if not isinstance(value, int) or isinstance(value, bool):
        raise TypeError(f"{name} takes a whole number, not {value!r}")
    _check_bounds(name, value, least, most, "a whole number")


def check_number(
    name: str, value: object, least: float, most: float, unit: str = "seconds"
) -> None:
    """Raise TypeError if ``value`` is not a number, ValueError if it is out of bounds.

    :param unit: the unit of ``value`` in the plural, for the error message; empty: none.
    """
    takes = f"a number of {unit}" if unit else "a number"
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise TypeError(f"{name} takes {takes}, not {value!r}")
    _check_bounds(name, value, least, most, takes)


def _check_bounds(name: str, value: float, least: float, most: float, takes: str) -> None:
    if not least <= value <= most or value == math.inf:  # NaN is never within bounds
        bounds = f"{least:.15g} or more" if most == math.inf else f"{least:.15g} to {most:.15g}"
        raise ValueError(f"{name} takes {takes}, {bounds}, not {value!r}")


def unless_none(check: Callable[..., None], name: str, value: object, *rest: object) -> None:
    """Call ``check`` unless ``value`` is ``None``, which stands for the default."""
    if value is not None:
        check(name, value, *rest)
