"""The log: a line for each closed connection, rate-limited summaries of refusals, and formats.

An event that echod logs has a name, ``event``, and fields. :func:`text_lines` writes them as
sentences, :func:`journal` as lines for the systemd journal, and :func:`json_lines` as JSON objects.

Each line is written and flushed before the call that logs it returns, so that no line is lost when
the process dies.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import datetime, timezone
from functools import lru_cache
from typing import Final, TextIO

from twisted.internet.interfaces import IReactorTime
from twisted.logger import (
    FileLogObserver,
    LogEvent,
    Logger,
    LogLevel,
    eventAsText,
    formatEventAsClassicLogText,
    formatTime,
)

from echod.addresses import name_of, on_one_line
from echod.daemon.summary import RateLimitedSummary, Reasons
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

PRIORITIES: Final = {
    LogLevel.debug: 7,
    LogLevel.info: 6,
    LogLevel.warn: 4,
    LogLevel.error: 3,
    LogLevel.critical: 2,
}
"""The priorities of syslog(3)."""

CLOSED: Final = "closed {peer}: {ending}, {bytes} bytes in {seconds:.3f} s"
CUT_SHORT: Final = CLOSED + ", {unsent} of them not sent back"

to_json: Final = json.JSONEncoder().encode


class ConnectionLogger(Logger):
    """A logger with a faster :meth:`info`, for the line of each connection.

    Twisted's sorts all levels to check this one, and packs the fields twice.
    """

    def info(self, format: str | None = None, **kwargs: object) -> None:  # noqa: A002 - as Twisted's
        """Emit the event that Twisted's ``info`` emits."""
        kwargs["log_logger"] = self
        kwargs["log_level"] = LogLevel.info
        kwargs["log_namespace"] = self.namespace
        kwargs["log_source"] = self.source
        kwargs["log_format"] = format
        kwargs["log_time"] = time.time()
        self.observer(kwargs)


log = ConnectionLogger(namespace="echod")


class ConnectionLog:
    """An observer that logs connections and datagrams.

    :param clock: the clock of the summaries.
    :param quiet: log summaries of refusals, and no line for each connection.
    :param verbose: log each step of a connection, and unused connections, too.
    """

    def __init__(self, clock: IReactorTime, *, quiet: bool = False, verbose: bool = False) -> None:
        self._quiet = quiet
        self._verbose = verbose
        self._refused = RateLimitedSummary(clock, log_refused)
        self._dropped = RateLimitedSummary(clock, log_dropped)

    def __call__(self, event: Event) -> None:
        """Log ``event``, or count it for the next summary."""
        if isinstance(event, Closed):
            unused = event.ending is Ending.UNUSED
            if self._verbose if unused else not self._quiet:
                log_closed(event)
        elif isinstance(event, Refused):
            self._refused.add(event.reason.value, name_of(event.peer, tls=event.tls))
        elif isinstance(event, Dropped):
            self._dropped.add(event.drop.value, name_of(event.peer))
        elif self._verbose:
            log_step(event)

    def flush(self) -> None:
        """Log the pending summaries: call this before the process ends."""
        self._refused.flush()
        self._dropped.flush()


def log_closed(event: Closed) -> None:
    """Log the end of a connection."""
    log.info(
        CUT_SHORT if event.unsent > 0 else CLOSED,
        event="closed",
        peer=name_of(event.peer, tls=event.tls),
        ending=event.ending.value,
        bytes=event.bytes,
        seconds=round(event.seconds, 6),
        unsent=event.unsent,
    )


def log_step(event: Event) -> None:
    """Log a step of an open connection."""
    match event:
        case Accepted(peer, tls):
            log.debug("accepted {peer}", event="accepted", peer=name_of(peer, tls=tls))
        case HandshakeDone(peer, version, cipher, seconds):
            log.debug(
                "handshake with {peer}: {version}, {cipher}, in {seconds:.3f} s",
                event="handshake",
                peer=name_of(peer, tls=True),
                version=version,
                cipher=cipher,
                seconds=round(seconds, 6),
            )
        case HeaderRead(proxy, peer):
            log.debug(
                "PROXY header from {proxy}: the client is {peer}",
                event="proxy-header",
                proxy=name_of(proxy),
                peer=name_of(peer),
            )
        case HalfClosed(count, peer, tls):
            log.debug(
                "half-close by {peer}, after {bytes} bytes",
                event="half-close",
                peer=name_of(peer, tls=tls),
                bytes=count,
            )


def log_refused(total: int, reasons: Reasons, peer: str) -> None:
    """Log ``total`` refused connections, the last one from ``peer``."""
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
    """Log ``total`` datagrams that were not answered, the last one from ``peer``."""
    log.warn(
        "did not answer 1 datagram: {reasons}, from {peer}"
        if total == 1
        else "did not answer {total} datagrams: {reasons}, the last from {peer}",
        event="dropped",
        peer=peer,
        total=total,
        reasons=reasons,
    )


def text_lines(file: TextIO | None = None) -> FileLogObserver:
    """Log text: the format of twistd, which echod uses without ``--logger``.

    The lines are those of :func:`twisted.logger.textFileLogObserver`.

    :param file: the file to write to; by default standard output.
    """
    return FileLogObserver(file or sys.stdout, text_line)


def text_line(event: LogEvent) -> str | None:
    """Return the line for ``event``; ``None`` if it has no text."""
    text = own_text(event)
    if not text:
        return formatEventAsClassicLogText(event)
    stamp = time_stamp(int(event["log_time"]))
    line = f"{stamp} [{log.namespace}#{event['log_level'].name}] {text}"
    return line.replace("\n", "\n\t") + "\n"


@lru_cache(maxsize=1)
def time_stamp(second: int) -> str:
    """Return the local time ``second``, in seconds since the epoch, as twistd writes it.

    The last result is kept: to make it costs more than the rest of the line.
    """
    return formatTime(second)


def journal(file: TextIO | None = None) -> FileLogObserver:
    """Log for the systemd journal: ``twistd --logger echod.daemon.logs.journal``.

    One line for each event, which begins with its syslog priority (sd-daemon(3)). It has no time
    stamp: the journal adds one.

    :param file: the file to write to; by default standard output.
    """
    return FileLogObserver(file or sys.stdout, journal_line)


def journal_line(event: LogEvent) -> str | None:
    """Return the line for ``event``; ``None`` if it has no text."""
    text = text_of(event)
    priority = PRIORITIES[event.get("log_level", LogLevel.info)]
    return f"<{priority}>{on_one_line(text)}\n" if text else None


def json_lines(file: TextIO | None = None) -> FileLogObserver:
    """Log JSON: ``twistd --logger echod.daemon.logs.json_lines``.

    One JSON object on each line: ``time`` (RFC 3339, UTC), ``level``, ``event``, and the fields of
    that event. An event without fields is named ``message``, and has its text in ``message``.

    :param file: the file to write to; by default standard output.
    """
    return FileLogObserver(file or sys.stdout, json_line)


def json_line(event: LogEvent) -> str | None:
    """Return the line for ``event``; ``None`` if it has neither fields nor text."""
    if event.get("log_namespace") == log.namespace and "event" in event:
        fields = {name: value for name, value in event.items() if not name.startswith("log_")}
    elif text := text_of(event):
        fields = {"event": "message", "message": text}
    else:
        return None
    second, microsecond = divmod(round(event["log_time"] * 1e6), 1_000_000)
    level = event.get("log_level", LogLevel.info).name
    head = f'{{"time": "{utc_stamp(second)}.{microsecond:06}+00:00", "level": "{level}", '
    return head + to_json(fields).removeprefix("{") + "\n"


@lru_cache(maxsize=1)
def utc_stamp(second: int) -> str:
    """Return ``second``, in seconds since the epoch, as RFC 3339 without an offset; keep it."""
    return datetime.fromtimestamp(second, timezone.utc).replace(tzinfo=None).isoformat()


def text_of(event: LogEvent) -> str:
    """Return the text of ``event``, with its traceback if it has one."""
    return own_text(event) or eventAsText(event, includeTimestamp=False, includeSystem=False)


def own_text(event: LogEvent) -> str:
    """Return the text of an event of echod without a traceback; an empty string for any other.

    The templates of echod call no functions. So ``str`` can fill them, as Twisted does, in a ninth
    of the time.
    """
    if event.get("log_namespace") != log.namespace or "log_failure" in event:
        return ""
    try:
        return str(event["log_format"].format_map(event))
    except Exception:  # Twisted describes the mistake
        return ""
