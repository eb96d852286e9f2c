"""The fast path, where it differs from the ordinary path; the conformance suite has the rest."""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from twisted.internet.base import ReactorBase
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost
from twisted.internet.interfaces import IReadDescriptor
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.python.failure import Failure
from zope.interface.verify import verifyObject

from echod.events import Closed, Ending
from echod.fastpath import BATCH, BULK, ROUNDS, STEP, FastPath
from echod.fastset import FEW
from echod.linger import Linger
from echod.protocol import MAX_BUFFERED
from echod.transport import kernel_socket, send_now
from echod.turns import TURN
from tests.streams.memory import MemoryEndpoints
from tests.streams.server import EchoServer
from tests.streams.sockets import TCP4Endpoints

run = pytest_twisted.ensureDeferred


@pytest_twisted.async_yield_fixture
async def served() -> AsyncIterator[EchoServer]:
    ends = TCP4Endpoints()
    served = EchoServer(ends)
    await ends.listen(served.factory)
    yield served
    await served.disconnect()
    await ends.stop()


async def talk(served: EchoServer) -> tuple[Any, Any]:
    """Return a peer that has sent two messages, and its Echo, which is on the fast path."""
    peer = await served.peer()
    for count in (1, 2):
        peer.send(b"?")
        await served.ends.until(peer.when_received(count))
    [echo] = [echo for echo in served.factory.connections if echo.peer == peer.transport.getHost()]
    return peer, echo


@run
async def test_second_message(served: EchoServer) -> None:
    """A connection is moved to the fast path with its second message, and not before."""
    peer = await served.peer()
    [echo] = served.factory.connections
    assert echo.fast_path is None
    peer.send(b"?")
    await served.ends.until(peer.when_received(1))
    assert echo.fast_path is None
    peer.send(b"?")
    await served.ends.until(peer.when_received(2))
    assert echo.fast_path is not None
    assert echo not in served.ends.reactor.getReaders()


@run
async def test_starts_tls(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the application has started TLS, all bytes go through the transport."""
    peer = await served.peer()
    [echo] = served.factory.connections
    monkeypatch.setattr(echo.transport, "TLS", True)
    sent: list[bytes] = []
    monkeypatch.setattr(echo, "send", sent.append)
    peer.send(b"?")
    await served.settled(lambda: bool(sent))
    assert sent == [b"?"]
    assert bytes(peer.received) == b""


@run
async def test_slow_reader(served: EchoServer) -> None:
    """The connection of a peer that does not read is moved back, with few bytes buffered."""
    peer, echo = await talk(served)
    peer.stall()
    sent = bytes(16 << 20)
    peer.send(sent)
    await served.settled(lambda: echo.fast_path is None)
    assert 0 < len(echo.transport.dataBuffer) + echo.transport._tempDataLen < MAX_BUFFERED
    peer.resume()
    await served.ends.until(peer.when_received(2 + len(sent)))
    peer.send(b"?")  # the last bytes may have gone through the transport
    await served.settled(lambda: echo.fast_path is not None)


@run
async def test_reset(served: EchoServer) -> None:
    """A connection that is reset on the fast path is lost."""
    peer, _ = await talk(served)
    peer.abort()
    await served.settled(lambda: not served.factory.connections)
    assert served.events.endings[-1] is Ending.LOST


@pytest.mark.parametrize("how", ["reset", "end of the reactor"])
@run
async def test_ended_by_an_observer(served: EchoServer, how: str) -> None:
    """The observer of one ending may end another connection of the same round."""
    (peer, _), (other, echo) = await talk(served), await talk(served)

    def end(event: Any) -> None:
        served.events(event)
        if isinstance(event, Closed):
            for each in list(served.factory.connections):
                each.transport.connectionLost(Failure(ConnectionDone()))

    served.factory.observer = end
    if how == "reset":
        for each in (peer, other):
            each.transport.connectionLost(Failure(ConnectionAborted()))
        echo.fast_path.doRead()
    else:
        echo.fast_path.connectionLost(Failure(ConnectionLost()))
    assert served.factory.connections == set()
    assert len(served.events.closed) == 2


@run
async def test_observer_fails(served: EchoServer) -> None:
    """An exception of the observer ends only the connection of that event."""
    (peer, echo), (other, _), (third, _) = [await talk(served) for _ in range(3)]

    def fail(event: Any) -> None:
        served.events(event)
        if isinstance(event, Closed):
            raise SystemExit

    served.factory.observer = fail
    peer.transport.connectionLost(Failure(ConnectionAborted()))
    await served.settled(lambda: echo not in served.factory.connections)
    for each in (other, third):
        each.send(b"?")
        await served.ends.until(each.when_received(3))
    assert len(served.factory.connections) == 2
    served.factory.observer = served.events


@run
async def test_buffering_fails(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the unsent bytes cannot be buffered, the connection is reset."""
    peer, echo = await talk(served)
    monkeypatch.setattr(echo, "send", Mock(side_effect=MemoryError))
    peer.stall()
    peer.send(bytes(16 << 20))
    await served.settled(lambda: echo not in served.factory.connections)
    peer.resume()
    await served.settled(lambda: peer.ended is not None)
    assert peer.ended == "RST"


@run
async def test_end_of_the_reactor(served: EchoServer) -> None:
    """When the reactor stops, connections on the fast path are lost, as all others."""
    _, echo = await talk(served)
    await talk(served)
    echo.fast_path.connectionLost(Failure(ConnectionLost()))
    assert served.events.endings == [Ending.LOST] * 2


@run
async def test_application_writes(served: EchoServer) -> None:
    """Echoed bytes do not interrupt what the application writes."""
    peer, echo = await talk(served)
    peer.stall()
    echo.transport.write(bytes(9 << 20))
    assert echo.fast_path is None
    peer.send(b"hello")
    peer.resume()
    await served.ends.until(peer.when_received(2 + (9 << 20) + 5))
    assert bytes(peer.received[2:]) == bytes(9 << 20) + b"hello"


@run
async def test_no_descriptor_left(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for the fast path, the ordinary path serves."""
    monkeypatch.setattr(select, "epoll", Mock(side_effect=OSError(errno.EMFILE, "")))
    _, echo = await talk(served)
    assert echo.fast_path is None


@pytest.mark.parametrize("how", ["idle", "abort", "reset", "end"])
@run
async def test_removed_before_the_close(served: EchoServer, how: str) -> None:
    """A socket is removed from the epoll set before the close: a forked process may hold it."""
    served.factory.timeouts.idle = 5 if how == "idle" else None
    peer, echo = await talk(served)
    await talk(served)
    fast_path = echo.fast_path
    held = os.dup(echo.transport.fileno())
    if how == "idle":
        await served.ends.advance(10)
    elif how == "abort":
        echo.abort()
    elif how == "reset":
        peer.abort()
    else:
        peer.finish()
    await served.settled(lambda: echo not in served.factory.connections)
    assert fast_path._epoll.poll(0) == []
    os.close(held)


@run
async def test_no_memory_for_a_connection(
    served: EchoServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without memory in the kernel for another entry of the set, the transport serves."""
    peer = await served.peer()
    epoll = Mock(register=Mock(side_effect=OSError(errno.ENOSPC, "")))
    monkeypatch.setattr(served.factory.fast_path(), "_epoll", epoll)
    for count in (1, 2, 3):
        peer.send(b"?")
        await served.ends.until(peer.when_received(count))
    [echo] = served.factory.connections
    assert echo.fast_path is None


class FakeReactor:
    """A reactor that only knows its readers."""

    def __init__(self) -> None:
        self.readers: list[Any] = []

    def addReader(self, reader: Any) -> None:
        self.readers.append(reader)

    def removeReader(self, reader: Any) -> None:
        self.readers.remove(reader)


class Endless:
    """A socket that can always be read and written; each receive takes ``seconds``."""

    def __init__(self, number: int, clock: Clock, seconds: float, count: int) -> None:
        self.number = number
        self.clock = clock
        self.seconds = seconds
        self.count = count
        self.asked = 0

    def fileno(self) -> int:
        return self.number

    def recv_into(self, buffer: memoryview) -> int:
        count, _ = self.move()
        if not count:
            raise BlockingIOError
        return count

    def send(self, data: memoryview) -> int:
        return len(data)

    def move(self) -> tuple[int, bytes]:
        self.asked += 1
        self.clock.advance(self.seconds)
        return self.count, b""


class FakeEpoll:
    """An epoll set that reports all descriptors as ready, always in the same order."""

    def __init__(self) -> None:
        self.ready: list[int] = []

    def register(self, descriptor: int, events: int) -> None:
        self.ready.append(descriptor)

    def poll(self, seconds: float, most: int) -> list[tuple[int, int]]:
        return [(descriptor, select.EPOLLIN) for descriptor in self.ready[:most]]


def fast_path(clock: Clock | None = None) -> Any:
    return FastPath(FakeReactor(), clock or Clock(), Mock())  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 0.002])
@pytest.mark.parametrize("count", [0, BULK - 1, BULK])
def test_one_turn_is_bounded(seconds: float, count: int) -> None:
    """A turn is bounded in time and in rounds, and connections share the turns equally.

    None of them has bytes after all, or all receive and send, or all are spliced.
    """
    clock = Clock()
    fast = fast_path(clock)
    fast._epoll = FakeEpoll()
    sockets = [Endless(number, clock, seconds, count) for number in range(1000, 1000 + BATCH)]
    for sock in sockets:
        fast.add(Mock(), sock)
    fast._splicer.move = lambda descriptor, received: sockets[descriptor - 1000].move()
    for _ in range(3 * BATCH if seconds else 3):
        before = clock.seconds(), sum(sock.asked for sock in sockets)
        fast.doRead()
        took, asked = clock.seconds() - before[0], sum(sock.asked for sock in sockets) - before[1]
        assert 0 < asked <= ROUNDS * BATCH
        # Without bytes, the time is checked once a round.
        most = STEP // count + 1 if count else BATCH
        assert took < TURN + most * seconds + 1e-9
    assert len(fast._spliced) == (BATCH if count == BULK else 0)
    asks = [sock.asked for sock in sockets]
    assert max(asks) - min(asks) <= 1


@run
async def test_flood_beside_it(served: EchoServer) -> None:
    """A descriptor of the reactor that is always ready does not starve the fast path."""
    peer, echo = await talk(served)
    near, far = socket.socketpair()
    far.send(b"never read")
    reader = Mock(fileno=near.fileno, doRead=lambda: None)
    served.ends.reactor.addReader(reader)
    for count in range(3, 9):
        peer.send(b"?")
        await served.ends.until(peer.when_received(count))
    assert echo.fast_path is not None
    served.ends.reactor.removeReader(reader)
    near.close()
    far.close()


class WaitingReactor(FakeReactor):
    """A reactor without timers, with which the fast path lingers."""

    callLater = ReactorBase.callLater

    def timeout(self) -> None:
        return None

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return []


def test_one_of_many_talks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many connections, one that talks is waited for without a turn of the reactor."""
    fast: Any = FastPath(WaitingReactor(), Clock(), Mock())  # type: ignore[arg-type]
    pairs = [socket.socketpair() for _ in range(FEW + 1)]
    for near, _ in pairs:
        near.setblocking(False)
        fast.add(Mock(), near)
    far = pairs[0][1]
    messages = [b"2", b"3"]

    def wait() -> Any:
        if messages:
            far.send(messages.pop(0))
        return Linger.wait(fast._linger)

    monkeypatch.setattr(fast._linger, "wait", wait)
    fast.doRead()  # it does not linger in the turn after a change
    far.send(b"1")
    fast.doRead()
    assert far.recv(9) == b"123"
    for pair in pairs:
        for sock in pair:
            sock.close()


def test_is_a_reader() -> None:
    """The fast path is a reader of the reactor."""
    fast = fast_path()
    assert verifyObject(IReadDescriptor, fast)
    assert fast.logPrefix() == "echod"


class Listener:
    """A listening port that counts what it is asked."""

    def __init__(self) -> None:
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.fileno = self.socket.fileno
        self.asked = 0
        self.lost = 0

    def doRead(self) -> None:
        self.asked += 1
        self.socket.accept()[0].close()

    def connectionLost(self, reason: Failure) -> None:
        self.lost += 1


def test_listener() -> None:
    """A listener in the set is asked to accept, until it is removed."""
    fast, listener = fast_path(), Listener()
    assert fast.listen(listener)
    assert fast._reactor.readers == [fast]
    client = socket.create_connection(listener.socket.getsockname())
    fast.doRead()
    assert listener.asked == 1
    fast.connectionLost(Failure(ConnectionLost()))
    assert listener.lost == 1
    fast.stop_listening(listener)
    fast.stop_listening(listener)
    assert fast._reactor.readers == []
    for each in (client, listener.socket):
        each.close()


class LingeringReactor(FakeReactor):
    """A reactor without timers, whose events a wait of the fast path includes."""

    callLater = ReactorBase.callLater

    def getReaders(self) -> list[Any]:
        return self.readers

    def getWriters(self) -> list[Any]:
        return []

    def timeout(self) -> None:
        return None


def test_storm_on_an_idle_port() -> None:
    """A turn that could wait for hours is bounded as any other, as soon as a connection comes."""
    clock, listener = Clock(), Mock(fileno=lambda: 1000)
    fast = FastPath(LingeringReactor(), clock, Mock())  # type: ignore[arg-type]
    epoll: Any = FakeEpoll()
    fast._epoll = epoll
    listener.doRead = Mock(side_effect=lambda: clock.advance(TURN))
    fast.listen(listener)
    epoll.ready = []
    fast.doRead()  # the first turn after a change does not wait
    epoll.ready = [listener.fileno()]
    fast.doRead()
    assert listener.doRead.call_count == 2


def test_accepting_is_no_traffic() -> None:
    """Without many bytes, accepted connections schedule no check of the timeouts."""
    fast, listener = fast_path(), Listener()
    assert fast.listen(listener)
    near, far = socket.socketpair()
    fast.add(Mock(), near)
    client = socket.create_connection(listener.socket.getsockname())
    fast.doRead()
    assert listener.asked == 1
    fast._on_traffic.assert_not_called()
    for each in (client, listener.socket, near, far):
        each.close()


def test_resumed_twice() -> None:
    """A listener that is in the set already stays in it."""
    fast, listener = fast_path(), Listener()
    assert fast.listen(listener)
    assert fast.listen(listener)
    fast.stop_listening(listener)
    assert fast._reactor.readers == []
    listener.socket.close()


@pytest.mark.parametrize("failing", ["_on_traffic", "_linger"])
def test_no_memory_in_a_turn(failing: str) -> None:
    """Without memory for the timer or the wait, a turn raises nothing, and the next one works."""
    clock = Clock()
    fast = fast_path(clock)
    fast._epoll = FakeEpoll()
    sock = Endless(1000, clock, TURN / 4, 9 * 1024)
    fast.add(Mock(), sock)
    works = getattr(fast, failing)
    setattr(fast, failing, Mock(side_effect=MemoryError, begin=Mock(side_effect=MemoryError)))
    fast.doRead()
    setattr(fast, failing, works)
    asked = sock.asked
    fast.doRead()
    assert sock.asked > asked
    fast._on_traffic.assert_called_once_with()


def test_no_memory_in_the_kernel() -> None:
    """Without memory for another entry of the set, neither a connection nor a listener is added."""
    fast = fast_path()
    fast._epoll = Mock()
    fast._epoll.register.side_effect = OSError(errno.ENOSPC, "")
    assert not fast.add(Mock(), Endless(9, Clock(), 0, 0))
    assert not fast.listen(Mock(fileno=lambda: 9))
    assert fast._reactor.readers == []


@run
async def test_ordinary_path() -> None:
    """The ordinary path serves TLS, transports in memory, and factories without a fast path."""
    assert kernel_socket(StringTransport()) is None
    memory = EchoServer(MemoryEndpoints())
    await memory.ends.listen(memory.factory)
    await memory.peer()
    [echo] = memory.factory.connections
    assert kernel_socket(echo.transport) is None
    ends = TCP4Endpoints(fast_path=False)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    peer, echo = await talk(served)
    assert echo.fast_path is None
    assert kernel_socket(echo.transport) is echo.transport.getHandle()
    echo.transport.TLS = True
    assert kernel_socket(echo.transport) is None
    echo.transport.TLS = False
    peer.abort()
    await served.settled(lambda: not served.factory.connections)
    await ends.stop()


def test_send_now() -> None:
    """send_now returns the bytes that the kernel took, and 0 after an error."""
    near, far = socket.socketpair()
    near.setblocking(False)
    assert send_now(near, b"hello") == 5
    while sent := send_now(near, bytes(1 << 20)):
        assert sent <= 1 << 20
    far.close()
    assert send_now(near, b"hello") == 0
    near.close()
