"""An echo server on a pair of endpoints, and the peers that a test drives."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Factory

from echod.events import Ending
from echod.factory import EchoFactory
from echod.faultplan import Plan
from echod.faulty import FaultyEchoFactory
from echod.testing import Peer
from tests import TIMEOUT
from tests.recorder import Recorder
from tests.streams.memory import MemoryEndpoints


class Peers(Factory):
    """A factory, for either side, that keeps the peers it builds."""

    noisy = False

    def __init__(self) -> None:
        self.peers: list[Peer] = []

    def buildProtocol(self, addr: IAddress | None) -> Peer:
        self.peers.append(Peer())
        return self.peers[-1]


class EchoServer:
    """An EchoFactory on a pair of endpoints, its events, and the peers that connect to it.

    :param plan: the faults of the factory; ``None``: it cannot have any.
    """

    def __init__(self, ends: Any, plan: Plan | None = None, **options: Any) -> None:
        self.ends = ends
        self.events = Recorder()
        options |= {"clock": ends.clock, "observer": self.events, **ends.options}
        if plan is None:
            self.factory = EchoFactory(**options)
        else:
            options.pop("fast_path", None)
            self.factory = FaultyEchoFactory(plan, **options)
        self.peers: list[Peer] = []

    async def peer(self) -> Peer:
        """Connect, and wait until the connection is served or refused."""
        before = len(self.events)
        peer: Peer = await self.ends.connect(Peers())
        self.peers.append(peer)
        while len(self.events) == before:
            await self.ends.turn()
        return peer

    async def close(self) -> None:
        """Abort all peers, and wait for a drain that resets the connections that are left."""
        for peer in self.peers:
            peer.abort()
        left = self.factory.drain(0)
        await self.ends.advance(1)
        await self.ends.until(left)

    async def disconnect(self) -> None:
        """Abort all peers, and wait until the factory serves no connection."""
        for peer in self.peers:
            peer.abort()
        await self.settled(lambda: not self.factory.connections)

    async def refused(self) -> str:
        """Connect, and return how the connection is refused: "RST" or "FIN"."""
        before = len(self.events.refused)
        try:
            peer: Peer = await self.ends.connect(Peers())
        except ConnectError:  # reset before the client's connect returned
            ended = "RST"
        else:
            ended = str((await self.ends.until(peer.when_ended())).ended)
        assert len(self.events.refused) == before + 1
        return ended

    async def stalled(self, seconds: float) -> None:
        """Advance by ``seconds`` until a peer is closed as stalled; on sockets, repeatedly.

        On sockets the stall begins when the kernel has filled both buffers. On a busy machine
        that takes long, measured by a clock that the test advances.
        """
        give_up = self._give_up()
        await self.ends.advance(seconds)
        while not self.events.closed and time.monotonic() < give_up:
            await self.ends.advance(seconds)
        await self.settled(lambda: self.events.endings == [Ending.STALLED])

    async def settled(self, condition: Callable[[], bool]) -> None:
        """Iterate the reactor until ``condition`` holds; on sockets, for up to TIMEOUT."""
        give_up = self._give_up()
        turns = 0
        while not condition():
            assert turns < 1000 or time.monotonic() < give_up, "the condition does not become true"
            await self.ends.turn()
            turns += 1

    def _give_up(self) -> float:
        """Return when to stop waiting for the kernel; in memory there is no need to wait."""
        return time.monotonic() + (0 if isinstance(self.ends, MemoryEndpoints) else TIMEOUT)
