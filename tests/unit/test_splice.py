"""Bulk through a pipe: every way in which a call can end, with real sockets."""

from __future__ import annotations

import errno
import os
import socket
import struct
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted

from echod.events import Ending
from echod.fastpath import BULK, SHORT, SPLICED
from echod.protocol import MAX_BUFFERED
from echod.splice import REFUSED, Splicer
from echod.transport import unsent
from tests.streams.server import EchoServer
from tests.streams.sockets import SocketEndpoints, TCP4Endpoints, UNIXEndpoints

run = pytest_twisted.ensureDeferred
splice = os.splice

Pair = tuple[socket.socket, socket.socket]
RESET = struct.pack("ii", 1, 0)


def connected(family: str) -> Pair:
    """Return a connected pair; the first socket is the server's."""
    if family == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            far = socket.create_connection(listener.getsockname())
            near, _ = listener.accept()
    near.setblocking(False)
    near.setsockopt(socket.SOL_SOCKET, socket.SO_OOBINLINE, 1)
    return near, far


@pytest.fixture(params=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    sockets = connected(request.param)
    yield sockets
    for each in sockets:
        each.close()


@pytest.fixture
def splicer() -> Iterator[Splicer]:
    splicer = Splicer(SPLICED)
    assert splicer.open()
    yield splicer
    splicer.close()


def received_by(sock: socket.socket) -> array[int]:
    return array("q", [0] * (sock.fileno() + 1))


def echo(
    splicer: Splicer, near: socket.socket, far: socket.socket, data: bytes, flags: int = 0
) -> bytes:
    """Return the echo of ``data``, spliced."""
    far.sendall(data, flags)
    counted = received_by(near)
    count, rest = splicer.move(near.fileno(), counted)
    assert (count, rest) == (len(data), b"")
    assert counted[near.fileno()] == count
    return far.recv(len(data), socket.MSG_WAITALL)


def test_moves(pair: Pair, splicer: Splicer) -> None:
    """The bytes received are sent back."""
    data = os.urandom(SHORT)
    assert echo(splicer, *pair, data) == data
    assert echo(splicer, *pair, b"?") == b"?"


def test_nothing_received(pair: Pair, splicer: Splicer) -> None:
    """Without bytes, nothing is moved, and the end of the stream is not told apart."""
    near, far = pair
    assert splicer.move(near.fileno(), received_by(near)) == (0, b"")
    far.shutdown(socket.SHUT_WR)
    assert splicer.move(near.fileno(), received_by(near)) == (0, b"")


def test_full_send_queue(pair: Pair, splicer: Splicer) -> None:
    """The bytes that the kernel does not accept are returned, and none stays in the pipe."""
    near, far = pair
    far.setblocking(False)
    sent, counted, rest = bytearray(), received_by(near), b""
    while not rest:
        data = os.urandom(1 << 16)
        sent += data[: far.send(data)]
        _, rest = splicer.move(near.fileno(), counted)
    assert counted[near.fileno()] <= len(sent)
    for each in connected("tcp"), connected("unix"):
        assert echo(splicer, *each, b"other") == b"other"
        for sock in each:
            sock.close()
    expected = counted[near.fileno()] - len(rest)
    far.setblocking(True)
    got = far.recv(expected, socket.MSG_WAITALL) + rest
    assert got == sent[: len(got)]
    assert len(got) == counted[near.fileno()]


def test_reset() -> None:
    """A reset is an error of the receive, which the kernel reports only once."""
    near, far = connected("tcp")
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    far.close()
    with pytest.raises(ConnectionResetError):
        Splicer(SPLICED).move(near.fileno(), received_by(near))
    near.close()


def test_send_fails(pair: Pair, splicer: Splicer) -> None:
    """If the send fails, all bytes are returned: the connection sends them again."""
    near, far = pair
    far.send(b"hello")
    near.shutdown(socket.SHUT_WR)
    assert splicer.move(near.fileno(), received_by(near)) == (5, b"hello")


@pytest.mark.parametrize("urgent", [b"!", b"ab!"])
def test_urgent_byte(pair: Pair, splicer: Splicer, urgent: bytes) -> None:
    """Splice stops before an urgent byte; recv takes it, and splice goes on after it."""
    near, far = pair
    far.send(b"before")
    far.send(urgent, socket.MSG_OOB)
    far.send(b"after")
    got, recvs = bytearray(), 0
    while len(got) < len(b"before" + urgent + b"after"):
        count, rest = splicer.move(near.fileno(), received_by(near))
        assert rest == b""
        if count:
            got += far.recv(count, socket.MSG_WAITALL)
        else:
            got += near.recv(1000)
            recvs += 1
            assert recvs < 5
    assert got == b"before" + urgent + b"after"


@pytest.mark.parametrize("code", sorted(REFUSED))
def test_refused(pair: Pair, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """A kernel or a system-call filter that refuses splice is not asked again."""
    near, far = pair
    monkeypatch.setattr(os, "splice", Mock(side_effect=OSError(code, "")))
    splicer = Splicer(SPLICED)
    far.send(b"hello")
    assert splicer.open()
    for _ in range(2):
        assert splicer.move(near.fileno(), received_by(near)) == (0, b"")
        assert not splicer.open()
    os.splice.assert_called_once()  # type: ignore[attr-defined]
    assert near.recv(10) == b"hello"


def test_no_splice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not every Python has os.splice."""
    monkeypatch.delattr(os, "splice")
    assert not Splicer(SPLICED).open()


def test_no_descriptor_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a descriptor for the pipe, it is opened later."""
    splicer = Splicer(SPLICED)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pipe2", Mock(side_effect=OSError(errno.EMFILE, "")))
        assert not splicer.open()
    assert splicer.open()


def test_small_pipe(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pipe that cannot be enlarged (EPERM) is used as it is."""
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.fcntl", Mock(side_effect=PermissionError(errno.EPERM, "")))
        splicer = Splicer(SPLICED)
        assert splicer.open()
    assert echo(splicer, *pair, bytes(SHORT)) == bytes(SHORT)


@pytest.mark.parametrize("error", [MemoryError(), KeyboardInterrupt(), OSError(errno.EINVAL, "")])
def test_interrupted(pair: Pair, splicer: Splicer, error: BaseException) -> None:
    """After an exception, the bytes of one connection do not reach the next."""
    near, far = pair
    far.send(b"hello")
    counted = Mock(__getitem__=Mock(side_effect=error))
    with pytest.raises(type(error)):
        splicer.move(near.fileno(), counted)
    assert echo(splicer, near, far, b"other") == b"other"


def test_closed() -> None:
    """A pipe that is not used any more is closed."""
    splicer = Splicer(SPLICED)
    assert splicer.open()
    ends = splicer._ends
    del splicer
    for end in ends:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(end)


# On the fast path.


@pytest_twisted.async_yield_fixture(params=[TCP4Endpoints, UNIXEndpoints])
async def served(request: pytest.FixtureRequest) -> AsyncIterator[EchoServer]:
    kind: Callable[..., SocketEndpoints] = request.param
    ends = kind(deferred=True)
    served = EchoServer(ends)
    await ends.listen(served.factory)
    yield served
    await served.close()
    await ends.stop()


async def echo_all(served: EchoServer, peer: Any, size: int) -> None:
    """Send ``size`` bytes, and check the echo."""
    peer.received.clear()
    data = os.urandom(size)
    peer.send(data)
    await served.ends.until(peer.when_received(size))
    assert peer.received == data


async def bulk(served: EchoServer) -> Any:
    """Return a peer whose connection is spliced."""
    peer, before = await served.peer(), spliced(served)
    while spliced(served) == before:
        await echo_all(served, peer, BULK)  # in one segment
    return peer


def fast_path_of(served: EchoServer) -> Any:
    return served.factory._fast_path


def spliced(served: EchoServer) -> int:
    return len(fast_path_of(served)._spliced)


@run
async def test_there_and_back(served: EchoServer) -> None:
    """A long message moves a connection to splice, and a short one back."""
    peer = await bulk(served)
    await echo_all(served, peer, SHORT)
    assert spliced(served)
    await echo_all(served, peer, SHORT - 1)
    assert not spliced(served)
    await echo_all(served, peer, BULK - 1)
    assert not spliced(served)
    await echo_all(served, peer, 1 << 20)
    peer.finish()
    await served.settled(lambda: served.events.endings == [Ending.FINISHED])
    assert not spliced(served)


@run
async def test_connections_take_turns(served: EchoServer) -> None:
    """Several spliced connections share the pipe."""
    peers = [await bulk(served) for _ in range(3)]
    sent = []
    for peer in peers:
        peer.received.clear()
        sent.append(os.urandom(3 << 20))
        peer.send(sent[-1])
    for peer, data in zip(peers, sent, strict=True):
        await served.ends.until(peer.when_received(len(data)))
        assert peer.received == data


@run
async def test_half_close(served: EchoServer) -> None:
    """The end of the stream is found after splice, and everything has been sent back."""
    peer = await bulk(served)
    peer.received.clear()
    data = os.urandom(5 << 20)
    peer.send(data)
    peer.finish()
    await served.ends.until(peer.when_ended())
    assert (peer.received, peer.ended) == (data, "FIN")


@run
async def test_slow_reader(served: EchoServer) -> None:
    """What the peer does not read is buffered by the connection, and sent later."""
    peer = await bulk(served)
    peer.received.clear()
    peer.stall()
    data = os.urandom(16 << 20)
    peer.send(data)
    await served.settled(lambda: not spliced(served))
    [connection] = served.factory.connections
    assert unsent(connection.transport) < MAX_BUFFERED
    peer.resume()
    await served.ends.until(peer.when_received(len(data)))
    assert peer.received == data


@run
async def test_lost(served: EchoServer) -> None:
    """An error that splice finds ends the connection, and no other."""
    peer, other = await bulk(served), await bulk(served)
    splicer = fast_path_of(served)._splicer
    move = splicer.move
    splicer.move = Mock(side_effect=ConnectionResetError(errno.ECONNRESET, ""))
    peer.send(b"?")
    await served.settled(lambda: served.events.endings == [Ending.LOST])
    splicer.move = move
    await echo_all(served, other, 1 << 20)


@run
async def test_reset_peer(served: EchoServer) -> None:
    """A peer that resets its connection is reported as lost."""
    peer = await bulk(served)
    peer.stall()
    peer.send(bytes(1 << 20))
    await served.ends.turn()
    peer.abort()
    await served.settled(lambda: served.events.endings == [Ending.LOST])
    assert not spliced(served)


@run
async def test_memory_runs_out(served: EchoServer) -> None:
    """If the unsent bytes cannot be read, the connection is reset, and others go on."""
    peer, other = await bulk(served), await bulk(served)
    splicer = fast_path_of(served)._splicer
    move = splicer.move
    splicer.move = Mock(side_effect=MemoryError)
    peer.send(b"?")
    await served.settled(lambda: served.events.endings == [Ending.ABORTED])
    splicer.move = move
    await echo_all(served, other, 1 << 20)


@run
async def test_refused_later(served: EchoServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """If splice is refused from now on, spliced connections are received and sent again."""
    peers = [await bulk(served), await bulk(served)]
    monkeypatch.setattr(
        fast_path_of(served)._splicer, "_splice", Mock(side_effect=OSError(errno.ENOSYS, ""))
    )
    for peer in peers:
        await echo_all(served, peer, 1 << 20)
    assert not spliced(served)


@run
async def test_ended_in_the_same_round(served: EchoServer) -> None:
    """A spliced connection that an observer has just ended is not served."""
    peers = [await bulk(served), await bulk(served)]
    fast_path = fast_path_of(served)

    def end(event: Any) -> None:
        served.events(event)
        for each in list(served.factory.connections):
            each.cut_short()

    served.factory.observer = end
    move, fast_path._splicer.move = fast_path._splicer.move, Mock(side_effect=ConnectionResetError)
    for peer in peers:
        peer.send(b"?")
    await served.settled(lambda: not served.factory.connections)
    assert len(served.events.endings) == 2
    fast_path._splicer.move = move
