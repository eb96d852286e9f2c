"""Listen on TCP: ``--port`` and ``--interface``, ``--listen tcp:`` and ``tcp6:``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.endpoints import TCP4ServerEndpoint, TCP6ServerEndpoint
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTCP

from echod.daemon.listeners.base import BACKLOG, IPListener


class TCPListener(IPListener):
    """Listens on one TCP port number, on each of several addresses.

    :param backlog: connections that the kernel queues until they are accepted.
    """

    def __init__(
        self,
        reactor: IReactorTCP,
        port: int,
        interfaces: Sequence[str] = (),
        option: str = "",
        backlog: int = BACKLOG,
    ) -> None:
        super().__init__(port, interfaces, option)
        self._reactor = reactor
        self._backlog = backlog

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        kind: Any = TCP6ServerEndpoint if ":" in interface else TCP4ServerEndpoint
        endpoint = kind(self._reactor, port, self._backlog, interface)
        return cast(IListeningPort, await endpoint.listen(factory))
