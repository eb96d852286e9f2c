"""Accept connections: failures of accept(2), and peers that send file descriptors."""

from __future__ import annotations

import errno
import os
import resource
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from twisted.internet.endpoints import UNIXServerEndpoint
from twisted.internet.task import Clock
from twisted.internet.tcp import Port
from twisted.logger import LogEvent, formatEvent

from echod import socketoptions
from echod.daemon.listeners import accepting
from echod.daemon.listeners.accepting import PAUSE, ListeningSocket, log_not_accepted
from echod.daemon.listeners.group import Ports
from echod.daemon.listeners.systemd import PassedListener
from echod.daemon.listeners.unix import UNIXListener
from echod.daemon.summary import RateLimitedSummary
from echod.factory import EchoFactory
from tests import TIMEOUT
from tests.coroutines import now
from tests.daemon.descriptors import REFUSES_DESCRIPTORS
from tests.programs.daemon import Daemon
from tests.reactors import reactor_of_kind, turn


class Accepting:
    """A port whose accept(2) fails with ``error``, and whose time is a task.Clock."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.log: list[LogEvent] = []
        self.clock = Clock()
        self.attempts = 0
        self.error: BaseException | None = None
        self._accept = socket.socket._accept  # type: ignore[attr-defined]
        self.reactor: Any = reactor_of_kind("epoll")
        monkeypatch.setattr(accepting.log, "observer", self.log.append)
        monkeypatch.setattr(self.reactor, "callLater", self.clock.callLater)
        monkeypatch.setattr(socket.socket, "_accept", self.accept)
        self.factory = EchoFactory(clock=self.clock)
        self.port: Any = Port(0, self.factory, 5, "127.0.0.1", self.reactor)
        self.port.startListening()
        self.failures = RateLimitedSummary(self.clock, log_not_accepted)
        self.socket = ListeningSocket(self.port, "tcp somewhere", self.failures)
        self.client = socket.create_connection(self.port.socket.getsockname())

    def accept(self) -> Any:
        self.attempts += 1
        if self.error is not None:
            raise self.error
        return self._accept(self.socket)

    def turns(self) -> None:
        for _ in range(20):
            turn(self.reactor)

    def stop(self) -> None:
        self.port.stopListening()
        self.clock.advance(0)
        self.client.close()
        while self.factory.connections:
            turn(self.reactor)


@pytest.fixture
def accepts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Accepting]:
    made = Accepting(monkeypatch)
    yield made
    made.stop()


@pytest.mark.parametrize(
    "error",
    [
        *(OSError(number, "") for number in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS)),
        OSError(errno.ENOMEM, ""),
        OSError(errno.EINVAL, ""),
        MemoryError(),
    ],
)
def test_pause(accepts: Accepting, error: BaseException) -> None:
    """When accept(2) fails, the port pauses, tries again, and then serves the client."""
    accepts.error = error
    accepts.turns()
    assert accepts.attempts == 1
    accepts.clock.advance(PAUSE)
    accepts.turns()
    assert accepts.attempts == 2
    accepts.error = None
    accepts.turns()
    assert accepts.attempts == 2
    accepts.clock.advance(PAUSE)
    accepts.turns()
    assert len(accepts.factory.connections) == 1
    assert accepts.clock.getDelayedCalls() == [mock.ANY]  # the log's rate limit
    accepts.clock.advance(1)


def test_no_memory_for_a_socket(accepts: Accepting, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without memory for an accepted socket, its descriptor is closed."""
    with monkeypatch.context() as patch:
        patch.setattr(socket, "SocketType", mock.Mock(side_effect=MemoryError))
        accepts.turns()
    accepts.client.settimeout(TIMEOUT)
    assert accepts.client.recv(1) == b""
    assert not accepts.factory.connections


def test_log(accepts: Accepting) -> None:
    """Failures are summed in one line a second."""
    accepts.error = OSError(errno.ENFILE, "")
    for _ in range(30):
        accepts.turns()
        accepts.clock.advance(0.1)
    lines = [formatEvent(event) for event in accepts.log]
    assert lines[0] == (
        "cannot accept connections: ENFILE 1, the last on tcp somewhere: free descriptors or "
        "memory; clients wait in the backlog, and echod tries again every 0.25 s"
    )
    assert 3 <= len(lines) <= 4
    accepts.failures.flush()
    assert sum(event["total"] for event in accepts.log) == accepts.attempts <= 13


def test_number_without_a_name(accepts: Accepting) -> None:
    """An error without a name in Python is logged by its number."""
    accepts.error = OSError(9999, "")
    accepts.turns()
    assert "cannot accept connections: 9999 1, " in formatEvent(accepts.log[0])


@pytest.mark.parametrize("number", [errno.ECONNABORTED, errno.EPERM, errno.EPROTO])
def test_no_pause(accepts: Accepting, number: int) -> None:
    """An error of one connection, or of a firewall, neither pauses the port nor is logged."""
    accepts.error = OSError(number, "")
    accepts.turns()
    assert accepts.attempts == 20
    accepts.error = None
    accepts.turns()
    assert len(accepts.factory.connections) == 1
    assert accepts.log == []


def test_failure_in_a_pause(accepts: Accepting) -> None:
    """An accept that fails during a pause, as in a stop, does not extend the pause."""
    accepts.error = OSError(errno.ENFILE, "")
    accepts.turns()
    accepts.clock.advance(PAUSE / 2)
    accepts.port.doRead()
    accepts.error = None
    accepts.clock.advance(PAUSE / 2)
    accepts.turns()
    assert len(accepts.factory.connections) == 1


def test_stop_in_a_pause(accepts: Accepting) -> None:
    """A port that stops during a pause leaves no timer behind."""
    accepts.error = OSError(errno.ENFILE, "")
    accepts.turns()
    accepts.port.stopListening()
    accepts.clock.advance(0)
    assert accepts.factory.numPorts == 0
    accepts.clock.advance(1)
    assert accepts.clock.getDelayedCalls() == []
    accepts.turns()
    assert accepts.attempts == 1


def test_out_of_descriptors(tmp_path: Path) -> None:
    """A daemon without a free descriptor logs one line a second, and serves once one is free."""
    with Daemon(
        "--listen", "tcp:0:interface=127.0.0.1", "--listen", f"unix:{tmp_path}/s"
    ) as daemon:
        with (
            daemon.connect() as client
        ):  # it serves, and has opened all the descriptors that it needs
            client.sendall(b"hello")
            assert client.recv(5, socket.MSG_WAITALL) == b"hello"
        daemon.wait_for("closed")
        pid = daemon.process.pid
        limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        began = time.monotonic()
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, limits[1]))
        with daemon.connect() as client, socket.socket(socket.AF_UNIX) as local:
            local.settimeout(TIMEOUT)
            local.connect(f"{tmp_path}/s")
            lines = daemon.wait_for("cannot accept connections: EMFILE", 3)
            assert len(lines) <= time.monotonic() - began + 2
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
            for each in (client, local):
                each.sendall(b"hello")
                assert each.recv(5, socket.MSG_WAITALL) == b"hello"
        daemon.wait_for("closed", 3)
        assert "Traceback" not in daemon.log
        assert "reserved file descriptor" not in daemon.log


class Descriptors:
    """A client of a UNIX socket that sends a descriptor along with its bytes."""

    def __init__(self, path: str) -> None:
        self.reactor = reactor_of_kind("epoll")
        self.client = socket.socket(socket.AF_UNIX)
        self.client.connect(path)
        self.client.setblocking(False)

    def send(self) -> int:
        """Send the only writing end of a pipe, and return the reading end."""
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        try:
            socket.send_fds(self.client, [b"hello"], [writing])
        finally:
            os.close(writing)
        return reading

    def receive(self) -> bytes:
        while True:
            turn(self.reactor)
            try:
                return self.client.recv(100)
            except BlockingIOError:
                continue


def refused() -> AbstractContextManager[object]:
    """Expect EPERM, on a kernel that can refuse descriptors."""
    return pytest.raises(PermissionError) if REFUSES_DESCRIPTORS else nullcontext()


def opened(listener: Any, factory: EchoFactory) -> Ports:
    ports = Ports(factory, [listener], RateLimitedSummary(Clock(), log_not_accepted))
    now(ports.open())
    return ports


def closed(ports: Ports, factory: EchoFactory) -> None:
    deferred = ports.close()
    while factory.connections or not deferred.called:
        turn(reactor_of_kind("epoll"))


@pytest.mark.parametrize("passed", [False, True])
def test_descriptors_refused(tmp_path: Path, passed: bool) -> None:
    """A peer cannot send a descriptor over a UNIX socket, and its bytes come back."""
    path, reactor, factory = str(tmp_path / "socket"), reactor_of_kind("epoll"), EchoFactory()
    listener: Any = UNIXListener("--listen", reactor, str(path))
    sock = socket.socket(socket.AF_UNIX)
    if passed:
        sock.bind(path)
        sock.listen()
        sock.setblocking(False)
        listener = PassedListener("-", reactor, [sock])
    ports = opened(listener, factory)
    peer = Descriptors(path)
    with refused():
        os.close(peer.send())
        assert peer.receive() == b"hello"
    peer.client.send(b"hello")
    assert peer.receive() == b"hello"
    peer.client.close()
    closed(ports, factory)
    sock.close()


@pytest.mark.parametrize("fast_path", [False, True])
def test_older_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[LogEvent], fast_path: bool
) -> None:
    """Before Linux 6.16, descriptors from a peer are closed; by default only the owner connects."""
    monkeypatch.setattr(socketoptions, "SO_PASSRIGHTS", 9999)
    path, reactor = str(tmp_path / "socket"), reactor_of_kind("epoll")
    factory = EchoFactory(fast_path=fast_path)
    ports = opened(UNIXListener("--listen", reactor, str(path)), factory)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o600
    assert [event["path"] for event in log if event.get("event") == "unix-mode"] == [path]
    peer = Descriptors(path)
    before = len(log)
    descriptors = len(os.listdir("/dev/fd"))
    for _ in range(5):
        reading = peer.send()
        assert peer.receive() == b"hello"
        assert os.read(reading, 1) == b""  # the last writing end is closed
        os.close(reading)
    assert [formatEvent(event) for event in log[before:]] == []
    assert len(os.listdir("/dev/fd")) - descriptors <= 2  # the connection, the fast path
    peer.client.close()
    closed(ports, factory)


def test_older_kernel_with_a_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: list[LogEvent]
) -> None:
    """A given mode is used on any kernel."""
    monkeypatch.setattr(socketoptions, "SO_PASSRIGHTS", 9999)
    path, factory = str(tmp_path / "socket"), EchoFactory()
    ports = opened(UNIXListener("--listen", reactor_of_kind("epoll"), path, mode=0o660), factory)
    assert stat.S_IMODE(os.stat(path).st_mode) == 0o660
    assert not [event for event in log if event.get("event") == "unix-mode"]
    closed(ports, factory)


def test_embedded(tmp_path: Path) -> None:
    """On a listener of systemd, descriptors are refused from the first accept on."""
    path, factory = str(tmp_path / "socket"), EchoFactory()
    endpoint = UNIXServerEndpoint(reactor_of_kind("epoll"), path)
    ports: list[Any] = []
    endpoint.listen(factory).addCallback(ports.append)
    [port] = ports
    first = Descriptors(path)
    first.client.send(b"hello")
    assert first.receive() == b"hello"
    for peer in (first, Descriptors(path)):
        with refused():
            os.close(peer.send())
        peer.client.close()
    port.stopListening()
    turn(reactor_of_kind("epoll"))
    while factory.connections:
        turn(reactor_of_kind("epoll"))
