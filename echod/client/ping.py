"""``echod-client ping``: send a message at each interval, whether or not replies come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from echod.client.connector import Connector
from echod.client.measurement import Channel, Measurement
from echod.client.pacing import Schedule

MISSED: Final = 1.0
"""Seconds by which a message may be late. After a longer stop of this process or machine, the
messages that were due are skipped: sent all at once, they would measure a burst."""

REPLIES_PER_SUMMARY: Final = 4096
"""Replies after which their times go into the histogram: a ping may run for days."""


class PingReply(NamedTuple):
    """A reply.

    :ivar number: of the message, from 0 on.
    :ivar seconds: the round-trip time.
    :ivar damaged: wrong bytes.
    :ivar late: whether it came after the timeout.
    """

    number: int
    seconds: float
    damaged: int
    late: bool


class Ping(Measurement):
    """One run of ``ping``.

    :param interval: seconds between two messages.
    :param count: messages to send; ``None``: until :meth:`stop`.
    :param on_reply: called with each reply.
    :param on_connected: called with the channel before the first message.
    :ivar skipped: messages that were due while this process was stopped. They are not sent, and do
        not count towards ``count``.
    :ivar jitter: mean absolute difference, in seconds, between the round-trip times of two
        successive messages (the IPDV of RFC 3393); ``None`` without such a pair.
    """

    def __init__(
        self,
        connector: Connector,
        size: int,
        *,
        interval: float,
        count: int | None,
        on_reply: Callable[[PingReply], None],
        on_connected: Callable[[Channel], None] = lambda _: None,
    ) -> None:
        super().__init__(connector, size)
        self.interval = interval
        self.skipped = 0
        self._count = count
        self._on_reply = on_reply
        self._on_connected = on_connected
        self._differences = 0
        self._difference = 0.0  # the sum of them, in seconds
        self._previous: tuple[int, float] | None = None

    @property
    def jitter(self) -> float | None:
        """The jitter in seconds, or ``None``; see :class:`Ping`."""
        return self._difference / self._differences if self._differences else None

    async def connect(self) -> None:
        """Open the channel."""
        await self.connector.resolve()
        await self.open()

    def begin_sending(self) -> None:
        """Send the first message, and the others at their times."""
        self._on_connected(self.channels[0])
        if not self.stopped:
            self.pace(Schedule(self.clock.seconds(), self.interval), self._send)

    def summarize(self) -> None:
        """Count the times of the last replies."""
        self.tally.sum_up()

    def replied(self, number: int, since: float, now: float, damaged: int) -> None:
        """Report a reply, and count it."""
        if self._is_final:
            return
        seconds = now - since
        if not damaged:
            if self._previous is not None and self._previous[0] == number - 1:
                self._differences += 1
                self._difference += abs(seconds - self._previous[1])
            self._previous = number, seconds
        self._on_reply(PingReply(number, seconds, damaged, seconds > self.timeout))
        super().replied(number, since, now, damaged)
        if self.answered % REPLIES_PER_SUMMARY == 0:
            self.tally.sum_up()

    def _send(self, moment: float) -> None:
        now = self.clock.seconds()
        if now - moment > MISSED:
            self.skipped += 1
            return
        # The round trip begins with send(2), not at the scheduled time: the delay of a late timer
        # is not part of the path's latency.
        self.channels[0].begin()
        self.scheduling.record((now - moment,))
        if self.sent == self._count:
            self.stop_sending()
