"""Service lifecycle: listen, report ready, serve, drain, stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon import service
from echod.daemon.errors import CannotServe
from echod.daemon.listeners import group as ports
from echod.daemon.listeners.accepting import log_not_accepted
from echod.daemon.listeners.group import Ports
from echod.daemon.service import EchoService
from echod.daemon.summary import RateLimitedSummary
from echod.events import Ending
from echod.factory import EchoFactory
from echod.faults import Faults
from echod.testing import MemoryNetwork
from tests.recorder import Recorder
from tests.streams.server import Peers


class MemoryListener:
    """Listens in memory, once ``may`` fires."""

    held_by_systemd = False
    tls = False
    faults: Faults | None = None

    def __init__(self, network: MemoryNetwork, port: int = 7) -> None:
        self.network = network
        self.port = port
        self.may = Deferred[None]()

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        await self.may
        return [await self.network.server_endpoint(self.port).listen(factory)]


class FakeReactor:
    def __init__(self) -> None:
        self.calls: list[str] = []
        self.running: list[Callable[[], object]] = []

    def stop(self) -> None:
        self.calls.append("stop")

    def iterate(self, delay: float) -> None:
        self.calls.append("iterate")

    def callWhenRunning(self, function: Callable[[], object]) -> None:
        self.running.append(function)


class FakeNotifier:
    def __init__(self) -> None:
        self.messages: list[str] = []

    def ready(self) -> None:
        self.messages.append("ready")

    def stopping(self) -> None:
        self.messages.append("stopping")


class EchoServiceTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.log: list[LogEvent] = []
        for module in (service, ports):
            self.patch(module.log, "observer", self.log.append)
        self.network = MemoryNetwork()
        self.reactor: Any = FakeReactor()
        self.events = Recorder()
        self.factory = EchoFactory(clock=self.network, observer=self.events)
        self.listeners = [MemoryListener(self.network, port) for port in (7, 8, 80)]
        self.notifier: Any = FakeNotifier()
        self.page = Peers()
        failures = RateLimitedSummary(Clock(), log_not_accepted)
        self.service = EchoService(
            reactor=self.reactor,
            factory=self.factory,
            echo=Ports(self.factory, self.listeners[:2], failures),
            others=[Ports(self.page, self.listeners[2:], failures, "metrics")],
            drain_timeout=10,
            notifier=self.notifier,
            connection_limit=lambda: 100,
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
        """A started service listens on each port, and logs each address once."""
        self.start()
        self.assertEqual(
            self.lines(),
            [
                "listening on tcp 192.0.2.1:7",
                "listening on tcp 192.0.2.1:8",
                "metrics on tcp 192.0.2.1:80",
            ],
        )
        for port in (7, 8):
            peer = self.connect(port)
            peer.send(b"hello")
            self.network.settle()
            self.assertEqual(peer.received, b"hello")

    def test_started_without_privileges(self) -> None:
        """StartService listens, without a call of privilegedStartService before."""
        for listener in self.listeners:
            listener.may.callback(None)
        self.service.startService()
        self.assertEqual(len(self.lines()), 3)

    def test_ready(self) -> None:
        """The service reports ready once all ports listen and the reactor runs."""
        self.service.privilegedStartService()
        self.service.startService()
        for listener in self.listeners:
            self.assertEqual(self.reactor.running, [])
            listener.may.callback(None)
        self.assertEqual(self.notifier.messages, [])
        [running] = self.reactor.running
        running()
        self.assertEqual(self.notifier.messages, ["ready"])

    def test_others_stop_last(self) -> None:
        """Stopping is reported when the drain begins; the status page stays up until its end."""
        self.start()
        self.connect()
        stopped = self.service.stopService()
        self.assertEqual(self.notifier.messages, ["stopping"])
        self.connect(80)
        self.network.advance(1)
        self.successResultOf(stopped)
        self.failureResultOf(self.network.client_endpoint(80).connect(Peers()))

    def test_stop(self) -> None:
        """A stop closes the ports, then drains; the service can start again."""
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

    def test_stop_with_a_failing_step(self) -> None:
        """A step of the shutdown that fails is logged, and the other steps run."""

        def fail() -> None:
            raise MemoryError

        self.start()
        peer = self.connect()
        self.patch(self.notifier, "stopping", fail)
        stopped = self.service.stopService()
        self.network.advance(1)
        self.successResultOf(stopped)
        self.assertIn("a step of the shutdown fails", self.lines())
        self.assertEqual(peer.ended, "FIN")
        self.failureResultOf(self.network.client_endpoint(80).connect(Peers()))

    def test_hasten(self) -> None:
        """Hasten ends a drain: it resets the connections that remain."""
        self.start()
        peer = self.connect()
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.settle()
        stopped = self.service.stopService()
        self.network.advance(1)
        self.assertNoResult(stopped)
        self.service.hasten()
        self.network.settle()
        self.successResultOf(stopped)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_hasten_before_the_stop(self) -> None:
        """After hasten, a drain that begins later resets its connections at once."""
        self.start()
        peer = self.connect()
        peer.stall()
        peer.send(bytes(1 << 20))
        self.network.settle()
        self.service.hasten()
        self.assertEqual(self.events.endings, [])
        stopped = self.service.stopService()
        self.network.advance(0)
        self.successResultOf(stopped)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_cannot_listen(self) -> None:
        """If one port cannot listen, all ports are closed, and the service does not start."""
        self.network.server_endpoint(80).listen(EchoFactory())
        for listener in self.listeners:
            listener.may.callback(None)
        self.assertRaises(CannotListenError, self.service.privilegedStartService)
        for port in (7, 8):
            self.failureResultOf(self.network.client_endpoint(port).connect(Peers()))
        self.assertEqual(self.reactor.calls, ["iterate"])
        self.assertEqual(self.reactor.running, [])

    def test_cannot_listen_later(self) -> None:
        """An endpoint that fails while the reactor runs stops the reactor and is logged."""
        self.service.privilegedStartService()
        self.service.startService()
        self.listeners[0].may.errback(CannotServe("no luck"))
        self.assertEqual(self.lines(), ["cannot serve: no luck"])
        self.assertEqual(self.reactor.calls, ["stop"])

    def test_stop_while_starting(self) -> None:
        """A service whose endpoint does not listen yet can be stopped."""
        self.service.startService()
        self.successResultOf(self.service.stopService())
        for listener in self.listeners:
            listener.may.callback(None)
        self.assertEqual(self.lines(), [])
        self.assertEqual(self.reactor.calls, [])

    def test_stop_before_start(self) -> None:
        """A service that was never started can be stopped."""
        self.successResultOf(self.service.stopService())
