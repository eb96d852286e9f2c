"""The client's UDP socket: send each datagram at once, and time its reply."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable, Iterator

from echod.client.epoll import EpollReader, Receiver
from echod.client.errors import NOT_SENT, REFUSED, UNREACHABLE, error_word
from echod.client.replies import DatagramReplies
from echod.client.stamps import SO_TIMESTAMPING, TRANSMIT, enable_stamps
from echod.udpsocket import kernel_drop_counter


class DatagramChannel(Receiver):
    """One UDP socket. The service sees each channel as another client.

    :param sock: connected to the service, and non-blocking.
    :param reader: receives on it.
    :param errors: counts the errors of the socket, such as ICMP reports, by kind.
    :param next_socket: called when the address refuses; returns a socket for the next address, or
        ``None``.
    :ivar open: whether the socket is open.
    """

    replies: DatagramReplies

    def __init__(
        self,
        sock: socket.socket,
        reader: EpollReader,
        errors: Counter[str],
        next_socket: Callable[[], socket.socket | None] = lambda: None,
    ) -> None:
        self._reader = reader
        self._errors = errors
        self._next_socket = next_socket
        self.open = True
        self._dropped = 0  # not sent, or dropped by sockets that are closed
        self._receive_on(sock)

    @property
    def sent(self) -> int:
        """The number of datagrams begun."""
        return self.replies.sent

    @property
    def dropped(self) -> int:
        """Datagrams not sent, because the kernel's send queue was full, and replies dropped.

        The kernel drops a datagram if the receive buffer is full, or its checksum is wrong.
        """
        return self._dropped + (kernel_drop_counter(self._socket) if self.open else 0)

    def outstanding(self) -> Iterator[float]:
        """Return the start times of the outstanding datagrams, in seconds."""
        return iter(self.replies.outstanding())

    def begin(self, due: float | None = None) -> None:
        """Send the next datagram.

        :param due: the start of its round trip, in seconds; by default the moment before send(2).
        """
        replies = self.replies
        data = replies.message()
        # Between this reading of the clock and send(2), nothing else is done.
        since = self._reader.seconds() if due is None else due
        try:
            self._socket.send(data)
        except OSError as error:
            replies.begun(since)
            self._send_failed(error, data)
        else:
            replies.begun(since)
            if self.has_transmit_stamps:
                self._reader.read_transmit_stamps(self)

    def close(self) -> None:
        """Close the socket."""
        if self.open:
            self._close_socket()
            self.open = False

    def received_nothing(self, now: float) -> None:
        """Match an empty datagram."""
        self.received(b"", now)

    def receive_failed(self, error: OSError) -> None:
        """Move to the next address, or count the error."""
        self._handle_error(error)

    def _number_stamps(self) -> None:
        """Have the kernel number the stamps again, from the next datagram on.

        It depends on the kernel and the error whether a send that failed has a number.
        """
        if self.has_transmit_stamps:
            for value in (0, TRANSMIT):
                enable_stamps(self._socket, SO_TIMESTAMPING, value)
            self.replies.first_stamped = self.replies.sent

    def _receive_on(self, sock: socket.socket) -> None:
        self._socket = sock
        self._reader.add(self, sock)

    def _close_socket(self) -> None:
        self._dropped = self.dropped
        self._reader.remove(self._socket.fileno())
        self._socket.close()

    def _send(self, data: bytes) -> bool:
        """Send a datagram. Return whether the channel has kept its address."""
        try:
            self._socket.send(data)
        except OSError as error:
            return self._send_failed(error, data)
        return True

    def _send_failed(self, error: OSError, data: bytes) -> bool:
        """Handle an error of send(2). Return whether the channel has kept its address."""
        if self._handle_error(error):
            return False
        # A refusal is about an earlier datagram (udp(7)): send this one again.
        is_kept = self._send(data) if isinstance(error, ConnectionRefusedError) else True
        self._number_stamps()
        return is_kept

    def _handle_error(self, error: OSError) -> bool:
        """Move to the next address if this one refuses; otherwise count the error.

        The outstanding datagrams are sent to the new address. Return whether the channel has moved.
        """
        kind = error_word(error)
        sock = self._next_socket() if kind in (REFUSED, UNREACHABLE) else None
        if sock is None:
            self._errors[kind] += 1
            self._dropped += kind == NOT_SENT
            return False
        self._close_socket()
        self._receive_on(sock)
        for data in self.replies.again(self._reader.seconds()):
            if not self._send(data):
                break
        self._number_stamps()
        return True
