"""``echod-client pipe``: standard input through the service to standard output, every byte checked.

What is under way is bounded, and nothing comes out that is not what went in: a chunk is written
when all of it has come back, and compared.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import (
    IHandshakeListener,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
    ISSLTransport,
    IWriteDescriptor,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.connector import Connector
from echod.client.errors import kind_of, line_of, of_file
from echod.client.pacing import Pacer, Schedule
from echod.client.protocol import CHUNK, EchoClient, EchoIncomplete, EchoMismatch

MOST: Final = 4 * 1024 * 1024
"""Bytes that may be under way, and those that may wait for standard output."""

LOOKS: Final = 8
"""How often, within a timeout, it is looked whether anything comes back."""


@implementer(IReadDescriptor)
class Input:
    """A file that is read when it has something, without making it a non-blocking one.

    That would make it one for all who share it (O_NONBLOCK in open(2) belongs to the open file).

    :param descriptor: of the file.
    :param take: is given what was read; nothing, at its end.
    :param failed: is told why it cannot be read.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        descriptor: int,
        take: Callable[[bytes], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._reactor, self._descriptor = reactor, descriptor
        self._take, self._failed = take, failed
        self._reading = False

    def read(self, wanted: bool) -> None:
        """Read on, or do not for now."""
        if wanted != self._reading:
            self._reading = wanted
            (self._reactor.addReader if wanted else self._reactor.removeReader)(self)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return what a log calls it."""
        return "standard input"

    def doRead(self) -> None:
        """Read what there is."""
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:  # others read there, too, and have made it a non-blocking one
            self.read(True)
        except OSError as error:
            self._failed(error)
        else:
            self._take(data)

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Find out at the next reading why the reactor says that it is over (EPOLLHUP)."""
        self._reading = False
        self.doRead()


@implementer(IWriteDescriptor)
class Output:
    """A file that takes what is written at its own speed, and without blocking.

    :param descriptor: of the file. Where writing to it may block, it is opened once more, with
        O_NONBLOCK; where that cannot be done, it gets no more at once than is sure to fit.
    :param drained: is called when all was taken that had to wait.
    :param failed: is told why it cannot be written.
    :ivar waiting: bytes that it has not taken yet.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        descriptor: int,
        drained: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._reactor = reactor
        self._drained, self._failed = drained, failed
        self._chunks: deque[memoryview] = deque()
        self._blocked = False
        self._own = self._given = descriptor
        self._most = CHUNK
        self.waiting = 0
        kind = os.fstat(descriptor).st_mode
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(kind) else None
        if stat.S_ISFIFO(kind) or os.isatty(descriptor):
            try:
                self._own = open_again(descriptor)
            except OSError:  # of another user's, as after su(1)
                self._most = select.PIPE_BUF

    def write(self, data: bytes) -> None:
        """Have it take ``data``, after what is waiting."""
        self._chunks.append(memoryview(data))
        self.waiting += len(data)
        if self._most != CHUNK:
            self._block(True)  # until the reactor says that there is room
        elif not self._blocked:
            self.doWrite()

    def close(self) -> None:
        """Write no more. The file that was given stays open."""
        self._block(False)
        if self._socket is not None:
            self._socket.close()
        if self._own != self._given:
            os.close(self._own)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._own

    def logPrefix(self) -> str:
        """Return what a log calls it."""
        return "standard output"

    def doWrite(self) -> None:
        """Write what it takes."""
        waited = self._blocked
        try:
            while self._chunks:
                chunk = self._chunks[0]
                count = self._put(chunk[: self._most])
                self.waiting -= count
                if count == len(chunk):
                    self._chunks.popleft()
                else:
                    self._chunks[0] = chunk[count:]
                if self._most != CHUNK:
                    break  # more might block
        except BlockingIOError:
            pass
        except OSError as error:
            self._block(False)
            self._failed(error)
            return
        self._block(bool(self._chunks))
        if waited and not self._chunks:
            self._drained()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Find out by writing why the reactor says that it is over (EPOLLERR)."""
        self._blocked = False
        self.doWrite()

    def _put(self, part: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(part, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._own, part)

    def _block(self, blocked: bool) -> None:
        if blocked != self._blocked:
            self._blocked = blocked
            (self._reactor.addWriter if blocked else self._reactor.removeWriter)(self)


def open_again(descriptor: int) -> int:
    """Return a descriptor of the same file that does not block, whatever others do with it.

    :raises OSError: where that is not allowed, or nobody reads.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(f"/proc/self/fd/{descriptor}", flags)


@implementer(IHandshakeListener)
class PipeClient(EchoClient):
    """A client that says when its connection is ready, and when it has ended.

    :ivar ready: fires when it is connected, and with TLS its handshake done.
    :ivar lost: is told.
    """

    lost: Callable[[Failure], None] = staticmethod(lambda _: None)

    def __init__(self, clock: IReactorTime) -> None:
        super().__init__(clock)
        self.ready: Deferred[None] = Deferred()

    def connectionMade(self) -> None:
        """Be ready, without TLS."""
        super().connectionMade()
        if not ISSLTransport.providedBy(self.transport):
            self.ready.callback(None)

    def handshakeCompleted(self) -> None:
        """Be ready: the TLS handshake is done."""
        self.ready.callback(None)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Say so, after the calls under way have been told."""
        if not self.ready.called:
            self.ready.errback(reason)
        super().connectionLost(reason)
        self.lost(reason)


class Pipe:
    """A run of it.

    :param way: how to get to the service.
    :param progress: is told how many bytes more have come back.
    :ivar sent: bytes that went into it.
    :ivar received: bytes that came back right.
    :ivar failure: a line that says why it ended before its input; "" where it did not.
    :ivar seconds: how long it took, from the first connection on.
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
        self._progress = progress
        self._input = Input(connector.reactor, source, self._take, self._input_failed)
        self._output = Output(connector.reactor, sink, self._drained, self._output_failed)
        self._client = PipeClient(connector.clock)
        self._at_end = False
        self._closed = False
        self._paused = False
        self._last = (0, 0.0)  # bytes of all that came, and when these were seen
        self._done: Deferred[None] = Deferred()
        self._gone: Deferred[None] = Deferred()
        self._connecting: Deferred[None] | None = None

    @property
    def written(self) -> int:
        """How many bytes the output has taken."""
        return self.received - self._output.waiting

    async def run(self) -> None:
        """Run until all has come back, or something fails."""
        try:
            self._connecting = Deferred.fromCoroutine(self._connect())
            await self._connecting
        except Exception as error:
            self._fail(error)
        else:
            begun = self.clock.seconds()
            self._client.lost = self._lost
            self._input.read(not self._done.called)
            looks = Pacer(
                self.clock, Schedule(begun, self.connector.timeout / LOOKS), lambda _: self._look()
            )
            looks.run()
            await self._done
            looks.stop()
            self._input.read(False)
            self.seconds = self.clock.seconds() - begun
            if not self._closed:
                self._client.transport.abortConnection()
                await self._gone
        self._output.close()

    def stop(self) -> None:
        """End it now."""
        self._end("interrupted")
        if self._connecting is not None:
            self._connecting.cancel()

    async def _connect(self) -> None:
        await self.connector.find()
        await self.connector.client(self._client, self._client.ready)

    def _take(self, data: bytes) -> None:
        if self.sent == self.received:  # nothing was owed: the timeout is from now on
            self._last = self._client.received, self.clock.seconds()
        if not data:
            self._input.read(False)
            self._at_end = True
            self._client.close()
            return
        self.sent += len(data)
        self._client.echo(data).addCallbacks(self._came, self._fail)
        self._flow()

    def _came(self, data: bytes) -> None:
        self.received += len(data)
        self._output.write(data)
        self._progress(len(data))
        self._flow()

    def _flow(self) -> None:
        """Read what there is room for."""
        if self._done.called:
            return
        self._input.read(not self._at_end and self.sent - self.received < MOST)
        if self._paused != (self._output.waiting > MOST):
            self._paused = not self._paused
            transport = self._client.transport
            (transport.pauseProducing if self._paused else transport.resumeProducing)()

    def _drained(self) -> None:
        self._flow()
        self._finish()

    def _lost(self, reason: Failure) -> None:
        self._closed = True
        self._gone.callback(None)
        if self._done.called:
            return
        if self._client.received > self.sent:
            self._end("more came back than was sent")
        elif not self._at_end or self.received < self.sent:
            self._fail(reason)
        else:
            self._finish()

    def _finish(self) -> None:
        if self._at_end and self._closed and not self._output.waiting:
            self._end("")

    def _look(self) -> None:
        """Give up where nothing comes back, which something could."""
        now, came = self.clock.seconds(), self._client.received
        waits = self.sent > self.received or (self._at_end and not self._closed)
        if came != self._last[0] or self._paused or not waits:
            self._last = came, now
        elif now - self._last[1] >= self.connector.timeout:
            if self.sent > self.received:
                self._end(f"nothing has come back for {self.connector.timeout:g} s")
            self._client.transport.abortConnection()

    def _fail(self, reason: Failure | BaseException) -> None:
        if self._done.called:  # and so this is how it ends, or one more that was under way
            return
        what: Any = reason.value if isinstance(reason, Failure) else reason
        if isinstance(what, EchoIncomplete):
            what = what.reason.value
        if isinstance(what, EchoMismatch):
            at = self.received + what.offset
            self._end(f"byte {at}: sent {what.expected!r}, received {what.received!r}")
        else:
            self.connector.errors[kind_of(what)] += 1
            self._end(line_of(what))

    def _input_failed(self, error: OSError) -> None:
        self._end(f"standard input: {of_file(error)}")

    def _output_failed(self, error: OSError) -> None:
        self._end(f"standard output: {of_file(error)}")

    def _end(self, failure: str) -> None:
        if not self._done.called:
            self.failure = failure
            self._done.callback(None)
