"""The ports of one factory: open, accept the backlog, close."""

from __future__ import annotations

import errno
import socket
import tempfile
from collections.abc import Sequence
from typing import Any
from unittest import mock

from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.tcp import Port as TCPPort
from twisted.logger import LogEvent, formatEvent
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import faultlog
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import base
from echod.daemon.listeners import group as module
from echod.daemon.listeners.accepting import log_not_accepted
from echod.daemon.listeners.deferring import BATCH
from echod.daemon.listeners.group import Ports
from echod.daemon.listeners.kinds import make_listener
from echod.daemon.summary import RateLimitedSummary
from echod.factory import EchoFactory
from echod.faultplan import Plan
from echod.faults import Faults
from echod.testing import MemoryNetwork
from tests.coroutines import now
from tests.daemon.failing_binds import expect_failing_binds
from tests.streams.server import Peers


class Listener:
    """A listener that returns the given ports."""

    faults: Faults | None = None

    def __init__(self, *ports: Any, held_by_systemd: bool = False, tls: bool = False) -> None:
        self.ports = ports
        self.held_by_systemd = held_by_systemd
        self.tls = tls

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        return self.ports


class PortsTests(SynchronousTestCase):
    def setUp(self) -> None:
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        self.log: list[LogEvent] = []
        self.patch(module.log, "observer", self.log.append)
        self.reactor = reactor
        self.factory = EchoFactory(clock=Clock())
        self.failures = RateLimitedSummary(Clock(), log_not_accepted)

    def opened(self, port: Any, **options: bool) -> Ports:
        ports = Ports(self.factory, [Listener(port, **options)], self.failures)
        now(ports.open())
        return ports

    def clients(self, count: int) -> tuple[Any, list[socket.socket]]:
        """Return a TCP port, and clients in its backlog."""
        port: Any = TCPPort(0, self.factory, 300, "127.0.0.1", self.reactor)
        port.startListening()
        self.addCleanup(port.connectionLost, Failure(ConnectionDone()))
        self.addCleanup(port.stopReading)
        address = ("127.0.0.1", port.getHost().port)
        clients = [socket.create_connection(address) for _ in range(count)]
        for client in clients:
            self.addCleanup(client.close)
        return port, clients

    def test_addresses(self) -> None:
        """The addresses are logged, and can be read."""
        network = MemoryNetwork()
        port = self.successResultOf(network.server_endpoint().listen(Peers()))
        ports = self.opened(port)
        self.assertEqual(ports.addresses, ["tcp 192.0.2.1:7"])
        self.assertEqual(
            [formatEvent(event) for event in self.log], ["listening on tcp 192.0.2.1:7"]
        )
        self.successResultOf(ports.close())
        self.assertEqual(ports.addresses, [])
        ports.accept_waiting()
        self.failureResultOf(network.client_endpoint().connect(Peers()))

    def test_addresses_with_tls(self) -> None:
        """The address of a port with TLS begins with tls."""
        network = MemoryNetwork()
        port: Any = self.successResultOf(network.server_endpoint().listen(Peers()))
        ports = Ports(self.factory, [Listener(port, tls=True)], self.failures)
        now(ports.open())
        self.assertEqual(ports.addresses, ["tls 192.0.2.1:7"])

    def test_faulty(self) -> None:
        """A faulty port is marked, and its plan is logged with all its addresses."""
        network = MemoryNetwork()
        opened: Any = [
            self.successResultOf(network.server_endpoint(number).listen(Peers()))
            for number in (7, 8, 9)
        ]
        faulty = Listener(*opened[1:])
        faulty.faults = Faults(Plan(seed=7), 0)
        ports = Ports(self.factory, [Listener(opened[0]), faulty], self.failures)
        self.patch(faultlog.log, "observer", self.log.append)
        now(ports.open())
        self.assertEqual(
            ports.marked, ["tcp 192.0.2.1:7", "tcp 192.0.2.1:8 FAULTY", "tcp 192.0.2.1:9 FAULTY"]
        )
        self.assertEqual(
            formatEvent(self.log[-1]), "FAULTY tcp 192.0.2.1:8, tcp 192.0.2.1:9: no rules (seed 7)"
        )

    def test_accept_waiting(self) -> None:
        """Connections in the backlog are accepted before the port is closed."""
        port, clients = self.clients(200)
        self.opened(port).accept_waiting()
        self.assertEqual(len(self.factory.connections), 200)
        for echo in list(self.factory.connections):
            echo.transport.connectionLost(Failure(ConnectionDone()))  # type: ignore[attr-defined]
        self.assertEqual([client.recv(1) for client in clients], [b""] * 200)

    def test_flood(self) -> None:
        """An endless stream of clients does not delay the stop: a bounded number is accepted."""
        self.patch(module, "BACKLOG", 1)
        port, _ = self.clients(150)
        self.opened(port).accept_waiting()
        self.assertEqual(len(self.factory.connections), BATCH)
        for echo in list(self.factory.connections):
            echo.transport.connectionLost(Failure(ConnectionDone()))  # type: ignore[attr-defined]

    def test_passed(self) -> None:
        """The backlog of a socket that systemd holds is left for the next process."""
        port, _ = self.clients(1)
        self.opened(port, held_by_systemd=True).accept_waiting()
        self.assertEqual(len(self.factory.connections), 0)

    def test_accept_fails(self) -> None:
        """If accept(2) fails, the stop continues."""
        port, _ = self.clients(2)
        ports = self.opened(port)
        with mock.patch("socket.socket._accept", side_effect=OSError(errno.ENFILE, "")) as accept:
            ports.accept_waiting()
        self.assertEqual(accept.call_count, 1)
        self.assertTrue(port.socket.failed)

    def test_other_ports(self) -> None:
        """A port without a descriptor has no backlog."""
        network = MemoryNetwork()
        port = self.successResultOf(network.server_endpoint().listen(Peers()))
        self.opened(port).accept_waiting()

    def test_port_that_is_closed(self) -> None:
        """A port that failed, and that the reactor has closed, does not disturb the stop."""
        port = TCPPort(0, self.factory, 5, "127.0.0.1", self.reactor)
        port.startListening()
        ports = self.opened(port)
        port.stopReading()
        port.connectionLost(Failure(ConnectionDone()))
        ports.accept_waiting()

    def test_own_clash(self) -> None:
        """If echod itself listens on the address already, the error says so, and names it."""
        self.patch(base.log, "observer", self.log.append)
        expect_failing_binds(self)

        def clash(*descriptions: str) -> str:
            ports = Ports(
                self.factory,
                [make_listener(self.reactor, each, each) for each in descriptions],
                self.failures,
            )
            self.addCleanup(self.reactor.iterate, 0)
            self.addCleanup(ports.close)
            return str(self.assertRaises(CannotServe, lambda: now(ports.open())))

        with socket.create_server(("127.0.0.1", 0)) as other:
            free = other.getsockname()[1]
        line = clash(f"tcp:{free}", f"tcp6:{free}")
        self.assertIn(f"tcp6:{free}: echod itself listens on tcp 0.0.0.0:{free} already: ", line)
        self.assertIn(
            "leave out one of the two (IPv6 on all addresses, [::], takes IPv4 too)", line
        )
        with tempfile.TemporaryDirectory() as directory:
            path = f"unix:{directory}/socket"
            line = clash(path, path)
            self.assertIn(f"{path}: echod itself listens on unix {directory}/socket already", line)
        with socket.create_server(("127.0.0.1", 0)) as other:
            free = other.getsockname()[1]
            line = clash("tcp:0:interface=127.0.0.1", f"tcp:{free}:interface=127.0.0.1")
            self.assertIn("address already in use: stop the process that listens there", line)

    def test_port_that_does_not_stop(self) -> None:
        """A port that fails to stop is logged, and the others stop."""
        network = MemoryNetwork()
        port: Any = self.successResultOf(network.server_endpoint().listen(Peers()))
        port.stopListening = lambda: 1 / 0
        self.successResultOf(self.opened(port).close())
        self.assertEqual(formatEvent(self.log[-1]), "a port does not stop listening")
