"""The order of a life: listen, be ready, serve; then stop listening, drain, be gone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IAddress, IReactorCore
from twisted.logger import ILogObserver, Logger
from twisted.python.failure import Failure

from echod.daemon.listeners.group import Ports
from echod.daemon.sdnotify import Notifier
from echod.factory import EchoFactory

log = Logger(namespace="echod")


class EchoService(Service):
    """Serve echo, from start to drained stop.

    :param reactor: runs it.
    :param factory: serves the connections.
    :param echo: where ``factory`` listens.
    :param others: what else listens, until the drain is over.
    :param drain_timeout: seconds that connections have to finish when the service stops.
    :param notifier: is told when all listen and the reactor runs, and when the drain begins.
    :param connection_limit: returns how many connections there may be, when all ports are open.
    :param log_observer: takes the place of twistd's own log observer.
    """

    def __init__(
        self,
        *,
        reactor: IReactorCore,
        factory: EchoFactory,
        echo: Ports,
        others: Sequence[Ports],
        drain_timeout: float,
        notifier: Notifier,
        connection_limit: Callable[[], int],
        log_observer: ILogObserver | None = None,
    ) -> None:
        self._reactor = reactor
        self._factory = factory
        self._echo = echo
        self._others = others
        self._drain_timeout = drain_timeout
        self._notifier = notifier
        self._connection_limit = connection_limit
        self._log_observer = log_observer
        self._draining = False
        self._listening: Deferred[None] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join the application of twistd, which logs by the observer that this brings along."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self._log_observer is not None:
            parent.setComponent(ILogObserver, self._log_observer)

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
                log.critical(
                    "cannot serve: {why}", why=getattr(failure.value, "why", failure.value)
                )
                self._reactor.stop()

        self._listening = Deferred.fromCoroutine(self._listen())
        self._listening.addErrback(failed)
        starting = False
        if failures:
            # What was opened is closed in the reactor's next turn, but it is not going
            # to run, and a UNIX socket would leave its file behind.
            self._echo.close()
            self._close_others()
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

    def hasten(self) -> None:
        """Wait for connections no longer, neither in this drain nor in one that begins later."""
        self._drain_timeout = 0
        if self._draining:
            self._factory.drain(0)

    async def _listen(self) -> None:
        opened: list[IAddress] = []
        for ports in (self._echo, *self._others):
            await ports.open(opened)
            opened += ports.hosts
        # Not before: what listens takes descriptors, too.
        self._factory.max_connections = self._connection_limit()
        # Not before it runs: until then a signal would end the process without a drain.
        self._reactor.callWhenRunning(self._notifier.ready)

    def _close_others(self) -> Deferred[Any]:
        return gatherResults([ports.close() for ports in self._others])

    async def _stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        steps: Sequence[Callable[[], object]] = (
            self._notifier.stopping,
            self._echo.accept_waiting,
            self._echo.close,
            self._drain,
            self._close_others,
        )
        for step in steps:
            try:
                await maybeDeferred(step)
            except Exception:  # such as MemoryError; the steps that follow are still to be done
                with suppress(Exception):
                    log.failure("a step of the stop fails")
        self._draining = False

    def _drain(self) -> Deferred[None]:
        if self._factory.connections:
            log.info(
                "draining, for {seconds:g} s at most: open connections: {connections}",
                event="draining",
                connections=len(self._factory.connections),
                seconds=self._drain_timeout,
            )
        self._draining = True
        return self._factory.drain(self._drain_timeout)
