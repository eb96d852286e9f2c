"""``echod-client pipe``: standard input through the service to standard output, every byte checked.

A chunk is written after all of it has come back and was compared, so no wrong byte is written. The
bytes in flight and in the queue of standard output are bounded together.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IHandshakeListener, IReactorTime, ISSLTransport
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.connector import Connector
from echod.client.errors import error_line, error_word, os_error_line
from echod.client.protocol import EchoClient, EchoIncomplete, EchoMismatch
from echod.client.stdio import StandardInput, StandardOutput
from echod.timeouts import CHECKS_PER_TIMEOUT

WINDOW: Final = 4 * 1024 * 1024
"""Bytes in flight or queued for standard output, above which standard input is not read."""


@implementer(IHandshakeListener)
class PipeClient(EchoClient):
    """A client that reports when its connection is ready, and when it is lost.

    :param lost: called with the reason when the connection is lost, after all calls have failed.
    :ivar ready: fires when the connection is made; over TLS, when its handshake is done.
    """

    def __init__(self, clock: IReactorTime, lost: Callable[[Failure], None]) -> None:
        super().__init__(clock)
        self._lost = lost
        self.ready: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Fire :attr:`ready`, unless a TLS handshake follows."""
        super().connectionMade()
        if not ISSLTransport.providedBy(self.transport):
            self.ready.callback(None)

    def handshakeCompleted(self) -> None:
        """Fire :attr:`ready`."""
        self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Report the end of the connection."""
        super().connectionLost(reason)
        if not self.ready.called:
            self.ready.errback(reason)
        self._lost(reason)


class Pipe:
    """One run of ``pipe``.

    :param connector: connects to the service.
    :param source: descriptor that is read.
    :param sink: descriptor that is written.
    :param progress: called with the number of bytes of each chunk that has come back.
    :ivar sent: bytes read from ``source``.
    :ivar received: bytes that came back right.
    :ivar failure: one line that says why the run ended before the end of its input; "" otherwise.
    :ivar seconds: time from the connection to the end.
    """

    def __init__(
        self, connector: Connector, source: int, sink: int, progress: Callable[[int], None]
    ) -> None:
        self.connector = connector
        self.clock = connector.clock
        self.sent = 0
        self.received = 0
        self.failure = ""
        self.seconds = 0.0
        self._report_progress = progress
        self._input = StandardInput(connector.reactor, source)
        self._output = StandardOutput(connector.reactor, sink, self._wake, self._output_failed)
        self._client = PipeClient(self.clock, self._disconnected)
        self._at_end = False  # of the input
        self._last_progress = 0, 0.0  # bytes received, and when
        self._progressed: Deferred[None] | None = None
        self._ended: Deferred[None] = Deferred()

    @property
    def written(self) -> int:
        """Bytes written to the output."""
        return self.received - self._output.queued

    async def run(self) -> None:
        """Run until all bytes have come back and are written, or something fails."""
        transfer = Deferred.fromCoroutine(self._transfer())
        transfer.addCallbacks(lambda _: self._end(""), self._fail)
        await self._ended
        transfer.cancel()
        closed = self._client.close()
        if not closed.called:
            self._client.transport.abortConnection()
        await closed
        self._output.close()

    def stop(self) -> None:
        """End the run now."""
        self._end("interrupted")

    async def _transfer(self) -> None:
        await self.connector.resolve()
        await self.connector.connect(self._client)
        begun = self.clock.seconds()
        try:
            await self._send_all()
            await self._unwritten_at_most(0)
        finally:
            self.seconds = self.clock.seconds() - begun

    async def _send_all(self) -> None:
        """Send the input, wait for all of it to come back, and close the connection."""
        stall_check = LoopingCall(self._check_stall)
        stall_check.clock = self.clock
        stall_check.start(self.connector.timeout / CHECKS_PER_TIMEOUT)
        try:
            while data := await self._read():
                self.sent += len(data)
                self._client.echo(data).addCallbacks(self._came_back, self._fail)
                await self._unwritten_at_most(WINDOW)
            self._at_end = True
            await self._client.close()
        finally:
            stall_check.stop()
        if self._client.received > self.sent:
            raise EchoMismatch(self.sent, b"", b"")

    async def _read(self) -> bytes:
        try:
            data = await self._input.read()
        except OSError as error:
            self._end(f"standard input: {os_error_line(error)}")
            raise
        if self.sent == self.received:  # nothing was in flight: the timeout begins now
            self._last_progress = self._client.received, self.clock.seconds()
        return data

    def _came_back(self, data: bytes) -> None:
        self.received += len(data)
        self._output.write(data)
        self._report_progress(len(data))

    async def _unwritten_at_most(self, limit: int) -> None:
        """Wait until at most ``limit`` bytes are in flight or queued for the output."""
        while self.sent - self.written > limit:
            self._progressed = Deferred()
            await self._progressed

    def _wake(self) -> None:
        if self._progressed is not None:
            progressed, self._progressed = self._progressed, None
            progressed.callback(None)

    def _check_stall(self) -> None:
        """End the run if bytes are in flight, and none has come back for the timeout.

        After the end of the input, the service has the same time to close the connection.
        """
        now, received = self.clock.seconds(), self._client.received
        in_flight = self.sent > self.received
        if received != self._last_progress[0] or not (in_flight or self._at_end):
            self._last_progress = received, now
        elif now - self._last_progress[1] >= self.connector.timeout:
            if in_flight:
                self._end(f"nothing has come back for {self.connector.timeout:g} s")
            self._client.transport.abortConnection()

    def _disconnected(self, reason: Failure) -> None:
        if not self._at_end:
            self._fail(reason)

    def _fail(self, reason: Failure) -> None:
        """End the run with the line for ``reason``, unless it has ended already."""
        if self._ended.called:
            return
        error: Any = reason.value
        if isinstance(error, EchoIncomplete):
            error = error.reason.value
        if isinstance(error, EchoMismatch) and error.expected:
            at = self.received + error.offset
            self._end(f"byte {at}: sent {error.expected!r}, received {error.received!r}")
        elif self._client.received > self.sent:
            self._end("more came back than was sent")
        else:
            self.connector.errors[error_word(error)] += 1
            self._end(error_line(error))

    def _output_failed(self, error: OSError) -> None:
        self._end(f"standard output: {os_error_line(error)}")

    def _end(self, failure: str) -> None:
        if not self._ended.called:
            self.failure = failure
            self._ended.callback(None)
