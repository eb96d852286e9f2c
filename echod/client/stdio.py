"""Standard input and output without blocking, and without changing the open file.

O_NONBLOCK belongs to the open file description (open(2)), which the shell and other processes
share: setting it on an inherited descriptor would make their reads and writes fail.
"""

from __future__ import annotations

import os
import select
import socket
import stat
from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorFDSet, IReadDescriptor, IWriteDescriptor
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.protocol import CHUNK


@implementer(IReadDescriptor)
class StandardInput:
    """A file that is read when the reactor reports it readable.

    :param descriptor: of the file.
    """

    def __init__(self, reactor: IReactorFDSet, descriptor: int) -> None:
        self._reactor, self._descriptor = reactor, descriptor
        self._pending: Deferred[bytes] | None = None
        self._watched = False

    def read(self) -> Deferred[bytes]:
        """Read up to 64 KiB.

        :return: fires with the bytes, empty at the end of the file; fails with :class:`OSError`.
        """
        self._pending = Deferred(self._cancel)
        self._watch()
        return self._pending

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def logPrefix(self) -> str:
        """Return the name for logs."""
        return "standard input"

    def doRead(self) -> None:
        """Read once, for the pending :meth:`read`."""
        pending, self._pending = self._pending, None
        assert pending is not None
        try:
            data = os.read(self._descriptor, CHUNK)
        except BlockingIOError:  # non-blocking, and another process has read the bytes
            self._pending = pending
        except OSError as error:
            pending.errback(error)
        else:
            pending.callback(data)
        self._watch()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Read on after EPOLLHUP, which removes the reader: the pipe may still hold bytes."""
        self._watched = False
        self.doRead()

    def _cancel(self, _: Deferred[bytes]) -> None:
        self._pending = None
        self._watch()

    def _watch(self) -> None:
        # If the caller reads again at once, nothing changes, and epoll_ctl(2) is not called.
        watched = self._pending is not None
        if watched != self._watched:
            self._watched = watched
            (self._reactor.addReader if watched else self._reactor.removeReader)(self)


@implementer(IWriteDescriptor)
class StandardOutput:
    """A file that is written without blocking.

    A pipe or terminal is opened again with O_NONBLOCK. Where that is not permitted, each write is
    at most PIPE_BUF bytes, and only when the reactor reports the file writable (pipe(7)).

    :param descriptor: of the file.
    :param written: called after some of the queue was written.
    :param failed: called with the error of a write.
    :ivar queued: bytes that are not written yet.
    """

    def __init__(
        self,
        reactor: IReactorFDSet,
        descriptor: int,
        written: Callable[[], None],
        failed: Callable[[OSError], None],
    ) -> None:
        self._reactor = reactor
        self._written, self._failed = written, failed
        self._chunks: deque[memoryview] = deque()
        self._watched = False
        self._own = self._given = descriptor
        self._largest = CHUNK
        self.queued = 0
        kind = os.fstat(descriptor).st_mode
        self._socket = socket.socket(fileno=os.dup(descriptor)) if stat.S_ISSOCK(kind) else None
        if stat.S_ISFIFO(kind) or os.isatty(descriptor):
            try:
                self._own = open_again(descriptor)
            except OSError:  # owned by another user, as after su(1)
                self._largest = select.PIPE_BUF

    def write(self, data: bytes) -> None:
        """Write ``data`` after the bytes that are queued."""
        self._chunks.append(memoryview(data))
        self.queued += len(data)
        if self._largest != CHUNK:
            self._watch(True)
        elif not self._watched:
            self.doWrite()

    def close(self) -> None:
        """Stop writing. The descriptor that was passed in stays open."""
        self._watch(False)
        if self._socket is not None:
            self._socket.close()
        if self._own != self._given:
            os.close(self._own)

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._own

    def logPrefix(self) -> str:
        """Return the name for logs."""
        return "standard output"

    def doWrite(self) -> None:
        """Write as much of the queue as the file takes."""
        try:
            while self._chunks:
                chunk = self._chunks[0]
                count = self._send(chunk[: self._largest])
                self.queued -= count
                if count == len(chunk):
                    self._chunks.popleft()
                else:
                    self._chunks[0] = chunk[count:]
                if self._largest != CHUNK:
                    break  # a second write might block
        except BlockingIOError:
            pass
        except OSError as error:
            self._watch(False)
            self._failed(error)
            return
        self._watch(bool(self._chunks))
        self._written()

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Write after EPOLLERR, which removes the writer: the error of the write says why."""
        self._watched = False
        self.doWrite()

    def _send(self, part: memoryview) -> int:
        if self._socket is not None:
            return self._socket.send(part, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        return os.write(self._own, part)

    def _watch(self, watched: bool) -> None:
        if watched != self._watched:
            self._watched = watched
            (self._reactor.addWriter if watched else self._reactor.removeWriter)(self)


def open_again(descriptor: int) -> int:
    """Open the file of a descriptor again for writing, with O_NONBLOCK.

    :raises OSError: if that is not permitted, or a pipe has no reader.
    """
    flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
    return os.open(f"/proc/self/fd/{descriptor}", flags)
