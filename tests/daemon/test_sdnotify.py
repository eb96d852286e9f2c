"""Messages to systemd: ready, stopping, watchdog, and the number of connections."""

from __future__ import annotations

import math
import os
import socket
import tempfile
from typing import Any

from twisted.internet.address import IPv4Address
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import sdnotify
from echod.daemon.errors import CannotServe
from echod.daemon.sdnotify import Notifier, notifier
from echod.events import Closed, Ending, Opened, Reason, Refused

PEER = IPv4Address("TCP", "192.0.2.1", 40000)
OPENED = Opened(PEER)
CLOSED = Closed(Ending.FINISHED, 5, 1.0, 0, PEER)


class NotifierTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log: list[LogEvent] = []
        self.patch(sdnotify.log, "observer", self.log.append)
        self.clock = Clock()
        self.connections = 0
        directory = tempfile.TemporaryDirectory()
        self.addCleanup(directory.cleanup)
        self.path = os.path.join(directory.name, "notify")
        self.systemd = self.listen(self.path)

    def listen(self, where: str) -> socket.socket:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.addCleanup(sock.close)
        sock.setblocking(False)
        sock.bind(where)
        return sock

    def count(self) -> int:
        return self.connections

    def open(self, notifier: Notifier, more: int = 1) -> None:
        self.connections += more
        notifier(OPENED if more > 0 else CLOSED)

    def received(self) -> list[str]:
        """Return the datagrams since the last call."""
        datagrams = []
        while True:
            try:
                datagrams.append(self.systemd.recv(4096).decode())
            except BlockingIOError:
                return datagrams

    def test_faulty(self) -> None:
        """The status of a service with a faulty port says so first."""
        notifier = Notifier(self.clock, self.count, self.path)
        notifier.faulty = True
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1\nSTATUS=FAULTY, 0 connections open"])

    def fill(self) -> int:
        """Fill the queue of systemd's socket, and return the number of datagrams."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            for count in range(10_000):
                try:
                    sock.sendto(b"X=1", self.path)
                except BlockingIOError:
                    return count
        raise AssertionError("the queue has no limit")

    def test_lifecycle(self) -> None:
        """Ready, the number of connections, stopping, and the number of connections that remain."""
        notifier = Notifier(self.clock, self.count, self.path)
        self.assertEqual(self.received(), [])
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1\nSTATUS=0 connections open"])
        self.clock.advance(1)
        self.open(notifier)
        self.assertEqual(self.received(), ["STATUS=1 connection open"])
        self.clock.advance(1)
        notifier.stopping()
        self.assertEqual(self.received(), ["STOPPING=1\nSTATUS=draining, 1 connection open"])
        self.open(notifier, -1)
        self.clock.advance(1)
        self.assertEqual(self.received(), ["STATUS=draining, 0 connections open"])
        self.clock.advance(1)
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1\nSTATUS=0 connections open"])

    def test_once_a_second(self) -> None:
        """A flood of connections is one message per second, and the last number is right."""
        notifier = Notifier(self.clock, self.count, self.path)
        notifier.ready()
        self.clock.advance(1)
        self.received()
        for _ in range(1000):
            self.open(notifier)
            self.clock.advance(0.001)
        self.clock.advance(1)
        self.assertEqual(
            self.received(), ["STATUS=1 connection open", "STATUS=1000 connections open"]
        )
        self.clock.advance(1)
        self.assertEqual(self.received(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_only_what_changed(self) -> None:
        """A number that is the same again a second later is not sent."""
        notifier = Notifier(self.clock, self.count, self.path)
        notifier.ready()
        self.clock.advance(1)
        self.open(notifier)
        self.received()
        self.open(notifier, -1)
        self.open(notifier)
        notifier(Refused(Reason.MAX_CONNECTIONS, PEER))
        self.clock.advance(10)
        self.assertEqual(self.received(), [])

    def test_watchdog(self) -> None:
        """WATCHDOG=1 is sent twice per watchdog timeout, from ready on, and in a drain, too."""
        notifier = Notifier(self.clock, self.count, self.path, watchdog=30)
        self.clock.advance(100)
        self.assertEqual(self.received(), [])
        notifier.ready()
        self.assertEqual(self.received(), ["READY=1\nSTATUS=0 connections open\nWATCHDOG=1"])
        self.clock.pump([1] * 14)
        self.assertEqual(self.received(), [])
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])
        notifier.stopping()
        notifier.ready()
        self.received()
        self.clock.advance(15)
        self.assertEqual(self.received().count("WATCHDOG=1"), 1)

    def test_abstract(self) -> None:
        """The socket can be in the abstract namespace."""
        self.systemd = self.listen(f"\0{self.path}@")
        Notifier(self.clock, self.count, f"@{self.path}@").ready()
        self.assertEqual(self.received(), ["READY=1\nSTATUS=0 connections open"])

    def test_busy(self) -> None:
        """With systemd's queue full, the daemon does not block, and sends the message later."""
        filled = self.fill()
        notifier = Notifier(self.clock, self.count, self.path)
        notifier.ready()
        self.open(notifier)
        self.clock.advance(5)
        self.assertEqual(len(self.received()), filled)
        self.clock.advance(1)
        self.assertEqual(self.received(), ["READY=1\nSTATUS=1 connection open"])
        self.assertEqual(self.log, [])

    def test_busy_watchdog(self) -> None:
        """With systemd's queue full, WATCHDOG=1 is sent later, too."""
        notifier = Notifier(self.clock, self.count, self.path, watchdog=20)
        notifier.ready()
        self.clock.advance(5)
        self.received()
        filled = self.fill()
        self.clock.advance(5)
        self.assertEqual(len(self.received()), filled)
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])

    def test_unreachable(self) -> None:
        """An unreachable socket is logged once; messages continue when it is back."""
        self.systemd.close()
        notifier = Notifier(self.clock, self.count, self.path, watchdog=2)
        notifier.ready()
        for _ in range(10):
            self.open(notifier)
            self.clock.advance(1)
        [event] = self.log
        self.assertEqual(event["log_level"], LogLevel.warn)
        self.assertIn(f"NOTIFY_SOCKET={self.path}: ", formatEvent(event))
        os.unlink(self.path)
        self.systemd = self.listen(self.path)
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])
        self.systemd.close()
        self.clock.advance(1)
        self.assertEqual(len(self.log), 2)

    def test_out_of_memory(self) -> None:
        """The watchdog's messages continue after a MemoryError."""

        def count() -> int:
            if self.clock.seconds() == 1:
                raise MemoryError
            return 0

        Notifier(self.clock, count, self.path, watchdog=2).ready()
        self.received()
        self.clock.advance(1)
        self.assertEqual(self.received(), [])
        self.clock.advance(1)
        self.assertEqual(self.received(), ["WATCHDOG=1"])

    def test_no_address(self) -> None:
        """Without an address, the notifier does nothing."""
        notifier = Notifier(self.clock, self.count)
        notifier.ready()
        self.open(notifier)
        notifier.stopping()
        self.clock.advance(10)
        self.assertEqual(self.received(), [])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_odd_address(self) -> None:
        """An address with a newline cannot forge a log line."""
        Notifier(self.clock, self.count, "/no\nwhere\x1b[31m").ready()
        [event] = self.log
        self.assertIn(r"NOTIFY_SOCKET=/no\nwhere\x1b[31m: ", formatEvent(event))


class EnvironmentTests(SynchronousTestCase):
    def made(self, **environ: str) -> Any:
        return notifier(Clock(), int, environ, 862)

    def test_no_variables(self) -> None:
        """Without NOTIFY_SOCKET, there is no address, whatever else is set."""
        for environ in ({}, {"NOTIFY_SOCKET": ""}, {"WATCHDOG_USEC": "x"}):
            self.assertEqual(self.made(**environ).address, "")

    def test_watchdog(self) -> None:
        """The watchdog timeout is in microseconds, and applies to the process WATCHDOG_PID."""
        for environ, seconds in (
            ({}, math.inf),
            ({"WATCHDOG_USEC": "30000000"}, 30.0),
            ({"WATCHDOG_USEC": "1", "WATCHDOG_PID": "862"}, 0.000001),
            ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "863"}, math.inf),
        ):
            made = self.made(NOTIFY_SOCKET="@x", **environ)
            self.assertEqual((made.address, made.watchdog), ("@x", seconds))

    def test_malformed_watchdog(self) -> None:
        """A malformed watchdog timeout is refused; the error names the variable."""
        for given in ("", "0", "-5", "x", "1.5", " 1", "\N{SUPERSCRIPT TWO}", "9" * 400):
            error = self.assertRaises(
                CannotServe, self.made, NOTIFY_SOCKET="@x", WATCHDOG_USEC=given
            )
            self.assertIn("WATCHDOG_USEC=", str(error))
