"""Statistics of a load run: each second, throughput, and the processor time of this process."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, NamedTuple

from echod.client.histogram import Histogram
from echod.client.replies import MessageTally

SECOND: Final = 1.0

SCHEDSTAT: Final = "/proc/self/schedstat"
"""Nanoseconds that this process has run, and has waited for a processor (proc(5))."""


class Usage(NamedTuple):
    """Processor time of this process.

    :ivar cpu: seconds that it ran.
    :ivar waited: seconds that it was runnable, while other processes ran.
    """

    cpu: float
    waited: float


def process_usage() -> Usage:
    """Return the processor time of this process since its start."""
    try:
        with open(SCHEDSTAT) as file:
            waited = int(file.read().split()[1]) / 1e9
    except OSError:  # a kernel without CONFIG_SCHED_INFO
        waited = 0.0
    return Usage(time.process_time(), waited)


class Interval(NamedTuple):
    """One second of the run. The field names are those of the JSON output.

    :ivar start_seconds: since the beginning of the run.
    :ivar seconds: its length.
    :ivar messages: undamaged replies received in it.
    :ivar p50_seconds: of the latency; ``None`` without a reply, as are the next two.
    :ivar p99_seconds: of the latency.
    :ivar max_seconds: of the latency.
    """

    start_seconds: float
    seconds: float
    messages: int = 0
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    max_seconds: float | None = None

    @classmethod
    def of(cls, start: float, seconds: float, times: Histogram) -> Interval:
        """Return the figures of one second.

        They are kept in place of its histogram, which takes a quarter of a megabyte.
        """
        if not times.count:
            return cls(start, seconds)
        percentiles = times.percentile(50), times.percentile(99)
        return cls(start, seconds, times.count, *percentiles, times.most)


class Statistics:
    """The figures of one load run, except the tally of its messages.

    :param tally: counts the replies.
    :param on_interval: called with each interval.
    :param usage: returns the processor time of this process.
    :ivar sending_seconds: how long messages were sent.
    :ivar sent: messages sent in this time.
    :ivar replies: replies received in this time.
    :ivar used: processor time in this time.
    """

    def __init__(
        self,
        tally: MessageTally,
        on_interval: Callable[[Interval], None],
        usage: Callable[[], Usage] = process_usage,
    ) -> None:
        self.intervals: list[Interval] = []
        self.sending_seconds = 0.0
        self.sent = self.replies = 0
        self.used = Usage(0.0, 0.0)
        self._tally = tally
        self._on_interval = on_interval
        self._usage = usage
        self._start = self._summed = 0.0
        self._recent = Histogram()  # of the last interval

    def begin(self, now: float) -> None:
        """Begin to measure the time and the processor use."""
        self._start = self._summed = now
        self._before = self._usage()

    def end(self, now: float, sent: int, replies: int) -> None:
        """Record the figures of the time in which messages were sent."""
        after = self._usage()
        self.sending_seconds = now - self._start
        self.sent, self.replies = sent, replies
        self.used = Usage(after.cpu - self._before.cpu, after.waited - self._before.waited)

    def add_interval(self, moment: float) -> None:
        """Add the interval up to ``moment``. If below 0.5 s, it extends the one before."""
        times = self._tally.sum_up()
        start, seconds = self._summed - self._start, moment - self._summed
        self._summed = moment
        if seconds < SECOND / 2 and self.intervals:
            last = self.intervals.pop()
            start, seconds = last.start_seconds, last.seconds + seconds
            self._recent.add(times)
        else:
            self._recent = times
        self.intervals.append(Interval.of(start, seconds, self._recent))
        self._on_interval(self.intervals[-1])
