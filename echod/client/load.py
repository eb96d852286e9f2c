"""``echod-client load``: many messages, in an open loop or a closed one.

In an *open loop* messages leave at their times, whatever comes back, and each counts from the
moment at which it should have left: what waits in a queue, here or there, has waited. In a *closed
loop* a connection sends when the reply to its last message has come. Then a service that stands
still is asked nothing meanwhile, and its worst moments hardly count (coordinated omission): a
closed loop shows what a service can do, not what its users see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final, NamedTuple

from twisted.internet.defer import Deferred, gatherResults

from echod.client.connector import Connector
from echod.client.datagrams import DatagramChannel
from echod.client.errors import TIMED_OUT, kind_of, line_of
from echod.client.histogram import Histogram
from echod.client.measurement import Channel, Measurement
from echod.client.pacing import Pacer, Schedule
from echod.client.replies import ReplyCallback
from echod.client.streams import StreamChannel

AT_ONCE: Final = 8
"""Connections that are made at the same time: more would be timed waiting for each other here."""

SECOND: Final = 1.0

LOOKS: Final = 8
"""How often it is looked, within a timeout, whether a datagram is to be given up."""

BUSY: Final = 0.9
"""Part of the time in which this process ran, or waited for a processor, from which on it may
have been what limits a closed loop."""

LATE: Final = 0.001
SLOW: Final = 0.99
"""Seconds by which an open loop's messages may leave late, but for one in a hundred, and part of
the rate that was asked for: what does worse has measured this program."""


SCHEDSTAT: Final = "/proc/self/schedstat"
"""Where the kernel says how long a process had to wait for a processor (proc(5))."""


class Usage(NamedTuple):
    """What this process has had of the machine.

    :ivar cpu: seconds in which it ran.
    :ivar waited: seconds in which it could have run, and others had the processor.
    """

    cpu: float
    waited: float


def usage() -> Usage:
    """Return what this process has had until now."""
    try:
        with open(SCHEDSTAT) as file:
            waited = int(file.read().split()[1]) / 1e9
    except OSError:  # not on every kernel
        waited = 0.0
    return Usage(time.process_time(), waited)


class Interval(NamedTuple):
    """A second of the run.

    :ivar start: seconds since the beginning.
    :ivar seconds: how long it is.
    :ivar replies: right ones that came in it.
    :ivar p50: seconds; 0 where there was none, as the next two.
    :ivar p99: seconds.
    :ivar most: seconds.
    """

    start: float
    seconds: float
    replies: int
    p50: float
    p99: float
    most: float

    @classmethod
    def of(cls, start: float, seconds: float, times: Histogram) -> Interval:
        """Return what is kept of a second: all its times would be a quarter of a megabyte."""
        return cls(
            start, seconds, times.count, times.percentile(50), times.percentile(99), times.most
        )


class Load(Measurement):
    """A run of it.

    :param connections: how many.
    :param duration: seconds for which messages are sent.
    :param rate: messages a second in all; ``None``: a closed loop.
    :param tell: is told of each interval.
    :param use: tells what this process has had of the machine.
    :ivar connecting: how long the connections took to be made.
    :ivar scheduling: by how many seconds messages left late, in an open loop.
    :ivar sending: seconds for which messages were sent.
    :ivar in_time: replies that came within these.
    :ivar sent_in_time: messages that left within these.
    :ivar silent: connections on which nothing at all came back.
    :ivar failure: a line that says why no connection could be made; "" else.
    """

    def __init__(
        self,
        connector: Connector,
        size: int,
        *,
        connections: int,
        duration: float,
        rate: float | None,
        tell: Callable[[Interval], None],
        use: Callable[[], Usage] = usage,
    ) -> None:
        super().__init__(connector, size)
        self.connections = connections
        self.duration = duration
        self.rate = rate
        self.connecting = Histogram()
        self.handshakes = Histogram()
        self.scheduling = Histogram()
        self.intervals: list[Interval] = []
        self.sending = 0.0
        self.in_time = self.sent_in_time = 0
        self.silent = 0
        self.failure = ""
        self.used = Usage(0.0, 0.0)
        self._tell = tell
        self._use = use
        self._slips: list[float] = []  # of the schedule, since it was summed up
        self._recent = Histogram()  # of the last interval
        self._start = self._summed = self._end = 0.0
        self._turn = -1
        self._pacers: list[Pacer] = []
        self._done: Deferred[None] = Deferred()

    async def run(self) -> None:
        """Connect, send, wait for what is still under way, and close."""
        try:
            await self.do(self._connect_all())
        except Exception as error:
            self._not_connected(error)
        if self.has_open() and not self.stopped:
            await self._send_all()
        await self.last_replies()
        if self._pacers:
            self._sum_up(self.clock.seconds())
        for pacer in self._pacers:
            pacer.stop()
        streams = [channel for channel in self.channels if isinstance(channel, StreamChannel)]
        self.silent = sum(channel.sent > 0 and not channel.replies.finished for channel in streams)
        await self.close()

    def stop(self) -> None:
        """End it now."""
        super().stop()
        self._finish()

    def teller(self, channel: Channel) -> ReplyCallback:
        """Return what is told of the replies on ``channel``, and sends the next message there."""
        if self.rate is not None:
            return self.replied

        count = self.tally.count

        def replied(number: int, since: float, now: float, damaged: int) -> None:
            if damaged:
                self.replied(number, since, now, damaged)
            else:  # the same, with a call less
                count(now - since)
                self.answered += 1
            if now < self._end and number == channel.replies.sent - 1:  # not one given up before
                channel.begin(now)
            elif self._waiting is not None:
                self.check()

        return replied

    def lost(self, kind: str, channel: StreamChannel) -> None:  # noqa: ARG002
        """Send no more if that was the last."""
        if self._pacers and not self.has_open():
            self._finish()

    async def _connect_all(self) -> None:
        await self.connector.find()
        left = iter(range(self.connections))
        await self._connect_some(islice(left, 1))  # alone: it finds the address for all
        makers = [self._connect_some(left) for _ in range(AT_ONCE)]
        await gatherResults([Deferred.fromCoroutine(maker) for maker in makers])

    async def _connect_some(self, left: Iterator[int]) -> None:
        # After one that had no answer in time, each would wait as long.
        while not self.stopped and TIMED_OUT not in self.errors and next(left, None) is not None:
            await self._connect_one()

    async def _connect_one(self) -> None:
        try:
            channel = await self.open()
        except Exception as error:
            self._not_connected(error)
            return
        if isinstance(channel, StreamChannel):
            self.connecting.record((channel.connect_seconds,))
            if channel.handshake_seconds is not None:
                self.handshakes.record((channel.handshake_seconds,))

    def _not_connected(self, error: BaseException) -> None:
        if not self.stopped:
            self.errors[kind_of(error)] += 1
            self.failure = line_of(error)

    async def _send_all(self) -> None:
        before = self._use()
        self._start = self._summed = start = self.clock.seconds()
        self._end = start + self.duration
        timer = self.clock.callLater(self.duration, self._finish)
        self._pace(Schedule(start + SECOND, SECOND), self._sum_up)
        if self.rate is None:
            self._pace(Schedule(start, self.timeout / LOOKS), self._look)
            for channel in self.channels:
                if channel.open:
                    channel.begin(self.clock.seconds())
        else:
            count = max(1, round(self.rate * self.duration))
            self._pace(Schedule(start, 1 / self.rate, count), self._send)
        await self._done
        if timer.active():
            timer.cancel()
        now = self.clock.seconds()
        self._end = 0.0
        self._pacers.pop().stop()
        self.sending = now - start
        self.in_time, self.sent_in_time = self.answered, self.sent
        after = self._use()
        self.used = Usage(after.cpu - before.cpu, after.waited - before.waited)

    def _pace(self, schedule: Schedule, act: Callable[[float], None]) -> None:
        self._pacers.append(Pacer(self.clock, schedule, act))
        self._pacers[-1].run()

    def _finish(self) -> None:
        if not self._done.called:
            self._done.callback(None)

    def _send(self, moment: float) -> None:
        self._slips.append(self.clock.seconds() - moment)
        self._turn += 1
        while not self.channels[self._turn % len(self.channels)].open:  # lost() ends it without any
            self._turn += 1
        self.channels[self._turn % len(self.channels)].begin(moment)

    def _look(self, moment: float) -> None:
        """Go on where a datagram is given up; a connection cannot, since its bytes are in order."""
        for channel in self.channels:
            if isinstance(channel, DatagramChannel):
                last = next(reversed(channel.replies.outstanding()), None)
                if last is not None and last + self.timeout <= moment < self._end:
                    channel.begin(moment)

    def _sum_up(self, moment: float) -> None:
        self.tally.sent = self.sent
        self.scheduling.record(self._slips)
        self._slips.clear()
        start, seconds, times = self._summed - self._start, moment - self._summed, self._recent
        self._summed = moment
        if seconds < SECOND / 2 and self.intervals:  # the last: too short for a figure
            before = self.intervals.pop()
            times.add(self.tally.sum_up())
            start, seconds = before.start, before.seconds + seconds
        else:
            times = self._recent = self.tally.sum_up()
        self.intervals.append(Interval.of(start, seconds, times))
        self._tell(self.intervals[-1])
