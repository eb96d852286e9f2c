"""``echod-client ping``: a message at each of its times, whether or not the last came back."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from echod.client.connector import Connector
from echod.client.errors import kind_of, line_of
from echod.client.histogram import Histogram
from echod.client.measurement import Channel, Measurement
from echod.client.pacing import Pacer, Schedule
from echod.client.streams import StreamChannel

MISSED: Final = 1.0
"""Seconds by which a message may leave late. After a longer standstill of this program or its
machine, the messages that were due are skipped: all of them at once would measure only that."""

MANY: Final = 4096
"""Replies after which their times are summed up."""


class Probe(NamedTuple):
    """A reply.

    :ivar number: of the message, from 0 on.
    :ivar seconds: how long it took.
    :ivar damaged: bytes that are wrong.
    :ivar late: whether it came after the timeout.
    """

    number: int
    seconds: float
    damaged: int
    late: bool


class Ping(Measurement):
    """A run of it.

    :param interval: seconds between two messages.
    :param count: messages to send; ``None``: until :meth:`stop`.
    :param tell: is told of each reply.
    :ivar skipped: messages that were due while this program stood still. They are not sent, and do
        not count towards ``count``.
    :ivar failure: a line that says why there was no connection; "" else.
    :ivar jitter: seconds by which the times of two messages that follow each other differ, in the
        mean (the IPDV of RFC 3393, without its sign); ``None`` where there are no two.
    """

    def __init__(
        self,
        connector: Connector,
        size: int,
        *,
        interval: float,
        count: int | None,
        tell: Callable[[Probe], None],
        dont_fragment: bool = False,
    ) -> None:
        super().__init__(connector, size, dont_fragment)
        self.interval = interval
        self.scheduling = Histogram()
        self.skipped = 0
        self.failure = ""
        self.began: Callable[[Channel], None] = lambda _: None
        self._count = count
        self._tell = tell
        self._pacer: Pacer | None = None
        self._differences = 0
        self._differ = 0.0
        self._before: tuple[int, float] | None = None
        self._channel: Channel | None = None

    @property
    def stream(self) -> StreamChannel | None:
        """The connection, where there is one."""
        return self._channel if isinstance(self._channel, StreamChannel) else None

    @property
    def jitter(self) -> float | None:
        """Seconds; see above."""
        return self._differ / self._differences if self._differences else None

    async def run(self) -> None:
        """Run until the last message has come back, or had its time."""
        try:
            self._channel = await self.do(self._connect())
        except Exception as error:
            if not self.stopped:
                self.failed(error)
        else:
            self.began(self._channel)
            schedule = Schedule(self.clock.seconds(), self.interval)
            self._pacer = Pacer(self.clock, schedule, self._send)
            if self.stopped:
                self._pacer.stop()
            else:
                self._pacer.run()
            await self._pacer.done
        await self.last_replies()
        self.tally.sum_up()
        await self.close()

    async def _connect(self) -> Channel:
        await self.connector.find()
        return await self.open()

    def stop(self) -> None:
        """End it now."""
        super().stop()
        self._send_no_more()

    def replied(self, number: int, since: float, now: float, damaged: int) -> None:
        """Tell of a reply, and count it."""
        if self.counted:
            return
        seconds = now - since
        if not damaged:
            if self._before is not None and self._before[0] == number - 1:
                self._differences += 1
                self._differ += abs(seconds - self._before[1])
            self._before = number, seconds
        self._tell(Probe(number, seconds, damaged, seconds > self.timeout))
        super().replied(number, since, now, damaged)
        if self.answered % MANY == 0:  # it may go on for days
            self.tally.sum_up()

    def lost(self, kind: str, channel: StreamChannel) -> None:  # noqa: ARG002
        """Send no more."""
        self._send_no_more()

    def _send_no_more(self) -> None:
        if self._pacer is not None:
            self._pacer.stop()

    def failed(self, error: BaseException) -> None:
        """Note why there is no connection."""
        self.errors[kind_of(error)] += 1
        self.failure = line_of(error)

    def _send(self, moment: float) -> None:
        assert self._channel is not None
        now = self.clock.seconds()
        if now - moment > MISSED:
            self.skipped += 1
            return
        self.scheduling.record((now - moment,))
        # From now on, not from its moment: what this program is late by is not the path's.
        self._channel.begin(now)
        if self._channel.sent == self._count:
            self._send_no_more()
