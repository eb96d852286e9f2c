"""Match replies to messages, and count received, late, damaged and lost messages.

In the end, each message is one of: received (right, and in time), late (right, after the timeout),
damaged (with wrong bytes), or lost. Further replies to the same message (duplicated), and replies
that a later message has overtaken (reordered), are counted separately.
"""

from __future__ import annotations

import time
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Reversible, Sequence
from itertools import cycle
from typing import Final

from echod.client.histogram import Batch, Histogram
from echod.client.payloads import MASK, DatagramPayloads, differences

WINDOW: Final = 1 << 17
"""Datagrams after which a duplicate is not recognised any more, and counts as unexpected."""

MAX_OUTSTANDING: Final = 1 << 20
"""Datagrams that await a reply. Above this, the oldest is given up: losses take no more memory."""

ReplyCallback = Callable[[int, float, float, int], None]
"""Called for each reply with the number of its message, the start and the end of the round trip (in
seconds), and the number of wrong bytes."""


class MessageTally:
    """Counts of messages by outcome, and the histogram of round-trip times.

    :param timeout: seconds after which a reply is late.
    :ivar dropped_here: messages whose reply this machine dropped, or that its kernel did not send.
    """

    def __init__(self, timeout: float) -> None:
        self.timeout = timeout
        self.sent = 0
        self.received = 0
        self.late = 0
        self.damaged = 0
        self.damaged_bytes = 0
        self.duplicated = 0
        self.reordered = 0
        self.unexpected = 0
        self.under_way = 0
        self.dropped_here = 0
        self.times = Histogram()
        self._recent = Histogram()
        self._pending = Batch(self._record)
        self.count = self._pending.add  # the round-trip time of a right reply, in seconds

    @property
    def lost(self) -> int:
        """Messages without a reply, except those that this machine dropped."""
        replies = self.received + self.late + self.damaged
        return self.sent - replies - self.under_way - self.dropped_here

    def reply(self, since: float, now: float, damaged: int) -> None:
        """Count a reply that has ``damaged`` wrong bytes."""
        if damaged:
            self.damaged += 1
            self.damaged_bytes += damaged
        else:
            self.count(now - since)

    def sum_up(self) -> Histogram:
        """Return the round-trip times since the last call, and add them to :attr:`times`."""
        self._pending.flush()
        recent, self._recent = self._recent, Histogram()
        self.times.add(recent)
        return recent

    def _record(self, seconds: Sequence[float]) -> None:
        late = sum([each > self.timeout for each in seconds])
        self.late += late
        self.received += len(seconds) - late
        self._recent.record(seconds)


class StreamReplies:
    """The messages of one connection and their replies, which come in the same order.

    :param tally: counts unexpected bytes.
    :param messages: the messages, which are sent in rotation.
    :param reply: called for each reply.
    :param seconds: the clock for a reply whose stamp is wrong: before the start of its round trip.
    :ivar message: returns the next message to send.
    :ivar begun: counts it as sent; called with the start of its round trip, in seconds.
    :ivar finished: the number of replies.
    """

    def __init__(
        self,
        tally: MessageTally,
        messages: Sequence[bytes],
        reply: ReplyCallback,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally = tally
        self._reply = reply
        self._seconds = seconds
        self._since: deque[float] = deque()
        # Bound methods: calls of Python functions would take most of the time for a message.
        self.message = cycle(messages).__next__
        self.begun = self._since.append
        self._next_expected = cycle(messages).__next__
        self._expected = self._next_expected()
        self._at = 0  # bytes of the expected reply that were received
        self._damaged = 0  # wrong ones among these
        self._transmitted = 0  # up to this message, round trips begin when it was transmitted
        self.finished = 0

    @property
    def sent(self) -> int:
        """The number of messages sent."""
        return self.finished + len(self._since)

    def transmitted(self, last_byte: int, moment: float) -> None:
        """Start the round trip of the last message at ``moment``, if it ends at ``last_byte``.

        Only the first such call does: TCP stamps each retransmission, too.
        """
        count = self.sent
        is_last = last_byte == (count * len(self._expected) - 1) & MASK
        if is_last and count > self._transmitted and self._since and self._since[-1] <= moment:
            self._since[-1] = moment
            self._transmitted = count

    def outstanding(self) -> Reversible[float]:
        """Return the start times of the outstanding messages, in seconds."""
        return self._since

    def received(self, data: bytes, now: float) -> None:
        """Match received data."""
        if data == self._expected and not self._at and self._since:
            # The usual case, as _finish() does it.
            number = self.finished
            self.finished = number + 1
            self._expected = self._next_expected()
            since = self._since.popleft()
            self._reply(number, since, now if now >= since else self._seconds(), 0)
        else:
            self._match(data, now)

    def _match(self, data: bytes, now: float) -> None:
        at = 0
        while at < len(data):
            if not self._since:
                self._tally.unexpected += len(data) - at
                return
            part = data[at : at + len(self._expected) - self._at]
            right = self._expected[self._at : self._at + len(part)]
            if part != right:
                self._damaged += differences(part, right)
            at += len(part)
            self._at += len(part)
            if self._at == len(self._expected):
                self._finish(now)

    def _finish(self, now: float) -> None:
        number, damaged = self.finished, self._damaged
        self._at = self._damaged = 0
        self.finished = number + 1
        self._expected = self._next_expected()
        since = self._since.popleft()
        self._reply(number, since, now if now >= since else self._seconds(), damaged)


class DatagramReplies:
    """The datagrams of one socket and their replies, which may be reordered or missing.

    :param tally: counts duplicated, reordered and unexpected replies.
    :param payloads: the contents of the datagrams.
    :param reply: called for the first reply to each datagram.
    :param seconds: as for :class:`StreamReplies`.
    :ivar first_stamped: the datagram whose transmit stamp has the number 0.
    """

    def __init__(
        self,
        tally: MessageTally,
        payloads: DatagramPayloads,
        reply: ReplyCallback,
        seconds: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tally = tally
        self._payloads = payloads
        self._reply = reply
        self._seconds = seconds
        self._since: dict[int, float] = {}
        self._answered = array("q")  # the last WINDOW numbers; grows to a megabyte
        self._last_answered = -1  # the highest number
        self.first_stamped = 0
        self.sent = 0

    def message(self) -> bytes:
        """Return the next datagram to send."""
        return self._payloads.build(self.sent)

    def begun(self, since: float) -> None:
        """Count the next datagram as sent; ``since`` is the start of its round trip."""
        number = self.sent
        self.sent += 1
        self._since[number] = since
        if number < WINDOW:
            self._answered.append(-1)
        if len(self._since) > MAX_OUTSTANDING:
            del self._since[next(iter(self._since))]

    def transmitted(self, number: int, moment: float) -> None:
        """Start the round trip of the last datagram at ``moment``, if it has this number.

        :param number: counted from :attr:`first_stamped` on.
        """
        last = self.sent - 1
        if (
            number == last - self.first_stamped & MASK
            and self._since.get(last, moment + 1.0) <= moment
        ):
            self._since[last] = moment

    def again(self, now: float) -> Iterator[bytes]:
        """Yield the outstanding datagrams that are not late yet, to be sent to another address.

        Their round trips start again at ``now``.
        """
        for number, since in list(self._since.items()):
            if now - since <= self._tally.timeout:
                self._since[number] = now
                yield self._payloads.build(number)

    def outstanding(self) -> Reversible[float]:
        """Return the start times of the outstanding datagrams, in seconds."""
        return self._since.values()

    def received(self, data: bytes, now: float) -> None:
        """Match a datagram that was received."""
        found = self._payloads.find(data, self.sent)
        if found is None:
            self._tally.unexpected += 1
            return
        number, damaged = found
        since = self._since.pop(number, None)
        if since is not None:
            self._answered[number % WINDOW] = number
            self._tally.reordered += number < self._last_answered
            self._last_answered = max(number, self._last_answered)
            self._reply(number, since, now if now >= since else self._seconds(), damaged)
        elif number < self.sent and self._answered[number % WINDOW] == number:
            self._tally.duplicated += 1
        else:
            self._tally.unexpected += 1
