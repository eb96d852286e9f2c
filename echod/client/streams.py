"""The client's end of one connection: send messages at once, and time the replies.

A message goes to the kernel when it is begun. The time of a reply is the kernel's stamp, or the
time at which it is received: no queue of Twisted is part of the round trip. Over TLS, Twisted
encrypts, and this module receives. In memory, messages pass through the transport.
"""

from __future__ import annotations

import socket
from collections import deque
from collections.abc import Iterator
from enum import Enum, auto
from itertools import chain
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IDelayedCall,
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.epoll import EpollReader, Receiver
from echod.client.errors import CLOSED, error_word
from echod.client.replies import StreamReplies
from echod.socketoptions import set_options
from echod.transport import beneath, kernel_socket, unsent


class State(Enum):
    """The states of a connection.

    ========== ================================= ==========
    from       event                             to
    ========== ================================= ==========
    CONNECTING the connection is made            OPEN
    OPEN       ``close()`` or ``abort()``        CLOSING
    OPEN       the service sends FIN             FINISHED
    FINISHED   ``close()`` or ``abort()``        CLOSING
    any        the connection is lost            ENDED
    ========== ================================= ==========
    """

    CONNECTING = auto()
    OPEN = auto()
    CLOSING = auto()
    FINISHED = auto()
    ENDED = auto()


WITHOUT_ERROR: Final = {State.CLOSING: "", State.FINISHED: CLOSED}
"""The word for a connection that is lost in one of these states, whatever the reason."""


CLOSING: Final = 1.0
"""Seconds that a connection may take to close, after which it is reset."""


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class StreamChannel(Receiver, Protocol):
    """One connection.

    :param clock: the clock of the round trips.
    :param reader: receives on a kernel socket, also below TLS; in memory, the transport receives.
    :ivar ready: fires with this channel when it is connected and a TLS handshake is complete.
    :ivar ended: fires when the connection is lost: with ``""`` if this side has closed it,
        otherwise with a word of :mod:`echod.client.errors`.
    :ivar connect_seconds: how long it took to connect.
    :ivar handshake_seconds: how long the TLS handshake took, or ``None`` without TLS.
    """

    transport: Any  # IStreamTransport; also a tcp.Connection if there is a kernel socket
    replies: StreamReplies
    _below: Any  # the transport without TLS
    _connected_at = 0.0
    connect_seconds = 0.0
    handshake_seconds: float | None = None

    def __init__(self, clock: IReactorTime, reader: EpollReader) -> None:
        self._clock = clock
        self._seconds = clock.seconds
        self._reader = reader
        self._socket: socket.socket | None = None  # without TLS
        self._direct: socket.socket | None = None  # the same, unless the transport has bytes unsent
        self._is_full = False  # whether the transport has no space for more
        self._descriptor = -1
        self._is_tls = False
        self._received_at: float | None = None  # when the data that TLS decrypts arrived
        self._state = State.CONNECTING
        self._waiting: deque[float] = deque()  # start times of messages that wait for space
        self._error: OSError | None = None  # of the last send
        self._timer: IDelayedCall | None = None  # of the reset
        self.ready: Deferred[StreamChannel] = Deferred()
        self.ended: Deferred[str] = Deferred()

    @property
    def open(self) -> bool:
        """Whether there is a connection."""
        return self._state not in (State.CONNECTING, State.ENDED)

    @property
    def sent(self) -> int:
        """The number of messages begun: sent, or waiting for space."""
        return self.replies.sent + len(self._waiting)

    def outstanding(self) -> Iterator[float]:
        """Return the start times of the outstanding messages, in seconds."""
        return chain(self.replies.outstanding(), self._waiting)

    def use(self, replies: Any) -> None:
        """Send the messages of ``replies``, and match received data with them."""
        super().use(replies)
        if self._is_tls:
            self.received = self._decrypt

    def begin(self, due: float | None = None) -> None:
        """Send the next message.

        :param due: the start of its round trip, in seconds; by default the moment before send(2).
        """
        sock = self._direct
        if sock is None:
            self._begin_queued(due)
            return
        data = self.replies.message()
        # Between this reading of the clock and send(2), nothing else is done.
        since = self._seconds() if due is None else due
        try:
            sent = sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as error:
            # The socket reports it once. Data received before must still be read.
            self._error = error
            sent = len(data)
        self.replies.begun(since)
        if self.has_transmit_stamps:
            self._reader.read_transmit_stamps(self)
        if sent < len(data):
            self._direct = None
            self.transport.write(data[sent:])

    def _begin_queued(self, due: float | None) -> None:
        """Send the next message after those that the transport has not sent yet."""
        since = self._seconds() if due is None else due
        if self._is_full:
            self._waiting.append(since)
        elif self._socket is not None and not unsent(self.transport):
            self._direct = self._socket
            self.begin(due)
        else:
            data = self.replies.message()
            self.replies.begun(since)
            self.transport.write(data)
            self._flush()

    def close(self) -> None:
        """Finish sending; the connection ends when the service finishes too.

        Over TLS, where Twisted has no half-close, both ends close at once. A connection that takes
        longer than :data:`CLOSING` is reset.
        """
        if self._state in (State.OPEN, State.FINISHED):
            self._state = State.CLOSING
            self._timer = self._clock.callLater(CLOSING, self.abort)
            self._waiting.clear()
            self.transport.unregisterProducer()
            if self._is_tls:
                self.transport.loseConnection()
            else:
                self.transport.loseWriteConnection()

    def abort(self) -> None:
        """Reset the connection, if there is one."""
        if self.open:
            self._state = State.CLOSING
            self.transport.abortConnection()

    def received_nothing(self, now: float) -> None:  # noqa: ARG002 - datagrams use it
        """End the connection if a send has failed; otherwise let the transport handle EOF."""
        if self._error is not None:
            self.receive_failed(self._error)
        else:
            self._reader.remove(self._descriptor)
            self._below.startReading()

    def receive_failed(self, error: OSError) -> None:
        """End the connection for ``error``, which the socket reports only once."""
        self._reader.remove(self._descriptor)
        self._below.connectionLost(Failure(error))

    def connectionMade(self) -> None:
        """Receive from the kernel socket, if any. Without TLS, fire :attr:`ready`."""
        self._connected_at = self._clock.seconds()
        self._state = State.OPEN
        set_options(self.transport)
        self.transport.registerProducer(self, True)
        self._socket = self._direct = kernel_socket(self.transport)
        self._below = beneath(self.transport)
        self._is_tls = ISSLTransport.providedBy(self.transport)
        sock = kernel_socket(self._below)
        if sock is not None:
            self._descriptor = sock.fileno()
            self.received = self._decrypt  # until use() is called
            self._below.stopReading()
            self._reader.add(self, sock, is_encrypted=self._is_tls)
        if not self._is_tls:
            self.ready.callback(self)

    def handshakeCompleted(self) -> None:
        """Fire :attr:`ready`: the TLS handshake is complete."""
        self.handshake_seconds = self._clock.seconds() - self._connected_at
        self.ready.callback(self)

    def dataReceived(self, data: bytes) -> None:
        """Match ``data`` with the messages sent."""
        received_at = self._received_at
        self.replies.received(data, self._clock.seconds() if received_at is None else received_at)

    def _decrypt(self, data: bytes, now: float) -> None:
        """Let TLS decrypt ``data``; it calls :meth:`dataReceived`."""
        self._received_at = now
        self.transport.dataReceived(data)
        self._received_at = None

    def _flush(self) -> None:
        """Pass buffered bytes to the kernel now, not in the next turn of the reactor."""
        below = self._below
        if unsent(below) and not below.disconnecting:
            below.doWrite()

    def readConnectionLost(self) -> None:
        """Close, because the service has finished sending."""
        if self._state is State.OPEN:
            self._state = State.FINISHED
            self.transport.unregisterProducer()
            if unsent(self.transport):  # the service may not read either
                self.transport.abortConnection()
                return
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the half-close is sent."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fire :attr:`ended`."""
        state, self._state = self._state, State.ENDED
        self._socket = self._direct = None
        self._reader.remove(self._descriptor)
        if self._timer is not None and self._timer.active():
            self._timer.cancel()
        if not self.ready.called:
            self.ready.errback(reason)
        self.ended.callback(WITHOUT_ERROR.get(state, error_word(reason.value)))

    def pauseProducing(self) -> None:
        """Let further messages wait. Their round trips have started."""
        self._direct, self._is_full = None, True

    def resumeProducing(self) -> None:
        """Send the messages that wait."""
        self._is_full = False
        while self._waiting and not self._is_full:
            self.begin(self._waiting.popleft())

    def stopProducing(self) -> None:
        """Do nothing: :meth:`connectionLost` follows."""
