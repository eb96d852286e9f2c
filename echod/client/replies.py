"""Which reply belongs to which message, and what became of each.

Each message that was sent is, in the end, one of: received (right, and in time), late (right,
after the timeout), damaged (with bytes that are wrong), lost. Besides, and counted apart: how many
came again (duplicated), and how many came after one that was sent later (reordered).
"""

from __future__ import annotations

from array import array
from collections import deque
from collections.abc import Callable, Iterator, Reversible, Sequence
from typing import Final

from echod.client.histogram import Histogram
from echod.client.payloads import DatagramPayloads, differences

WINDOW: Final = 1 << 17
"""Messages after which one that comes again is not known any more."""

OUTSTANDING: Final = 1 << 20
"""Datagrams awaiting a reply. Older ones are given up, so that losses do not take all memory."""

ReplyCallback = Callable[[int, float, float, int], None]
"""Is told of a reply: the number of its message, from when it counts and when it came (seconds),
and how many of its bytes were wrong."""


class MessageTally:
    """What became of the messages.

    :param timeout: seconds after which a reply is late.
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
        self.times = Histogram()
        self._fresh: list[float] = []
        self.count = self._fresh.append

    @property
    def lost(self) -> int:
        """How many never came back."""
        return self.sent - self.received - self.late - self.damaged - self.under_way

    def reply(self, since: float, now: float, damaged: int) -> None:
        """Count a reply with so many wrong bytes."""
        if damaged:
            self.damaged += 1
            self.damaged_bytes += damaged
        else:
            self.count(now - since)

    def sum_up(self) -> Histogram:
        """Return the times of the replies since this was called last, and count these in all."""
        recent = Histogram()
        recent.record(self._fresh)
        late = sum(each > self.timeout for each in self._fresh)
        self.late += late
        self.received += len(self._fresh) - late
        self._fresh.clear()
        self.times.add(recent)
        return recent


class StreamReplies:
    """The replies on one connection: all that was sent, in order.

    :param tally: is told of what nobody asked for.
    :param messages: what is sent, one after the other and over again.
    :param reply: is told of each reply.
    """

    def __init__(
        self, tally: MessageTally, messages: Sequence[bytes], reply: ReplyCallback
    ) -> None:
        self._tally = tally
        self._messages = messages
        self._reply = reply
        self._since: deque[float] = deque()
        self._expected = messages[0]
        self._at = 0  # bytes of that which have come
        self._damaged = 0  # of these
        self.sent = 0
        self.finished = 0

    def send(self, since: float) -> bytes:
        """Return the next message, which counts from ``since`` on, to be sent now."""
        message = self._messages[self.sent % len(self._messages)]
        self.sent += 1
        self._since.append(since)
        return message

    def outstanding(self) -> Reversible[float]:
        """Return from when those count that have no reply yet."""
        return self._since

    def received(self, data: bytes, now: float) -> None:
        """Take what came back."""
        if data == self._expected and not self._at and self._since:  # as most often
            number = self.finished
            self.finished = following = number + 1
            self._expected = self._messages[following % len(self._messages)]
            self._reply(number, self._since.popleft(), now, 0)
        else:
            self._parts(data, now)

    def _parts(self, data: bytes, now: float) -> None:
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
        self.finished += 1
        self._expected = self._messages[self.finished % len(self._messages)]
        self._reply(number, self._since.popleft(), now, damaged)


class DatagramReplies:
    """The replies to datagrams from one socket, in any order, or none.

    :param tally: is told of what came again, or nobody asked for.
    :param datagrams: what is sent.
    :param reply: is told of each reply that is the first to its datagram.
    """

    def __init__(
        self, tally: MessageTally, datagrams: DatagramPayloads, reply: ReplyCallback
    ) -> None:
        self._tally = tally
        self._datagrams = datagrams
        self._reply = reply
        self._since: dict[int, float] = {}
        self._answered = array("q")  # a megabyte in the end: not of each of many sockets at once
        self._last = -1  # of all that were answered
        self.sent = 0

    def send(self, since: float) -> bytes:
        """Return the next datagram, which counts from ``since`` on, to be sent now."""
        number = self.sent
        self.sent += 1
        self._since[number] = since
        if number < WINDOW:
            self._answered.append(-1)
        if len(self._since) > OUTSTANDING:
            del self._since[next(iter(self._since))]
        return self._datagrams.build(number)

    def again(self, now: float) -> Iterator[bytes]:
        """Yield the datagrams that have no reply and are not late yet; they count from ``now`` on.

        They were sent to an address that refuses.
        """
        for number, since in list(self._since.items()):
            if now - since <= self._tally.timeout:
                self._since[number] = now
                yield self._datagrams.build(number)

    def outstanding(self) -> Reversible[float]:
        """Return from when those count that have no reply yet."""
        return self._since.values()

    def received(self, data: bytes, now: float) -> None:
        """Take a datagram that came back."""
        found = self._datagrams.find(data, self.sent)
        if found is None:
            self._tally.unexpected += 1
            return
        number, damaged = found
        since = self._since.pop(number, None)
        if since is not None:
            self._answered[number % WINDOW] = number
            if number < self._last:
                self._tally.reordered += 1
            else:
                self._last = number
            self._reply(number, since, now, damaged)
        elif number < self.sent and self._answered[number % WINDOW] == number:
            self._tally.duplicated += 1
        else:
            self._tally.unexpected += 1
