"""Receive on many sockets through one reader of the reactor: an epoll set can itself be polled."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

from twisted.internet.interfaces import IReactorFDSet, IReactorTime, IReadDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.stamps import (
    RECEIVE_SPACE,
    SO_TIMESTAMPING,
    SO_TIMESTAMPNS,
    TRANSMIT,
    TRANSMIT_SPACE,
    Ancillary,
    StampClock,
    enable_stamps,
    identifier,
)
from echod.fastpath import BATCH

MIN_RECEIVE: Final = 448
MAX_RECEIVE: Final = 256 * 1024
"""Limits of the bytes that one receive asks for. Up to 512 bytes come from Python's own allocator:
with 4,096, a closed loop of small messages is 5 % slower."""

TURN: Final = 0.001
"""Seconds that receiving may take before the reactor sends the messages that are due."""


class Receiver:
    """The interface that the reader calls for one socket.

    :ivar receive: ``recvmsg`` of the socket.
    :ivar space: bytes of ancillary data, for the kernel's stamp.
    :ivar received: called with the received data, and the time in seconds.
    :ivar replies: builds the messages, and matches the replies.
    :ivar has_transmit_stamps: whether the kernel stamps the messages, too.
    """

    receive: Callable[..., tuple[bytes, Ancillary, int, Any]]
    space = 0
    has_transmit_stamps = False
    received: Callable[[bytes, float], None]
    replies: Any

    def use(self, replies: Any) -> None:
        """Send the messages of ``replies``, and match received data with them."""
        self.replies = replies
        self.received = replies.received

    def received_nothing(self, now: float) -> None:
        """Handle an empty read: EOF of a stream, or an empty datagram."""

    def receive_failed(self, error: OSError) -> None:
        """Handle an error of the socket."""


@implementer(IReadDescriptor)
class EpollReader:
    """One reader of the reactor that receives on all sockets of a run.

    :param reactor: polls the epoll set.
    :param clock: the clock of the receive times.
    :param size: bytes of a message.
    :param kernel_clock: take the times of received data from the kernel's time stamps.
    :param transmit_stamps: take the times of sent messages from the kernel's time stamps, too.
    :ivar stamps: converts the kernel's stamps.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        clock: IReactorTime,
        size: int,
        kernel_clock: bool = True,
        transmit_stamps: bool = False,
    ) -> None:
        self._reactor = reactor
        self.seconds = clock.seconds
        self.stamps = StampClock(clock.seconds)
        self._kernel_clock = kernel_clock
        self._transmit_stamps = kernel_clock and transmit_stamps
        # One byte more than a message, to notice a datagram that is longer.
        self._size = min(max(size + 1, MIN_RECEIVE), MAX_RECEIVE)
        self._epoll = select.epoll()
        self._receivers: dict[int, Receiver] = {}
        self.fileno = self._epoll.fileno

    def add(self, receiver: Receiver, sock: socket.socket, is_encrypted: bool = False) -> None:
        """Receive on ``sock`` for ``receiver``; encrypted messages have no transmit stamps."""
        if not self._receivers:
            self._reactor.addReader(self)
        self._epoll.register(sock, select.EPOLLIN)
        receiver.receive = sock.recvmsg
        receiver.space = (
            RECEIVE_SPACE if self._kernel_clock and enable_stamps(sock, SO_TIMESTAMPNS) else 0
        )
        receiver.has_transmit_stamps = (
            self._transmit_stamps
            and not is_encrypted
            and enable_stamps(sock, SO_TIMESTAMPING, TRANSMIT)
        )
        self._receivers[sock.fileno()] = receiver

    def remove(self, descriptor: int) -> None:
        """Stop receiving on ``descriptor``, which may be closed already."""
        if self._receivers.pop(descriptor, None) is None:
            return
        with suppress(OSError):  # the kernel removes a closed descriptor itself
            self._epoll.unregister(descriptor)
        if not self._receivers:
            self._reactor.removeReader(self)

    def close(self) -> None:
        """Close the epoll set; a connection whose handshake was given up may still end later."""
        for descriptor in list(self._receivers):
            self.remove(descriptor)
        self._epoll.close()

    def logPrefix(self) -> str:
        """Return the name for log messages."""
        return "echod-client"

    def doRead(self) -> None:
        """Receive until nothing is left, or for :data:`TURN` seconds."""
        poll, receivers, size = self._epoll.poll, self._receivers, self._size
        seconds, date = self.seconds, self.stamps.date
        readable, end = select.EPOLLIN, seconds() + TURN
        while ready := poll(0, BATCH):
            self.stamps.check()
            for descriptor, events in ready:
                receiver = receivers.get(descriptor)
                if receiver is None:  # removed while an earlier one of this round was handled
                    continue
                if events != readable and receiver.has_transmit_stamps:
                    self.read_transmit_stamps(receiver)
                try:
                    data, ancillary, _, _ = receiver.receive(size, receiver.space)
                except BlockingIOError:
                    continue
                except OSError as error:
                    receiver.receive_failed(error)
                else:
                    now = seconds()
                    if ancillary:
                        now = date(ancillary, now)
                    if data:
                        receiver.received(data, now)
                    else:
                        receiver.received_nothing(now)
            # Without receivers, the epoll set may be closed by now.
            if not receivers or seconds() > end:
                return

    def read_transmit_stamps(self, receiver: Receiver) -> None:
        """Read when the kernel has transmitted messages, from the socket's error queue.

        With a software stamp, this is when the driver of the network interface gets the packet.
        """
        with suppress(OSError):  # EAGAIN: the queue is empty
            while True:
                _, ancillary, _, _ = receiver.receive(1, TRANSMIT_SPACE, socket.MSG_ERRQUEUE)
                now = self.seconds()
                moment = self.stamps.date(ancillary, now)
                if moment != now:
                    receiver.replies.transmitted(identifier(ancillary), moment)

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: each receiver handles the end of its own socket."""
