"""What several tests need: ends to connect, events to look at, a daemon to talk to."""

from __future__ import annotations

import asyncio
import atexit
import functools
import gc
import itertools
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar, TypeVar, cast

import pytest
from OpenSSL import SSL
from twisted.internet.asyncioreactor import AsyncioSelectorReactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.error import ConnectError, ConnectionAborted
from twisted.internet.interfaces import (
    IAddress,
    IOpenSSLClientConnectionCreator,
    IOpenSSLServerConnectionCreator,
    IProtocolFactory,
)
from twisted.internet.pollreactor import PollReactor
from twisted.internet.protocol import Factory
from twisted.internet.selectreactor import SelectReactor
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from echod.certificates import Certificates
from echod.daemon.listeners.systemd import PassedSocket
from echod.events import Closed, Ending, Event, HandshakeDone, HeaderRead, Refused
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from echod.testing import MemoryNetwork, Peer
from echod.tls import TLSFactory
from echod.transport import beneath, refuse_descriptors
from tests.authority import Authority

TIMEOUT = 20.0
"""Seconds after which a test on real sockets gives up; none comes near it."""

ROOT = Path(__file__).parent.parent

TWISTD = Path(sys.executable).with_name("twistd")

with socket.socket(socket.AF_UNIX) as unix_socket:
    REFUSES_DESCRIPTORS = refuse_descriptors(unix_socket)
    """Whether the kernel can refuse them: Linux 6.16."""

PASS = """
import fcntl, os, sys
given = int(sys.argv[1])
for number in range(given):
    source = int(sys.argv[3 + number])
    os.dup2(fcntl.fcntl(source, fcntl.F_DUPFD_CLOEXEC, 100), 3 + number)
os.closerange(3 + given, 100)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(given)}
os.environ["LISTEN_FDNAMES"] = sys.argv[2]
os.execv(sys.argv[3 + given], sys.argv[3 + given :])
"""

T = TypeVar("T")


needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="the load is a C program")


def benchmark(name: str) -> Any:
    """Return a fixture: a module of the benchmarks, which find each other by their directory."""

    @pytest.fixture(name=name)
    def imported(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        return import_module(name)

    return imported


class Recorder(list[Event]):
    """An observer that keeps what it is told."""

    def __call__(self, event: Event) -> None:
        self.append(event)

    @property
    def closed(self) -> list[Closed]:
        return [event for event in self if isinstance(event, Closed)]

    @property
    def endings(self) -> list[Ending]:
        return [event.ending for event in self.closed]

    @property
    def refused(self) -> list[Refused]:
        return [event for event in self if isinstance(event, Refused)]


class Ends:
    """Two ends to connect, and what is not the same for each kind of them."""

    knows_reset = True
    knows_addresses = True
    begins_with: ClassVar[list[type]] = []
    """The events between Accepted and Opened."""

    def send_unseen(self, peer: Peer, data: bytes) -> None:
        """Have ``data`` arrive in the service's kernel without a turn of the reactor."""
        cast(Any, peer.transport).getHandle().send(data)

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        """Have ``data`` arrive in the service's kernel, the last byte of it urgent (RFC 6093)."""
        cast(Any, peer.transport).getHandle().send(data, socket.MSG_OOB)

    def reset_unseen(self, peer: Peer) -> None:
        """Have a reset arrive in the service's kernel without a turn of the reactor."""
        cast(Any, beneath(peer.transport)).connectionLost(Failure(ConnectionAborted()))


class MemoryEnds(Ends):
    """Connections of a MemoryNetwork, which is the clock too."""

    def __init__(self) -> None:
        self.clock = self.network = MemoryNetwork()
        self.options: dict[str, Any] = {}

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        self.send_unseen(peer, data)  # the network has no urgent data

    async def listen(self, factory: IProtocolFactory) -> None:
        await self.network.server_endpoint().listen(factory)

    async def connect(self, factory: IProtocolFactory) -> Any:
        return await self.network.client_endpoint().connect(factory)

    async def until(self, deferred: Deferred[T]) -> T:
        self.network.settle()
        assert deferred.called, "nothing moves any more, and it has not happened"
        return await deferred

    async def turn(self) -> None:
        self.network.settle()

    async def advance(self, seconds: float) -> None:
        self.network.advance(seconds)

    async def stop(self) -> None:
        self.network.settle()


def asyncio_reactor() -> Any:
    loop = asyncio.SelectorEventLoop()
    atexit.register(loop.close)
    return AsyncioSelectorReactor(loop)


REACTORS: dict[str, Callable[[], Any]] = {
    "epoll": EPollReactor,
    "poll": PollReactor,
    "select": SelectReactor,
    "asyncio": asyncio_reactor,
}
"""Each kind that Linux has. They are turned by hand, so that there may be several."""


@functools.cache
def reactor_of_kind(kind: str) -> Any:
    return REACTORS[kind]()


def turn(reactor: Any, seconds: float = 0) -> None:
    """Let the reactor do what there is to do; if there is nothing, wait for ``seconds``."""
    if isinstance(reactor, AsyncioSelectorReactor):
        loop = reactor._asyncioEventloop
        loop.call_later(seconds, loop.stop) if seconds else loop.call_soon(loop.stop)
        loop.run_forever()
    else:
        reactor.iterate(seconds)


class SocketEnds(Ends, ABC):
    """Connections on real sockets and a real reactor; only the time is a task.Clock."""

    def __init__(self, kind: str = "epoll", **options: Any) -> None:
        self.reactor = reactor_of_kind(kind)
        self.options = options
        self.clock = Clock()
        self.ports: list[Any] = []

    @abstractmethod
    def server_endpoint(self) -> Any:
        """Return an endpoint to listen on."""

    @abstractmethod
    def client_endpoint(self) -> Any:
        """Return an endpoint that connects to the first of the ports."""

    async def listen(self, factory: IProtocolFactory) -> None:
        self.ports.append(await self.server_endpoint().listen(factory))

    async def connect(self, factory: IProtocolFactory) -> Any:
        return await self.until(self.client_endpoint().connect(factory))

    async def until(self, deferred: Deferred[T]) -> T:
        deadline = time.monotonic() + TIMEOUT
        while not deferred.called:
            assert time.monotonic() < deadline, "it does not happen"
            turn(self.reactor, 0.001)
        return await deferred

    async def turn(self) -> None:
        for _ in range(10):
            turn(self.reactor)

    async def advance(self, seconds: float) -> None:
        for _ in range(60):
            await self.turn()
            self.clock.advance(seconds / 60)
        await self.turn()

    async def stop(self) -> None:
        for port in self.ports:
            await self.until(port.stopListening())


class TCP4Ends(SocketEnds):
    def server_endpoint(self) -> Any:
        return TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")

    def client_endpoint(self) -> Any:
        return TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.ports[0].getHost().port)


class TCP6Ends(SocketEnds):
    def server_endpoint(self) -> Any:
        return TCP6ServerEndpoint(self.reactor, 0, interface="::1")

    def client_endpoint(self) -> Any:
        return TCP6ClientEndpoint(self.reactor, "::1", self.ports[0].getHost().port)


class UNIXEnds(SocketEnds):
    # unix(7): there is no RST. The peer of a cut-off connection sees the end of the
    # file, or ECONNRESET where it had sent bytes that nobody read.
    knows_reset = False
    knows_addresses = False

    def __init__(self, kind: str = "epoll", **options: Any) -> None:
        super().__init__(kind, **options)
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "echo")

    def server_endpoint(self) -> Any:
        return UNIXServerEndpoint(self.reactor, self.path)

    def client_endpoint(self) -> Any:
        return UNIXClientEndpoint(self.reactor, self.path)

    async def stop(self) -> None:
        await super().stop()
        self.directory.cleanup()


class TLSPeer(TLSMemoryBIOProtocol):
    """The peer's end of TLS. It finishes with the closing alert, and goes on receiving."""

    def loseWriteConnection(self) -> None:
        self.loseConnection()

    def abortConnection(self) -> None:
        if self.connected:  # Twisted fails where it is over
            super().abortConnection()


class TLSEnds(TCP4Ends):
    """TCP with TLS, served as ``--listen ssl:`` does; the client's TLS is Twisted's own."""

    begins_with: ClassVar = [HandshakeDone]

    def __init__(self, kind: str = "epoll", version: int = SSL.TLS1_3_VERSION) -> None:
        super().__init__(kind)
        with tempfile.TemporaryDirectory() as directory:
            authority = Authority(Path(directory))
            self.certificates = Certificates(*authority.issue("server"))
            self._context = SSL.Context(SSL.TLS_CLIENT_METHOD)
            self._context.load_verify_locations(authority.file)
        self._context.set_verify(SSL.VERIFY_PEER)
        self._context.set_max_proto_version(version)

    async def listen(self, factory: Any) -> None:
        # A peer of the test's own in the place of the service takes TLS from Twisted.
        over = (
            TLSFactory(factory, self.certificates)
            if isinstance(factory, EchoFactory)
            else self._wrapped(factory, is_client=False)
        )
        await super().listen(over)

    async def connect(self, factory: IProtocolFactory) -> Any:
        tls = await super().connect(self._wrapped(factory, is_client=True))
        return tls.wrappedProtocol

    def send_unseen(self, peer: Peer, data: bytes) -> None:
        self._send(peer, data, 0)

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        self._send(peer, data, socket.MSG_OOB)

    def _send(self, peer: Peer, data: bytes, flags: int) -> None:
        connection = cast(Any, peer.transport).getHandle()
        connection.send(data)
        cast(Any, beneath(peer.transport)).getHandle().send(connection.bio_read(1 << 15), flags)

    def _wrapped(self, factory: IProtocolFactory, is_client: bool) -> Any:
        wrapped = TLSMemoryBIOFactory(TLSContext(self, is_client), is_client, factory, Clock())
        wrapped.protocol = TLSPeer
        return wrapped


@implementer(IOpenSSLClientConnectionCreator, IOpenSSLServerConnectionCreator)
class TLSContext:
    def __init__(self, ends: TLSEnds, is_client: bool) -> None:
        self._context = ends._context if is_client else ends.certificates()

    def clientConnectionForTLS(self, protocol: object) -> SSL.Connection:
        return SSL.Connection(self._context, None)

    serverConnectionForTLS = clientConnectionForTLS


def passed_on(sock: socket.socket, name: str = "echod.socket") -> PassedSocket:
    """Pass a copy of a socket's descriptor, which belongs to its receiver from then on."""
    descriptor = os.dup(sock.fileno())
    os.set_inheritable(descriptor, True)
    return PassedSocket(descriptor, name)


def proxy_header(version: int, host: str, port: int) -> bytes:
    """Return a PROXY header that says: for ``host``, an IPv4 or IPv6 address, and ``port``."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    if version == 1:
        kind = "TCP6" if ":" in host else "TCP4"
        return f"PROXY {kind} {host} {host} {port} 7\r\n".encode()
    packed = socket.inet_pton(family, host)
    addresses = packed * 2 + struct.pack("!HH", port, 7) + b"\x04\0\1\0"  # and PP2_TYPE_NOOP
    kinds = {socket.AF_INET: 0x11, socket.AF_INET6: 0x21}
    fixed = struct.pack("!BBH", 0x21, kinds[family], len(addresses))
    return b"\r\n\r\n\0\r\nQUIT\n" + fixed + addresses


class Announced(Factory):
    """Builds what ``factory`` does, and sends a header before all that that sends."""

    noisy = False

    def __init__(self, factory: IProtocolFactory, header: bytes) -> None:
        self.factory, self.header = factory, header

    def buildProtocol(self, addr: IAddress | None) -> Any:
        protocol: Any = self.factory.buildProtocol(cast(Any, addr))
        make_connection = protocol.makeConnection

        def announce(transport: Any) -> None:
            # Or else what comes next may wait for the header's acknowledgement (tcp(7)), which
            # the kernel delays by 40 ms: long, where the time of a test passes at once.
            transport.setTcpNoDelay(True)
            transport.getHandle().send(self.header)
            make_connection(transport)

        protocol.makeConnection = announce
        return protocol


class ProxyEnds(TCP4Ends):
    """Connections of clients at one address, by a proxy that tells their addresses."""

    begins_with: ClassVar = [HeaderRead]

    def __init__(self, kind: str = "epoll", version: int = 1, **options: Any) -> None:
        super().__init__(kind, **options)
        self.version = version
        self.host = "192.0.2.1" if version == 1 else "2001:db8::1"
        self.numbers = itertools.count(49152)
        self.announces = False

    async def listen(self, factory: IProtocolFactory) -> None:
        self.announces = isinstance(factory, EchoFactory)
        await super().listen(ProxyFactory(factory) if isinstance(factory, EchoFactory) else factory)

    async def connect(self, factory: IProtocolFactory) -> Any:
        if not self.announces:
            return await super().connect(factory)
        header = proxy_header(self.version, self.host, next(self.numbers))
        return await super().connect(Announced(factory, header))


class Peers(Factory):
    """Builds peers that a test drives, on either side, and knows them."""

    noisy = False

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    def buildProtocol(self, addr: IAddress | None) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]


class Served:
    """An EchoFactory on some ends, what it told, and peers that connect to it."""

    def __init__(self, ends: Any, **options: Any) -> None:
        self.ends = ends
        self.events = Recorder()
        self.factory = EchoFactory(
            clock=ends.clock, observer=self.events, **ends.options, **options
        )
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        """Connect, and wait until that is served or refused."""
        told = len(self.events)
        peer: Peer = await self.ends.connect(Peers())
        self.peers.append(peer)
        while len(self.events) == told:
            await self.ends.turn()
        return peer

    async def refused(self) -> str:
        """Connect, and return how that is refused: "RST" or "FIN"."""
        told = len(self.events.refused)
        try:
            peer: Peer = await self.ends.connect(Peers())
        except ConnectError:  # reset before it knew that it was connected
            ended = "RST"
        else:
            ended = str((await self.ends.until(peer.when_ended())).ended)
        assert len(self.events.refused) == told + 1
        return ended

    async def stalled(self, seconds: float) -> None:
        """Let so many seconds go by until a peer is found to be stalled, and longer on sockets.

        There the stall begins when the kernels have moved all that they can, which on a busy
        machine is long after, by a clock that is turned by hand.
        """
        give_up = self._give_up()
        await self.ends.advance(seconds)
        while not self.events.closed and time.monotonic() < give_up:
            await self.ends.advance(seconds)
        await self.settled(lambda: self.events.endings == [Ending.STALLED])

    async def settled(self, what: Callable[[], bool]) -> None:
        """Let the reactor turn until it is so; over sockets, for as long as kernels may take."""
        give_up = self._give_up()
        turns = 0
        while not what():
            assert turns < 1000 or time.monotonic() < give_up, "that does not happen"
            await self.ends.turn()
            turns += 1

    def _give_up(self) -> float:
        """Return until when there is something to wait for that no reactor turn brings about."""
        return time.monotonic() + (0 if isinstance(self.ends, MemoryEnds) else TIMEOUT)


class Daemon:
    """A real ``twistd -n echod``, or another ``command``, in an empty directory.

    As a context manager, it is served within and gone after.
    """

    def __init__(self, *options: str, **popen: Any) -> None:
        self.directory = tempfile.TemporaryDirectory()
        twistd = [str(TWISTD), *popen.pop("twistd", ("-n", "echod"))]
        self.process = subprocess.Popen(
            [*popen.pop("prefix", ()), *popen.pop("command", twistd), *options],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self.directory.name,
            text=True,
            **popen,
        )
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._more:
                self.lines.append(line.rstrip())
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()

    def __enter__(self) -> Daemon:
        try:
            self.wait_for("listening on")
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill it, and remove its directory."""
        self.process.kill()
        self.wait()
        self.directory.cleanup()

    def wait(self) -> int:
        """Wait for its end, and return its exit status."""
        status = self.process.wait(TIMEOUT)
        self._reader.join()
        if self.process.stdout is not None:
            self.process.stdout.close()
        return status

    def wait_for(self, text: str, count: int = 1) -> list[str]:
        """Wait until ``text`` stands in ``count`` lines of the log, and return them."""

        def found() -> list[str]:
            return [line for line in self.lines if text in line]

        with self._more:
            self._more.wait_for(lambda: len(found()) >= count or self._ended, TIMEOUT)
        assert len(found()) >= count, (text, self.lines)
        return found()

    @property
    def log(self) -> str:
        return "\n".join(self.lines)

    @property
    def port(self) -> int:
        return int(self.wait_for("listening on tcp")[0].rpartition(":")[2])

    @property
    def tls_port(self) -> int:
        return int(self.wait_for("listening on tls")[0].rpartition(":")[2])

    def connect(self, host: str = "127.0.0.1", **options: Any) -> socket.socket:
        return socket.create_connection((host, self.port), TIMEOUT, **options)

    def terminate(self, number: int = signal.SIGTERM) -> None:
        self.process.send_signal(number)

    def rss(self) -> int:
        """Return the resident memory, in bytes (proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")
        )

    def descriptors(self) -> int:
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))


def expect_failing_binds(case: SynchronousTestCase) -> None:
    """Have ports fail to listen in a test without a warning in another one.

    Where bind fails, some releases of Twisted leave the socket to the garbage collector, which
    comes at the end of this test, and not in the midst of the next.
    """

    def collect() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            gc.collect()
        gc.enable()

    gc.disable()
    case.addCleanup(collect)


def passing(*sockets: socket.socket, names: str) -> dict[str, Any]:
    """Return what Daemon needs to be passed ``sockets``, as systemd would (sd_listen_fds(3))."""
    numbers = [sock.fileno() for sock in sockets]
    words = [str(word) for word in (len(numbers), names, *numbers)]
    return {"prefix": (sys.executable, "-c", PASS, *words), "pass_fds": numbers}


def short_run(benchmark: str) -> str:
    """Run the short form of one of the benchmarks, and return what it prints."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / benchmark), "--short"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the servers too
            raise
    assert (process.returncode, errors) == (0, "")
    return output


def now(coroutine: Coroutine[Any, Any, T]) -> T:
    """Return what ``coroutine`` returns without waiting for anything, or raise what it raises."""
    results: list[Any] = []
    Deferred.fromCoroutine(coroutine).addBoth(results.append)
    [result] = results
    if isinstance(result, Failure):
        result.raiseException()
    return cast("T", result)


def receive_all(sock: socket.socket) -> bytes:
    """Receive until the other end finishes; a reset raises ConnectionResetError."""
    received = bytearray()
    while part := sock.recv(1 << 20):
        received += part
    return bytes(received)
