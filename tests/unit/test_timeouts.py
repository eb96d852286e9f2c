"""Timeouts: the decision, and the timer that asks for it."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Ending
from echod.timeouts import CHECKS_PER_TIMEOUT, QUIET, Progress, Timeouts
from echod.turns import TURN


class ExpiredTests(SynchronousTestCase):
    """Decisions from unchanged progress."""

    def expired(
        self,
        seconds: float,
        *,
        waits_for_peer: bool = False,
        closing: bool = False,
        first_byte_due: float = 0.0,
        draining: bool = False,
        idle: float | None = 10,
        stall: float | None = 40,
    ) -> Ending | None:
        """Return the decision about a connection that has not changed for ``seconds``."""
        timeouts = Timeouts(idle, stall, set(), set())
        progress = Progress(waits_for_peer, 862, closing, first_byte_due)
        return timeouts.expired(progress, 1000, 1000 + seconds, draining=draining)

    def test_idle(self) -> None:
        """A connection without a byte for the idle timeout is closed."""
        self.assertIsNone(self.expired(9.9))
        self.assertIs(self.expired(10), Ending.IDLE)
        self.assertIsNone(self.expired(1e6, idle=None))

    def test_stalled(self) -> None:
        """A peer that has to read is stalled after the stall timeout, and never idle."""
        self.assertIsNone(self.expired(39.9, waits_for_peer=True))
        self.assertIs(self.expired(40, waits_for_peer=True), Ending.STALLED)
        self.assertIs(self.expired(40, waits_for_peer=True, closing=True), Ending.STALLED)
        self.assertIsNone(self.expired(1e6, waits_for_peer=True, stall=None))

    def test_closing(self) -> None:
        """A connection that is being closed is neither idle nor drained."""
        self.assertIsNone(self.expired(1e6, closing=True))
        self.assertIsNone(self.expired(1e6, closing=True, draining=True))

    def test_drained(self) -> None:
        """A drain closes a quiet connection, unless its peer has to read."""
        self.assertIsNone(self.expired(QUIET - 0.01, draining=True))
        self.assertIs(self.expired(QUIET, draining=True), Ending.DRAINED)
        self.assertIsNone(self.expired(QUIET, draining=True, waits_for_peer=True))

    def test_first_byte(self) -> None:
        """A drain does not close a connection whose first byte may be in flight."""
        self.assertIsNone(self.expired(0.9, draining=True, first_byte_due=1001))
        self.assertIs(self.expired(1, draining=True, first_byte_due=1001), Ending.DRAINED)


class FakeConnection:
    """A connection whose progress a test sets."""

    def __init__(self) -> None:
        self.current = Progress(False, 0, False, 0.0)
        self.checks = 0
        self.endings: list[Ending] = []
        self.has_unread_input = False

    def progress(self, *, draining: bool) -> Progress:
        self.checks += 1
        return self.current

    def end(self, ending: Ending) -> bool:
        if not self.has_unread_input:
            self.endings.append(ending)
        return not self.has_unread_input

    def fail(self) -> None:
        raise AssertionError("no check fails here")


class TimeoutsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.connection = FakeConnection()
        self.connections: set[object] = {self.connection}
        self.draining: set[object] = set()

    def timeouts(self, idle: float | None = None, stall: float | None = None) -> Timeouts:
        return Timeouts(idle, stall, self.connections, self.draining)

    def test_many(self) -> None:
        """A check of many connections takes several turns of the reactor, and misses none."""

        class SlowClock(Clock):
            def seconds(self) -> float:
                self.rightNow += TURN / 10
                return super().seconds()

            def callLater(self, delay: float, *call: Any, **named: Any) -> Any:
                checks.append(sum(each.checks for each in many))
                return super().callLater(delay, *call, **named)

        checks: list[int] = []
        clock = SlowClock()
        many = [FakeConnection() for _ in range(100)]
        self.connections.update(many)
        self.timeouts(idle=8).check(clock, many)
        clock.advance(0)
        self.assertEqual({each.checks for each in many}, {1})
        turns = [after - before for before, after in pairwise([0, *checks])]
        self.assertLessEqual(max(turns), 11)  # the last one may exceed the turn

    def test_failure(self) -> None:
        """A connection that can be neither checked nor reset does not delay the others."""

        class Failing(FakeConnection):
            def progress(self, *, draining: bool) -> Progress:
                raise MemoryError

        failing = Failing()
        self.connections.add(failing)
        timeouts = self.timeouts(idle=8)
        for each in (failing, self.connection):
            timeouts.watch(each, self.clock)
        self.clock.pump([0.1] * 100)
        self.assertEqual(self.connection.endings, [Ending.IDLE])

    def test_never_early(self) -> None:
        """A timeout is never early, and late by a quarter at most."""
        self.timeouts(idle=8).watch(self.connection, self.clock)
        self.clock.pump([0.1] * 80)
        self.assertEqual(self.connection.endings, [])
        self.clock.pump([0.1] * 20)
        self.assertEqual(self.connection.endings, [Ending.IDLE])
        self.assertEqual(self.connection.checks, CHECKS_PER_TIMEOUT + 1)
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_progress(self) -> None:
        """Each change of the marker restarts the timeout."""
        self.timeouts(idle=8).watch(self.connection, self.clock)
        for marker in range(10):
            self.connection.current = Progress(False, marker, False, 0.0)
            self.clock.pump([1] * 7)
        self.assertEqual(self.connection.endings, [])

    def test_nothing_to_wait_for(self) -> None:
        """Without an idle timeout, a connection is checked only while its peer has to read."""
        timeouts = self.timeouts(stall=8)
        self.connection.current = Progress(True, 0, False, 0.0)
        timeouts.watch(self.connection, self.clock)
        self.clock.advance(1)
        self.assertIn(self.connection, timeouts.watched)
        self.connection.current = Progress(False, 0, False, 0.0)
        self.clock.advance(1)
        self.assertEqual(timeouts.watched, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_without_timeouts(self) -> None:
        """Without any timeout, no connection is watched, and no timer runs."""
        timeouts = self.timeouts()
        timeouts.watch(self.connection, self.clock)
        self.assertEqual(timeouts.watched, {})
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_unread_input(self) -> None:
        """A connection with unread input is not ended, and checked again."""
        self.connection.has_unread_input = True
        self.timeouts(idle=8).watch(self.connection, self.clock)
        self.clock.pump([1] * 10)
        self.assertEqual(self.connection.endings, [])
        self.connection.has_unread_input = False
        self.clock.advance(1)
        self.assertEqual(self.connection.endings, [Ending.IDLE])

    def test_drain_is_soon(self) -> None:
        """A check that is due far off is made soon for a connection that a drain ends."""
        timeouts = self.timeouts(idle=3600)
        timeouts.watch(self.connection, self.clock)
        self.draining.add(self.connection)
        timeouts.watch(self.connection, self.clock)
        self.clock.pump([QUIET] * 2)
        self.assertEqual(self.connection.endings, [Ending.DRAINED])

    def test_closed_meanwhile(self) -> None:
        """A connection that is not open any more is neither checked nor watched."""
        timeouts = self.timeouts(idle=8)
        timeouts.watch(self.connection, self.clock)
        self.connections.clear()
        self.clock.advance(1)
        self.assertEqual((self.connection.checks, timeouts.watched), (0, {}))
