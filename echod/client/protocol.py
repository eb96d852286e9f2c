"""Awaitable echo client: send bytes to an echo service and check every byte of the reply."""

from __future__ import annotations

import operator
from collections import deque
from dataclasses import dataclass
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
from echod.socketoptions import set_options
from echod.transport import IStreamTransport

CHUNK: Final = 64 * 1024
"""Bytes of one write to the transport: the size at which Twisted calls its buffer full."""

EXCERPT: Final = 16
"""Bytes of each side that an :class:`EchoMismatch` quotes."""


class EchoMismatch(Exception):
    """The reply differs from the bytes sent.

    :ivar offset: bytes of the reply before the first wrong one.
    :ivar expected: up to 16 bytes sent at ``offset``. Empty if more bytes came back than were sent.
    :ivar received: up to 16 bytes received at ``offset``.
    """

    def __init__(self, offset: int, expected: bytes, received: bytes) -> None:
        super().__init__(offset, expected, received)
        self.offset, self.expected, self.received = offset, expected, received

    def __str__(self) -> str:
        return f"at byte {self.offset}: expected {self.expected!r}, received {self.received!r}"


class EchoIncomplete(Exception):
    """The connection ended before the reply was complete.

    :ivar missing: bytes of this call's reply that were not received.
    :ivar reason: why the connection ended.
    """

    def __init__(self, missing: int, reason: Failure) -> None:
        super().__init__(missing, reason)
        self.missing, self.reason = missing, reason

    def __str__(self) -> str:
        return f"{self.missing} bytes missing: {self.reason.getErrorMessage()}"


@dataclass(slots=True, eq=False)
class _Call:
    """One pending :meth:`EchoClient.echo`."""

    data: bytes
    deferred: Deferred[bytes]
    length: int  # of the reply; after a cancel, that of the part that was written
    written: int = 0
    matched: int = 0


@implementer(IHalfCloseableProtocol, IPushProducer)
class EchoClient(Protocol):
    """The client's end of one connection. :class:`EchoClientFactory` builds these.

    :ivar received: bytes received.
    """

    transport: IStreamTransport
    received = 0

    def __init__(self, clock: IReactorTime | None = None) -> None:
        unless_none(check_provider, "clock", clock, IReactorTime)
        self._clock = clock
        self._calls: deque[_Call] = deque()  # without a complete reply, in order
        self._to_send: deque[_Call] = deque()  # those of _calls that are not completely written
        self._paused = False
        self._closing = False  # close() was called
        self._finished = False  # nothing more is written
        self._connected = False
        # The reason that new calls fail.
        self._failure: Failure | None = Failure(ConnectionError("not connected yet"))
        self._ended: Deferred[None] = Deferred()

    def echo(self, data: bytes, timeout: float | None = None) -> Deferred[bytes]:
        """Send ``data`` and wait for the reply. Calls may overlap.

        The reply is compared with ``data`` as it is received, and is not stored: the Deferred
        fires with ``data`` itself. The client receives while it sends, so ``data`` may have any
        length.

        A call that is cancelled or times out sends no more. The reply to the part that was sent is
        still received and checked, before the replies to later calls.

        :param data: bytes to send.
        :param timeout: seconds until the reply must be complete, 0 or more; by default no limit.
        :raises TypeError: for data that is not bytes-like, or a timeout that is not a number.
        :raises ValueError: for a timeout below 0 or above 250,000 h.
        :return: fires with the reply; fails with :class:`EchoMismatch`,
            :class:`EchoIncomplete`, :class:`twisted.internet.defer.TimeoutError` or
            :class:`twisted.internet.defer.CancelledError`.
        """
        check_type("data", data, (bytes, bytearray, memoryview), "bytes")
        unless_none(check_number, "timeout", timeout, 0, LONGEST)
        data = bytes(data)
        if self._failure is not None or self._closing:
            reason = self._failure or Failure(ConnectionError("close() was called"))
            return fail(EchoIncomplete(len(data), reason))
        deferred: Deferred[bytes] = Deferred(lambda _: self._cancel(call))
        call = _Call(data, deferred, len(data))
        if timeout is not None:
            deferred.addTimeout(timeout, clock_of(self._clock or self.transport.reactor))
        self._calls.append(call)
        self._to_send.append(call)
        self._send()
        self._complete()
        return deferred

    def close(self) -> Deferred[None]:
        """Refuse new calls, wait for the pending ones, then close the connection.

        :return: fires with ``None`` when the connection is closed, for any reason.
        """
        closed: Deferred[None] = Deferred()
        self._closing = True
        if self._connected:
            self._ended.addCallback(closed.callback)
            self._finish()
        else:
            closed.callback(None)
        return closed

    def connectionMade(self) -> None:
        """Accept calls."""
        self._failure, self._connected = None, True
        set_options(self.transport)
        self.transport.registerProducer(self, True)

    def dataReceived(self, data: bytes) -> None:
        """Compare ``data`` with the bytes sent."""
        if self._failure is not None:
            return  # after a mismatch, the rest of the stream cannot be matched
        self.received += len(data)
        at = 0
        while at < len(data):
            if not self._calls:
                self._give_up(EchoMismatch(0, b"", data[at : at + EXCERPT]))
                return
            call = self._calls[0]
            part = data[at : at + call.written - call.matched]
            # startswith compares in place: call.data may be gigabytes
            if not part or not call.data.startswith(part, call.matched):
                self._mismatch(call, data[at:])
                return
            at += len(part)
            call.matched += len(part)
            self._complete()

    def readConnectionLost(self) -> None:
        """Close, because the service has finished sending: no more replies can come."""
        self._failure = connectionDone
        if self._calls:
            self.transport.abortConnection()
        else:
            self._finish_sending()
            self.transport.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: after the half-close, the service finishes too."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail the pending calls."""
        self._connected = False
        if self._failure is None:
            self._failure = reason
        self._to_send.clear()
        calls, self._calls = self._calls, deque()
        for call in calls:
            if not call.deferred.called:
                missing = call.length - call.matched
                call.deferred.errback(EchoIncomplete(missing, self._failure))
        self._ended.callback(None)

    def pauseProducing(self) -> None:
        """Stop writing: the transport's buffer is full."""
        self._paused = True

    def resumeProducing(self) -> None:
        """Write again: the transport's buffer is empty."""
        self._paused = False
        self._send()

    def stopProducing(self) -> None:
        """Do nothing: :meth:`connectionLost` follows."""

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
        differs = list(map(operator.ne, expected, data))
        same = differs.index(True) if True in differs else len(differs)
        excerpt = slice(same, same + EXCERPT)
        self._give_up(EchoMismatch(call.matched + same, expected[excerpt], data[excerpt]))

    def _give_up(self, mismatch: EchoMismatch) -> None:
        """Fail the call, and reset the connection: the start of the next reply is unknown."""
        self._failure = Failure(mismatch)
        if self._calls:
            call = self._calls.popleft()
            if not call.deferred.called:
                call.deferred.errback(mismatch)
        self.transport.abortConnection()

    def _finish(self) -> None:
        """Half-close after :meth:`close`; without half-close, close when all replies have come."""
        if not self._closing or self._finished or self._failure is not None or self._to_send:
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


class EchoClientFactory(Factory):
    """Builds an :class:`EchoClient` for each connection, over any stream endpoint.

    :param clock: the clock of the timeouts; by default the reactor of each transport, or its
        :class:`~echod.clock.MonotonicClock` if that reactor follows the time of day.
    """

    noisy = False
    protocol = EchoClient

    def __init__(self, clock: IReactorTime | None = None) -> None:
        unless_none(check_provider, "clock", clock, IReactorTime)
        self.clock = clock

    def buildProtocol(self, addr: IAddress | None) -> EchoClient:  # noqa: ARG002 - Twisted's signature
        """Build a client."""
        return self.protocol(self.clock)
