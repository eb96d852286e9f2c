"""The client's end of a connection, or of UDP: messages out at once, and what comes back.

A message is handed to the kernel when it is begun, and a reply is dated when it was received: no
queue of Twisted's is in the time between. That is so where the bytes are those on the wire.
Over TLS, and in memory, messages go through Twisted's transport, and its buffers.
"""

from __future__ import annotations

import select
import socket
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any, Final, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHalfCloseableProtocol,
    IHandshakeListener,
    IPushProducer,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    ISSLTransport,
)
from twisted.internet.protocol import Protocol as TwistedProtocol
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.errors import REFUSED, UNREACHABLE, kind_of
from echod.client.replies import DatagramReplies, StreamReplies
from echod.transport import IStreamTransport, kernel_socket, set_options, unsent

BATCH: Final = 64
ROUNDS: Final = 8
"""Sockets in one round, and rounds in one turn of the reactor, before it looks after timers."""

LEAST: Final = 4096
MOST: Final = 256 * 1024
"""Bytes that one receive asks for, at the least and at the most."""


@implementer(IReadDescriptor)
class EpollReader:
    """Receives on many sockets at once, as one reader of the reactor's.

    Whatever kind that reactor is: an epoll set can itself be polled.

    :param reactor: tells when there is something to receive.
    :param size: bytes of a message.
    """

    def __init__(self, reactor: IReactorFDSet, clock: IReactorTime, size: int) -> None:
        self._reactor = reactor
        self.seconds = clock.seconds
        self._size = min(max(size + 1, LEAST), MOST)  # a datagram that is longer is seen to be
        self._epoll = select.epoll()
        self._channels: dict[int, Any] = {}
        self.fileno = self._epoll.fileno

    def add(self, channel: StreamChannel | DatagramChannel, sock: socket.socket) -> None:
        """Receive on ``sock`` for ``channel``."""
        if not self._channels:
            self._reactor.addReader(self)
        self._epoll.register(sock, select.EPOLLIN)
        self._channels[sock.fileno()] = channel

    def remove(self, descriptor: int) -> None:
        """Receive there no more."""
        if self._channels.pop(descriptor, None) is None:
            return
        with suppress(OSError):  # closed, which has taken it out already
            self._epoll.unregister(descriptor)
        if not self._channels:
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Receive no more, when no channel is left."""
        self._epoll.close()

    def logPrefix(self) -> str:
        """Return what a log calls it."""
        return "echod-client"

    def doRead(self) -> None:
        """Receive where something has come."""
        poll, channels, size, seconds = (
            self._epoll.poll,
            self._channels,
            self._size,
            self.seconds,
        )
        for _ in range(ROUNDS):
            ready = poll(0, BATCH)
            if not ready:
                return
            for descriptor, _ in ready:
                channel = channels.get(descriptor)
                if channel is None:  # gone, by what was received before it
                    continue
                try:
                    data = channel.receive(size)
                except BlockingIOError:
                    continue
                except OSError as error:
                    channel.failed(error)
                else:
                    if data:
                        channel.take(data, seconds())
                    else:
                        channel.take_nothing(seconds())
            if not channels:  # and the set may be closed
                return

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the channels are told by :class:`StreamChannel` and who owns them."""


@implementer(IHalfCloseableProtocol, IHandshakeListener, IPushProducer)
class StreamChannel(TwistedProtocol):
    """One connection.

    :param clock: tells the time.
    :param sockets: receives, where there is a socket of the kernel's; elsewhere the transport.
    :ivar replies: knows what is sent, and takes what comes back; see :meth:`use`.
    :ivar ready: fires with this when it is connected, and with TLS its handshake done.
    :ivar open: whether there is a connection.
    :ivar secure: whether it is one with TLS.
    :ivar ended: fires with why the connection ended: a word of :mod:`echod.client.errors`, or
        ``""`` where this side has asked for it.
    :ivar connected_at: seconds; when it was connected.
    :ivar connect_seconds: how long that took.
    :ivar handshake_seconds: how long the TLS handshake took after that, or ``None`` without TLS.
    """

    transport: IStreamTransport
    replies: StreamReplies
    receive: Callable[[int], bytes]
    take: Callable[[bytes, float], None]
    connected_at = 0.0
    connect_seconds = 0.0
    handshake_seconds: float | None = None

    def __init__(self, clock: IReactorTime, sockets: EpollReader) -> None:
        self._clock = clock
        self._sockets = sockets
        self._socket: socket.socket | None = None
        self._descriptor = -1
        self._waiting: deque[float] = deque()  # messages that the transport has no room for
        self._queued = False  # whether the transport may have something to send
        self._full = False
        self._error: OSError | None = None  # why nothing can be sent
        self._closing = False
        self._finished = False  # whether the service has
        self.open = False
        self.secure = False
        self.ready: Deferred[StreamChannel] = Deferred()
        self.ended: Deferred[str] = Deferred()

    def begin(self, since: float) -> None:
        """Send the next message, which counts from ``since`` on."""
        if self._full:
            self._waiting.append(since)
            return
        data = self.replies.send(since)
        if self._socket is not None and not (self._queued and unsent(self.transport)):
            try:
                sent = self._socket.send(data)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self._error = error  # told once; what has come before it is still to be received
                return
            if sent == len(data):
                return
            data = data[sent:]
            self._queued = True
        self.transport.write(data)

    def outstanding(self) -> Iterator[float]:
        """Return from when the messages count that have no reply yet."""
        return chain(self.replies.outstanding(), self._waiting)

    @property
    def sent(self) -> int:
        """How many messages were begun."""
        return self.replies.sent + len(self._waiting)

    def close(self) -> None:
        """Finish sending, and the connection when the service has finished too.

        Over TLS, which has no half-close here, both at once.
        """
        if self.open and not self._closing:
            self._closing = True
            self._waiting.clear()
            self.transport.unregisterProducer()
            if self.secure:
                self.transport.loseConnection()
            else:
                self.transport.loseWriteConnection()

    def abort(self) -> None:
        """End the connection at once."""
        self._closing = True
        if self.open:
            self.transport.abortConnection()

    # What the socket says, or the transport.

    def use(self, replies: StreamReplies) -> None:
        """Have ``replies`` say what is sent, and take what comes back."""
        self.replies = replies
        self.take = replies.received

    def take_nothing(self, now: float) -> None:  # noqa: ARG002 - datagrams need it
        """Leave the end of what comes back to the transport, unless sending has found it out."""
        if self._error is not None:
            self.failed(self._error)
            return
        self._leave_sockets()
        cast(Any, self.transport).startReading()

    def failed(self, error: OSError) -> None:
        """End: the socket has told why, and tells it once."""
        self._leave_sockets()
        cast(Any, self.transport).connectionLost(Failure(error))

    def connectionMade(self) -> None:
        """Begin."""
        self.connected_at = self._clock.seconds()
        self.open = True
        self.secure = ISSLTransport.providedBy(self.transport)
        set_options(self.transport)
        self.transport.registerProducer(self, True)
        self._socket = kernel_socket(self.transport)
        if self._socket is not None:
            self._descriptor = self._socket.fileno()
            self.receive = self._socket.recv
            cast(Any, self.transport).stopReading()
            self._sockets.add(self, self._socket)
        if not self.secure:
            self.ready.callback(self)

    def handshakeCompleted(self) -> None:
        """Be ready: the TLS handshake is done."""
        self.ready.callback(self)

    def dataReceived(self, data: bytes) -> None:
        """Take what has come by the transport."""
        self.take(data, self._clock.seconds())

    def readConnectionLost(self) -> None:
        """Close: the service has finished."""
        if not self._closing:
            self._finished = True
            self.transport.unregisterProducer()
            if unsent(self.transport):  # for who may not read, either
                self.transport.abortConnection()
                return
        self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the half-close went out."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say that it is over, and why."""
        self.open = False
        self._socket = None
        self._leave_sockets()
        if not self.ready.called:
            self.ready.errback(reason)
        if self._finished:
            reason = connectionDone
        self.ended.callback("" if self._closing else kind_of(reason))

    def pauseProducing(self) -> None:
        """Send no more for now: what was to be sent then still counts from then."""
        self._full = True

    def resumeProducing(self) -> None:
        """Send what had to wait."""
        self._full = False
        while self._waiting and not self._full:
            self.begin(self._waiting.popleft())

    def stopProducing(self) -> None:
        """Do nothing: the transport is gone, and :meth:`connectionLost` follows."""

    def _leave_sockets(self) -> None:
        self._sockets.remove(self._descriptor)


class DatagramChannel:
    """A UDP socket of its own, and so a source of its own for the service.

    :param sock: connected to the service, and not blocking.
    :param sockets: receives.
    :param errors: counts what the kernel refuses to send, or says that nobody has received.
    :param another: returns a socket for the next address if there is one, when this one refuses.
    :ivar replies: knows what is sent, and takes what comes back; see :meth:`use`.
    """

    replies: DatagramReplies
    take: Callable[[bytes, float], None]

    def __init__(
        self,
        sock: socket.socket,
        sockets: EpollReader,
        errors: Counter[str],
        another: Callable[[], socket.socket | None] = lambda: None,
    ) -> None:
        self._sockets = sockets
        self._errors = errors
        self._another = another
        self.open = True
        self._receive_on(sock)

    def begin(self, since: float) -> None:
        """Send the next datagram, which counts from ``since`` on."""
        self._send(self.replies.send(since))

    def use(self, replies: DatagramReplies) -> None:
        """Have ``replies`` say what is sent, and take what comes back."""
        self.replies = replies
        self.take = replies.received

    def take_nothing(self, now: float) -> None:
        """Take a datagram without a byte."""
        self.take(b"", now)

    def failed(self, error: OSError) -> None:
        """Go on to the next address, or count what the kernel says of a datagram."""
        if not self._move(error):
            self._errors[kind_of(error)] += 1

    def _receive_on(self, sock: socket.socket) -> None:
        self._socket = sock
        self.receive = sock.recv
        self._sockets.add(self, sock)

    def _send(self, data: bytes) -> bool:
        """Send a datagram, and tell whether it went to the address that the channel had before."""
        while True:
            try:
                self._socket.send(data)
            except OSError as error:
                if self._move(error):
                    return False
                self._errors[kind_of(error)] += 1
                # A refusal is of an earlier one, and told once; this one was not sent (udp(7)).
                if not isinstance(error, ConnectionRefusedError):
                    return True
            else:
                return True

    def _move(self, error: OSError) -> bool:
        """Go on to the next address if this one refuses, with what has had no reply yet."""
        sock = self._another() if kind_of(error) in (REFUSED, UNREACHABLE) else None
        if sock is None:
            return False
        self._sockets.remove(self._socket.fileno())
        self._socket.close()
        self._receive_on(sock)
        for data in self.replies.again(self._sockets.seconds()):
            if not self._send(data):
                break
        return True

    def outstanding(self) -> Iterator[float]:
        """Return from when the datagrams count that have no reply yet."""
        return iter(self.replies.outstanding())

    @property
    def sent(self) -> int:
        """How many datagrams were begun."""
        return self.replies.sent

    def close(self) -> None:
        """Close the socket."""
        if self.open:
            self.open = False
            self._sockets.remove(self._socket.fileno())
            self._socket.close()
