"""An awaitable client: sends bytes to an echo service and checks every byte of the reply."""

from __future__ import annotations

from collections import deque
from typing import Final

from twisted.internet.abstract import FileDescriptor
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IAddress,
    IHalfCloseableProtocol,
    IPushProducer,
    IReactorTime,
)
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.arguments import check_number, check_provider, check_type, unless_none
from echod.clock import clock_of
from echod.durations import LONGEST
from echod.transport import IStreamTransport, set_options

CHUNK: Final = 64 * 1024
"""Bytes handed to the transport at once: what it calls a full buffer."""

SHOWN: Final = 16
"""Bytes of each side that an :class:`EchoMismatch` quotes."""


class EchoMismatch(Exception):
    """What came back is not what was sent.

    :ivar offset: bytes of the reply that were right, before the first wrong one.
    :ivar expected: what should have come at ``offset``, 16 bytes at most. Empty where
        more came back than was sent.
    :ivar received: what came instead, 16 bytes at most.
    """

    def __init__(self, offset: int, expected: bytes, received: bytes) -> None:
        super().__init__(offset, expected, received)
        self.offset, self.expected, self.received = offset, expected, received

    def __str__(self) -> str:
        return f"at byte {self.offset}: expected {self.expected!r}, received {self.received!r}"


class EchoIncomplete(Exception):
    """The connection ended before the whole reply came.

    :ivar missing: bytes of this call's reply that did not come.
    :ivar reason: why the connection ended.
    """

    def __init__(self, missing: int, reason: Failure) -> None:
        super().__init__(missing, reason)
        self.missing, self.reason = missing, reason

    def __str__(self) -> str:
        return f"{self.missing} bytes missing: {self.reason.getErrorMessage()}"


class _Call:
    """One :meth:`EchoClient.echo` under way."""

    __slots__ = ("data", "deferred", "length", "matched", "written")

    def __init__(self, data: bytes, deferred: Deferred[bytes]) -> None:
        self.data = data
        self.deferred = deferred
        self.length = len(data)  # shrinks to what is written when the call is cancelled
        self.written = 0
        self.matched = 0


@implementer(IHalfCloseableProtocol, IPushProducer)
class EchoClient(Protocol):
    """The client's end of one connection. :class:`EchoClientFactory` makes these.

    :ivar received: bytes received so far.
    """

    transport: IStreamTransport
    received = 0

    def __init__(self, clock: IReactorTime | None = None) -> None:
        unless_none(check_provider, "clock", clock, IReactorTime)
        self._clock = clock
        self._calls: deque[_Call] = deque()  # in the order in which replies come
        self._to_send: deque[_Call] = deque()  # the tail of these, not wholly written yet
        self._paused = False
        self._finishing = False
        self._finished = False
        self._closed: list[Deferred[None]] = []
        # Why nothing comes back any more; and whether there is no connection (any more).
        self._over: Failure | None = Failure(ConnectionError("not connected yet"))
        self._gone = True

    def echo(self, data: bytes, timeout: float | None = None) -> Deferred[bytes]:
        """Send ``data`` and wait for it to come back; calls may overlap.

        The reply is compared with ``data`` as it comes, byte by byte, and is never
        stored: the Deferred fires with ``data`` itself. Sending and receiving go
        side by side, so that any length works.

        A call that is cancelled or times out sends no more. What it has already sent
        still comes back, and is checked; later calls are not disturbed.

        :param data: what to send.
        :param timeout: seconds for the whole reply, 0 or more; by default no limit.
        :raises TypeError: for data that is not bytes, or a timeout that is not a number.
        :raises ValueError: for a timeout below 0 or above 250,000 h.
        :return: fires with the reply; fails with :class:`EchoMismatch`,
            :class:`EchoIncomplete`, :class:`twisted.internet.defer.TimeoutError` or
            :class:`twisted.internet.defer.CancelledError`.
        """
        check_type("data", data, (bytes, bytearray, memoryview), "bytes")
        unless_none(check_number, "timeout", timeout, 0, LONGEST)
        if self._over is not None or self._finishing:
            reason = self._over or Failure(ConnectionError("close() was called"))
            return fail(EchoIncomplete(len(data), reason))
        deferred: Deferred[bytes] = Deferred(lambda _: self._cancel(call))
        call = _Call(bytes(data), deferred)
        if timeout is not None:
            deferred.addTimeout(timeout, clock_of(self._clock or self.transport.reactor))
        self._calls.append(call)
        self._to_send.append(call)
        self._send()
        self._complete()
        return deferred

    def close(self) -> Deferred[None]:
        """Take no more calls, let those under way come to their end, then close.

        :return: fires with ``None`` when the connection is closed, however it ended.
        """
        closed: Deferred[None] = Deferred()
        self._closed.append(closed)
        self._finishing = True
        if self._gone:
            self._fire_closed()
        else:
            self._finish()
        return closed

    def connectionMade(self) -> None:
        """Begin."""
        self._over, self._gone = None, False
        set_options(self.transport)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Check ``data`` against what was sent."""
        if self._over is not None:
            return  # given up: nothing can be told of what still comes
        self.received += len(data)
        at = 0
        while at < len(data):
            if not self._calls:
                self._give_up(EchoMismatch(0, b"", data[at : at + SHOWN]))
                return
            call = self._calls[0]
            part = data[at : at + call.written - call.matched]
            # startswith compares in place: no copy of what may be gigabytes
            if not part or not call.data.startswith(part, call.matched):
                self._mismatch(call, data[at:])
                return
            at += len(part)
            call.matched += len(part)
            self._complete()

    def readConnectionLost(self) -> None:
        """Close: the service has finished sending, so that nothing more can come back."""
        self._over = connectionDone
        if self._calls:
            self.transport.abortConnection()
        else:
            self._finish_sending()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the half-close went out, and the service's own end follows."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail the calls that are still under way."""
        self._gone = True
        if self._over is None:
            self._over = reason
        self._to_send.clear()
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.deferred.called:
                missing = call.length - call.matched
                call.deferred.errback(EchoIncomplete(missing, self._over))
        self._fire_closed()

    def pauseProducing(self) -> None:
        """Send no more for now: the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Send on: the transport's buffer is empty."""
        self._paused = False
        self._send()

    def stopProducing(self) -> None:
        """Do nothing: the transport is gone, and :meth:`connectionLost` follows."""

    def _send(self) -> None:
        while self._to_send and not self._paused:
            call = self._to_send[0]
            chunk = call.data[call.written : call.written + CHUNK]
            call.written += len(chunk)
            if call.written == call.length:
                self._to_send.popleft()
            self.transport.write(chunk)
        self._finish()

    def _complete(self) -> None:
        while self._calls and self._calls[0].matched == self._calls[0].length:
            call = self._calls.popleft()
            if call.length == len(call.data) and not call.deferred.called:
                call.deferred.callback(call.data)
        self._finish()

    def _cancel(self, call: _Call) -> None:
        call.length = call.written
        if call in self._to_send:
            self._to_send.remove(call)
        if not call.written and call in self._calls:
            self._calls.remove(call)
        self._complete()

    def _mismatch(self, call: _Call, data: bytes) -> None:
        expected = call.data[call.matched : call.written]
        same = next(
            (
                at
                for at, (left, right) in enumerate(zip(expected, data, strict=False))
                if left != right
            ),
            min(len(expected), len(data)),
        )
        shown = slice(same, same + SHOWN)
        self._give_up(EchoMismatch(call.matched + same, expected[shown], data[shown]))

    def _give_up(self, mismatch: EchoMismatch) -> None:
        """Fail the call that was hit; nothing after it can be told from its rest."""
        self._over = Failure(mismatch)
        if self._calls:
            call = self._calls.popleft()
            if not call.deferred.called:
                call.deferred.errback(mismatch)
        self.transport.abortConnection()

    def _finish(self) -> None:
        """Half-close, or close where there is no such thing, when :meth:`close` may."""
        if not self._finishing or self._finished or self._over is not None or self._to_send:
            return
        if isinstance(self.transport, FileDescriptor):
            self._finish_sending()
            self.transport.loseWriteConnection()
        elif not self._calls:
            self._finish_sending()
            self.transport.loseConnection()

    def _finish_sending(self) -> None:
        if not self._finished:
            self._finished = True
            self.transport.unregisterProducer()

    def _fire_closed(self) -> None:
        waiting, self._closed = self._closed, []
        for closed in waiting:
            closed.callback(None)


class EchoClientFactory(Factory):
    """Build an :class:`EchoClient` for each connection, on any stream endpoint.

    :param clock: tells the time for timeouts; by default the reactor of each transport. Where
        that follows the time of day, its :class:`~echod.clock.MonotonicClock` takes its place.
    """

    noisy = False
    protocol = EchoClient

    def __init__(self, clock: IReactorTime | None = None) -> None:
        unless_none(check_provider, "clock", clock, IReactorTime)
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> EchoClient:  # noqa: ARG002 - Twisted's signature
        """Return a client that is not connected yet."""
        return self.protocol(self.clock)
