"""``pipe`` between two files and a service."""

from __future__ import annotations

import contextlib
import os
import pty
import random
import socket
import tempfile
import threading
import time
from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from echod.client.connector import Connector
from echod.client.pipe import WINDOW, Pipe
from echod.client.report import pipe_result
from echod.client.runner import PreciseReactor
from echod.client.target import parse_target
from echod.peer import EchoPeer
from tests import TIMEOUT
from tests.client.memory import target_of


class Run:
    """A pipe in a reactor of its own."""

    def __init__(self, target: str, source: int, sink: int, timeout: float = 10.0) -> None:
        self.reactor: Any = PreciseReactor()
        self.counted: list[int] = []
        connector = Connector(self.reactor, parse_target(target), timeout)
        self.pipe = Pipe(connector, source, sink, self.counted.append)

    def run(self) -> Pipe:
        async def main() -> None:
            try:
                await self.pipe.run()
            finally:
                self.reactor.stop()

        failures: list[Any] = []
        self.reactor.callWhenRunning(
            lambda: Deferred.fromCoroutine(main()).addErrback(failures.append)
        )
        self.reactor.run(installSignalHandlers=False)
        assert not failures
        assert sum(self.counted) == self.pipe.received
        return self.pipe


def noise(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def file_with(data: bytes) -> Any:
    file = tempfile.TemporaryFile()  # noqa: SIM115 - the test's own
    file.write(data)
    file.seek(0)
    return file


def through(peer: EchoPeer, data: bytes, timeout: float = 10.0) -> tuple[Pipe, bytes]:
    """Send ``data`` from a file through a pipe into another file, and return what was written."""
    with file_with(data) as source, tempfile.TemporaryFile() as sink:
        run = Run(target_of(peer), source.fileno(), sink.fileno(), timeout)
        pipe = run.run()
        sink.seek(0)
        return pipe, sink.read()


@pytest.mark.parametrize("size", [0, 1, 65_536, 3_000_001])
def test_files(echo_peer: EchoPeer, size: int) -> None:
    """All bytes of a file come out; then the connection is closed."""
    data = noise(size)
    pipe, received = through(echo_peer, data)
    assert received == data
    assert (pipe.sent, pipe.received, pipe.failure) == (size, size, "")
    assert pipe_result(pipe)["ok"]


def pair(kind: str) -> tuple[int, int]:
    """Return the writable and the readable end of a pipe or a socket pair."""
    if kind == "pipe":
        reading, writing = os.pipe()
        return writing, reading
    left, right = socket.socketpair()
    return left.detach(), right.detach()


def write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
    os.close(descriptor)


def read_all(descriptor: int, into: list[bytes]) -> None:
    while part := os.read(descriptor, 1 << 16):
        into.append(part)
    os.close(descriptor)


@pytest.mark.parametrize("cannot_open", [False, True])
@pytest.mark.parametrize("kind", ["pipe", "socket"])
def test_pipes(
    echo_peer: EchoPeer, kind: str, cannot_open: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All bytes pass from a pipe or socket to another one, whose reader is slower.

    This holds, too, where standard output cannot be opened again, as after su(1).
    """
    if cannot_open:

        def refuse(*_: object) -> int:
            raise PermissionError

        monkeypatch.setattr("echod.client.stdio.open_again", refuse)
    data = noise(2_000_000)
    feed, source = pair(kind)
    sink, drain = pair(kind)
    received: list[bytes] = []
    threads = [
        threading.Thread(target=write_all, args=(feed, data)),
        threading.Thread(target=read_all, args=(drain, received)),
    ]
    for thread in threads:
        thread.start()
    pipe = Run(target_of(echo_peer), source, sink).run()
    assert os.get_blocking(sink)
    os.close(source)
    os.close(sink)
    for thread in threads:
        thread.join()
    assert pipe.failure == ""
    assert b"".join(received) == data


def test_full_output(echo_peer: EchoPeer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full pipe that cannot be opened again does not block: Ctrl-C ends the run."""

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr("echod.client.stdio.open_again", refuse)
    sink, drain = pair("pipe")
    os.set_blocking(sink, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(sink, bytes(4096))
    os.set_blocking(sink, True)
    rescue = threading.Timer(TIMEOUT / 2, os.read, (drain, 1 << 20))
    rescue.start()
    with file_with(b"hello") as source:
        run = Run(target_of(echo_peer), source.fileno(), sink)
        run.reactor.callLater(0.1, run.pipe.stop)
        assert run.run().failure == "interrupted"
    assert run.pipe.seconds < TIMEOUT / 4
    rescue.cancel()
    os.close(sink)
    os.close(drain)


def test_slow_reader(echo_peer: EchoPeer) -> None:
    """While the output has no reader, the bytes in flight and in the queue stay bounded."""
    data = noise(3 * WINDOW)
    sink, drain = pair("pipe")
    received: list[bytes] = []
    reader = threading.Thread(target=read_all, args=(drain, received))
    with file_with(data) as source:
        run = Run(target_of(echo_peer), source.fileno(), sink, timeout=0.2)
        most: list[int] = []

        def check() -> None:
            most.append(run.pipe.sent)
            if len(most) > 2 and most[-1] == most[-3] and not reader.ident:
                reader.start()
            else:
                run.reactor.callLater(0.3, check)

        run.reactor.callLater(0, check)
        pipe = run.run()
    os.close(sink)
    reader.join()
    # The pipe stalled for longer than the timeout, but the service did not.
    assert most[-1] <= WINDOW + (1 << 20)
    assert pipe.failure == ""
    assert b"".join(received) == data


@pytest.mark.parametrize(
    ("plan", "expected"),
    [
        ("byte 100000: damage", "byte 99999: sent "),
        ("after 100000 bytes: swallow", "byte 100000: sent "),
        ("after 100000 bytes: close", "the service has closed the connection"),
        ("after 100000 bytes: reset", "connection reset"),
        ('after 1M bytes: insert "!"', "more came back than was sent"),
        ("silent", "the service has closed the connection"),
    ],
)
def test_faults(plan: str, expected: str, echo_peer: EchoPeer) -> None:
    """A service that does not return the bytes it received is reported; no wrong byte comes out."""
    echo_peer.plan(plan)
    data = noise(1_000_000)
    pipe, received = through(echo_peer, data, timeout=0.3)
    assert pipe.failure.startswith(expected)
    assert data.startswith(received)
    assert not pipe_result(pipe)["ok"]
    # The end of a connection counts once; a reset by this side does not count.
    ends = {"close": {"closed": 1}, "reset": {"reset": 1}, "silent": {"closed": 1}}
    assert pipe.connector.errors == ends.get(plan.rsplit(maxsplit=1)[-1], {})
    assert pipe.written == len(received)


def test_silent(echo_peer: EchoPeer) -> None:
    """The wait for a silent service ends after the timeout."""
    feed, source = pair("pipe")
    sink, drain = pair("pipe")
    os.write(feed, b"hello")
    echo_peer.silent()
    pipe = Run(target_of(echo_peer), source, sink, timeout=0.3).run()
    for descriptor in (feed, source, sink, drain):
        os.close(descriptor)
    assert pipe.failure == "nothing has come back for 0.3 s"
    assert pipe.connector.errors == {}
    assert 0.3 <= pipe.seconds < 1


class SilentClient:
    """A client that is connected, and receives nothing."""

    received = 0
    transport = StringTransport()

    def echo(self, _: bytes) -> Deferred[bytes]:
        return Deferred()

    def close(self) -> Deferred[None]:
        return succeed(None)


class SilentConnector:
    """A connector whose client is connected at once."""

    timeout = 8.0

    async def resolve(self) -> None:
        """Find the address at once."""

    async def connect(self, *_: object) -> None:
        """Connect at once."""


def fake(source: int, sink: int, client: SilentClient) -> tuple[Any, Clock]:
    """Return a pipe with ``client``, which needs no service, and the clock of both."""
    pipe: Any = Run("127.0.0.1:7", source, sink).pipe
    pipe.clock, pipe._client, pipe.connector = clock, _, _ = Clock(), client, SilentConnector()
    return pipe, clock


def test_idle_input() -> None:
    """The timeout begins with the first byte in flight: an idle standard input does not count."""
    feed, source = pair("pipe")
    pipe, clock = fake(source, source, SilentClient())
    run = Deferred.fromCoroutine(pipe.run())
    clock.pump([1] * 20 + [0.9])
    os.write(feed, b"hello")
    pipe._input.doRead()
    clock.pump([0.1] * 78)
    assert not run.called
    clock.advance(1)
    assert run.called
    assert pipe.failure == "nothing has come back for 8 s"
    assert pipe.seconds == pytest.approx(29.7)
    os.close(feed)
    os.close(source)


def test_idle_input_that_ends() -> None:
    """The service has the whole timeout to close the connection after the end of the input."""

    class OpenClient(SilentClient):
        """A client whose service does not close the connection."""

        def __init__(self) -> None:
            self.closed: Deferred[None] = Deferred()
            self.transport: Any = self

        def abortConnection(self) -> None:
            if not self.closed.called:
                self.closed.callback(None)

        def close(self) -> Deferred[None]:
            return succeed(None) if self.closed.called else self.closed

    feed, source = pair("pipe")
    sink, drain = pair("socket")
    client = OpenClient()
    pipe, clock = fake(source, sink, client)
    run = Deferred.fromCoroutine(pipe.run())
    clock.pump([1] * 10 + [0.9])
    os.close(feed)
    pipe._input.doRead()
    clock.pump([0.1] * 75)
    assert not client.closed.called
    clock.advance(1)
    assert run.called
    assert pipe.failure == ""
    for descriptor in (source, sink, drain):
        os.close(descriptor)


class FinishedClient(SilentClient):
    """A client whose connection ends with its input."""

    transport: Any = None  # a closed connection cannot be aborted: over TLS, Twisted would raise

    def echo(self, data: bytes) -> Deferred[bytes]:
        self.received += len(data)
        return succeed(data)


def test_slow_output_after_the_end() -> None:
    """The connection is closed, and the output takes longer than the timeout."""
    sink, drain = pair("pipe")
    data = noise(200_000)
    with file_with(data) as source:
        pipe, clock = fake(source.fileno(), sink, FinishedClient())
        run = Deferred.fromCoroutine(pipe.run())
        while not pipe._at_end:
            pipe._input.doRead()
        clock.pump([1] * 20)
        assert not run.called
        written = b""
        while not run.called:
            written += os.read(drain, 1 << 16)
            pipe._output.doWrite()
    assert pipe.failure == ""
    assert written + os.read(drain, 1 << 20) == data
    os.close(sink)
    os.close(drain)


def test_idle_service_ends(echo_peer: EchoPeer) -> None:
    """The end of an idle connection is reported at once."""
    feed, source = pair("pipe")
    sink, drain = pair("pipe")
    run = Run(target_of(echo_peer), source, sink)
    run.reactor.callLater(0.1, echo_peer.stop)
    pipe = run.run()
    for descriptor in (feed, source, sink, drain):
        os.close(descriptor)
    assert pipe.failure in ("the service has closed the connection", "connection reset")


def test_stop(echo_peer: EchoPeer) -> None:
    """A pipe can be interrupted."""
    feed, source = pair("pipe")
    sink, drain = pair("pipe")
    run = Run(target_of(echo_peer), source, sink)
    run.reactor.callLater(0.05, run.pipe.stop)
    assert run.run().failure == "interrupted"
    for descriptor in (feed, source, sink, drain):
        os.close(descriptor)


def test_service_that_does_not_close() -> None:
    """A service that returned all bytes, and does not close, is not a failure."""

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.sendall(peer.recv(100))
            ended.wait(20)

    ended = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve)
        server.start()
        with file_with(b"hello") as source, tempfile.TemporaryFile() as sink:
            target = f"127.0.0.1:{listening.getsockname()[1]}"
            pipe = Run(target, source.fileno(), sink.fileno(), timeout=0.2).run()
        ended.set()
        server.join()
    assert (pipe.received, pipe.failure) == (5, "")


def test_wrong_bytes_and_more() -> None:
    """A wrong byte is reported as such, even if more bytes came back than were sent."""

    def serve() -> None:
        peer, _ = listening.accept()
        with peer:
            peer.recv(100)
            peer.sendall(b"help yourself")

    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = threading.Thread(target=serve)
        server.start()
        with file_with(b"hello") as source, tempfile.TemporaryFile() as sink:
            target = f"127.0.0.1:{listening.getsockname()[1]}"
            pipe = Run(target, source.fileno(), sink.fileno()).run()
        server.join()
    assert pipe.failure == "byte 3: sent b'lo', received b'p yourself'"


def test_stop_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt ends the name lookup."""
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: Deferred())
    with file_with(b"abc") as source, file_with(b"") as sink:
        run = Run("127.0.0.1:7", source.fileno(), sink.fileno())
        run.reactor.callLater(0.05, run.pipe.stop)
        began = time.monotonic()
        assert run.run().failure == "interrupted"
    assert run.pipe.connector.errors == {}
    assert time.monotonic() - began < 5


def test_stop_before_it_is_connected(echo_peer: EchoPeer) -> None:
    """An interrupt before the connection ends the run."""
    with file_with(b"abc") as source, file_with(b"") as sink:
        run = Run(target_of(echo_peer), source.fileno(), sink.fileno())
        run.pipe.stop()
        assert run.run().failure == "interrupted"


def test_bad_input(echo_peer: EchoPeer) -> None:
    """An error of standard input is reported."""
    source = os.open("/", os.O_RDONLY)
    with tempfile.TemporaryFile() as sink:
        pipe = Run(target_of(echo_peer), source, sink.fileno()).run()
    os.close(source)
    assert pipe.failure == "standard input: is a directory"


def test_input_read_by_another_process(echo_peer: EchoPeer) -> None:
    """Where another process has read standard input, the pipe waits for the next bytes."""
    feed, source = pair("pipe")
    os.set_blocking(source, False)
    with tempfile.TemporaryFile() as sink:
        run = Run(target_of(echo_peer), source, sink.fileno())

        def go_on() -> None:
            if not run.pipe._input._watched:
                run.reactor.callLater(0.01, go_on)
                return
            run.pipe._input.doRead()
            os.write(feed, b"hello")
            os.close(feed)

        run.reactor.callLater(0, go_on)
        pipe = run.run()
    os.close(source)
    assert (pipe.received, pipe.failure) == (5, "")


def test_full_disk(echo_peer: EchoPeer) -> None:
    """An error of standard output is reported."""
    with file_with(b"abc") as source, open("/dev/full", "wb") as sink:
        pipe = Run(target_of(echo_peer), source.fileno(), sink.fileno()).run()
    assert pipe.failure == "standard output: no space left on device"
    assert (pipe.received, pipe.written) == (3, 0)


@pytest.mark.parametrize("kind", ["pipe", "socket"])
@pytest.mark.parametrize("size", [10, 3_000_000])
def test_reader_goes(echo_peer: EchoPeer, kind: str, size: int) -> None:
    """The end of the output's reader is reported, at once or when the pipe is full."""
    sink, drain = pair(kind)
    with file_with(noise(size)) as source:
        run = Run(target_of(echo_peer), source.fileno(), sink)
        if size == 10:
            os.close(drain)
        else:
            run.reactor.callLater(0.3, os.close, drain)
        pipe = run.run()
    os.close(sink)
    assert pipe.failure in (
        "standard output: broken pipe",
        "standard output: connection reset by peer",
    )


def test_terminal(echo_peer: EchoPeer) -> None:
    """A terminal as standard output stays blocking, for the shell that shares it."""
    leader, follower = pty.openpty()
    with file_with(b"hello\n") as source:
        pipe = Run(target_of(echo_peer), source.fileno(), follower).run()
    assert pipe.failure == ""
    assert os.read(leader, 100) == b"hello\r\n"
    assert os.get_blocking(follower)
    os.close(leader)
    os.close(follower)
