"""Linger: waits for few connections that any other event, and each timer of the reactor, ends."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator
from typing import Any
from unittest.mock import Mock, patch

import pytest
from twisted.internet.base import ReactorBase

from echod.linger import CROWD, ENDLESS, LINGER, PATIENCE, Linger
from echod.turns import TURN


class FakeReactor:
    """A reactor with the given readers and writers, whose next timer is due in ``due`` seconds."""

    callLater = ReactorBase.callLater

    def __init__(self, *readers: Any, writers: Any = (), due: float | None = None) -> None:
        self.readers, self.writers, self.due = list(readers), list(writers), due

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return self.writers

    def timeout(self) -> float | None:
        return self.due


class Reader:
    """A reader that serves the given sockets."""

    def __init__(self, *served: socket.socket) -> None:
        self.served = served

    def descriptors(self) -> list[int]:
        return [sock.fileno() for sock in self.served]


def connected() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A pair of connected sockets."""
    near, far = socket.socketpair()
    yield near, far
    near.close()
    far.close()


pair = pytest.fixture(connected)
other = pytest.fixture(connected)


def lingering(reactor: FakeReactor, reader: Reader) -> Linger:
    """Return a :class:`Linger` after its first turn, which does not wait."""
    linger = Linger(reactor, reader)
    assert linger.begin() == 0
    return linger


def test_message(pair: Any) -> None:
    """A message that has arrived is returned at once, and nothing after the wait without one."""
    linger = lingering(FakeReactor(), Reader(pair[0]))
    assert linger.begin() == ENDLESS
    assert linger.wait() == []
    pair[1].send(b"?")
    assert [descriptor for descriptor, _ in linger.wait()] == [pair[0].fileno()]


@pytest.mark.parametrize("direction", ["read", "write"])
def test_other_event(pair: Any, other: Any, direction: str) -> None:
    """Any other event for the reactor ends the wait, even if a message has arrived too."""
    reactor = FakeReactor(other[0]) if direction == "read" else FakeReactor(writers=[other[0]])
    linger = lingering(reactor, Reader(pair[0]))
    linger.begin()
    for far in (pair[1], other[1]):
        far.send(b"?")
    assert linger.wait() == []


@pytest.mark.parametrize(
    ("due", "length"),
    [(None, ENDLESS), (1.0, 1.0 - LINGER), (LINGER + TURN / 2, 0), (LINGER, 0), (0.0, 0)],
)
def test_timers(pair: Any, due: float | None, length: float) -> None:
    """The last wait of a turn ends before the next timer of the reactor is due."""
    assert lingering(FakeReactor(due=due), Reader(pair[0])).begin() == length


def test_unknown_timers(pair: Any) -> None:
    """With a reactor that leaves its timers to another loop, there are no waits."""

    class Other(FakeReactor):
        callLater = None  # type: ignore[assignment]

    assert lingering(Other(), Reader(pair[0])).begin() == 0


@pytest.mark.parametrize(("others", "waits"), [(CROWD, True), (CROWD + 1, False)])
def test_crowd(pair: Any, other: Any, others: int, waits: bool) -> None:
    """With many descriptors in the reactor, there are no waits."""
    linger = lingering(FakeReactor(*[other[0]] * others), Reader(pair[0]))
    assert (linger.begin() > 0) is waits


def test_patience(pair: Any, other: Any) -> None:
    """Many descriptors are not counted again in each turn."""
    reactor = FakeReactor(*[other[0]] * (CROWD + 1))
    linger = lingering(reactor, Reader(pair[0]))
    assert linger.begin() == 0
    reactor.readers = []
    assert [linger.begin() for _ in range(PATIENCE)] == [0] * PATIENCE
    assert linger.begin() > 0


def test_changes(pair: Any, other: Any) -> None:
    """Descriptors that have come since the last turn are waited for, too."""
    reactor, reader = FakeReactor(), Reader(pair[0])
    linger = lingering(reactor, reader)
    linger.begin()
    reader.served = other[:1]
    linger.stale = True
    reactor.readers = [reader, pair[0]]
    assert linger.begin() == 0
    assert linger.begin() > 0
    other[1].send(b"?")
    assert [descriptor for descriptor, _ in linger.wait()] == [other[0].fileno()]
    pair[1].send(b"?")
    assert linger.wait() == []


def test_closed_descriptor(pair: Any, other: Any) -> None:
    """With a reader that is closed, which the reactor has not found yet, there are no waits."""
    other[0].close()
    assert lingering(FakeReactor(other[0]), Reader(pair[0])).begin() == 0


@pytest.mark.parametrize("error", [AttributeError, OSError])
def test_failing_descriptor(pair: Any, error: type[Exception]) -> None:
    """With a reader that cannot tell its descriptor, there are no waits."""
    failing = Mock(fileno=Mock(side_effect=error))
    assert lingering(FakeReactor(failing), Reader(pair[0])).begin() == 0


def test_no_memory(pair: Any, other: Any) -> None:
    """If memory is short, the next turn registers the descriptors that have changed."""
    reader = Reader(pair[0])
    linger = lingering(FakeReactor(), reader)
    linger.begin()
    reader.served = other[:1]
    linger.stale = True
    assert linger.begin() == 0
    with patch.object(select, "poll", side_effect=MemoryError), pytest.raises(MemoryError):
        linger.begin()
    assert linger.begin() == ENDLESS
    other[1].send(b"?")
    assert [descriptor for descriptor, _ in linger.wait()] == [other[0].fileno()]
