"""``echod-client load``: send many messages, in an open loop or a closed loop.

In an *open loop* each message is sent at its scheduled time, whether or not replies come. Its
latency counts from that time, and includes delays in the queues of client and service. In a
*closed loop* a connection sends when the reply to its last message has come. While the service
stalls it then sends nothing, so that the worst moments are hardly measured (coordinated omission):
a closed loop shows the capacity of the service, not the latency that its users see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice, repeat
from math import inf
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.interfaces import IDelayedCall

from echod.client.connector import Connector
from echod.client.errors import TIMED_OUT
from echod.client.histogram import Histogram
from echod.client.measurement import Channel, Measurement
from echod.client.pacing import Pacer, Schedule, Workload
from echod.client.replies import ReplyCallback
from echod.client.statistics import SECOND, Interval, Statistics, Usage, process_usage
from echod.client.streams import StreamChannel
from echod.timeouts import CHECKS_PER_TIMEOUT

AT_ONCE: Final = 8
"""Connections that are made at the same time: with more, each would wait for the others."""


class Load(Measurement):
    """One run of ``load``.

    :param on_interval: called with each second of the run.
    :param usage: returns the processor time of this process.
    :param wall_clock: returns the UNIX time.
    :param workload: the fields of a :class:`Workload`.
    :ivar rate: messages a second in all, the mean of a ramp; ``None`` for a closed loop.
    :ivar made: connections made, or sockets over UDP.
    :ivar connect_times: seconds to connect. If connections are replaced, only while messages count.
    :ivar handshake_times: seconds that each TLS handshake took after that.
    :ivar warm_up_messages: messages that do not count.
    :ivar silent: connections on which messages were sent, and no complete reply came back.
    """

    def __init__(
        self,
        connector: Connector,
        size: int,
        *,
        on_interval: Callable[[Interval], None],
        payload: bytes = b"",
        usage: Callable[[], Usage] = process_usage,
        wall_clock: Callable[[], float] = time.time,
        **workload: Any,
    ) -> None:
        super().__init__(connector, size, payload)
        self.workload = Workload(**workload)
        self.rate = self.workload.mean_rate()
        self.connect_times, self.handshake_times = Histogram(), Histogram()
        self.statistics = Statistics(self.tally, on_interval, usage, lambda: self.dropped)
        self.counted_from = inf
        self._wall_clock = wall_clock
        self.made = self.silent = self.warm_up_messages = self._warm_up_dropped = 0
        self._retired = 0  # messages of connections that are replaced
        # The number of the last message on a connection.
        self._last = (self.workload.per_connection or 0) - 1
        self._openings: set[Deferred[Any]] = set()
        self._overdue: list[float] = []  # moments at which no connection could take a message
        self._end, self._turn = 0.0, -1  # of sending, and the channel that has sent last
        self._allowed: Iterator[bool] = repeat(True)  # to send each message of a closed loop
        self._timer: IDelayedCall | None = None  # of the next phase

    async def connect(self) -> None:
        """Open all channels that can be opened."""
        await self.connector.resolve()
        left = iter(range(self.workload.connections))
        await self._connect_some(islice(left, 1))  # alone: it finds the address for all
        makers = [self._connect_some(left) for _ in range(AT_ONCE)]
        await gatherResults([Deferred.fromCoroutine(maker) for maker in makers])

    async def _connect_some(self, left: Iterator[int]) -> None:
        # After one timeout, no more are begun: each would take as long.
        while not self.stopped and TIMED_OUT not in self.errors and next(left, None) is not None:
            await self._connect()

    async def _connect(self) -> Channel | None:
        try:
            channel = await self.open()
        except Exception as error:
            self.connection_failed(error)
            return None
        self.made += 1
        if isinstance(channel, StreamChannel):
            self.connect_times.record((channel.connect_seconds,))
            if channel.handshake_seconds is not None:
                self.handshake_times.record((channel.handshake_seconds,))
        return channel

    def connection_failed(self, error: BaseException) -> None:
        """Count a connection that could not be made, unless sending has ended."""
        if self._sending is None or self.is_sending:
            super().connection_failed(error)

    def has_open(self) -> bool:
        """Return whether a channel is open, or is being opened."""
        return bool(self._openings) or super().has_open()

    @property
    def is_counting(self) -> bool:
        """Whether messages count: the warm-up is over."""
        return self.counted_from < inf

    @property
    def sent(self) -> int:
        """Messages sent that count."""
        return super().sent + self._retired - self.warm_up_messages if self.is_counting else 0

    @property
    def dropped(self) -> int:
        """Datagrams dropped by this machine since messages count."""
        return super().dropped - self._warm_up_dropped

    def begin_sending(self) -> None:
        """Wait for the time of a common start, if there is one, and begin."""
        wait = (self.workload.start_at or inf) - self._wall_clock()
        if wait < 0:
            self.failure = f"connecting took until {-wait:.3f} s after --start-at"
            self.stop_sending()
        else:
            self._later(wait if wait < inf else 0.0, self._begin)

    def _begin(self) -> None:
        """Send at the rate; in a closed loop, the first message on each channel."""
        start, self._end = self.clock.seconds(), inf
        self._later(self.workload.warm_up, self._count)
        if self.rate is None:
            self.pace(Schedule(start, self.timeout / CHECKS_PER_TIMEOUT), self._replace_lost)
            for channel in self.channels:
                if channel.open:
                    self._begin_next(channel)
        elif self.workload.warm_up:
            self.pace(self.workload.schedule(start, is_warm_up=True), self._send_due)

    def _later(self, seconds: float, act: Callable[[], None]) -> None:
        if seconds:
            self._timer = self.clock.callLater(seconds, act)
        else:
            act()

    def _count(self) -> None:
        """Begin to count, at the end of the warm-up."""
        start, duration, tally = self.clock.seconds(), self.workload.seconds, self.tally
        self.warm_up_messages = super().sent + self._retired
        self._warm_up_dropped = super().dropped
        if self.workload.per_connection:
            self.connect_times, self.handshake_times = Histogram(), Histogram()
        if self.workload.warm_up:
            tally.duplicated = tally.reordered = tally.unexpected = 0
        self.counted_from = start
        self._overdue.clear()  # they would count as sent, and their replies would not count
        if self.workload.count:
            self._allowed = repeat(True, self.workload.count)
        self._end = start + duration
        self.statistics.begin(start)
        if duration < inf:
            self._later(duration, self._time_is_over)
        schedule = Schedule(start + SECOND, SECOND)
        self._intervals = Pacer(self.clock, schedule, self.statistics.add_interval)
        self._intervals.run()
        if self.rate is not None:
            super().end_sending()  # of the warm-up
            self.pace(self.workload.schedule(start), self._send_due)

    def _time_is_over(self) -> None:
        if self.workload.ends_by_count and self._pacer is not None:
            # Its last message may be overdue.
            self._pacer.done.addCallback(lambda _: self.stop_sending())
        else:
            self.stop_sending()

    def end_sending(self) -> None:
        """Stop sending, and record the figures; the intervals continue until the last reply."""
        super().end_sending()
        self._end = 0.0
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        for opening in list(self._openings):
            opening.cancel()
        if self.is_counting:
            self.statistics.end(self.clock.seconds(), self.sent, self.answered)
        elif not self.stopped:
            self.failure = self.failure or "all connections ended before messages counted"

    def summarize(self) -> None:
        """Complete the interval up to now, and count the silent connections."""
        now = self.clock.seconds()
        if self.is_counting:
            self.statistics.add_interval(now)
            if self._is_final:
                self._intervals.stop()
            if self.is_sending:
                self.statistics.end(now, self.sent, self.answered)
        super().summarize()
        self.statistics.count_lost(self.unanswered())
        self.silent = sum(each.sent > 0 and not each.replies.finished for each in self.streams)

    def reply_handler(self, channel: Channel) -> ReplyCallback:
        """Return a function that counts a reply; in a closed loop, it sends the next message."""
        if self.rate is not None:
            return self._close_after_last(channel) if self.workload.per_connection else self.replied
        count = self.tally.count

        def replied(number: int, since: float, now: float, damaged: int) -> None:
            if damaged or since < self.counted_from or self._is_final:
                self.replied(number, since, now, damaged)
            else:  # as self.replied() does, without the call
                count(now - since)
                self.answered += 1
            # A reply to an earlier message sends nothing: _replace_lost has replaced that message.
            if now < self._end and number == channel.replies.sent - 1:
                if number == self._last:
                    self._retire(channel)
                    self._replace()
                else:
                    self._begin_next(channel)
            elif self._waiting is not None:
                self.check_finished()

        return replied

    def _close_after_last(self, channel: Channel) -> ReplyCallback:
        def replied(number: int, since: float, now: float, damaged: int) -> None:
            if number == self._last:
                self._retire(channel)
            self.replied(number, since, now, damaged)

        return replied

    def _send_due(self, moment: float) -> None:
        if moment >= self.counted_from:
            self.slips.add(self.clock.seconds() - moment)
        self._send(moment)

    def _send(self, moment: float) -> None:
        for _ in self.channels:
            self._turn += 1
            channel = self.channels[self._turn % len(self.channels)]
            if channel.open and channel.sent != self.workload.per_connection:
                channel.begin(moment)
                if channel.sent == self.workload.per_connection:
                    self._replace()
                return
        self._overdue.append(moment)

    def _retire(self, channel: Channel) -> None:
        assert isinstance(channel, StreamChannel)
        channel.ended.addCallback(self._forget, channel)
        channel.close()

    def _forget(self, kind: str, channel: StreamChannel) -> str:
        self.channels.remove(channel)
        self._retired += channel.sent
        self.connection_lost(channel, kind)
        return kind

    def _replace(self) -> None:
        """Make a connection for the messages to come."""
        opening = Deferred.fromCoroutine(self._connect())
        self._openings.add(opening)
        opening.addCallback(self._replaced, opening)

    def _replaced(self, channel: Channel | None, opening: Deferred[Any]) -> None:
        self._openings.discard(opening)
        if channel is None:
            if not self.has_open():
                self.stop_sending()
        elif self.rate is None:
            self._begin_next(channel)
        else:
            overdue, self._overdue = self._overdue, []
            for moment in overdue:
                self._send(moment)

    def _replace_lost(self, moment: float) -> None:
        """Replace lost datagrams; if all connections wait, end a load that only a count ends."""
        lost = self.waiting_since(moment - self.timeout) if moment < self._end else []
        if self.connector.protocol == "udp":
            for channel in lost:
                self._begin_next(channel)
        elif self.workload.ends_by_count and not self._openings and lost == self.channels:
            self.stop_sending()

    def _begin_next(self, channel: Channel) -> None:
        """Send the next message of a closed loop, or end it."""
        if next(self._allowed, False):
            channel.begin()
        else:
            self.stop_sending()
