"""All that one factory listens on, opened together and closed together."""

from __future__ import annotations

import select
from collections.abc import Sequence
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReadDescriptor
from twisted.internet.tcp import Port
from twisted.logger import Logger
from twisted.python.failure import Failure

from echod.daemon.errors import AddressInUse, CannotServe
from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.interfaces import overlap
from echod.daemon.listeners.tcp import BACKLOG, Listener
from echod.daemon.logs import RateLimitedSummary, name_of
from echod.transport import receive_urgent_inline, refuse_descriptors

log = Logger(namespace="echod")


class Ports:
    """All that one factory listens on.

    :param failures: logs each accept(2) that failed.
    :param name: what the log calls it.
    """

    def __init__(
        self,
        factory: IProtocolFactory,
        listeners: Sequence[Listener],
        failures: RateLimitedSummary,
        name: str = "listening",
    ) -> None:
        self._factory = factory
        self._listeners = listeners
        self._failures = failures
        self._name = name
        self._ports: list[IListeningPort] = []
        self._tls: list[IListeningPort] = []
        self._ours: list[IListeningPort] = []

    @property
    def addresses(self) -> list[str]:
        """Where it listens, by :func:`~echod.daemon.logs.name_of`."""
        return [self._name_of(port) for port in self._ports]

    @property
    def hosts(self) -> list[IAddress]:
        """The addresses on which it listens."""
        return [port.getHost() for port in self._ports]

    async def open(self, others: Sequence[IAddress] = ()) -> None:
        """Listen everywhere.

        :param others: addresses on which the process listens already.
        :raises CannotServe: where that is not possible.
        """
        for listener in self._listeners:
            try:
                ports = await listener.listen(self._factory)
            except AddressInUse as error:
                for taken in (*others, *self.hosts):
                    if overlap(taken, error.address):
                        raise CannotServe(
                            f"{error.option}: echod itself listens on {name_of(taken)} already: "
                            "leave out one of the two (IPv6 on all addresses, [::], takes IPv4 too)"
                        ) from error
                raise
            self._ports += ports
            if not listener.passed:
                self._ours += ports
            if listener.tls:
                self._tls += ports
            for port in ports:
                receive_urgent_inline(port)
                refuse_descriptors(port)
                if isinstance(port, Port):
                    ListeningSocket(port, self._name_of(port), self._failures)
                log.info("{event} on {endpoint}", event=self._name, endpoint=self._name_of(port))

    def _name_of(self, port: IListeningPort) -> str:
        return name_of(port.getHost(), tls=port in self._tls)

    def accept_waiting(self) -> None:
        """Accept what the kernel has completed and holds, unless systemd holds it too.

        The peers may have sent already, and to close a port is to reset them (listen(2)).
        """
        for port in self._ours:
            if IReadDescriptor.providedBy(port) and port.fileno() != -1:  # closed by the reactor
                poll = select.poll()
                poll.register(port.fileno(), select.POLLIN)
                for _ in range(BACKLOG):
                    if not poll.poll(0):
                        break
                    port.doRead()
                    if getattr(getattr(port, "socket", None), "failed", False):
                        break

    def close(self) -> Deferred[Any]:
        """Stop listening; fires when no port is left, and never fails."""

        def failed(failure: Failure) -> None:  # which must not cost a connection its drain
            log.failure("a port does not stop listening", failure)

        ports, self._ports, self._ours = self._ports, [], []
        stopping: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port in ports]
        return gatherResults([deferred.addErrback(failed) for deferred in stopping])
