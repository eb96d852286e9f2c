"""An echo peer with faults for tests, on its own reactor in a thread.

A test in any style (synchronous, asyncio, trio, Twisted) calls a peer as plain functions. The
reactor is an instance, never the global one, and installs no signal handlers.
:mod:`echod.pytest_plugin` makes fixtures of it.
"""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from tempfile import TemporaryDirectory
from typing import Any, Final

from twisted.internet import tcp
from twisted.internet.pollreactor import PollReactor
from twisted.internet.threads import blockingCallFromThread

from echod.clock import use_monotonic_time
from echod.events import Closed, Event, Fired
from echod.faultdatagrams import FaultyDatagramPort
from echod.faultgrammar import parse_plan
from echod.faults import DATAGRAM, STREAM, TLS, ActiveRule, Plan, Rule, When
from echod.faulty import FaultyEchoFactory
from echod.udp import EchoDatagrams
from echod.udprules import MAX_RATE, Rules

SERVES: Final = {"tcp": STREAM, "tls": TLS, "unix": STREAM, "udp": DATAGRAM}
"""The transports of a peer, and what :meth:`~echod.faultplan.Plan.check` calls them."""

HOST: Final = "127.0.0.1"

BACKLOG: Final = 1024
"""Connections that wait for accept(2): a test may open many at once."""

DRAIN: Final = 0.5
"""Seconds until :meth:`EchoPeer.stop` resets the connections that are left."""

POLL: Final = 0.002
"""Seconds between two checks of :meth:`EchoPeer.wait_for`."""

MAX_EVENTS: Final = 1000
"""The number of events that a peer keeps: the latest ones."""

SHOWN: Final = 20
"""The number of events in a report: the latest ones."""


@contextmanager
def running_reactor() -> Iterator[Any]:
    """Run a reactor in a thread; in the end, stop it and release its descriptors.

    It uses poll(2), which needs no descriptor of its own, and has no limit on their number.
    """
    reactor: Any = PollReactor()
    reactor._registerAsIOThread = False  # that is the thread of the global reactor
    use_monotonic_time(reactor)
    started = threading.Event()
    reactor.callWhenRunning(started.set)
    thread = threading.Thread(target=reactor.run, args=(False,), name="echod peer", daemon=True)
    thread.start()
    started.wait()
    try:
        yield reactor
    finally:
        reactor.callFromThread(reactor.stop)
        thread.join()
        for reader in reactor._internalReaders:  # Twisted leaves the pipe that wakes the reactor
            reader.connectionLost(None)


class SpareDescriptor:
    """Twisted's spare descriptor, which all reactors of the process share.

    Twisted opens it with its first port, and keeps it. Peers in several threads may begin and end
    at the same time: the first one opens it, and the last one closes it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holders = 0
        self._was_open = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the descriptor open while the body runs."""
        with self._lock:
            if not self._holders:
                self._was_open = tcp._reservedFD.available()
                tcp._reservedFD.reserve()
            self._holders += 1
        try:
            yield
        finally:
            with self._lock:
                self._holders -= 1
                is_last = not (self._holders or self._was_open)
                if is_last and tcp._reservedFD.available():  # none, if descriptors ran out
                    tcp._reservedFD.__enter__()  # closes it


SPARE: Final = SpareDescriptor()


def bind(datagrams: bool, port: int = 0) -> socket.socket:
    """Return a socket that is bound to ``port``; 0: to a free port, which another can share.

    A free port is chosen without SO_REUSEADDR, with which two UDP sockets could get the same one.
    A UDP socket on it is connected to itself, so that it receives nothing from others.
    """
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM if datagrams else socket.SOCK_STREAM)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, port != 0)
    sock.bind((HOST, port))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, True)
    if datagrams and not port:
        sock.connect(sock.getsockname())
    return sock


class EchoPeer:
    """An echo service at its own address, with faults that a test adds.

    The conditions and faults of :class:`~echod.faults.When` are methods of a peer, and add a rule:
    ``peer.first(2).refuse()``. The rule applies to connections from then on. The peer is a context
    manager: leaving it stops the peer and its thread.

    :param transport: ``tcp``, ``tls``, ``unix`` or ``udp``; ``tls`` needs the extra ``tls``.
    :param seed: decides what is random; by default chosen at random.
    :param options: of :class:`~echod.factory.EchoFactory`; without effect for ``udp``.
    :raises TypeError: for an option that does not exist, or of another type.
    :raises ValueError: for another transport, or an option out of bounds.
    :raises ImportError: for ``tls`` without the extra.

    :ivar host: the IPv4 address, ``127.0.0.1``.
    :ivar port: the port number. The peer keeps it while it is stopped.
    :ivar path: the path of a ``unix`` peer.
    :ivar ca: the path of the certificate of a ``tls`` peer (PEM), which a client has to trust.
    :ivar peers: this peer, and the peers that were made by calling it.
    """

    host = HOST

    def __init__(self, transport: str = "tcp", *, seed: int | None = None, **options: Any) -> None:
        if transport not in SERVES:
            raise ValueError(f"a transport is one of {', '.join(SERVES)}, not {transport!r}")
        serves = SERVES[transport]
        plan = Plan() if seed is None else Plan(seed=seed)
        self.peers = [self]
        self._replaced: list[ActiveRule] = []
        self._events: deque[Event] = deque(maxlen=MAX_EVENTS)
        self._listening: Any = None
        with ExitStack() as stack:
            directory = stack.enter_context(TemporaryDirectory(prefix="echod-"))
            self.path, self.ca = f"{directory}/socket", f"{directory}/certificate.pem"
            # Keeps the port while the peer is stopped.
            self.port = stack.enter_context(bind(serves == DATAGRAM)).getsockname()[1]
            stack.enter_context(SPARE.held())
            self._reactor = reactor = stack.enter_context(running_reactor())
            name = f"{transport} {self.path if transport == 'unix' else f'{HOST}:{self.port}'}"
            observer = self._events.append
            options |= {"serves": serves, "port": name, "clock": reactor, "observer": observer}
            echo = FaultyEchoFactory(plan, **options)
            self._faults, self._drain = echo.faults, echo.drain
            factory = over_tls(echo, directory) if serves == TLS else echo
            self._listen = {
                "udp": lambda: listen_udp(reactor, self.port, echo),
                "unix": lambda: reactor.listenUNIX(self.path, factory, BACKLOG),
            }.get(transport, lambda: reactor.listenTCP(self.port, factory, BACKLOG, HOST))
            stack.callback(self.stop)
            self.start()
            self._stack = stack.pop_all()

    def __call__(self, transport: str = "tcp", **options: Any) -> EchoPeer:
        """Make a further peer, which ends with this one; see the parameters of the class."""
        self._check_running()
        options.setdefault("seed", self._faults.plan.seed)
        self.peers.append(self._stack.enter_context(EchoPeer(transport, **options)))
        return self.peers[-1]

    def __enter__(self) -> EchoPeer:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(When(add=self._add), name)

    def plan(self, text: str) -> None:
        """Replace the rules by those of ``text``, which ``docs/fault-plans.rst`` describes.

        :raises ValueError: for a mistake in it, or a rule that the transport cannot have.
        """
        plan, before = parse_plan(text, self._faults.plan.seed), self._faults.rules
        self._call(lambda: self._faults.set(plan, self._reactor.seconds()))
        self._replaced += before

    def start(self) -> None:
        """Listen again at the same address, after :meth:`stop`."""
        if self._listening is None:
            self._listening = self._call(self._listen)

    def stop(self, deadline: float = DRAIN) -> None:
        """Stop listening, and end all connections.

        Each is closed as soon as it is quiet (:meth:`~echod.factory.EchoFactory.drain`).

        :param deadline: seconds until the connections that are left are reset.
        """
        if self._listening is not None:
            self._call(self._listening.stopListening)
            self._listening = None
            self._call(self._drain, deadline)

    def wait_for(
        self, what: str | Callable[[], object], count: int = 1, timeout: float = 5.0
    ) -> None:
        """Wait until something has happened.

        :param what: the name of a fault (it has fired), an ending (a connection has ended so), or a
            function that returns whether it has happened.
        :param count: how often the fault or the ending must have happened.
        :param timeout: seconds.
        :raises TimeoutError: if it does not happen in that time.
        """
        end = time.monotonic() + timeout
        while not (what() if callable(what) else self._times(what) >= count):
            if time.monotonic() > end:
                raise TimeoutError(f"{what} has not happened in {timeout} s\n{self.report()}")
            time.sleep(POLL)

    @property
    def counts(self) -> Counter[str]:
        """How often each kind of fault has fired, by name."""
        self._finish_turn()
        return self._faults.counts

    @property
    def firings(self) -> list[Fired]:
        """The latest firings."""
        self._finish_turn()
        return [firing.fired for firing in list(self._faults.firings)]

    @property
    def endings(self) -> list[str]:
        """How the latest connections have ended: values of :class:`~echod.events.Ending`."""
        self._finish_turn()
        return [each.ending.value for each in list(self._events) if isinstance(each, Closed)]

    def unused(self) -> list[str]:
        """Return the rules that have never fired, except those with ``may_not_fire``.

        If there is one, the peer is stopped first: bytes that are still in flight may fire it.
        """
        rules = self._replaced + self._faults.rules
        must = [each for each in rules if not each.rule.when.can_be_unused]
        if not all(each.fired for each in must):
            self.stop()
        return [f"{self._faults.port}: {each.text}" for each in must if not each.fired]

    def report(self) -> str:
        """Return the rules and the latest events as text."""
        lines = [f"{self._faults.port}, seed {self._faults.plan.seed}"]
        lines += [f"  firings: {each.fired}: {each.text}" for each in self._faults.rules]
        lines += [f"  {event}" for event in list(self._events)[-SHOWN:]]
        return "\n".join(lines)

    def _times(self, name: str) -> int:
        return self.counts[name] + self.endings.count(name)

    def _add(self, rule: Rule) -> None:
        self._call(lambda: self._faults.add(rule, self._reactor.seconds()))

    def _finish_turn(self) -> None:
        """Wait until the reactor has counted what it has sent: the client may have seen it."""
        if self._reactor.running:
            self._call(lambda: None)

    def _check_running(self) -> None:
        if not self._reactor.running:
            raise RuntimeError("the peer has ended")

    def _call(self, function: Callable[..., object], *arguments: object) -> Any:
        """Call ``function`` in the reactor's thread."""
        self._check_running()
        return blockingCallFromThread(self._reactor, function, *arguments)


def listen_udp(reactor: Any, port: int, echo: FaultyEchoFactory) -> FaultyDatagramPort:
    """Serve datagrams on ``port`` with the faults of ``echo``, at any rate."""
    datagrams = EchoDatagrams(reactor, echo.observer, Rules(MAX_RATE, MAX_RATE))
    listening = FaultyDatagramPort(reactor, bind(True, port), datagrams, echo.faults)
    listening.startListening()
    return listening


def over_tls(echo: FaultyEchoFactory, directory: str) -> Any:
    """Serve ``echo`` over TLS, with a new certificate in ``directory``.

    :raises ImportError: without the extra ``tls``.
    """
    try:
        from echod.certificates import Certificates, write_certificate  # noqa: PLC0415
        from echod.faultytls import FaultyTLSFactory  # noqa: PLC0415
    except ImportError as error:
        raise ImportError(f"{error}: install echod with its extra tls") from None
    return FaultyTLSFactory(echo, Certificates(*write_certificate(directory, "localhost", HOST)))
