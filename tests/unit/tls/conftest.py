"""Fixtures of the TLS tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.logger import LogEvent, globalLogPublisher

from tests.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[LogEvent]]:
    """Return the failures that are logged; there must be none at the end of the test."""
    events: list[LogEvent] = []

    def keep(event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):  # of log.err
            events.append(event)

    globalLogPublisher.addObserver(keep)
    yield events
    globalLogPublisher.removeObserver(keep)
    assert events == []
