"""Statistics of a load run: each second, throughput, and the processor time of this process."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable
from operator import sub
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
    :ivar late: those of ``messages`` that came after the timeout.
    :ivar damaged: damaged replies received in it.
    :ivar dropped_here: messages or replies that this machine dropped in it.
    :ivar lost: messages that were due in it, and are lost; ``None`` until the end of the run.
    """

    start_seconds: float
    seconds: float
    messages: int = 0
    p50_seconds: float | None = None
    p99_seconds: float | None = None
    max_seconds: float | None = None
    late: int = 0
    damaged: int = 0
    dropped_here: int = 0
    lost: int | None = None

    @classmethod
    def of(cls, start: float, seconds: float, times: Histogram, *counts: int) -> Interval:
        """Return the figures of one second, which are kept in place of its histogram.

        :param counts: late, damaged, and dropped by this machine.
        """
        if not times.count:
            return cls(start, seconds, 0, None, None, None, *counts)
        percentiles = times.percentile(50), times.percentile(99)
        return cls(start, seconds, times.count, *percentiles, times.most, *counts)


class Statistics:
    """The figures of one load run, except the tally of its messages.

    :param tally: counts the replies.
    :param on_interval: called with each interval.
    :param usage: returns the processor time of this process.
    :param dropped: returns how many messages and replies this machine has dropped.
    :ivar on_times: called with the start of the times since the last call, their length in seconds,
        and their histogram.
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
        dropped: Callable[[], int] = lambda: 0,
    ) -> None:
        self.on_times: Callable[[float, float, Histogram], None] = lambda *_: None
        self.intervals: list[Interval] = []
        self.sending_seconds = 0.0
        self.sent = self.replies = 0
        self.used = Usage(0.0, 0.0)
        self._tally = tally
        self._on_interval = on_interval
        self._usage = usage
        self._dropped = dropped
        self._start = self._summed = self._begin = 0.0  # the last is that of the last interval
        self._recent = Histogram()  # of the last interval
        self._counts = self._before_it = (0, 0, 0)  # late, damaged, dropped

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
        self.on_times(self._summed - self._start, moment - self._summed, times)
        if moment - self._summed < SECOND / 2 and self.intervals:
            self.intervals.pop()
            self._recent.add(times)
        else:
            self._begin, self._recent, self._before_it = self._summed, times, self._counts
        self._summed = moment
        self._counts = self._tally.late, self._tally.damaged, self._dropped()
        counts = map(sub, self._counts, self._before_it)
        start, seconds = self._begin - self._start, moment - self._begin
        self.intervals.append(Interval.of(start, seconds, self._recent, *counts))
        self._on_interval(self.intervals[-1])

    def count_lost(self, starts: Iterable[float]) -> None:
        """Count the messages without a reply by the interval in which their round trips began.

        A reply that this machine dropped belongs to the nearest of these messages before it.

        :param starts: the beginnings of their round trips, in seconds.
        """
        begins = [self._start + each.start_seconds for each in self.intervals]
        unanswered = Counter(max(0, bisect_right(begins, start) - 1) for start in starts)
        dropped = 0
        for number, interval in reversed(list(enumerate(self.intervals))):
            dropped += interval.dropped_here
            taken = min(dropped, unanswered[number])
            dropped -= taken
            self.intervals[number] = interval._replace(lost=unanswered[number] - taken)
