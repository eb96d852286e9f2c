"""The log: lines for connections, summaries of refusals, and formats."""

from __future__ import annotations

import io
import json
import sys
import tempfile
from datetime import datetime, timezone
from typing import Any, TextIO, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.logger import (
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    formatEvent,
    globalLogPublisher,
    textFileLogObserver,
)
from twisted.python import log as legacy
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from echod import events
from echod.daemon import logs
from echod.daemon.logs import (
    CLOSED,
    CUT_SHORT,
    ConnectionLog,
    ConnectionLogger,
    journal,
    json_line,
    json_lines,
    text_lines,
    text_of,
)
from echod.events import (
    Accepted,
    Closed,
    Drop,
    Dropped,
    Ending,
    HalfClosed,
    HandshakeDone,
    HeaderRead,
    Opened,
    Reason,
    Refused,
)

PEER = IPv4Address("TCP", "192.0.2.1", 40000)


class ConnectionLogTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        self.patch(logs.log, "observer", self.events.append)
        self.clock = Clock()

    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.events]

    def test_closed(self) -> None:
        """A closed connection is one line: peer, ending, bytes, seconds."""
        log = ConnectionLog(self.clock)
        log(Opened(PEER))
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
        self.assertEqual(self.lines(), ["closed tcp 192.0.2.1:40000: finished, 5 bytes in 0.042 s"])

    def test_closed_with_unsent_bytes(self) -> None:
        """The line of a connection whose reply was cut short has the number of unsent bytes."""
        ConnectionLog(self.clock)(Closed(Ending.STALLED, 9000, 60, 500, PEER))
        self.assertEqual(
            self.lines(),
            [
                "closed tcp 192.0.2.1:40000: stalled, 9000 bytes in 60.000 s, "
                "500 of them not sent back"
            ],
        )

    def test_closed_with_more_bytes(self) -> None:
        """A port with faults can send more bytes than it receives: none is missing."""
        ConnectionLog(self.clock)(Closed(Ending.FINISHED, 5, 0.0421, -9, PEER))
        self.assertEqual(self.lines(), ["closed tcp 192.0.2.1:40000: finished, 5 bytes in 0.042 s"])

    def test_unused(self) -> None:
        """An unused connection, such as a health check, has no line."""
        log = ConnectionLog(self.clock)
        log(Opened(PEER))
        log(Closed(Ending.UNUSED, 0, 0.001, 0, PEER))
        log.flush()
        self.assertEqual(self.lines(), [])

    def test_tls(self) -> None:
        """The lines of a TLS connection have tls in place of tcp."""
        log = ConnectionLog(self.clock)
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER, tls=True))
        log(Refused(Reason.TLS_HANDSHAKE, PEER, tls=True))
        self.assertEqual(
            self.lines(),
            [
                "closed tls 192.0.2.1:40000: finished, 5 bytes in 0.042 s",
                "refused 1 connection: tls-handshake 1, from tls 192.0.2.1:40000",
            ],
        )
        self.assertEqual({event["peer"] for event in self.events}, {"tls 192.0.2.1:40000"})

    def test_verbose(self) -> None:
        """With verbose, each step of a connection has a line, and so has an unused connection."""
        proxy = IPv4Address("TCP", "192.0.2.9", 9)
        for event, line in (
            (Accepted(PEER), "accepted tcp 192.0.2.1:40000"),
            (Accepted(PEER, tls=True), "accepted tls 192.0.2.1:40000"),
            (
                HandshakeDone(PEER, "TLSv1.3", "TLS_AES_256_GCM_SHA384", 0.0031),
                "handshake with tls 192.0.2.1:40000: TLSv1.3, TLS_AES_256_GCM_SHA384, in 0.003 s",
            ),
            (
                HeaderRead(proxy, PEER),
                "PROXY header from tcp 192.0.2.9:9: the client is tcp 192.0.2.1:40000",
            ),
            (HalfClosed(5, PEER), "half-close by tcp 192.0.2.1:40000, after 5 bytes"),
        ):
            for verbose in (False, True):
                self.events.clear()
                ConnectionLog(self.clock, verbose=verbose)(event)
                self.assertEqual(self.lines(), [line] * verbose)
            self.assertEqual(self.events[0]["log_level"], LogLevel.debug)
        self.events.clear()
        log = ConnectionLog(self.clock, verbose=True)
        log(Opened(PEER))
        log(Closed(Ending.UNUSED, 0, 0.001, 0, PEER))
        self.assertEqual(self.lines(), ["closed tcp 192.0.2.1:40000: unused, 0 bytes in 0.001 s"])

    def test_quiet(self) -> None:
        """With quiet, connections have no lines, and refusals still have."""
        log = ConnectionLog(self.clock, quiet=True)
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
        log(Refused(Reason.DRAINING, PEER))
        self.assertEqual(
            self.lines(), ["refused 1 connection: draining 1, from tcp 192.0.2.1:40000"]
        )

    def test_summary_of_refusals(self) -> None:
        """A flood of refusals is one line per second, and each refusal is counted."""
        log = ConnectionLog(self.clock)
        for count in range(999):
            log(Refused(Reason.MAX_CONNECTIONS, PEER))
            if count % 10 == 0:
                log(Refused(Reason.MAX_CONNECTIONS_PER_PEER, PEER))
            self.clock.advance(0.001)
        log(Refused(Reason.MAX_CONNECTIONS, IPv6Address("TCP", "2001:db8::1", 7)))
        self.clock.advance(1)
        self.assertEqual(
            self.lines(),
            [
                "refused 1 connection: max-connections 1, from tcp 192.0.2.1:40000",
                "refused 1099 connections: max-connections-per-peer 100, max-connections 999, "
                "the last from tcp [2001:db8::1]:7",
            ],
        )
        self.assertEqual({event["log_level"] for event in self.events}, {LogLevel.warn})
        self.clock.advance(1)
        self.assertEqual(self.clock.getDelayedCalls(), [])
        log(Refused(Reason.DRAINING, PEER))
        self.assertEqual(
            self.lines()[2:], ["refused 1 connection: draining 1, from tcp 192.0.2.1:40000"]
        )

    def test_summary_of_dropped_datagrams(self) -> None:
        """Datagrams that are not answered have a summary of their own."""
        log = ConnectionLog(self.clock)
        for number in range(3):
            log(Dropped(Drop.SOURCE_RATE, IPv4Address("UDP", "192.0.2.1", 40000 + number)))
            log(Refused(Reason.DRAINING, PEER))
        log(Dropped(Drop.LOW_PORT, IPv6Address("UDP", "2001:db8::1", 7)))
        log.flush()
        self.assertEqual(
            self.lines(),
            [
                "did not answer 1 datagram: source-rate 1, from udp 192.0.2.1:40000",
                "refused 1 connection: draining 1, from tcp 192.0.2.1:40000",
                "refused 2 connections: draining 2, the last from tcp 192.0.2.1:40000",
                "did not answer 3 datagrams: source-rate 2, low-port 1, "
                "the last from udp [2001:db8::1]:7",
            ],
        )
        self.assertEqual({event["log_level"] for event in self.events}, {LogLevel.warn})


class FormatTests(SynchronousTestCase):
    """The log observers for ``twistd --logger``."""

    def test_written_at_once(self) -> None:
        """Each line is in the file before the next event, so a killed process loses none."""
        for observer in (text_lines, journal, json_lines):
            with tempfile.NamedTemporaryFile("w") as file:
                self.patch(logs.log, "observer", observer(cast(TextIO, file)))
                log = ConnectionLog(Clock())
                for count in (1, 2):
                    log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
                    with open(file.name) as written:
                        self.assertEqual(written.read().count("\n"), count)

    def written(self, observer: Any) -> list[str]:
        """Return the lines that the observer writes for one event of each kind."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        observe = observer()
        self.patch(logs.log, "observer", observe)
        log = ConnectionLog(Clock())
        log(Closed(Ending.FINISHED, 5, 0.0421, 0, PEER))
        log(Closed(Ending.STALLED, 9000, 60, 500, UNIXAddress(b"/x\n<0>gone\x1b[2J")))
        log(Refused(Reason.MAX_CONNECTIONS, PEER))
        log(Refused(Reason.DRAINING, PEER))
        log(Refused(Reason.DRAINING, PEER))
        log.flush()
        other = Logger("twisted", observer=observe)
        other.debug("")
        other.debug("a\nb", event="closed")
        try:
            raise ValueError("<0>\n<0>")
        except ValueError:
            other.failure("that failed")
        globalLogPublisher.addObserver(observe)
        try:
            legacy.msg("old", "words")
        finally:
            globalLogPublisher.removeObserver(observe)
        return out.getvalue().splitlines()

    def test_journal(self) -> None:
        """A journal line has a priority and no time stamp."""
        lines = self.written(journal)
        self.assertEqual(
            lines[:5],
            [
                "<6>closed tcp 192.0.2.1:40000: finished, 5 bytes in 0.042 s",
                "<6>closed unix /x\\n<0>gone\\x1b[2J: stalled, 9000 bytes in 60.000 s, "
                "500 of them not sent back",
                "<4>refused 1 connection: max-connections 1, from tcp 192.0.2.1:40000",
                "<4>refused 2 connections: draining 2, the last from tcp 192.0.2.1:40000",
                "<7>a\\nb",
            ],
        )
        self.assertTrue(lines[5].startswith("<2>that failed\\nTraceback (most recent"), lines[5])
        self.assertEqual(lines[6:], ["<6>old words"])
        for line in lines:
            self.assertTrue(line.isprintable(), line)

    def test_observer_that_fails(self) -> None:
        """JSON has the traceback of an observer that fails at an event of a connection."""
        out = io.StringIO()
        self.patch(events.log, "observer", json_lines(out))
        events.notify(lambda _: 1 / 0, Opened(PEER))
        line = json.loads(out.getvalue())
        self.assertEqual((line["level"], line["event"]), ("critical", "message"))
        self.assertIn("the observer failed at Opened(", line["message"])
        self.assertIn("ZeroDivisionError", line["message"])

    def test_json_lines(self) -> None:
        """A JSON line has the time, the level, the event, and its fields."""
        lines = [json.loads(line) for line in self.written(json_lines)]
        for line in lines:
            time = datetime.fromisoformat(line.pop("time"))
            self.assertEqual(time.tzinfo, timezone.utc)
            self.assertLess(abs((datetime.now(timezone.utc) - time).total_seconds()), 60)
        self.assertIn("Traceback", lines[5].pop("message"))
        self.assertEqual(
            lines,
            [
                {
                    "level": "info",
                    "event": "closed",
                    "peer": "tcp 192.0.2.1:40000",
                    "ending": "finished",
                    "bytes": 5,
                    "seconds": 0.0421,
                    "unsent": 0,
                },
                {
                    "level": "info",
                    "event": "closed",
                    "peer": r"unix /x\n<0>gone\x1b[2J",
                    "ending": "stalled",
                    "bytes": 9000,
                    "seconds": 60,
                    "unsent": 500,
                },
                {
                    "level": "warn",
                    "event": "refused",
                    "peer": "tcp 192.0.2.1:40000",
                    "total": 1,
                    "reasons": {"max-connections": 1},
                },
                {
                    "level": "warn",
                    "event": "refused",
                    "peer": "tcp 192.0.2.1:40000",
                    "total": 2,
                    "reasons": {"draining": 2},
                },
                {"level": "debug", "event": "message", "message": "a\nb"},
                {"level": "critical", "event": "message"},
                {"level": "info", "event": "message", "message": "old words"},
            ],
        )


LOG_EVENTS = st.fixed_dictionaries(
    {
        "log_format": st.sampled_from(
            (CLOSED, CUT_SHORT, "{peer}\n{peer!r}", "{peer()}", "{", "{none}", "{}", "", None, b"x")
        ),
        "log_namespace": st.sampled_from(("echod", "twisted")),
        "log_level": st.sampled_from(list(LogLevel.iterconstants())),
        # Whole milliseconds: Twisted rounds the last half microsecond of a second up.
        "log_time": st.integers(0, 2**42).map(lambda milliseconds: milliseconds / 1000),
        "peer": st.text(),
        "ending": st.sampled_from([each.value for each in Ending]),
        "bytes": st.integers(0),
        "seconds": st.floats(0, 1e9),
        "unsent": st.integers(0),
    },
    optional={"log_failure": st.just(Failure(ValueError("wrong")))},
)


class JSONTests(SynchronousTestCase):
    """A JSON line is that of :mod:`json`, with the time of :mod:`datetime`."""

    # Multiples of 1/64 s are whole microseconds, and exact as floats.
    @given(LOG_EVENTS, st.integers(0, 2**38).map(lambda ticks: ticks / 64))
    def test_as_json(self, event: LogEvent, seconds: float) -> None:
        """A line is one object with the time, the level, the event, and its fields."""
        event |= {"event": "closed", "log_namespace": "echod", "log_time": seconds}
        time = datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="microseconds")
        head = {"time": time, "level": event["log_level"].name}
        fields = {name: value for name, value in event.items() if not name.startswith("log_")}
        self.assertEqual(json_line(event), json.dumps(head | fields) + "\n")


class TextTests(SynchronousTestCase):
    """Text is byte for byte that of Twisted."""

    @given(st.lists(LOG_EVENTS, min_size=1, max_size=3))
    def test_as_twisted(self, events: list[LogEvent]) -> None:
        """A line is the same as that of Twisted's observer, and so is its text alone."""
        ours, twisted = io.StringIO(newline=""), io.StringIO(newline="")
        observe, expect = text_lines(ours), textFileLogObserver(twisted)
        for event in events:
            observe(event)
            expect(event)
            self.assertEqual(
                text_of(event), eventAsText(event, includeTimestamp=False, includeSystem=False)
            )
        self.assertEqual(ours.getvalue(), twisted.getvalue())

    def test_standard_output(self) -> None:
        """Without a file, the lines are on standard output."""
        out = io.StringIO()
        self.patch(sys, "stdout", out)
        Logger("twisted", observer=text_lines()).info("hello")
        self.assertRegex(out.getvalue(), r"^\d{4}-.* \[twisted#info\] hello\n$")

    def test_logger(self) -> None:
        """The logger of connections emits the events of Twisted's."""
        events: list[LogEvent] = []
        for kind in (Logger, ConnectionLogger):
            logger = kind("echod", source=self, observer=events.append)
            logger.info("{number}", number=1)
            event = events[-1]
            self.assertIs(event.pop("log_logger"), logger)
            self.assertLess(abs(event.pop("log_time") - datetime.now().timestamp()), 60)
        self.assertEqual(*events)
