"""The state of transports and of their kernel sockets."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any
from unittest.mock import Mock

from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from echod.socketoptions import SO_PASSRIGHTS, refuse_descriptors
from echod.transport import (
    cut_off,
    encrypted,
    has_unread_input,
    is_gone,
    kernel_send_queue,
    send_fin,
    unsent,
)


class TransportTests(SynchronousTestCase):
    def pair(self) -> tuple[Any, socket.socket]:
        """Return a transport without a reactor, and the socket at its other end."""
        listening = socket.create_server(("127.0.0.1", 0))
        near = socket.create_connection(listening.getsockname())
        far, _ = listening.accept()
        for sock in (listening, near, far):
            self.addCleanup(sock.close)
        transport: Any = Connection(near, None, Clock())  # type: ignore[arg-type]
        transport.connected = 1
        transport.startWriting = lambda: None
        return transport, far

    def fill(self, sock: socket.socket) -> int:
        """Send until the kernel takes no more, and return the number of bytes."""
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += sock.send(bytes(1 << 16))
        return taken

    def test_cut_off(self) -> None:
        """cut_off closes a socket with RST, and ignores a transport without one."""
        transport, far = self.pair()
        transport.stopReading = transport.stopWriting = lambda: None
        cut_off(transport)
        self.assertRaises(ConnectionResetError, far.recv, 1)
        cut_off(StringTransport())

    def test_encrypted(self) -> None:
        """A transport is encrypted after it has started TLS."""
        transport, _ = self.pair()
        self.assertFalse(encrypted(transport))
        transport.TLS = True
        self.assertTrue(encrypted(transport))
        self.assertFalse(encrypted(StringTransport()))

    def test_unsent(self) -> None:
        """Unsent bytes are those in the transport's buffer, not in the kernel."""
        transport, _ = self.pair()
        self.assertEqual(unsent(transport), 0)
        transport.write(b"hello")
        self.assertEqual(unsent(transport), 5)
        transport.stopWriting = lambda: None
        transport.doWrite()
        self.assertEqual(unsent(transport), 0)
        self.fill(transport.socket)
        transport.write(bytes(1000))
        transport.doWrite()
        transport.write(bytes(500))
        self.assertEqual(unsent(transport), 1500)

    def test_kernel_send_queue(self) -> None:
        """The kernel's send queue shrinks as the peer reads."""
        transport, far = self.pair()
        taken = self.fill(transport.socket)
        held = kernel_send_queue(transport)
        self.assertTrue(0 < held <= taken)
        read = 0
        while read < 192 * 1024:
            read += len(far.recv(1 << 16))
        self.assertLess(kernel_send_queue(transport), held)

    def test_kernel_send_queue_unknown(self) -> None:
        """The send queue counts as empty if the kernel does not report it."""
        transport, _ = self.pair()
        transport.socket = socket.create_server(("127.0.0.1", 0))  # EINVAL, tcp(7)
        self.addCleanup(transport.socket.close)
        self.assertEqual(kernel_send_queue(transport), 0)

    def test_has_unread_input(self) -> None:
        """Bytes that have arrived are unread input until they are received."""
        transport, far = self.pair()
        self.assertFalse(has_unread_input(transport))
        far.send(b"x")
        select.select([transport.socket], [], [])
        self.assertTrue(has_unread_input(transport))
        self.assertEqual(transport.socket.recv(10), b"x")
        self.assertFalse(has_unread_input(transport))

    def test_end_of_stream(self) -> None:
        """The end of the stream is not unread input."""
        transport, far = self.pair()
        far.shutdown(socket.SHUT_WR)
        select.select([transport.socket], [], [])
        self.assertFalse(has_unread_input(transport))

    def test_reset_is_reported_once(self) -> None:
        """A reset is reported once; after that there is no unread input."""
        transport, far = self.pair()
        transport.socket.send(b"x")
        far.close()  # with a byte unread: RST
        self.assertRaises(ConnectionResetError, has_unread_input, transport)
        self.assertFalse(has_unread_input(transport))

    def test_gone(self) -> None:
        """A connection is gone after a reset, and over UNIX after a close; not after half-close."""
        transport, far = self.pair()
        far.shutdown(socket.SHUT_WR)
        self.assertFalse(is_gone(transport))
        transport.socket.send(b"x")
        far.close()  # with a byte unread: RST
        self.assertEqual([is_gone(transport) for _ in range(2)], [True, True])
        near, far = socket.socketpair()
        self.addCleanup(near.close)
        unix: Any = Connection(near, None, Clock())  # type: ignore[arg-type]
        far.shutdown(socket.SHUT_WR)
        self.assertFalse(is_gone(unix))
        far.close()
        self.assertTrue(is_gone(unix))
        self.assertFalse(is_gone(StringTransport()))

    def test_send_fin(self) -> None:
        """FIN is sent at once, without a turn of the reactor, and an error is ignored."""
        transport, far = self.pair()
        transport.startWriting = self.fail
        send_fin(transport)
        self.assertEqual(far.recv(1), b"")
        far.close()
        transport.socket.close()
        send_fin(transport)

    def test_send_fin_later(self) -> None:
        """FIN comes after the unsent bytes; another transport is asked to send it."""
        transport, _ = self.pair()
        transport.write(b"x")
        send_fin(transport)
        self.assertTrue(transport._writeDisconnecting)
        other = Mock(["loseWriteConnection"])
        send_fin(other)
        other.loseWriteConnection.assert_called_once_with()

    def test_other_transports(self) -> None:
        """A transport without a kernel socket has nothing unsent and nothing unread."""
        transport: Any = StringTransport()
        transport.write(b"hello")
        self.assertEqual(unsent(transport), 0)
        self.assertEqual(kernel_send_queue(transport), 0)
        self.assertFalse(has_unread_input(transport))

    def test_refuse_descriptors(self) -> None:
        """refuse_descriptors returns whether no descriptor can arrive, as over TCP."""
        for sock in (socket.socket(socket.AF_UNIX), socket.socket(socket.AF_INET)):
            self.addCleanup(sock.close)
            try:
                sock.setsockopt(socket.SOL_SOCKET, SO_PASSRIGHTS, 0)
                supported = True
            except OSError:
                supported = sock.family == socket.AF_INET
            self.assertEqual(refuse_descriptors(sock), supported)
