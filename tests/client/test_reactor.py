"""The client's reactor."""

from __future__ import annotations

import pytest

from tests.client.bench import Bench


def test_descriptors_above_1023(monkeypatch: pytest.MonkeyPatch) -> None:
    """A descriptor that select(2) does not support makes the reactor wait as Twisted's does."""

    def refuse(*_: object) -> None:
        raise ValueError("filedescriptor out of range in select()")

    bench = Bench()
    monkeypatch.setattr("select.select", refuse)
    called: list[bool] = []
    bench.reactor.callLater(0.01, called.append, True)
    bench.until(lambda: called)
