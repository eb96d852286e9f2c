"""Pacing: moments at a fixed interval, and calls at each of them."""

from __future__ import annotations

from fractions import Fraction
from math import ceil, inf

import pytest
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from echod.client.pacing import Pacer, Schedule, Workload


class ScheduleTests(SynchronousTestCase):
    def test_moments(self) -> None:
        """Moments begin at the start, and follow each other at the interval."""
        schedule = Schedule(100.0, 0.5)
        self.assertEqual(schedule.next, 100.0)
        self.assertEqual(list(schedule.due(99.9)), [])
        self.assertEqual(list(schedule.due(100.0)), [100.0])
        self.assertEqual(list(schedule.due(100.0)), [])
        self.assertEqual((schedule.next, schedule.passed), (100.5, 1))
        self.assertEqual(list(schedule.due(102.1)), [100.5, 101.0, 101.5, 102.0])

    def test_no_drift(self) -> None:
        """The millionth moment has no accumulated rounding error."""
        start, interval, many = 12345.678, 0.001, 1_000_000
        schedule = Schedule(start, interval)
        schedule.passed = many
        exact = Fraction(start) + many * Fraction(interval)
        assert schedule.next is not None
        self.assertLess(abs(Fraction(schedule.next) - exact), 1e-9)

    def test_count(self) -> None:
        """A schedule ends after its count."""
        schedule = Schedule(0.0, 1.0, 3)
        self.assertEqual(list(schedule.due(100.0)), [0.0, 1.0, 2.0])
        self.assertIsNone(schedule.next)
        self.assertEqual(list(schedule.due(inf)), [])

    def test_count_of_zero(self) -> None:
        """With a count of zero, no moment is due."""
        schedule = Schedule(0.0, 1.0, 0)
        self.assertIsNone(schedule.next)
        self.assertEqual(list(schedule.due(100.0)), [])

    def test_partly_consumed(self) -> None:
        """Moments that are not consumed from due() have not passed."""
        schedule = Schedule(0.0, 1.0)
        for moment in schedule.due(10.0):
            if moment == 3.0:
                break
        self.assertEqual((schedule.passed, schedule.next), (4, 4.0))


class PacerTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.clock.rightNow = 50.0
        self.acts: list[tuple[float, float]] = []  # time of the call, and its moment

    def pacer(self, schedule: Schedule) -> Pacer:
        return Pacer(self.clock, schedule, self.act)

    def act(self, moment: float) -> None:
        self.acts.append((self.clock.seconds(), moment))

    def test_in_time(self) -> None:
        """It calls at each moment, the first one at once, and then is done."""
        pacer = self.pacer(Schedule(50.0, 0.25, 4))
        pacer.run()
        self.assertEqual(self.acts, [(50.0, 50.0)])
        self.clock.pump([0.125] * 5)
        self.assertNoResult(pacer.done)
        self.clock.pump([0.125])
        self.assertEqual(self.acts, [(each, each) for each in (50.0, 50.25, 50.5, 50.75)])
        self.assertIsNone(self.successResultOf(pacer.done))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_later_start(self) -> None:
        """It waits for a first moment in the future."""
        pacer = self.pacer(Schedule(51.0, 1.0, 1))
        pacer.run()
        self.assertEqual(self.acts, [])
        self.clock.advance(1.0)
        self.assertEqual(self.acts, [(51.0, 51.0)])
        self.successResultOf(pacer.done)

    def test_woken_late(self) -> None:
        """After a late wake-up, overdue moments get their calls, and later ones are not shifted."""
        self.pacer(Schedule(50.0, 1.0)).run()
        self.clock.advance(3.5)
        self.assertEqual(self.acts[1:], [(53.5, each) for each in (51.0, 52.0, 53.0)])
        self.clock.advance(0.5)
        self.assertEqual(self.acts[4:], [(54.0, 54.0)])

    def test_slow_act(self) -> None:
        """Moments that pass during a call get their calls right after it."""

        def act(moment: float) -> None:
            self.act(moment)
            if moment == 50.0:
                self.clock.rightNow += 2.5

        Pacer(self.clock, Schedule(50.0, 1.0), act).run()
        self.assertEqual(self.acts, [(50.0, 50.0)])
        [call] = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime(), 52.5)  # at once, and not in the past
        self.clock.advance(0)
        self.assertEqual(self.acts[1:], [(52.5, 51.0), (52.5, 52.0)])

    def test_too_slow_act(self) -> None:
        """A long series of overdue calls is interrupted for other events of the reactor."""

        def act(moment: float) -> None:
            self.act(moment)
            if len(self.acts) < 3:
                self.clock.rightNow += 0.002

        Pacer(self.clock, Schedule(49.0, 0.25, 6), act).run()
        self.assertEqual([moment for _, moment in self.acts], [49.0])
        [call] = self.clock.getDelayedCalls()
        self.assertEqual(call.getTime(), 50.002)  # at once
        self.clock.advance(0)
        self.assertEqual([moment for _, moment in self.acts[1:]], [49.25, 49.5, 49.75, 50.0])

    def test_no_count(self) -> None:
        """Without a count it continues until it is stopped."""
        pacer = self.pacer(Schedule(50.0, 1.0))
        pacer.run()
        self.clock.pump([1.0] * 999)
        self.assertEqual(len(self.acts), 1000)
        self.assertNoResult(pacer.done)
        pacer.stop()
        self.successResultOf(pacer.done)

    def test_count_of_none(self) -> None:
        """Without a moment it is done at once, without a call."""
        pacer = self.pacer(Schedule(50.0, 1.0, 0))
        pacer.run()
        self.successResultOf(pacer.done)
        self.assertEqual(self.acts, [])

    def test_stop(self) -> None:
        """stop() prevents further calls and leaves no timer. Repeated, it does nothing."""
        pacer = self.pacer(Schedule(50.0, 1.0))
        pacer.run()
        pacer.stop()
        pacer.stop()
        self.successResultOf(pacer.done)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.assertEqual(len(self.acts), 1)

    def test_stop_before_run(self) -> None:
        """stop() is allowed before run()."""
        pacer = self.pacer(Schedule(50.0, 1.0))
        pacer.stop()
        self.successResultOf(pacer.done)
        self.assertEqual(self.acts, [])

    def test_stop_after_the_last(self) -> None:
        """stop() does nothing after the last moment."""
        pacer = self.pacer(Schedule(50.0, 1.0, 1))
        pacer.run()
        self.successResultOf(pacer.done)
        pacer.stop()

    def test_stop_in_act(self) -> None:
        """stop() inside a call prevents the calls for further overdue moments."""

        def act(moment: float) -> None:
            self.act(moment)
            if moment == 52.0:
                pacer.stop()

        pacer = Pacer(self.clock, Schedule(50.0, 1.0), act)
        pacer.run()
        self.clock.advance(10.0)
        self.assertEqual([moment for _, moment in self.acts], [50.0, 51.0, 52.0])
        self.successResultOf(pacer.done)
        self.assertEqual(self.clock.getDelayedCalls(), [])


@given(st.floats(0.01, 1e5), st.floats(0.01, 1e5), st.floats(0.01, 1e3))
def test_ramp(first: float, last: float, seconds: float) -> None:
    """The moments of a ramp are in order, and as many as the integral of the rate."""
    ramp = Workload(1, seconds, None, ramp=(first, last)).schedule(10.0)
    assert ramp.next == 10.0
    count = ceil(round((first + last) / 2 * seconds, 6))
    ramp.passed = count // 2
    half = ramp.next
    ramp.passed = count - 1
    assert half is not None
    assert ramp.next is not None
    assert 10 <= half <= ramp.next <= 10 + seconds + 1e-6
    at = half - 10
    passed = first * at + (last - first) * at * at / 2 / seconds  # the integral of the rate
    assert passed == pytest.approx(count // 2, rel=1e-6, abs=1e-6)
    ramp.passed += 1
    assert ramp.next is None
