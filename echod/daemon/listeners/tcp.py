"""Listen on TCP: ``--port`` and ``--interface``, ``--listen tcp:`` and ``tcp6:``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from echod.daemon.listeners.base import BACKLOG, IPListener


@dataclass
class TCPListener(IPListener):
    """Listens on one TCP port number, on each of several addresses.

    :param backlog: connections that the kernel queues until they are accepted.
    """

    backlog: int = BACKLOG

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        kind: Any = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
        endpoint = kind(self.reactor, port, self.backlog, interface)
        return cast(IListeningPort, await endpoint.listen(factory))
