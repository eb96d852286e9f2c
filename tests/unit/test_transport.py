"""What the kernel knows of a connection, asked of real sockets."""

from __future__ import annotations

import contextlib
import select
import socket
from typing import Any

from twisted.internet.task import Clock
from twisted.internet.tcp import Connection
from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from echod.transport import cut_off, encrypted, has_unread_input, kernel_send_queue, unsent


class KernelTests(SynchronousTestCase):
    def pair(self) -> tuple[Any, socket.socket]:
        """Return a transport, which no reactor runs, and the socket at its other end."""
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
        """Send until the kernel takes no more, and return how much it took."""
        taken = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                taken += sock.send(bytes(1 << 16))
        return taken

    def test_cut_off(self) -> None:
        """A socket is closed with RST; where there is none, nothing is done."""
        transport, far = self.pair()
        transport.stopReading = transport.stopWriting = lambda: None
        cut_off(transport)
        self.assertRaises(ConnectionResetError, far.recv, 1)
        cut_off(StringTransport())

    def test_encrypted(self) -> None:
        """A kernel socket's transport is encrypted once it has started TLS."""
        transport, _ = self.pair()
        self.assertFalse(encrypted(transport))
        transport.TLS = True
        self.assertTrue(encrypted(transport))
        self.assertFalse(encrypted(StringTransport()))

    def test_unsent(self) -> None:
        """Unsent is what the transport has taken and the kernel has not."""
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

    def test_unacknowledged(self) -> None:
        """What the kernel holds for a slow peer shows that it reads."""
        transport, far = self.pair()
        taken = self.fill(transport.socket)
        held = kernel_send_queue(transport)
        self.assertTrue(0 < held <= taken)
        read = 0
        while read < 192 * 1024:
            read += len(far.recv(1 << 16))
        self.assertLess(kernel_send_queue(transport), held)

    def test_unacknowledged_where_the_kernel_does_not_say(self) -> None:
        """A socket of which the kernel does not say holds nothing, for all that is known."""
        transport, _ = self.pair()
        transport.socket = socket.create_server(("127.0.0.1", 0))  # EINVAL, tcp(7)
        self.addCleanup(transport.socket.close)
        self.assertEqual(kernel_send_queue(transport), 0)

    def test_unread(self) -> None:
        """Unread is what has arrived and nobody has received; to ask does not receive it."""
        transport, far = self.pair()
        self.assertFalse(has_unread_input(transport))
        far.send(b"x")
        select.select([transport.socket], [], [])
        self.assertTrue(has_unread_input(transport))
        self.assertEqual(transport.socket.recv(10), b"x")
        self.assertFalse(has_unread_input(transport))

    def test_the_end_is_not_unread(self) -> None:
        """A peer that has finished leaves nothing unread."""
        transport, far = self.pair()
        far.shutdown(socket.SHUT_WR)
        select.select([transport.socket], [], [])
        self.assertFalse(has_unread_input(transport))

    def test_a_reset_is_told_once(self) -> None:
        """A peer that has reset leaves nothing unread; that it did is known only once."""
        transport, far = self.pair()
        transport.socket.send(b"x")
        far.close()  # with a byte unread: RST
        self.assertRaises(ConnectionResetError, has_unread_input, transport)
        self.assertFalse(has_unread_input(transport))

    def test_other_transports(self) -> None:
        """Of a transport that is not a socket of Twisted's nothing is known."""
        transport: Any = StringTransport()
        transport.write(b"hello")
        self.assertEqual(unsent(transport), 0)
        self.assertEqual(kernel_send_queue(transport), 0)
        self.assertFalse(has_unread_input(transport))
