"""The order of a life."""

from __future__ import annotations

import resource
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import IService, IServiceMaker
from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError, ConnectionDone
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import Clock
from twisted.internet.tcp import Port as TCPPort
from twisted.logger import LogEvent, formatEvent
from twisted.plugin import IPlugin, getPlugins
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from echod.daemon import makeService, service
from echod.daemon.options import CannotServe, Options
from echod.daemon.service import EchoService, accept_waiting
from echod.events import Ending
from echod.factory import EchoFactory, descriptors_left
from echod.testing import MemoryNetwork
from tests.support import Peers, Recorder


class MemoryListener:
    """Listens in memory, when it may."""

    def __init__(self, network: MemoryNetwork, port: int = 7) -> None:
        self.network = network
        self.port = port
        self.may = Deferred[None]()

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        await self.may
        return [await self.network.server_endpoint(self.port).listen(factory)]


class FakeReactor:
    def __init__(self) -> None:
        self.told: list[str] = []

    def stop(self) -> None:
        self.told.append("stop")

    def iterate(self, delay: float) -> None:
        self.told.append("iterate")


class EchoServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log: list[LogEvent] = []
        self.patch(service.log, "observer", self.log.append)
        self.network = MemoryNetwork()
        self.reactor: Any = FakeReactor()
        self.events = Recorder()
        self.factory = EchoFactory(clock=self.network, observer=self.events)
        self.listeners = [MemoryListener(self.network, port) for port in (7, 8)]
        self.again: list[Callable[[], object]] = []
        self.service = EchoService(
            self.reactor, self.factory, self.listeners, 10, self.again.append
        )

    def lines(self) -> list[str]:
        return [formatEvent(event) for event in self.log]

    def start(self) -> None:
        for listener in self.listeners:
            listener.may.callback(None)
        self.service.privilegedStartService()
        self.service.startService()

    def connect(self, port: int = 7) -> Any:
        return self.successResultOf(self.network.client_endpoint(port).connect(Peers()))

    def test_listening(self) -> None:
        """When it has started it listens everywhere, once, and has said exactly where."""
        self.start()
        self.assertEqual(
            self.lines(), ["listening on tcp 192.0.2.1:7", "listening on tcp 192.0.2.1:8"]
        )
        for port in (7, 8):
            peer = self.connect(port)
            peer.send(b"hello")
            self.network.settle()
            self.assertEqual(peer.received, b"hello")

    def test_started_without_privileges(self) -> None:
        """It listens too where nobody has called privilegedStartService."""
        for listener in self.listeners:
            listener.may.callback(None)
        self.service.startService()
        self.assertEqual(len(self.lines()), 2)

    def test_stop(self) -> None:
        """When it stops: no more listening, a drain, and then it is over; it can start again."""
        self.start()
        peer = self.connect()
        stopped = self.service.stopService()
        self.assertIn("draining, for 10 s at most: open connections: 1", self.lines())
        self.failureResultOf(self.network.client_endpoint().connect(Peers()))
        self.assertNoResult(stopped)
        self.network.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(peer.ended, "FIN")
        self.assertEqual(self.events.endings, [Ending.DRAINED])
        self.service.startService()
        self.connect().send(b"hello")

    def test_port_that_does_not_stop(self) -> None:
        """A port that fails to stop is logged, and costs nobody the drain."""
        self.start()
        peer = self.connect()
        for port in self.service._ports:
            port.stopListening = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
        stopped = self.service.stopService()
        self.network.advance(1)
        self.successResultOf(stopped)
        self.assertEqual(peer.ended, "FIN")
        self.assertEqual(self.lines().count("a port does not stop listening"), 2)

    def test_asked_again(self) -> None:
        """Asked to stop once more, it does not wait."""
        self.start()
        peer = self.connect()
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.settle()
        stopped = self.service.stopService()
        self.network.advance(1)
        self.assertNoResult(stopped)
        [again] = self.again
        again()
        self.network.settle()
        self.successResultOf(stopped)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_cannot_listen(self) -> None:
        """Where it cannot listen everywhere it listens nowhere, and does not start."""
        self.network.server_endpoint(8).listen(EchoFactory())
        for listener in self.listeners:
            listener.may.callback(None)
        self.assertRaises(CannotListenError, self.service.privilegedStartService)
        self.failureResultOf(self.network.client_endpoint(7).connect(Peers()))
        self.assertEqual(self.reactor.told, ["iterate"])

    def test_cannot_listen_later(self) -> None:
        """An endpoint that fails when the reactor runs already stops it, and says why."""
        self.service.privilegedStartService()
        self.service.startService()
        self.listeners[0].may.errback(CannotServe("no luck"))
        self.assertEqual(self.lines(), ["twistd echod: no luck"])
        self.assertEqual(self.reactor.told, ["stop"])

    def test_stop_while_starting(self) -> None:
        """To stop while an endpoint takes its time is no error."""
        self.service.startService()
        self.successResultOf(self.service.stopService())
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.reactor.told, [])

    def test_stop_before_start(self) -> None:
        """To stop what was never started is no error."""
        self.successResultOf(self.service.stopService())


class MakeServiceTests(SynchronousTestCase):
    def make(self, *arguments: str) -> Any:
        options = Options()
        options.parseOptions(list(arguments))
        return makeService(options)

    def test_service(self) -> None:
        """What twistd gets is a service, with the limits of the command line."""
        made = self.make("--max-connections", "3", "--idle-timeout", "7", "--quiet")
        self.assertTrue(verifyObject(IService, made))
        self.assertEqual(made._factory.max_connections, 3)
        self.assertEqual(made._factory.idle_timeout, 7)
        self.assertEqual(made._factory.stall_timeout, 60)

    def test_more_than_the_descriptors(self) -> None:
        """More connections than there are descriptors are not promised, and it says so."""
        log: list[LogEvent] = []
        self.patch(service.log, "observer", log.append)
        self.patch(resource, "getrlimit", lambda which: (100, 100))
        made = self.make("--max-connections", "5000")
        self.assertEqual(made._factory.max_connections, descriptors_left())
        self.assertIn("--max-connections 5000: RLIMIT_NOFILE", formatEvent(log[0]))
        self.assertEqual(self.make()._factory.max_connections, descriptors_left())

    def test_endpoints(self) -> None:
        """--listen is understood before anything starts."""
        self.make("--listen", "tcp:0", "--listen", "unix:/run/x")
        self.assertRaises(CannotServe, self.make, "--listen", "tcp:http")

    def test_second_signal(self) -> None:
        """From the first signal on, both signals mean: do not wait."""
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        handlers: dict[int, Any] = {}
        called: list[Any] = []
        self.patch(signal, "signal", handlers.__setitem__)
        self.patch(reactor, "callFromThread", called.append)
        action = object()
        self.make()._when_asked_again(action)
        self.assertEqual(set(handlers), {signal.SIGINT, signal.SIGTERM})
        for handler in handlers.values():
            handler(signal.SIGTERM, None)
        self.assertEqual(called, [action, action])

    def test_plugin(self) -> None:
        """What twistd finds is one echod, with these options and this service."""
        found = [
            plugin
            for plugin in getPlugins(IPlugin)
            if IServiceMaker.providedBy(plugin) and plugin.tapname == "echod"
        ]
        [plugin] = found
        self.assertIs(plugin.options, Options)
        self.assertIs(plugin.makeService, makeService)


class AcceptWaitingTests(SynchronousTestCase):
    def test_accept_waiting(self) -> None:
        """Connections that nobody has accepted yet are, before the port is closed."""
        from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

        factory = EchoFactory(clock=Clock())
        port: Any = TCPPort(0, factory, 300, "127.0.0.1", reactor)
        port.startListening()
        done = Failure(ConnectionDone())
        self.addCleanup(port.connectionLost, done)
        self.addCleanup(port.stopReading)
        address = ("127.0.0.1", port.getHost().port)
        clients = [socket.create_connection(address) for _ in range(200)]
        accept_waiting(port)
        self.assertEqual(len(factory.connections), 200)
        for echo in list(factory.connections):
            echo.transport.connectionLost(done)
        for client in clients:
            self.assertEqual(client.recv(1), b"")
            client.close()

    def test_other_ports(self) -> None:
        """A port that is no descriptor holds nothing that is known of."""
        network = MemoryNetwork()
        port: Any = self.successResultOf(network.server_endpoint().listen(EchoFactory()))
        accept_waiting(port)
