"""The log that people read."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import logs
from echod.daemon.logs import ConnectionLog, name_of
from echod.events import Closed, Ending, Opened, Reason, Refused

PEER = IPv4Address("TCP", "192.0.2.1", 40000)


class ConnectionLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        self.patch(logs.log, "observer", self.events.append)
        self.clock = Clock()

    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def test_closed(self) -> None:
        """A connection that ended is one line: peer, ending, bytes, seconds."""
        log = ConnectionLog(self.clock)
        log(Opened(PEER))
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
        self.assertEqual(self.lines(), ["closed tcp 192.0.2.1:40000: finished, 5 bytes in 0.042 s"])

    def test_closed_with_a_loss(self) -> None:
        """Where a reply was cut short the line says by how much."""
        ConnectionLog(self.clock)(Closed(Ending.STALLED, 9000, 60, 500, PEER))
        self.assertEqual(
            self.lines(),
            [
                "closed tcp 192.0.2.1:40000: stalled, 9000 bytes in 60.000 s, "
                "500 of them not sent back"
            ],
        )

    def test_quiet(self) -> None:
        """Quiet, connections have no line, and refusals still have."""
        log = ConnectionLog(self.clock, quiet=True)
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
        log(Refused(Reason.DRAINING, PEER))
        self.assertEqual(self.lines(), ["refused 1 connection: draining 1"])

    def test_refusals_are_summed(self) -> None:
        """A flood of refusals is one line a second, and none is left out."""
        log = ConnectionLog(self.clock)
        for count in range(1000):
            log(Refused(Reason.MAX_CONNECTIONS, PEER))
            if count % 10 == 0:
                log(Refused(Reason.MAX_CONNECTIONS_PER_PEER, PEER))
            self.clock.advance(0.001)
        self.clock.advance(1)
        self.assertEqual(
            self.lines(),
            [
                "refused 1 connection: max-connections 1",
                "refused 1099 connections: max-connections-per-peer 100, max-connections 999",
            ],
        )
        self.assertEqual({event["log_level"] for event in self.events}, {LogLevel.warn})
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        log(Refused(Reason.DRAINING, PEER))
        self.assertEqual(self.lines()[2:], ["refused 1 connection: draining 1"])


class NameOfTests(SynchronousTestCase):
    def test_names(self) -> None:
        """Addresses look as people write them."""
        for address, name in (
            (PEER, "tcp 192.0.2.1:40000"),
            (IPv6Address("TCP", "::1", 7), "tcp [::1]:7"),
            (UNIXAddress(b"/run/echod/socket"), "unix /run/echod/socket"),
            (UNIXAddress(b"\0abstract"), r"unix \x00abstract"),
            (UNIXAddress(None), "unix (unnamed)"),
            (None, "None"),
        ):
            self.assertEqual(name_of(address), name)

    def test_forged_line(self) -> None:
        """The name of a UNIX peer is its own to choose, and cannot make a line of its own."""
        name = name_of(UNIXAddress(b"/x\n2026 [echod#info] all is well\x1b[2J\xff\r"))
        self.assertTrue(name.isprintable(), name)
