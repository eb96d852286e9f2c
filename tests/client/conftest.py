"""Fixtures of the client's tests."""

from __future__ import annotations

import pytest

from tests.client.bench import Bench


@pytest.fixture
def bench() -> Bench:
    """A reactor, and the replies that a channel reports."""
    return Bench()
