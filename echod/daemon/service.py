"""The order of a life: listen, serve; then stop listening, drain, be gone."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable, Sequence
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IListeningPort, IReactorCore, IReadDescriptor
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.daemon.listening import BACKLOG, EndpointListener, Listener, TCPListener
from echod.daemon.logs import ConnectionLog, name_of
from echod.daemon.options import Options
from echod.factory import EchoFactory, descriptors_left

log = Logger(namespace="echod")


class EchoService(Service):
    """Serve echo on some listeners, from start to drained stop.

    :param reactor: runs it.
    :param factory: serves the connections.
    :param listeners: where to listen.
    :param drain_timeout: seconds that connections have to finish when the service stops.
    :param when_asked_again: is given what to do when the process, while it is
        draining, is told once more to stop.
    """

    def __init__(
        self,
        reactor: IReactorCore,
        factory: EchoFactory,
        listeners: Sequence[Listener],
        drain_timeout: float,
        when_asked_again: Callable[[Callable[[], object]], None],
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._listeners = listeners
        self._drain_timeout = drain_timeout
        self._when_asked_again = when_asked_again
        self._ports: list[IListeningPort] = []
        self._listening: Deferred[None] | None = None

    def privilegedStartService(self) -> None:
        """Listen, while the process still has the rights to.

        :raises CannotServe: where that is not possible.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        failures: list[Failure] = []
        starting = True

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            elif not failure.check(CancelledError):  # an endpoint that takes its time
                log.critical("{why}", why=failure.value)
                self._reactor.stop()

        self._listening = Deferred.fromCoroutine(self._listen())
        self._listening.addErrback(failed)
        starting = False
        if failures:
            # What was opened is closed in the reactor's next turn, but it is not going
            # to run, and a UNIX socket would leave its file behind.
            self._stop_listening()
            self._reactor.iterate(0)
            failures[0].raiseException()

    def startService(self) -> None:
        """Listen, where nobody has called :meth:`privilegedStartService`."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Stop listening, then drain."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    async def _listen(self) -> None:
        for listener in self._listeners:
            ports = await listener.listen(self._factory)
            self._ports += ports
            for port in ports:
                log.info("listening on {where}", where=name_of(port.getHost()))

    def _stop_listening(self) -> Deferred[Any]:
        def failed(failure: Failure) -> None:  # which must not cost a connection its drain
            log.failure("a port does not stop listening", failure)

        ports, self._ports = self._ports, []
        stopping: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port in ports]
        return gatherResults([deferred.addErrback(failed) for deferred in stopping])

    async def _stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        self._when_asked_again(lambda: self._factory.drain(0))
        for port in self._ports:
            accept_waiting(port)
        await self._stop_listening()
        if self._factory.connections:
            log.info(
                "draining, for {seconds:g} s at most: open connections: {count}",
                count=len(self._factory.connections),
                seconds=self._drain_timeout,
            )
        await self._factory.drain(self._drain_timeout)


def accept_waiting(port: IListeningPort) -> None:
    """Accept the connections that the kernel has completed and holds for ``port``.

    Their peers may have sent already, and to close the port is to reset them (listen(2)).
    """
    if IReadDescriptor.providedBy(port):
        poll = select.poll()
        poll.register(port.fileno(), select.POLLIN)
        for _ in range(BACKLOG):
            if not poll.poll(0):
                break
            port.doRead()


def makeService(options: Options) -> EchoService:
    """Return the service that ``twistd echod`` runs.

    :raises CannotServe: for an endpoint description that Twisted cannot read.
    """
    from twisted.internet import reactor as chosen  # noqa: PLC0415 - twistd chooses it first

    reactor: Any = chosen

    def when_asked_again(action: Callable[[], object]) -> None:
        # Twisted's own handlers would try to stop what is stopping, and log a traceback.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: reactor.callFromThread(action))

    left, asked = descriptors_left(), options["max-connections"]
    if asked is not None and asked > left:
        log.warn(
            "--max-connections {asked}: RLIMIT_NOFILE leaves room for {left} only; raise it "
            "(ulimit -n, or LimitNOFILE= of systemd)",
            asked=asked,
            left=left,
        )
    connection_log = ConnectionLog(reactor, quiet=options["quiet"])
    reactor.addSystemEventTrigger("after", "shutdown", connection_log.sum_up)
    factory = EchoFactory(
        clock=reactor,
        observer=connection_log,
        max_connections=left if asked is None else min(asked, left),
        max_connections_per_peer=options["max-connections-per-peer"],
        idle_timeout=options["idle-timeout"],
        stall_timeout=options["stall-timeout"],
    )
    listeners: list[Listener] = [
        EndpointListener(reactor, description) for description in options["listen"]
    ] or [TCPListener(reactor, options["port"], options["interface"])]
    return EchoService(reactor, factory, listeners, options["drain-timeout"], when_asked_again)
