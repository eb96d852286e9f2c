"""Endpoints on the in-memory network."""

from __future__ import annotations

from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IProtocolFactory

from echod.testing import MemoryNetwork, Peer
from tests.streams.base import Endpoints

T = TypeVar("T")


class MemoryEndpoints(Endpoints):
    """Endpoints of a MemoryNetwork, which is the clock too."""

    def __init__(self) -> None:
        self.clock = self.network = MemoryNetwork()
        self.options: dict[str, Any] = {}

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        self.send_unseen(peer, data)  # the network has no urgent data

    async def listen(self, factory: IProtocolFactory) -> None:
        await self.network.server_endpoint().listen(factory)

    async def connect(self, factory: IProtocolFactory) -> Any:
        return await self.network.client_endpoint().connect(factory)

    async def until(self, deferred: Deferred[T]) -> T:
        self.network.settle()
        assert deferred.called, "the network is idle, and the Deferred has not fired"
        return await deferred

    async def turn(self) -> None:
        self.network.settle()

    async def advance(self, seconds: float) -> None:
        self.network.advance(seconds)

    async def stop(self) -> None:
        self.network.settle()
