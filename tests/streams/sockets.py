"""Endpoints on real sockets: TCP over IPv4 and IPv6, and UNIX."""

from __future__ import annotations

import os
import tempfile
import time
from abc import ABC, abstractmethod
from typing import Any, TypeVar
from unittest.mock import Mock

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import (
    TCP4ClientEndpoint,
    TCP4ServerEndpoint,
    TCP6ClientEndpoint,
    TCP6ServerEndpoint,
    UNIXClientEndpoint,
    UNIXServerEndpoint,
)
from twisted.internet.interfaces import IProtocolFactory
from twisted.internet.task import Clock

from echod.daemon.listeners.accepting import ListeningSocket
from echod.daemon.listeners.deferring import accept_deferred
from tests import TIMEOUT
from tests.reactors import reactor_of_kind, turn
from tests.streams.base import Endpoints

T = TypeVar("T")


class SocketEndpoints(Endpoints, ABC):
    """Endpoints on real sockets and a real reactor; only the time is a task.Clock.

    :param deferred: whether connections have no transport at first, as on the daemon's ports.
    """

    def __init__(self, kind: str = "epoll", *, deferred: bool = False, **options: Any) -> None:
        self.reactor = reactor_of_kind(kind)
        self.deferred = deferred
        self.options = options
        self.clock = Clock()
        self.ports: list[Any] = []

    @abstractmethod
    def server_endpoint(self) -> Any:
        """Return an endpoint to listen on."""

    @abstractmethod
    def client_endpoint(self) -> Any:
        """Return an endpoint that connects to the first port."""

    async def listen(self, factory: IProtocolFactory) -> None:
        self.ports.append(await self.server_endpoint().listen(factory))
        if self.deferred:
            sock = ListeningSocket(self.ports[-1], "", Mock())
            accept_deferred(self.ports[-1], sock)

    async def connect(self, factory: IProtocolFactory) -> Any:
        return await self.until(self.client_endpoint().connect(factory))

    async def until(self, deferred: Deferred[T]) -> T:
        deadline = time.monotonic() + TIMEOUT
        while not deferred.called:
            assert time.monotonic() < deadline, "the Deferred does not fire"
            turn(self.reactor, 0.001)
        return await deferred

    async def turn(self) -> None:
        for _ in range(10):
            turn(self.reactor)

    async def advance(self, seconds: float) -> None:
        for _ in range(60):
            await self.turn()
            self.clock.advance(seconds / 60)
        await self.turn()

    async def stop(self) -> None:
        for port in self.ports:
            await self.until(port.stopListening())


class TCP4Endpoints(SocketEndpoints):
    def server_endpoint(self) -> Any:
        return TCP4ServerEndpoint(self.reactor, 0, interface="127.0.0.1")

    def client_endpoint(self) -> Any:
        return TCP4ClientEndpoint(self.reactor, "127.0.0.1", self.ports[0].getHost().port)


class TCP6Endpoints(SocketEndpoints):
    def server_endpoint(self) -> Any:
        return TCP6ServerEndpoint(self.reactor, 0, interface="::1")

    def client_endpoint(self) -> Any:
        return TCP6ClientEndpoint(self.reactor, "::1", self.ports[0].getHost().port)


class UNIXEndpoints(SocketEndpoints):
    # unix(7): there is no RST. The peer of an aborted connection sees EOF, or ECONNRESET if it
    # had sent bytes that the server did not read.
    knows_reset = False
    knows_addresses = False

    def __init__(self, kind: str = "epoll", *, deferred: bool = False, **options: Any) -> None:
        super().__init__(kind, deferred=deferred, **options)
        self.directory = tempfile.TemporaryDirectory()
        self.path = os.path.join(self.directory.name, "echo")

    def server_endpoint(self) -> Any:
        return UNIXServerEndpoint(self.reactor, self.path)

    def client_endpoint(self) -> Any:
        return UNIXClientEndpoint(self.reactor, self.path)

    async def stop(self) -> None:
        await super().stop()
        self.directory.cleanup()
