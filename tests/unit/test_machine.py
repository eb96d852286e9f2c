"""State machine: random events on a few connections, checked against a simple model.

The model: the reply is a prefix of what was sent, and all of it if the ending says so.
"""

from __future__ import annotations

import random
import socket
import tempfile
import time
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IAddress, IProtocolFactory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.deferring import accept_deferred
from echod.events import Closed, Ending
from echod.factory import EchoFactory
from echod.protocol import MAX_BUFFERED
from echod.testing import MemoryNetwork, Peer
from tests import TIMEOUT
from tests.reactors import REACTORS, reactor_of_kind, turn
from tests.recorder import Recorder
from tests.streams.server import Peers

LARGEST = 3_000_000
"""Bytes of the longest message on sockets: more than the kernel buffers, and more than a splice."""

PERIOD = 65521
"""A prime: bytes that are lost, repeated or swapped shift the pattern."""

PATTERN = random.Random(862).randbytes(PERIOD) * (LARGEST // PERIOD + 2)

CLEAN = {Ending.FINISHED, Ending.IDLE, Ending.DRAINED, Ending.UNUSED}


class Caller:
    """A peer, and the model's state of it."""

    def __init__(self, peer: Peer, address: IAddress) -> None:
        self.peer = peer
        self.address = address
        self.sent = bytearray()
        self.finished = False
        self.stalled = False


class SocketNetwork(Clock):
    """The loopback interface, with a fake clock."""

    def __init__(self, kind: str, *, deferred: bool) -> None:
        super().__init__()
        self.reactor = reactor_of_kind(kind)
        self.deferred = deferred

    def server_endpoint(self) -> Any:
        return TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")

    def serve(self, factory: IProtocolFactory) -> None:
        self.port: Any = self.server_endpoint()
        self.port.listen(factory).addCallback(lambda port: setattr(self, "port", port))
        if self.deferred:
            accept_deferred(self.port, ListeningSocket(self.port, "", Mock()))

    def client_endpoint(self) -> Any:
        return TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.port.getHost().port)

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + TIMEOUT
        while not condition():
            assert time.monotonic() < deadline, "a condition does not become true"
            turn(self.reactor, 0.001)

    def settle(self) -> None:
        for _ in range(10):
            turn(self.reactor)

    def advance(self, amount: float) -> None:
        for _ in range(30):
            self.settle()
            super().advance(amount / 30)
        self.settle()

    def close(self) -> None:
        stopped = self.port.stopListening()
        self.until(lambda: stopped.called)


class UNIXNetwork(SocketNetwork):
    """UNIX sockets. Each client's has a name, by which the events refer to it."""

    def __init__(self, kind: str, *, deferred: bool) -> None:
        super().__init__(kind, deferred=deferred)
        self.directory = tempfile.TemporaryDirectory()
        self.clients = 0

    def server_endpoint(self) -> Any:
        return UNIXServerEndpoint(self.reactor, f"{self.directory.name}/echo")

    def client_endpoint(self) -> Any:
        return self

    def connect(self, factory: Any) -> Deferred[Any]:
        self.clients += 1
        with socket.socket(socket.AF_UNIX) as sock:
            sock.bind(f"{self.directory.name}/{self.clients}")
            sock.connect(f"{self.directory.name}/echo")
            sock.setblocking(False)
            self.reactor.adoptStreamConnection(sock.fileno(), socket.AF_UNIX, factory)
        return succeed(factory.peers[-1])

    def close(self) -> None:
        super().close()
        self.directory.cleanup()


class WholeMemoryNetwork(MemoryNetwork):
    """A MemoryNetwork with the same methods."""

    def serve(self, factory: IProtocolFactory) -> None:
        self.server_endpoint().listen(factory)

    def until(self, condition: Callable[[], object]) -> None:
        if not condition():
            self.settle()
        assert condition()

    def close(self) -> None:
        pass


class EchoMachine(RuleBasedStateMachine):
    callers = Bundle("callers")

    def make_network(self, capacity: int) -> Any:
        return WholeMemoryNetwork(capacity)

    fast_path = True
    knows_reset = True  # UNIX sockets have no RST (unix(7))

    @initialize(
        capacity=st.sampled_from([1, 100, 4096, 64 * 1024]),
        idle=st.sampled_from([None, 5.0]),
        stall=st.sampled_from([None, 8.0]),
    )
    def serve(self, capacity: int, idle: float | None, stall: float | None) -> None:
        self.largest = 1000 * capacity  # a turn of the loop moves one capacity, and takes time
        self.network = self.make_network(capacity)
        self.events = Recorder()
        self.factory = EchoFactory(
            clock=self.network,
            observer=self.events,
            idle_timeout=idle,
            stall_timeout=stall,
            max_connections=4,
            fast_path=self.fast_path,
        )
        self.network.serve(self.factory)
        self.all: list[Caller] = []
        self.drained: Any = None

    @rule(target=callers)
    def connect(self) -> Caller:
        before = len(self.events)
        connected: list[Any] = []
        self.network.client_endpoint().connect(Peers()).addBoth(connected.append)

        def admitted() -> list[Any]:
            return [event for event in self.events[before:] if not isinstance(event, Closed)]

        self.network.until(lambda: connected and admitted())
        [peer], [event] = connected, admitted()
        if isinstance(peer, Failure):  # refused before the client was connected
            peer = Peer()
            peer.ended = "RST"
        caller = Caller(peer, event.peer)
        self.all.append(caller)
        return caller

    @rule(caller=callers, size=st.sampled_from([1, 7, 5000, 40_000, 300_000, LARGEST]))
    def send(self, caller: Caller, size: int) -> None:
        if caller.finished or caller.peer.ended is not None:
            return
        at = len(caller.sent) % PERIOD
        data = PATTERN[at : at + min(size, self.largest)]
        caller.sent += data
        caller.peer.send(data)

    @rule(caller=callers)
    def stall(self, caller: Caller) -> None:
        if caller.peer.ended is None:
            caller.stalled = True
            caller.peer.stall()

    @rule(caller=callers)
    def read(self, caller: Caller) -> None:
        if caller.peer.ended is None:
            caller.stalled = False
            caller.peer.resume()

    @rule(caller=callers)
    def finish(self, caller: Caller) -> None:
        if caller.peer.ended is None and not caller.finished:
            caller.finished = True
            caller.peer.finish()

    @rule(caller=callers)
    def reset(self, caller: Caller) -> None:
        caller.finished = True
        if caller.peer.ended is None:
            caller.peer.abort()

    @rule()
    def settle(self) -> None:
        self.network.settle()

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 20.0]))
    def wait(self, seconds: float) -> None:
        self.network.advance(seconds)

    @rule(data=st.data())
    def use_transport(self, data: st.DataObject) -> None:
        """An application uses the transport of a connection, which may have had none."""
        connections = sorted(self.factory.connections, key=lambda each: str(each.peer))
        if connections:
            connection: Any = data.draw(st.sampled_from(connections))
            assert connection.transport.connected

    @precondition(lambda self: self.drained is None)
    @rule(deadline=st.sampled_from([0, 1, 30]))
    def drain(self, deadline: float) -> None:
        self.drained = self.factory.drain(deadline)

    @invariant()
    def reply_is_a_prefix(self) -> None:
        for caller in getattr(self, "all", ()):
            assert caller.sent.startswith(caller.peer.received)

    @invariant()
    def few_bytes_are_buffered(self) -> None:
        for echo in getattr(self, "factory", EchoFactory()).connections:
            assert echo.buffered < MAX_BUFFERED

    def teardown(self) -> None:
        """End all connections, and check each ending."""
        if not hasattr(self, "factory"):
            return
        drained = self.factory.drain(50)
        self.network.advance(60)
        assert drained.called
        assert not self.factory.connections
        for caller in self.all:
            if caller.stalled:
                caller.peer.resume()
        self.network.until(lambda: all(caller.peer.ended is not None for caller in self.all))
        self.network.close()
        endings = {closed.peer: closed for closed in self.events.closed}
        refused = {event.peer for event in self.events.refused}
        for caller in self.all:
            peer = caller.peer
            assert (caller.address in endings) != (caller.address in refused)
            if caller.address in refused:
                assert not peer.received
                assert peer.ended == "RST" or caller.finished or not self.knows_reset
                continue
            closed = endings[caller.address]
            assert closed.bytes <= len(caller.sent)
            if closed.ending in CLEAN:
                assert closed.unsent == 0
            if closed.ending is Ending.FINISHED and self.knows_reset:
                # A UNIX peer that aborts looks as if it had finished, with bytes not sent yet.
                assert closed.bytes == len(caller.sent)
            if closed.ending is Ending.UNUSED:
                assert closed.bytes == 0
                assert caller.finished
            if peer.ended == "FIN" and not self.gone(caller):
                # FIN means that all bytes received were sent back: all that the peer sent, unless
                # they crossed the close of an idle or drained connection. A deadline may pass after
                # FIN, between two checks of the send queue.
                if self.knows_reset:
                    assert closed.ending in {*CLEAN, Ending.ABORTED}
                if self.knows_reset or closed.ending in CLEAN:
                    assert len(peer.received) == closed.bytes
        assert self.network.getDelayedCalls() == []

    def gone(self, caller: Caller) -> bool:
        """Return whether the peer has reset the connection."""
        return caller.finished and caller.peer.transport._aborting  # type: ignore[attr-defined]


EchoMachine.TestCase.settings = settings(stateful_step_count=30, max_examples=150)
EchoTests = EchoMachine.TestCase
EchoTests.__doc__ = "The model holds for any order of events."


class OnSockets(EchoMachine):
    """The same over kernel sockets."""

    kind = "epoll"
    deferred = False
    network_class = SocketNetwork

    def make_network(self, capacity: int) -> Any:
        self.largest = LARGEST
        return self.network_class(self.kind, deferred=self.deferred)


PATHS = {
    "FastPath": {"fast_path": True},
    "OrdinaryPath": {"fast_path": False},
    "WithoutTransport": {"deferred": True},
}

UNIX = {"network_class": UNIXNetwork, "knows_reset": False}

for prefix, common in {
    **{kind.capitalize(): {"kind": kind} for kind in REACTORS},
    "UNIX": UNIX,
}.items():
    for path, options in PATHS.items():
        name = f"{prefix}{path}"
        machine: Any = type(name, (OnSockets,), {**common, **options})
        machine.TestCase.settings = settings(stateful_step_count=30, max_examples=30, deadline=None)
        globals()[f"{name}Tests"] = machine.TestCase
