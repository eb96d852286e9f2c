"""The run that ping and load share: connect, send, wait for the last replies, close.

A subclass opens the channels, and sends the messages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from math import inf
from typing import Final

from twisted.internet.defer import Deferred

from echod.client.connector import Connector
from echod.client.datagrams import DatagramChannel
from echod.client.epoll import EpollReader
from echod.client.errors import error_line, error_word
from echod.client.histogram import Batch, Histogram
from echod.client.pacing import Pacer, Schedule
from echod.client.payloads import DatagramPayloads, contents
from echod.client.replies import DatagramReplies, MessageTally, ReplyCallback, StreamReplies
from echod.client.streams import StreamChannel

DUPLICATES: Final = 0.02
ROUND_TRIPS: Final = 3
"""Over UDP, how long the run goes on after the last reply, to count a duplicate of it: at least
this many seconds and round trips, but not beyond the timeout."""

PACKET: Final = 1200
"""Maximum bytes of a message that is one packet on any path (RFC 8200 5). Of a longer message, the
kernel would stamp the last packet."""

Channel = StreamChannel | DatagramChannel


class Measurement:
    """Messages to a service and back.

    :param connector: connects to the service.
    :param size: bytes of a message.
    :cvar dates_transmission: whether a round trip begins when the kernel transmits the message.
        That takes another system call for each message, which halves the capacity.
    :param payload: of each message, on a connection, in place of ``size`` random bytes.
    :ivar failure: one line that says why there is no connection; "" otherwise.
    :ivar answered: messages that have a reply.
    :ivar counted_from: the time in seconds before which messages do not count.
    :ivar scheduling: seconds from when a message was due until it was sent. The latest ones are
        pending in :attr:`slips`.
    """

    dates_transmission = False

    def __init__(self, connector: Connector, size: int, payload: bytes = b"") -> None:
        self.connector = connector
        self.clock = connector.clock
        self.timeout = connector.timeout
        self.size = size = len(payload) or size
        self.tally = MessageTally(connector.timeout)
        self.errors: Counter[str] = connector.errors
        self.failure = ""
        self.channels: list[Channel] = []
        self.scheduling = Histogram()
        self.slips = Batch(self.scheduling.record)
        self.stopped = False
        self.counted_from = -inf
        self.answered = 0
        self._unanswerable = 0  # messages on connections that were lost
        self._is_final = False  # later replies do not count
        self._connecting: Deferred[None] | None = None
        self._sending: Deferred[None] | None = None
        self._pacer: Pacer | None = None
        self._waiting: Deferred[None] | None = None
        self._reader = EpollReader(
            connector.reactor,
            self.clock,
            size,
            connector.options.kernel_clock,
            self.dates_transmission and size <= PACKET,
        )
        self._contents: Sequence[bytes] = (payload,)
        if not payload and connector.protocol != "udp":
            self._contents = contents(size)

    async def run(self) -> None:
        """Connect, send, wait for the last replies, and close."""
        self._connecting = Deferred.fromCoroutine(self.connect())
        try:
            await self._connecting
        except Exception as error:
            self.connection_failed(error)
        if self.has_open() and not self.stopped:
            self._sending = Deferred()
            self.begin_sending()
            await self._sending
            self.end_sending()
        await self._last_replies()
        self.summarize()
        await self._close()

    def stop(self) -> None:
        """End the run now. Do not wait for messages in flight, nor count them as lost."""
        self.stopped = True
        if self._connecting is not None:
            self._connecting.cancel()
        self.stop_sending()
        self.check_finished()

    # A subclass overrides these.

    async def connect(self) -> None:
        """Open the channels."""

    def begin_sending(self) -> None:
        """Send messages, until :meth:`stop_sending` is called."""

    def end_sending(self) -> None:
        """Stop the timer of :meth:`pace`."""
        if self._pacer is not None:
            self._pacer.stop()

    def connection_lost(self, channel: StreamChannel, kind: str) -> None:  # noqa: ARG002
        """Stop sending if no connection is left; ``kind`` is the word for the error."""
        if not self.has_open():
            self.stop_sending()

    def summarize(self) -> None:
        """Bring the figures up to now. At the end of the run, they are final."""
        self.slips.flush()
        tally = self.tally
        tally.sum_up()
        tally.sent = self.sent
        tally.under_way = tally.dropped_here = 0
        if self.stopped or not self._is_final:
            since = max(self.clock.seconds() - self.timeout, self.counted_from)
            tally.under_way = sum(
                each >= since
                for channel in self.channels
                if channel.open
                for each in channel.outstanding()
            )
        # A dropped datagram may also be a duplicate, or a reply that came after the end.
        tally.dropped_here = min(self.dropped, tally.lost)

    def summarize_so_far(self) -> None:
        """Bring the figures up to now, unless they are final."""
        if not self._is_final:
            self.summarize()

    def reply_handler(self, channel: Channel) -> ReplyCallback:  # noqa: ARG002 - for subclasses
        """Return the function that is called with each reply on ``channel``."""
        return self.replied

    # Subclasses call these.

    async def open(self) -> Channel:
        """Open a channel.

        :raises Exception: if there is no connection: see :func:`echod.client.errors.error_word`.
        """
        if self.connector.protocol == "udp":
            datagrams = self.connector.datagrams(self._reader, lambda: not self.answered)
            self.channels.append(datagrams)
            handler = self.reply_handler(datagrams)
            payloads, seconds = DatagramPayloads(self.size), self.clock.seconds
            datagrams.use(DatagramReplies(self.tally, payloads, handler, seconds))
            return datagrams
        stream = await self.connector.channel(self._reader)
        self.channels.append(stream)
        handler, seconds = self.reply_handler(stream), self.clock.seconds
        stream.use(StreamReplies(self.tally, self._contents, handler, seconds))
        stream.ended.addCallback(self._ended, stream)
        return stream

    def connection_failed(self, error: BaseException) -> None:
        """Count a connection that could not be made."""
        if not self.stopped:
            self.errors[error_word(error)] += 1
            self.failure = error_line(error)

    def pace(self, schedule: Schedule, act: Callable[[float], None]) -> None:
        """Call ``act`` at each moment of ``schedule``, until :meth:`end_sending`."""
        self._pacer = Pacer(self.clock, schedule, act)
        self._pacer.run()

    def stop_sending(self) -> None:
        """Send no more messages."""
        if self._sending is not None and not self._sending.called:
            self._sending.callback(None)

    def replied(self, number: int, since: float, now: float, damaged: int) -> None:  # noqa: ARG002
        """Count a reply."""
        if self._is_final or since < self.counted_from:
            return
        self.tally.reply(since, now, damaged)
        self.answered += 1
        if self._waiting is not None:
            self.check_finished()

    def check_finished(self) -> None:
        """End the wait for the last replies if all have come, or the run is stopped."""
        if self._waiting is not None and (self.stopped or self._all_answered()):
            waiting, self._waiting = self._waiting, None
            waiting.callback(None)

    def has_open(self) -> bool:
        """Return whether a channel is open."""
        return any(channel.open for channel in self.channels)

    def waiting_since(self, moment: float) -> list[Channel]:
        """Return the channels whose last message began by ``moment``, and has no reply."""
        starts = ((each, next(reversed(each.replies.outstanding()), inf)) for each in self.channels)
        return [channel for channel, start in starts if start <= moment]

    @property
    def is_sending(self) -> bool:
        """Whether messages are sent."""
        return self._sending is not None and not self._sending.called and not self.stopped

    @property
    def streams(self) -> list[StreamChannel]:
        """The channels that are connections."""
        return [channel for channel in self.channels if isinstance(channel, StreamChannel)]

    @property
    def sent(self) -> int:
        """Messages sent, or queued for a connection that is full."""
        return sum(channel.sent for channel in self.channels)

    @property
    def stamps(self) -> str:
        """The clock of the replies' times, as in JSON: ``kernel`` or ``user``."""
        return "kernel" if self._reader.stamps.used else "user"

    @property
    def dropped(self) -> int:
        """Datagrams that this machine has dropped: not sent, or not received."""
        return sum(each.dropped for each in self.channels if isinstance(each, DatagramChannel))

    def unanswered(self) -> Iterator[float]:
        """Yield the start times of the messages that are lost or dropped, in seconds."""
        is_early = self.stopped or not self._is_final
        until = self.clock.seconds() - self.timeout if is_early else inf
        for channel in self.channels:
            for each in channel.outstanding():
                if each >= self.counted_from and (each < until or not channel.open):
                    yield each

    def _all_answered(self) -> bool:
        return self.answered + self._unanswerable >= self.tally.sent

    async def _last_replies(self) -> None:
        """Wait for all replies, and a little longer for a duplicate; end at :meth:`stop`."""
        self.tally.sent = self.sent
        began = self.clock.seconds()
        if not self._all_answered():
            await self._wait(self.timeout)
        if self.connector.protocol == "udp" and self.answered and self._all_answered():
            waited = self.clock.seconds() - began  # about a round trip, or less
            left = max(0.0, self.timeout - waited)
            await self._wait(min(max(DUPLICATES, ROUND_TRIPS * waited), left))
        self._is_final = True

    async def _wait(self, seconds: float) -> None:
        """Wait until :meth:`check_finished` ends the wait, for at most ``seconds``."""
        if not self.stopped:
            self._waiting = Deferred()
            await self._waiting.addTimeout(seconds, self.clock, lambda *_: None)
            self._waiting = None

    async def _close(self) -> None:
        """Close each channel, and wait for the ends of the connections."""
        streams = [stream for stream in self.streams if stream.open]
        for channel in self.channels:
            channel.close()
        for stream in streams:
            await stream.ended
        self._reader.close()

    def _ended(self, kind: str, channel: StreamChannel) -> str:
        if kind:
            self.errors[kind] += 1
            self._unanswerable += sum(each >= self.counted_from for each in channel.outstanding())
            self.connection_lost(channel, kind)
            self.check_finished()
        return kind
