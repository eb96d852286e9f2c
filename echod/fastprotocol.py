"""A protocol of Twisted's whose connection moves between its transport and the fast path."""

from __future__ import annotations

import socket
from abc import abstractmethod
from typing import Any

from twisted.internet.protocol import Protocol

from echod.fastpath import FastPath
from echod.transport import IStreamTransport, buffered, fail, lose


class FastProtocol(Protocol):
    """A protocol that the fast path can serve in place of the transport.

    :ivar fast_path: the fast path, while it serves the connection.
    """

    fast_path: FastPath | None = None
    transport: IStreamTransport
    _received: int  # without the bytes that the fast path counts

    @property
    def received(self) -> int:
        """Bytes received so far."""
        if self.fast_path is None:
            return self._received
        transport: Any = self.transport
        return self._received + self.fast_path.received(transport.fileno())

    @property
    def buffered(self) -> int:
        """Bytes received that the kernel has not accepted for sending."""
        return buffered(self.transport)

    def join_fast_path(self, fast_path: FastPath, sock: socket.socket) -> bool:
        """Let ``fast_path`` serve the connection, and return whether the kernel has memory for it.

        :param sock: the transport's socket. No bytes are buffered.
        """
        if not fast_path.add(self, sock, self._received):
            return False
        self.fast_path = fast_path
        transport: Any = self.transport
        transport.stopReading()
        return True

    def leave_fast_path(self) -> None:
        """Let the transport read again, if the connection is on the fast path."""
        fast_path = self.fast_path
        if fast_path is not None:
            self.fast_path = None  # first, so that this runs only once if it fails
            transport: Any = self.transport
            self._received += fast_path.remove(transport.fileno())
            transport.startReading()

    def send(self, data: bytes) -> None:
        """Send ``data`` through the transport, which buffers it until the kernel accepts it."""
        self.leave_fast_path()
        self.transport.write(data)
        self.watch()

    @abstractmethod
    def watch(self) -> None:
        """Have the timeouts checked until the peer has received everything."""

    def input_ended(self) -> None:
        """Let the transport find the end of the stream, which the fast path has found."""
        self.leave_fast_path()

    def input_failed(self) -> None:
        """End the connection, which the kernel has reported as broken to the fast path."""
        lose(self.transport)

    def fail(self) -> None:
        """Log the exception that is being handled, and reset the connection."""
        fail(self.transport)
