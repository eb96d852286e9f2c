"""A reactor that the test turns, and a count of replies: for tests of channels over the kernel."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from echod.client.epoll import EpollReader
from echod.client.replies import MessageTally
from echod.client.runner import PreciseReactor
from tests import TIMEOUT
from tests.reactors import turn


class Bench:
    """A reactor, and the replies that a channel reports.

    :ivar replied: the numbers of the messages that have a reply.
    """

    def __init__(self) -> None:
        self.reactor: Any = PreciseReactor()
        self.tally = MessageTally(10.0)
        self.replied: list[int] = []

    def reader(self, size: int, transmit_stamps: bool = False) -> EpollReader:
        return EpollReader(self.reactor, self.reactor, size, transmit_stamps=transmit_stamps)

    def reply(self, number: int, since: float, now: float, damaged: int) -> None:
        self.replied.append(number)
        self.tally.reply(since, now, damaged)

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn the reactor until ``condition`` holds."""
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "the condition never holds"
            turn(self.reactor, 0.001)

    def result(self, deferred: Deferred[Any]) -> Any:
        """Turn the reactor until ``deferred`` fires, and return its result."""
        results: list[Any] = []
        deferred.addBoth(results.append)
        self.until(lambda: results)
        if isinstance(results[0], Failure):
            results[0].raiseException()
        return results[0]
