"""What ping and load have in common: channels, the messages on them, and the wait at the end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar

from twisted.internet.defer import Deferred

from echod.client.connector import Connector
from echod.client.datagrams import DatagramChannel
from echod.client.epoll import EpollReader
from echod.client.payloads import DatagramPayloads, contents
from echod.client.replies import DatagramReplies, MessageTally, ReplyCallback, StreamReplies
from echod.client.streams import StreamChannel

CLOSING: Final = 1.0
"""Seconds for which a connection may take to be closed, until it is reset."""

T = TypeVar("T")

Channel = StreamChannel | DatagramChannel


class Measurement:
    """Messages on their way to a service and back.

    :param way: how to get there.
    :param size: bytes of a message.
    :param dont_fragment: have no datagram cut into fragments.
    :ivar counted: whether it is said what became of each message: what comes then is nothing any
        more.
    """

    def __init__(self, connector: Connector, size: int, dont_fragment: bool = False) -> None:
        self.connector = connector
        self.clock = connector.clock
        self.timeout = connector.timeout
        self.size = size
        self.tally = MessageTally(connector.timeout)
        self.errors: Counter[str] = connector.errors
        self.channels: list[Channel] = []
        self.stopped = False
        self.answered = 0
        self.counted = False
        self._dont_fragment = dont_fragment
        self._given_up = 0  # messages on connections that have ended
        self._waiting: Deferred[None] | None = None
        self._doing: Deferred[Any] | None = None
        self._sockets = EpollReader(connector.reactor, self.clock, size)
        self._contents: Sequence[bytes] = () if connector.protocol == "udp" else contents(size)

    async def open(self) -> Channel:
        """Return a new channel.

        :raises Exception: why there is none.
        """
        if self.connector.protocol == "udp":
            datagrams = self.connector.datagrams(
                self._sockets, self._dont_fragment, lambda: not self.answered
            )
            self.channels.append(datagrams)
            datagrams.use(
                DatagramReplies(self.tally, DatagramPayloads(self.size), self.teller(datagrams))
            )
            return datagrams
        channel = await self.connector.channel(self._sockets)
        self.channels.append(channel)
        channel.use(StreamReplies(self.tally, self._contents, self.teller(channel)))
        channel.ended.addCallback(self._ended, channel)
        return channel

    def teller(self, channel: Channel) -> ReplyCallback:  # noqa: ARG002 - for who needs it
        """Return what is told of the replies on ``channel``."""
        return self.replied

    def replied(self, number: int, since: float, now: float, damaged: int) -> None:  # noqa: ARG002
        """Count a reply."""
        if self.counted:
            return
        self.tally.reply(since, now, damaged)
        self.answered += 1
        if self._waiting is not None:
            self.check()

    async def do(self, what: Coroutine[Any, Any, T]) -> T:
        """Do something that :meth:`stop` ends, too."""
        doing: Deferred[T] = Deferred.fromCoroutine(what)
        self._doing = doing
        return await doing

    def stop(self) -> None:
        """End it now: what is still under way is neither waited for nor lost."""
        self.stopped = True
        if self._doing is not None:
            self._doing.cancel()
        self.check()

    def check(self) -> None:
        """End the wait if there is nothing more to wait for."""
        waiting = self._waiting
        if waiting is not None and (self.stopped or self.is_over()):
            self._waiting = None
            waiting.callback(None)

    def is_over(self) -> bool:
        """Tell whether no reply can come any more, to what was sent in all."""
        return self.answered + self._given_up >= self.tally.sent

    def has_open(self) -> bool:
        """Tell whether there is a channel to send on."""
        return any(channel.open for channel in self.channels)

    @property
    def sent(self) -> int:
        """How many messages were begun."""
        return sum(channel.sent for channel in self.channels)

    async def last_replies(self) -> None:
        """Wait until all have come back, or the last has had its time; or for :meth:`stop`."""
        self.tally.sent = self.sent
        if not self.stopped and not self.is_over():
            self._waiting = Deferred()
            timer = self.clock.callLater(self.timeout, self._waiting.callback, None)
            await self._waiting
            self._waiting = None
            if timer.active():
                timer.cancel()
        self.counted = True
        if self.stopped:
            since = self.clock.seconds() - self.timeout
            self.tally.under_way = sum(
                each >= since
                for channel in self.channels
                if channel.open
                for each in channel.outstanding()
            )

    async def close(self) -> None:
        """Close all channels, politely: who finishes sending gets the service's own end."""
        streams = [
            channel
            for channel in self.channels
            if isinstance(channel, StreamChannel) and channel.open
        ]
        for channel in self.channels:
            channel.close()
        timer = self.clock.callLater(CLOSING, _abort, streams)
        for stream in streams:
            await stream.ended
        if timer.active():
            timer.cancel()
        self._sockets.close()

    def _ended(self, kind: str, channel: StreamChannel) -> str:
        if kind:
            self.errors[kind] += 1
            self._given_up += sum(1 for _ in channel.outstanding())
            self.lost(kind, channel)
            self.check()
        return kind

    def lost(self, kind: str, channel: StreamChannel) -> None:
        """Do nothing more when a connection has ended that was not to."""


def _abort(streams: Sequence[StreamChannel]) -> None:
    for stream in streams:
        stream.abort()
