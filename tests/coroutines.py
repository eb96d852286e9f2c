"""Run coroutines that do not wait."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

T = TypeVar("T")


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return the result of a coroutine that does not wait, or raise its exception."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return cast("T", result)
