"""The time budget of a turn: steps within it are done at once, others later, in rotation."""

from __future__ import annotations

from typing import Any, cast

from twisted.internet.interfaces import IReactorTime
from twisted.trial.unittest import SynchronousTestCase

from echod.turns import TURN, Turns


class ManualTurns:
    """A clock on which a test runs the calls of one turn at a time."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Any] = []

    def seconds(self) -> float:
        return self.now

    def callLater(self, delay: float, call: Any, *args: object) -> None:
        assert delay == 0
        self.calls.append((call, args))

    def turn(self) -> None:
        calls, self.calls = self.calls, []
        for call, args in calls:
            call(*args)


class Steps:
    """A worker of ``count`` steps of ``seconds`` each; it appends its name at each step."""

    def __init__(self, case: TurnsTests, name: str, count: int, seconds: float) -> None:
        self.case, self.name, self.count, self.seconds = case, name, count, seconds

    def step(self) -> bool:
        self.case.clock.now += self.seconds
        self.case.done += self.name
        self.count -= 1
        return self.count > 0


class TurnsTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = ManualTurns()
        self.turns = Turns()
        self.done = ""

    def begin(self, worker: Any) -> None:
        self.turns.begin(worker, cast(IReactorTime, self.clock))

    def steps(self, name: str, count: int, share: float) -> None:
        """Begin a worker of ``count`` steps that take that share of the budget each."""
        self.begin(Steps(self, name, count, TURN * share))

    def test_within_the_budget(self) -> None:
        """Steps within the budget run at once; a turn is scheduled when half of it is used."""
        self.steps("a", 2, 0.25)
        self.assertEqual((self.done, self.clock.calls), ("aa", []))
        self.steps("b", 1, 0.25)
        self.assertEqual((self.done, len(self.clock.calls)), ("aab", 1))
        self.clock.turn()
        self.steps("c", 4, 0.25)
        self.assertEqual(self.done, "aabcccc")

    def test_shared_budget(self) -> None:
        """Workers that begin in one turn share one budget, which the last step may exceed."""
        for name in "abcd":
            self.steps(name, 2, 0.375)
        self.assertEqual(self.done, "aab")
        self.clock.turn()
        self.assertEqual(self.done, "aabbcd")
        self.clock.turn()
        self.assertEqual(self.done, "aabbcdcd")
        self.assertEqual(self.clock.calls, [])

    def test_rotation(self) -> None:
        """Waiting workers do one step each in rotation, beside a worker of many steps too."""
        self.steps("a", 1000, 1)
        self.steps("b", 2, 1)
        for _ in range(5):
            self.clock.turn()
        self.assertEqual(self.done, "aababa")

    def test_order(self) -> None:
        """A worker that begins while others wait runs after them."""
        self.steps("a", 2, 1)
        self.clock.now += 1
        self.steps("b", 1, 0)
        self.assertEqual(self.done, "a")
        self.clock.turn()
        self.clock.turn()
        self.assertEqual((self.done, self.clock.calls), ("aab", []))

    def test_exception(self) -> None:
        """An exception in one step does not stop the other workers."""
        self.steps("a", 1, 1)
        failing = Steps(self, "b", 2, 0)
        self.patch(failing, "step", self.fail)
        self.begin(failing)
        self.steps("c", 2, 0)
        self.assertRaises(self.failureException, self.clock.turn)
        self.clock.turn()
        self.assertEqual((self.done, self.clock.calls), ("acc", []))

    def test_nested(self) -> None:
        """A step may begin another worker; there is one delayed call for all that wait."""
        case = self

        class BeginsAnother(Steps):
            def step(self) -> bool:
                case.steps("b", 2, 1)
                return super().step()

        self.steps("a", 2, 1)
        self.begin(BeginsAnother(self, "c", 1, 0))
        for _ in range(5):
            self.clock.turn()
            self.assertLessEqual(len(self.clock.calls), 1)
        self.assertEqual((sorted(self.done), self.clock.calls), (list("aabbc"), []))
