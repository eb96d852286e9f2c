"""Observers: each is notified of each event."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Event, Opened, broadcast
from tests.recorder import Recorder

EVENT = Opened(IPv4Address("TCP", "192.0.2.1", 40000))


class BroadcastTests(SynchronousTestCase):
    def test_each(self) -> None:
        """Each observer is called with each event."""
        observers = Recorder(), Recorder()
        broadcast(*observers)(EVENT)
        self.assertEqual(observers, ([EVENT], [EVENT]))

    def test_failure(self) -> None:
        """An observer's exception is raised after all observers have been called."""

        def fail(event: Event) -> None:
            raise ValueError(event)

        observers = Recorder(), Recorder()
        self.assertRaises(ValueError, broadcast(observers[0], fail, observers[1]), EVENT)
        self.assertEqual(observers, ([EVENT], [EVENT]))
