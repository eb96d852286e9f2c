"""``echod-client ping``: send a message at each interval, whether or not replies come.

When a connection is lost, an *outage* begins. The ping then connects again, and the outage ends
with the first reply. A message that is due without a connection cannot be sent. It counts as sent
and lost, as ping(8) counts a packet that the kernel refuses: no outage shortens the run or improves
its figures.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.task import deferLater

from echod.client import events
from echod.client.connector import Connector
from echod.client.errors import error_word
from echod.client.measurement import Measurement
from echod.client.pacing import Schedule
from echod.client.statistics import Usage, process_usage
from echod.client.streams import StreamChannel
from echod.durations import LONGEST

MISSED: Final = 1.0
"""Seconds by which a message may be late. After a longer stop of this process or machine, the
messages that were due are skipped: sent all at once, they would measure a burst."""

RETRY: Final = 0.2
"""Seconds between two attempts to connect during an outage: the error of its measured length."""


@dataclass
class Outage:
    """A time without a connection that answers. The field names are those of the JSON output.

    :ivar error: the word of :mod:`echod.client.errors` for the end of the connection before.
    :ivar start_seconds: from the first message until then.
    :ivar seconds: until the last connection was made, or the end of the run.
    :ivar not_sent: messages that were due without a connection.
    :ivar ended: whether a reply has come on the last connection.
    """

    error: str
    start_seconds: float
    seconds: float = 0.0
    not_sent: int = 0
    ended: bool = False


class Ping(Measurement):
    """One run of ``ping``.

    :param interval: seconds between two messages.
    :param count: messages to send; ``None``: until :meth:`stop`.
    :param notify: called with each event.
    :param deadline: seconds after which the run is stopped.
    :param usage: returns the processor time of this process.
    :ivar connected: the first connection.
    :ivar begun: when the first message was due, in seconds.
    :ivar outages: in order; the last one may not have ended.
    :ivar waited: seconds that this process waited for a processor.
    :ivar skipped: messages that were due while this process was stopped. They are not sent, and do
        not count towards ``count``.
    :ivar jitter: mean absolute difference, in seconds, between the round-trip times of two
        successive messages (the IPDV of RFC 3393); ``None`` without such a pair.
    """

    dates_transmission = True
    connected = events.Connected("")
    begun = 0.0

    def __init__(
        self,
        connector: Connector,
        size: int,
        *,
        interval: float,
        count: int | None,
        notify: Callable[[events.Event], None],
        deadline: float = LONGEST,
        payload: bytes = b"",
        usage: Callable[[], Usage] = process_usage,
    ) -> None:
        super().__init__(connector, size, payload)
        self.interval = interval
        self.skipped = 0
        self.outages: list[Outage] = []
        self.waited = 0.0
        self._usage = usage
        self._waited_before = usage().waited
        self._count = count
        self._notify = notify
        self._deadline = deadline
        self._awaited: int | None = None  # the number of the last message, if it has no answer
        self._before = 0  # messages before those of the channel that is open
        self._differences = 0
        self._difference = 0.0  # the sum of them, in seconds
        self._previous: tuple[int, float] | None = None

    @property
    def sent(self) -> int:
        """Messages sent, including those that were due in an outage."""
        return self._before + super().sent

    @property
    def jitter(self) -> float | None:
        """The jitter in seconds, or ``None``; see :class:`Ping`."""
        return self._difference / self._differences if self._differences else None

    async def run(self) -> None:
        """Run until the last reply, the deadline, or :meth:`stop`."""
        expiry = self.clock.callLater(self._deadline, self._expire)
        await super().run()
        if expiry.active():
            expiry.cancel()

    def _expire(self) -> None:
        if self._sending is None:
            self.connection_failed(TimeoutError())
        self.stop()

    async def connect(self) -> None:
        """Open the channel."""
        await self.connector.resolve()
        channel = await self.open()
        names = ("connect_seconds", "handshake_seconds")  # a UDP socket has neither
        times = (getattr(channel, name, None) for name in names)
        self.connected = events.Connected(self.connector.address, *times)

    def begin_sending(self) -> None:
        """Send the first message, and the others at their times."""
        self._notify(self.connected)
        self.begun = self.clock.seconds()
        if not self.stopped:
            self.pace(Schedule(self.begun, self.interval), self._send)

    def end_sending(self) -> None:
        """Stop sending, and connecting."""
        super().end_sending()
        assert self._connecting is not None
        self._connecting.cancel()

    def connection_lost(self, channel: StreamChannel, kind: str) -> None:
        """Connect again, unless all messages are sent."""
        if not self.is_sending:
            return
        self._report_unanswered(events.LOST)
        self._before += channel.sent
        self.channels.remove(channel)
        is_new = not self._has_outage
        if is_new:
            self.outages.append(Outage(kind, self.clock.seconds() - self.begun))
            self._notify(events.Disconnected(kind))
        # A service that closes each connection without a reply prolongs the outage.
        self._connecting = Deferred.fromCoroutine(self._reconnect(0.0 if is_new else RETRY))

    async def _reconnect(self, delay: float) -> None:
        while not self.channels:
            try:
                await deferLater(self.clock, delay)
                await self.connector.resolve()  # the service may have moved
                await self.open()
            except Exception as error:
                if not self.is_sending:  # cancelled
                    return
                self.errors[error_word(error)] += 1
            delay = RETRY
        self._measure_outage()

    def _measure_outage(self) -> None:
        outage = self.outages[-1]
        outage.seconds = self.clock.seconds() - self.begun - outage.start_seconds

    @property
    def _has_outage(self) -> bool:
        return bool(self.outages) and not self.outages[-1].ended

    def summarize(self) -> None:
        """Complete the figures: an outage that is not over, and the waits for a processor."""
        if self._is_final and not self.stopped:
            self._report_unanswered(events.LOST)
        if self._has_outage and (self._is_final or not self.channels):
            self._measure_outage()
        super().summarize()
        self.waited = self._usage().waited - self._waited_before

    def replied(self, number: int, since: float, now: float, damaged: int) -> None:
        """Report a reply, and count it."""
        if self._is_final:
            return
        if self._has_outage:
            outage = self.outages[-1]
            outage.ended = True
            self._notify(events.Reconnected(outage.seconds, outage.not_sent))
        number += self._before
        if number == self._awaited:
            self._awaited = None
        seconds = now - since
        if not damaged:
            if self._previous is not None and self._previous[0] == number - 1:
                self._differences += 1
                self._difference += abs(seconds - self._previous[1])
            self._previous = number, seconds
        self._notify(events.Reply(number, seconds, damaged, seconds > self.timeout))
        super().replied(number, since, now, damaged)

    def _send(self, moment: float) -> None:
        now = self.clock.seconds()
        if now - moment > MISSED:
            self.skipped += 1
            return
        self._report_unanswered(events.PENDING)
        self._awaited = self.sent
        if self.channels:
            # The round trip begins with send(2), not at the scheduled time: the delay of a late
            # timer is not part of the path's latency.
            self.channels[0].begin()
            self.slips.add(now - moment)
        else:
            self._before += 1
            self._unanswerable += 1
            self.outages[-1].not_sent += 1
            self._report_unanswered(events.NOT_SENT)
        if self.sent == self._count:
            self.stop_sending()

    def _report_unanswered(self, state: str) -> None:
        if self._awaited is not None:
            number, self._awaited = self._awaited, None
            self._notify(events.Unanswered(number, state))
