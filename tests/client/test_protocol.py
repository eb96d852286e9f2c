"""EchoClient, on a string transport and on an in-memory network."""

from __future__ import annotations

from array import array
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import defer
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.error import ConnectionLost
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from echod.client.protocol import CHUNK, EchoClient, EchoClientFactory, EchoIncomplete, EchoMismatch
from echod.factory import EchoFactory
from echod.testing import MemoryNetwork
from tests.recorder import Recorder


class EchoClientTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.client: EchoClient = EchoClientFactory(self.clock).buildProtocol(None)
        self.transport: Any = StringTransport()
        self.client.makeConnection(self.transport)

    def lose(self) -> None:
        self.client.connectionLost(Failure(ConnectionLost()))

    def test_reply(self) -> None:
        """A call fires with its reply when the last byte is received."""
        reply = self.client.echo(b"hello")
        self.assertEqual(self.transport.value(), b"hello")
        self.client.dataReceived(b"hel")
        self.assertNoResult(reply)
        self.client.dataReceived(b"lo")
        self.assertEqual(self.successResultOf(reply), b"hello")
        self.assertEqual(self.client.received, 5)

    def test_empty(self) -> None:
        """An empty call fires in its turn with an empty reply."""
        self.assertEqual(self.successResultOf(self.client.echo(b"")), b"")
        first, empty = self.client.echo(b"a"), self.client.echo(b"")
        self.assertNoResult(empty)
        self.client.dataReceived(b"a")
        self.assertEqual(self.successResultOf(first), b"a")
        self.assertEqual(self.successResultOf(empty), b"")

    def test_no_copy(self) -> None:
        """The reply is the object that was sent: it is not stored twice."""
        data = bytes(1000)
        reply = self.client.echo(data)
        self.client.dataReceived(bytes(1000))
        self.assertIs(self.successResultOf(reply), data)

    def test_mutable_bytes(self) -> None:
        """A bytearray is copied: changes during the call have no effect. Any memoryview will do."""
        data = bytearray(b"hello")
        reply = self.client.echo(data)
        data[:] = b"HELLO"
        self.client.dataReceived(b"hello")
        self.assertEqual(self.successResultOf(reply), b"hello")
        reply = self.client.echo(memoryview(array("H", b"four")))  # of two items
        self.client.dataReceived(b"four")
        self.assertEqual(self.successResultOf(reply), b"four")

    def test_pipelining(self) -> None:
        """Calls overlap, and get their replies in order, however the stream is split."""
        replies = [self.client.echo(data) for data in (b"one", b"two", b"three")]
        for part in (b"onet", b"woth", b"ree"):
            self.client.dataReceived(part)
        self.assertEqual(list(map(self.successResultOf, replies)), [b"one", b"two", b"three"])

    def test_back_pressure(self) -> None:
        """A paused client does not write."""
        self.client.pauseProducing()
        reply = self.client.echo(bytes(3 * CHUNK))
        self.assertEqual(self.transport.value(), b"")
        self.client.resumeProducing()
        self.assertEqual(len(self.transport.value()), 3 * CHUNK)
        self.client.dataReceived(bytes(3 * CHUNK))
        self.assertEqual(len(self.successResultOf(reply)), 3 * CHUNK)

    def test_mismatch(self) -> None:
        """A wrong byte fails its call with its offset and excerpts, and resets the connection."""
        reply, later = self.client.echo(b"abcdef"), self.client.echo(b"xyz")
        self.client.dataReceived(b"ab")
        self.client.dataReceived(b"cXef")
        mismatch = self.failureResultOf(reply, EchoMismatch).value
        self.assertEqual(mismatch.offset, 3)
        self.assertEqual(mismatch.expected, b"def")
        self.assertEqual(mismatch.received, b"Xef")
        self.assertEqual(str(mismatch), "at byte 3: expected b'def', received b'Xef'")
        self.assertTrue(self.transport.disconnected)
        self.client.dataReceived(b"ignored")
        self.lose()
        incomplete = self.failureResultOf(later, EchoIncomplete).value
        self.assertEqual(incomplete.missing, 3)
        self.assertIs(incomplete.reason.value, mismatch)

    def test_more_than_was_sent(self) -> None:
        """Received bytes beyond those sent are a mismatch."""
        self.client.dataReceived(b"welcome")
        self.assertTrue(self.transport.disconnected)
        late = self.failureResultOf(self.client.echo(b"a"), EchoIncomplete).value
        self.assertEqual(late.reason.value.args, (0, b"", b"welcome"))

    def test_before_it_was_sent(self) -> None:
        """The right bytes before they were sent are a mismatch."""
        self.client.pauseProducing()
        reply = self.client.echo(b"abc")
        self.client.dataReceived(b"abc")
        mismatch = self.failureResultOf(reply, EchoMismatch).value
        self.assertEqual((mismatch.offset, mismatch.expected), (0, b""))

    def test_connection_lost(self) -> None:
        """When the connection is lost, each call fails with its missing bytes and the reason."""
        replies = [self.client.echo(b"hello"), self.client.echo(b"world")]
        self.client.dataReceived(b"hel")
        self.lose()
        for reply, missing in zip(replies, (2, 5), strict=True):
            incomplete = self.failureResultOf(reply, EchoIncomplete).value
            self.assertEqual(incomplete.missing, missing)
            self.assertTrue(incomplete.reason.check(ConnectionLost))
            self.assertIn(f"{missing} bytes missing", str(incomplete))

    def test_close_after_a_mismatch(self) -> None:
        """close() waits for the end of a connection that is being reset."""
        reply = self.client.echo(b"hello")
        self.client.dataReceived(b"x")
        self.failureResultOf(reply, EchoMismatch)
        closed = self.client.close()
        self.assertNoResult(closed)
        self.lose()
        self.assertIsNone(self.successResultOf(closed))

    def test_service_finishes_early(self) -> None:
        """If the service finishes early, pending calls fail; else the client closes."""
        reply = self.client.echo(b"hello")
        self.client.readConnectionLost()
        self.assertTrue(self.transport.disconnected)
        self.lose()
        self.assertEqual(self.failureResultOf(reply, EchoIncomplete).value.missing, 5)
        self.setUp()
        self.client.readConnectionLost()
        self.assertTrue(self.transport.disconnecting)
        self.assertFalse(self.transport.disconnected)

    def test_not_connected(self) -> None:
        """Without a connection, and after close(), a call fails with all bytes missing."""
        early = EchoClient().echo(b"abc")
        self.assertEqual(self.failureResultOf(early, EchoIncomplete).value.missing, 3)
        self.client.close()
        self.failureResultOf(self.client.echo(b"abc"), EchoIncomplete)
        self.lose()
        self.failureResultOf(self.client.echo(b"abc"), EchoIncomplete)

    def test_timeout(self) -> None:
        """A call fails after its timeout, and the next one is not affected."""
        slow, next_call = self.client.echo(b"slow", timeout=5), self.client.echo(b"next")
        self.client.dataReceived(b"slo")
        self.clock.advance(5)
        self.failureResultOf(slow, defer.TimeoutError)
        self.client.dataReceived(b"wnext")
        self.assertEqual(self.successResultOf(next_call), b"next")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_timeout_met(self) -> None:
        """A reply before the timeout cancels the timer."""
        reply = self.client.echo(b"fast", timeout=5)
        self.client.dataReceived(b"fast")
        self.assertEqual(self.successResultOf(reply), b"fast")
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_cancel(self) -> None:
        """The reply to a cancelled call is still checked, and later calls are not affected."""
        cancelled, kept = self.client.echo(b"one"), self.client.echo(b"two")
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.client.dataReceived(b"onetwo")
        self.assertEqual(self.successResultOf(kept), b"two")

    def test_cancel_before_it_was_sent(self) -> None:
        """A call that is cancelled before its first byte was sent sends nothing."""
        self.client.pauseProducing()
        cancelled, kept = self.client.echo(b"one"), self.client.echo(b"two")
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.client.resumeProducing()
        self.assertEqual(self.transport.value(), b"two")
        self.client.dataReceived(b"two")
        self.assertEqual(self.successResultOf(kept), b"two")

    def test_cancel_half_sent(self) -> None:
        """A call cancelled halfway sends no more; the reply to its sent part is still checked."""
        write = self.transport.write

        def write_and_pause(data: bytes) -> None:
            write(data)
            self.client.pauseProducing()

        self.transport.write = write_and_pause
        for received_first in (False, True):
            cancelled, kept = self.client.echo(bytes(3 * CHUNK)), self.client.echo(b"two")
            if received_first:
                self.client.dataReceived(bytes(CHUNK))
            cancelled.cancel()
            self.failureResultOf(cancelled, CancelledError)
            self.client.resumeProducing()
            self.client.dataReceived((b"" if received_first else bytes(CHUNK)) + b"two")
            self.assertEqual(self.successResultOf(kept), b"two")
            self.client.resumeProducing()

    def test_cancel_from_a_callback(self) -> None:
        """A callback of one call may cancel other calls."""
        first, second = self.client.echo(b"one"), self.client.echo(b"two")
        first.addErrback(lambda _: second.cancel())
        self.lose()
        self.failureResultOf(second, CancelledError)

    def test_mismatch_of_a_cancelled_call(self) -> None:
        """A wrong byte in the reply to a cancelled call resets the connection."""
        cancelled, kept = self.client.echo(b"one"), self.client.echo(b"two")
        cancelled.cancel()
        self.failureResultOf(cancelled, CancelledError)
        self.client.dataReceived(b"oXe")
        self.lose()
        self.failureResultOf(kept, EchoIncomplete)

    def test_close(self) -> None:
        """On a transport without half-close, close() waits for the replies."""
        reply, closed = self.client.echo(b"hello"), self.client.close()
        self.assertFalse(self.transport.disconnecting)
        self.client.dataReceived(b"hello")
        self.successResultOf(reply)
        self.assertTrue(self.transport.disconnecting)
        self.assertNoResult(closed)
        self.lose()
        self.assertIsNone(self.successResultOf(closed))
        self.assertIsNone(self.successResultOf(self.client.close()))

    def test_stop_producing(self) -> None:
        """stopProducing() does nothing."""
        self.client.stopProducing()
        self.assertFalse(self.transport.disconnecting)


class EchoClientInMemoryTests(SynchronousTestCase):
    def connect(self, capacity: int = 64 * 1024) -> EchoClient:
        self.network = MemoryNetwork(capacity)
        self.events = Recorder()
        self.network.server_endpoint().listen(EchoFactory(observer=self.events))
        client: Any = self.successResultOf(
            self.network.client_endpoint().connect(EchoClientFactory())
        )
        return client

    def test_clock_of_the_transport(self) -> None:
        """Without a clock argument, the client uses the reactor of its transport."""
        client = self.connect()
        client.transport.pauseProducing()
        reply = client.echo(b"hello", timeout=5)
        self.network.advance(5)
        self.failureResultOf(reply, defer.TimeoutError)

    @given(st.lists(st.binary(max_size=300)), st.integers(1, 700))
    def test_any_calls(self, messages: list[bytes], capacity: int) -> None:
        """Any calls get their bytes back, over a network of any capacity."""
        client = self.connect(capacity)
        replies: list[Deferred[bytes]] = [client.echo(data) for data in messages]
        closed = client.close()
        self.network.settle()
        self.assertEqual([self.successResultOf(reply) for reply in replies], messages)
        self.assertIsNone(self.successResultOf(closed))
        self.assertEqual(self.events.closed[0].bytes, sum(map(len, messages)))
