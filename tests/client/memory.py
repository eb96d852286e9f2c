"""A service on an in-memory network, and ``echod-client`` run in this process."""

from __future__ import annotations

import io
import json
import re
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory, Protocol

from echod.client.connector import Connector
from echod.client.options import parse
from echod.client.runner import PreciseReactor, perform
from echod.client.target import Target
from echod.client.terminal import Console
from echod.peer import EchoPeer
from echod.testing import MemoryNetwork
from tests.authority import Authority
from tests.programs.daemon import Daemon


class MemoryTarget(Target):
    """A target on an in-memory network."""

    def endpoint(self, reactor: Any) -> IStreamClientEndpoint:
        endpoint: IStreamClientEndpoint = reactor.client_endpoint()
        return endpoint


def memory_connector(network: MemoryNetwork, timeout: float = 10.0) -> Connector:
    return Connector(network, MemoryTarget("memory:"), timeout)


class Service(Protocol):
    """An echo that sends its reply to data received at ``now`` at the time ``answers(now)``."""

    transport: Any
    factory: Any

    def dataReceived(self, data: bytes) -> None:
        network, answers = self.factory.network, self.factory.answers
        now = network.seconds()
        network.callLater(max(0.0, answers(now) - now), self.answer, data)

    def answer(self, data: bytes) -> None:
        self.transport.write(self.factory.change(data))


class Services(Factory):
    """A factory that keeps the protocols that it has built."""

    protocol = Service
    noisy = False

    def __init__(
        self,
        network: MemoryNetwork,
        answers: Callable[[float], float] = lambda now: now,
        change: Callable[[bytes], bytes] = lambda data: data,
    ) -> None:
        self.network, self.answers, self.change = network, answers, change
        self.made: list[Any] = []
        self._port: Any = None
        self.start()

    def start(self) -> None:
        listening = self.network.server_endpoint().listen(self)
        listening.addCallback(lambda port: setattr(self, "_port", port))

    def stop(self, end: str = "loseConnection") -> None:
        """Stop listening, and end the last connection."""
        self._port.stopListening()
        self.end(end)

    def end(self, end: str = "loseConnection") -> None:
        """End the last connection."""
        getattr(self.made[-1].transport, end)()
        self.network.settle()

    def buildProtocol(self, addr: Any) -> Any:
        self.made.append(super().buildProtocol(addr))
        return self.made[-1]


@contextmanager
def silent_port() -> Iterator[str]:
    """Yield a TARGET on loopback on which connections time out: its backlog is full."""
    with socket.socket() as listening, ExitStack() as stack:
        listening.bind(("127.0.0.1", 0))
        listening.listen(0)
        for _ in range(3):  # more than the backlog
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(listening.getsockname())
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def target_of(peer: EchoPeer) -> str:
    """Return the TARGET that names ``peer``."""
    transport, where = peer._faults.port.split(" ")
    return {
        "tcp": where,
        "udp": f"udp:{where}",
        "unix": f"unix:{where}",
        "tls": f"tls:localhost:{peer.port}:trustRoots={Path(peer.ca).parent}",
    }[transport]


class Terminal(io.StringIO):
    """A file whose isatty() is true."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Outcome(NamedTuple):
    """The exit status and the output of a command."""

    status: int
    out: str
    err: str

    @property
    def result(self) -> Any:
        return json.loads(self.out)


def echod_client(
    *arguments: object,
    out: Any = None,
    err: Any = None,
    prepare: Callable[[PreciseReactor], object] = lambda _: None,
) -> Outcome:
    """Run ``echod-client`` in this process, in a reactor of its own.

    :param prepare: is given that reactor before it runs.
    """
    out = io.StringIO() if out is None else out
    err = io.StringIO() if err is None else err
    options = parse([str(each) for each in arguments])
    reactor: Any = PreciseReactor()
    prepare(reactor)
    status = perform(reactor, options, Console(options.command, out, err))
    printed = out.getvalue() if isinstance(out, io.StringIO) else ""
    complained = err.getvalue() if isinstance(err, io.StringIO) else ""
    return Outcome(status, printed, complained)


def lines(*arguments: object) -> list[str]:
    """Return the lines that a successful command prints, except that of a busy machine."""
    status, out, err = echod_client(*arguments)
    assert (status, err) == (0, "")
    return [line for line in out.splitlines() if not line.startswith("limited by the client: ")]


MS = r"\d+\.\d{3}"
ROUND_TRIP = rf"min {MS}, mean {MS}, stdev {MS}, p50 {MS}, p90 {MS}, p99 {MS}, max {MS} ms"
FEW = rf"min {MS}, mean {MS}, p50 {MS}, p90 {MS}, p99 {MS}, max {MS} ms"


def matches(printed: list[str], *patterns: str) -> None:
    assert len(printed) == len(patterns), printed
    for line, pattern in zip(printed, patterns, strict=True):
        assert re.fullmatch(pattern, line), (line, pattern)


@contextmanager
def tls_target() -> Iterator[str]:
    """Serve echo over TLS, and yield a TARGET that trusts the certificate."""
    with tempfile.TemporaryDirectory() as directory:
        authority = Authority(Path(directory))
        key, certificate = authority.issue("server")
        roots = Path(directory) / "roots"
        roots.mkdir()
        (roots / "authority.pem").write_bytes(Path(authority.file).read_bytes())
        listen = f"ssl:0:privateKey={key}:certKey={certificate}:interface=127.0.0.1"
        with Daemon("--listen", listen) as daemon:
            yield f"tls:localhost:{daemon.tls_port}:trustRoots={roots}"
