"""SIGTERM, SIGINT and SIGHUP: the first one stops the service, the second one ends its drain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ReactorNotRunning
from twisted.logger import LogEvent, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import signals
from echod.daemon.signals import STOP, Signals


class FakeReactor:
    """The methods of a reactor that the signal handlers call."""

    def __init__(self) -> None:
        self.queue: list[tuple[Any, ...]] = []
        self.triggers: dict[tuple[str, str], Callable[[], object]] = {}
        self.stopped = False

    def addSystemEventTrigger(self, phase: str, event: str, call: Callable[[], object]) -> None:
        self.triggers[phase, event] = call

    def callFromThread(self, *call: Any) -> None:
        self.queue.append(call)

    def stop(self) -> None:
        if self.stopped:
            raise ReactorNotRunning
        self.stopped = True

    def start(self) -> None:
        """Start as Twisted does, which installs its own handler of SIGTERM."""
        self.triggers["before", "startup"]()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self.triggers["after", "startup"]()

    def turn(self) -> None:
        calls, self.queue = self.queue, []
        for call, *arguments in calls:
            call(*arguments)


class SignalsTests(SynchronousTestCase):
    def setUp(self) -> None:
        for number in STOP:
            self.addCleanup(signal.signal, number, signal.getsignal(number))
            signal.signal(number, signal.SIG_DFL)
        self.log: list[LogEvent] = []
        self.patch(signals.log, "observer", self.log.append)
        self.reactor = FakeReactor()
        self.hastened: list[bool] = []

    def make(self) -> Signals:
        made = Signals(self.reactor)
        made.hasten = lambda: self.hastened.append(True)
        return made

    def send(self, *numbers: int) -> None:
        for number in numbers:
            signal.raise_signal(number)

    def test_log_file(self) -> None:
        """Each SIGUSR1 reopens the log file, from the reactor."""
        self.addCleanup(signal.signal, signal.SIGUSR1, signal.getsignal(signal.SIGUSR1))
        opened: list[bool] = []
        self.make().reopen_log(lambda: opened.append(True))
        self.send(signal.SIGUSR1, signal.SIGUSR1)
        self.assertEqual(opened, [])
        self.reactor.turn()
        self.assertEqual(opened, [True, True])
        self.assertFalse(self.reactor.stopped)

    def test_first(self) -> None:
        """Each of the three signals stops the reactor from its own loop, and is logged."""
        for number in STOP:
            self.reactor = FakeReactor()
            self.make()
            self.reactor.start()
            self.send(number)
            self.assertFalse(self.reactor.stopped)
            self.reactor.turn()
            self.assertTrue(self.reactor.stopped)
        lines = [f"received {name}, shutting down" for name in ("SIGTERM", "SIGINT", "SIGHUP")]
        self.assertEqual([formatEvent(event) for event in self.log], lines)
        self.assertEqual(self.hastened, [])

    def test_second(self) -> None:
        """In one reactor iteration, the first stops it, the second hastens, others do nothing."""
        for numbers in ((signal.SIGTERM, signal.SIGINT), (signal.SIGINT,) * 2, STOP + STOP):
            self.reactor, self.hastened = FakeReactor(), []
            self.make()
            self.reactor.start()
            self.send(*numbers)
            self.reactor.turn()
            self.assertTrue(self.reactor.stopped)
            self.assertEqual(self.hastened, [True])
            self.assertIn("not waiting any longer", formatEvent(self.log[-1]))

    def test_stopped_without_a_signal(self) -> None:
        """If the reactor is stopping already, the first signal hastens."""
        self.make()
        self.reactor.start()
        self.reactor.stop()
        self.send(signal.SIGTERM)
        self.reactor.turn()
        self.assertEqual(self.hastened, [True])

    def test_after_the_reactor_has_stopped(self) -> None:
        """A signal between the end of the service and that of the process changes nothing."""
        self.make()
        self.reactor.start()
        self.send(signal.SIGTERM)
        self.reactor.turn()
        self.reactor.triggers["after", "shutdown"]()
        self.send(*STOP)
        self.reactor.turn()
        self.assertEqual([signal.getsignal(number) for number in STOP], [signal.SIG_IGN] * 3)
        self.assertEqual((len(self.log), self.hastened), (1, []))

    def test_before_the_reactor_runs(self) -> None:
        """A signal before the reactor runs stops it once it runs; a second one ends the process."""
        self.make()
        self.send(signal.SIGTERM)
        killed: list[Any] = []
        self.patch(os, "kill", lambda pid, number: killed.append((pid, number)))
        signal.raise_signal(signal.SIGINT)
        self.assertEqual(killed, [(os.getpid(), signal.SIGINT)])
        self.assertIs(signal.getsignal(signal.SIGINT), signal.SIG_DFL)
        self.reactor.start()
        self.reactor.turn()
        self.assertTrue(self.reactor.stopped)

    def test_while_the_reactor_starts(self) -> None:
        """While Twisted installs its own handlers, signals are blocked."""
        self.make()
        self.reactor.triggers["before", "startup"]()
        self.send(*STOP)
        self.assertEqual(self.reactor.queue, [])
        self.reactor.triggers["after", "startup"]()
        self.assertEqual(len(self.reactor.queue), 3)

    def test_ignored(self) -> None:
        """An ignored signal stays ignored."""
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)
        self.make()
        self.reactor.start()
        self.send(*STOP)
        self.assertEqual(self.reactor.queue, [])

    def test_reload(self) -> None:
        """With a reload function, each SIGHUP reloads and does not stop, even if it was ignored."""
        reloaded: list[bool] = []
        for before in (signal.SIG_DFL, signal.SIG_IGN):
            signal.signal(signal.SIGHUP, before)
            self.make().reload_on_hangup(lambda: reloaded.append(True))
            self.send(signal.SIGHUP)
            self.reactor.start()
            self.send(signal.SIGHUP)
            self.reactor.turn()
        self.assertEqual(reloaded, [True] * 4)
        self.assertFalse(self.reactor.stopped)
