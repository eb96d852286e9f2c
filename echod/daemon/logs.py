"""The log: a line for each connection that ended, refusals summed, for people and machines.

Where echod logs, an event has its name, ``event``, and what is known of it as fields.
``twistd`` alone writes sentences; :func:`journal` writes them as the systemd journal
wants them, :func:`json_lines` writes the fields.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Final, TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.logger import FileLogObserver, LogEvent, Logger, LogLevel, eventAsText

from echod.addresses import name_of, on_one_line
from echod.events import (
    Accepted,
    Closed,
    Dropped,
    Ending,
    Event,
    HalfClosed,
    HandshakeDone,
    HeaderRead,
    Refused,
)

INTERVAL: Final = 1.0
"""Seconds, the least time between two lines of a :class:`RateLimitedSummary`: a flood of
clients must not become a flood of lines."""

PRIORITIES: Final = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}
"""The levels of syslog(3)."""

CLOSED: Final = "closed {peer}: {ending}, {bytes} bytes in {seconds:.3f} s"
CUT_SHORT: Final = CLOSED + ", {unsent} of them not sent back"

log = Logger(namespace="echod")


class ConnectionLog:
    """An observer that logs.

    :param clock: tells when a second is over.
    :param quiet: log no line for each connection, but still the refusals.
    :param verbose: log each step of a connection, too, and those that end unused.
    """

    def __init__(self, clock: IReactorTime, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._refused = RateLimitedSummary(clock, log_refused)
        self._dropped = RateLimitedSummary(clock, log_dropped)

    def __call__(self, event: Event) -> None:
        """Log ``event``, or count it for the next line."""
        if isinstance(event, Closed):
            unused = event.ending is Ending.UNUSED
            if self._verbose if unused else not self._quiet:
                log.info(
                    CUT_SHORT if event.unsent else CLOSED,
                    event="closed",
                    peer=name_of(event.peer, tls=event.tls),
                    ending=event.ending.value,
                    bytes=event.bytes,
                    seconds=round(event.seconds, 6),
                    unsent=event.unsent,
                )
        elif isinstance(event, Refused):
            self._refused.add(event.reason.value, name_of(event.peer, tls=event.tls))
        elif isinstance(event, Dropped):
            self._dropped.add(event.drop.value, name_of(event.peer))
        elif self._verbose:
            log_step(event)

    def flush(self) -> None:
        """Log the refusals that are counted and not logged yet: call this before the end."""
        self._refused.flush()
        self._dropped.flush()


def log_step(event: Event) -> None:
    """Log a step in the life of a connection that is open."""
    if isinstance(event, Accepted):
        log.debug("accepted {peer}", event="accepted", peer=name_of(event.peer, tls=event.tls))
    elif isinstance(event, HandshakeDone):
        log.debug(
            "handshake with {peer}: {version}, {cipher}, in {seconds:.3f} s",
            event="handshake",
            peer=name_of(event.peer, tls=True),
            version=event.version,
            cipher=event.cipher,
            seconds=round(event.seconds, 6),
        )
    elif isinstance(event, HeaderRead):
        log.debug(
            "PROXY header from {proxy}: the client is {peer}",
            event="proxy-header",
            proxy=name_of(event.proxy),
            peer=name_of(event.peer),
        )
    elif isinstance(event, HalfClosed):
        log.debug(
            "half-close by {peer}, after {bytes} bytes",
            event="half-close",
            peer=name_of(event.peer, tls=event.tls),
            bytes=event.bytes,
        )


def log_refused(total: int, reasons: Reasons, peer: str) -> None:
    """Log so many refused connections, the last from ``peer``."""
    log.warn(
        "refused 1 connection: {reasons}, from {peer}"
        if total == 1
        else "refused {total} connections: {reasons}, the last from {peer}",
        event="refused",
        peer=peer,
        total=total,
        reasons=reasons,
    )


def log_dropped(total: int, reasons: Reasons, peer: str) -> None:
    """Log so many datagrams that were not answered, the last from ``peer``."""
    log.warn(
        "did not answer 1 datagram: {reasons}, from {peer}"
        if total == 1
        else "did not answer {total} datagrams: {reasons}, the last from {peer}",
        event="dropped",
        peer=peer,
        total=total,
        reasons=reasons,
    )


class RateLimitedSummary:
    """Events of one kind, logged in at most one line each :data:`INTERVAL`.

    The first event is logged at once. Those that follow within the interval are counted, and
    logged together at its end.

    :param clock: schedules the end of the interval.
    :param write: logs one line: how many events, how many for each reason, and the last peer.
    """

    def __init__(self, clock: IReactorTime, write: Callable[[int, Reasons, str], None]) -> None:
        self._clock = clock
        self._write = write
        self._reasons: Counter[str] = Counter()
        self._last = ""
        self._pending = False

    def add(self, reason: str, peer: str) -> None:
        """Log one event, or count it for the next line."""
        self._reasons[reason] += 1
        self._last = peer
        if not self._pending:
            self.flush()

    def flush(self) -> None:
        """Log the events since the last line now, if there are any, and begin a new interval."""
        self._pending = bool(self._reasons)
        if self._reasons:
            reasons, self._reasons = self._reasons, Counter()
            self._write(reasons.total(), Reasons(reasons), self._last)
            self._clock.callLater(INTERVAL, self.flush)


class Reasons(dict[str, int]):
    """The number of events for each reason; as text, «draining 1, max-connections 2»."""

    def __str__(self) -> str:
        return ", ".join(f"{reason} {count}" for reason, count in self.items())


def journal(file: TextIO | None = None) -> FileLogObserver:
    """Observe for the systemd journal: ``twistd --logger echod.daemon.logs.journal``.

    One line an event, which begins with its syslog priority (sd-daemon(3)). The journal
    itself knows when.

    :param file: where to write; by default standard output.
    """
    return FileLogObserver(file or sys.stdout, journal_line)


def journal_line(event: LogEvent) -> str | None:
    """Return the line for ``event``; ``None``: it says nothing."""
    text = text_of(event)
    priority = PRIORITIES[event.get("log_level", LogLevel.info)]
    return f"<{priority}>{on_one_line(text)}\n" if text else None


def json_lines(file: TextIO | None = None) -> FileLogObserver:
    """Observe for machines: ``twistd --logger echod.daemon.logs.json_lines``.

    One JSON object a line: ``time`` (RFC 3339, UTC), ``level``, ``event``, and the
    fields of that event. What has no fields is the event ``message``, with its text in
    ``message``.

    :param file: where to write; by default standard output.
    """
    return FileLogObserver(file or sys.stdout, json_line)


def json_line(event: LogEvent) -> str | None:
    """Return the line for ``event``; ``None``: it says nothing."""
    if event.get("log_namespace") == log.namespace and "event" in event:
        fields = {name: value for name, value in event.items() if not name.startswith("log_")}
    else:
        fields = {"event": "message", "message": text_of(event)}
        if not fields["message"]:
            return None
    time = datetime.fromtimestamp(event["log_time"], timezone.utc)
    level = event.get("log_level", LogLevel.info)
    head = {"time": time.isoformat(timespec="microseconds"), "level": level.name}
    return json.dumps({**head, **fields}) + "\n"


def text_of(event: LogEvent) -> str:
    """Return what ``event`` says, with its traceback if it has one."""
    return eventAsText(event, includeTimestamp=False, includeSystem=False)
