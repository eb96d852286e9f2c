"""Service lifecycle: listen, report ready, serve, drain, stop."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
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


@dataclass(kw_only=True, eq=False)
class EchoService(Service):
    """The echo service of the daemon.

    :ivar reactor: the reactor that twistd runs.
    :ivar factory: serves the connections.
    :ivar echo: the listeners of ``factory``.
    :ivar others: listeners that stay open until the drain is over.
    :ivar drain_timeout: seconds that connections have to finish when the service stops.
    :ivar notifier: notifies systemd when the service is ready, and when it stops.
    :ivar connection_limit: returns the limit on connections, once all listeners are open.
    :ivar reload: reloads the TLS certificates; ``None`` without TLS.
    :ivar log_observer: replaces twistd's own log observer.
    """

    reactor: IReactorCore
    factory: EchoFactory
    echo: Ports
    others: Sequence[Ports]
    drain_timeout: float
    notifier: Notifier
    connection_limit: Callable[[], int]
    reload: Callable[[], object] | None = None
    log_observer: ILogObserver | None = None
    _listening: Deferred[None] | None = None

    def setServiceParent(self, parent: Any) -> None:
        """Join twistd's application, and set its log observer."""
        super().setServiceParent(parent)  # type: ignore[no-untyped-call]
        if self.log_observer is not None:
            parent.setComponent(ILogObserver, self.log_observer)

    def privilegedStartService(self) -> None:
        """Listen, before twistd drops its privileges.

        :raises CannotServe: for a listener that cannot be opened.
        """
        super().privilegedStartService()  # type: ignore[no-untyped-call]
        failures: list[Failure] = []
        starting = True

        def failed(failure: Failure) -> None:
            if starting:
                failures.append(failure)
            elif not failure.check(CancelledError):  # failed after the start
                log.critical(
                    "cannot serve: {why}", why=getattr(failure.value, "why", failure.value)
                )
                self.reactor.stop()

        self._listening = Deferred.fromCoroutine(self._listen())
        self._listening.addErrback(failed)
        starting = False
        if failures:
            # Ports close in the next reactor iteration, but the reactor is not going to run,
            # and a UNIX socket would leave its file behind.
            self.echo.close()
            self._close_others()
            self.reactor.iterate(0)
            failures[0].raiseException()

    def startService(self) -> None:
        """Listen, unless :meth:`privilegedStartService` has done so."""
        super().startService()  # type: ignore[no-untyped-call]
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Stop listening, then drain."""
        super().stopService()  # type: ignore[no-untyped-call]
        return Deferred.fromCoroutine(self._stop())

    def hasten(self) -> None:
        """Reset all connections that remain, in the current drain or when the next one begins."""
        self.drain_timeout = 0
        if self.factory.draining:
            self.factory.drain(0)

    async def _listen(self) -> None:
        opened: list[IAddress] = []
        for ports in (self.echo, *self.others):
            await ports.open(opened)
            opened += ports.hosts
        # Only now, because the listeners need descriptors, too.
        self.factory.limits.total = self.connection_limit()
        # Not ready before the reactor runs, because no connection is accepted until then.
        self.reactor.callWhenRunning(self.notifier.ready)

    def _close_others(self) -> Deferred[Any]:
        return gatherResults([ports.close() for ports in self.others])

    async def _stop(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            self._listening = None
        steps: Sequence[Callable[[], object]] = (
            self.notifier.stopping,
            self.echo.accept_waiting,
            self.echo.close,
            self._drain,
            self._close_others,
        )
        for step in steps:
            try:
                await maybeDeferred(step)
            except Exception:  # such as MemoryError: the remaining steps have to run
                with suppress(Exception):
                    log.failure("a step of the shutdown fails")

    def _drain(self) -> Deferred[None]:
        if self.factory.connections:
            log.info(
                "draining, for {seconds:g} s at most: open connections: {connections}",
                event="draining",
                connections=len(self.factory.connections),
                seconds=self.drain_timeout,
            )
        return self.factory.drain(self.drain_timeout)
