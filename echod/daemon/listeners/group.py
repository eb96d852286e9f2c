"""The ports of one factory: opened together, and closed together."""

from __future__ import annotations

import select
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.interfaces import IAddress, IListeningPort, IProtocolFactory, IReadDescriptor
from twisted.internet.tcp import Port
from twisted.logger import Logger

from echod.addresses import name_of
from echod.daemon.errors import AddressInUse, CannotServe
from echod.daemon.faultlog import log_plan
from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.base import BACKLOG, Listener
from echod.daemon.listeners.deferring import accept_deferred
from echod.daemon.listeners.interfaces import overlap
from echod.daemon.summary import RateLimitedSummary
from echod.socketoptions import receive_urgent_inline, refuse_descriptors

log = Logger(namespace="echod")


@dataclass
class Ports:
    """The ports of one factory.

    :param failures: logs failures of accept(2).
    :param name: the event in the log when a port opens, such as ``listening``.
    """

    factory: IProtocolFactory
    listeners: Sequence[Listener]
    failures: RateLimitedSummary
    name: str = "listening"
    _ports: list[tuple[IListeningPort, Listener]] = field(default_factory=list, init=False)

    @property
    def addresses(self) -> list[str]:
        """The addresses as text, by :func:`~echod.addresses.name_of`."""
        return [name_of(port.getHost(), tls=bool(listener.tls)) for port, listener in self._ports]

    @property
    def marked(self) -> list[str]:
        """The addresses as text, those of faulty ports with FAULTY."""
        listeners = [listener for _, listener in self._ports]
        return [
            f"{address} FAULTY" if listener.faults else address
            for address, listener in zip(self.addresses, listeners, strict=True)
        ]

    @property
    def hosts(self) -> list[IAddress]:
        """The addresses."""
        return [port.getHost() for port, _ in self._ports]

    async def open(self, others: Sequence[IAddress] = ()) -> None:
        """Open all ports.

        :param others: addresses on which the process listens already.
        :raises CannotServe: if a port cannot be opened.
        """
        for listener in self.listeners:
            try:
                ports = await listener.listen(self.factory)
            except AddressInUse as error:
                for taken in (*others, *self.hosts):
                    if overlap(taken, error.address):
                        raise CannotServe(
                            f"{error.option}: echod itself listens on {name_of(taken)} already: "
                            "leave out one of the two (IPv6 on all addresses, [::], takes IPv4 too)"
                        ) from error
                raise
            for port in ports:
                self._ports.append((port, listener))
                receive_urgent_inline(port)
                refuse_descriptors(port)
                address = self.addresses[-1]
                if isinstance(port, Port):
                    sock = ListeningSocket(port, address, self.failures)
                    accept_deferred(port, sock)
                log.info("{event} on {endpoint}", event=self.name, endpoint=address)
            if listener.faults:
                listener.faults.port = ", ".join(self.addresses[-len(ports) :])
                log_plan(listener.faults)

    def accept_waiting(self) -> None:
        """Accept the connections in the backlogs, unless systemd holds the socket too.

        Their clients may have sent data already, and closing a listener resets them (listen(2)).
        """
        for port, listener in self._ports:
            if listener.held_by_systemd or not IReadDescriptor.providedBy(port):
                continue
            if port.fileno() == -1:  # the reactor has closed a port that failed
                continue
            poll = select.poll()
            poll.register(port.fileno(), select.POLLIN)
            for _ in range(BACKLOG):
                if not poll.poll(0):
                    break
                port.doRead()
                if getattr(getattr(port, "socket", None), "failed", False):
                    break

    def close(self) -> Deferred[Any]:
        """Stop listening. The Deferred fires when all ports are closed, and never fails."""
        ports, self._ports = self._ports, []
        stopping: list[Deferred[Any]] = [maybeDeferred(port.stopListening) for port, _ in ports]
        for deferred in stopping:  # a failure must not prevent the drain
            deferred.addErrback(
                lambda failure: log.failure("a port does not stop listening", failure)
            )
        return gatherResults(stopping)
