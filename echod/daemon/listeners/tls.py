"""``--listen ssl:``: echo over TLS, on a port or on sockets that systemd passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from echod.certificates import BadCertificates, Certificates
from echod.daemon.errors import CannotServe
from echod.daemon.listeners.base import Listener
from echod.factory import EchoFactory
from echod.tls import TLSFactory

log = Logger(namespace="echod")


@dataclass
class TLSListener(Listener):
    """Serves TLS on the ports of another listener.

    :param listener: opens the ports.
    :param files: absolute paths, by the parameters of :class:`~echod.certificates.Certificates`.
    :raises CannotServe: where the files cannot be used.
    """

    listener: Listener
    files: Mapping[str, str]
    tls = True

    def __post_init__(self) -> None:
        self.held_by_systemd = self.listener.held_by_systemd
        try:
            self.certificates = Certificates(**self.files)
        except BadCertificates as error:
            raise CannotServe(f"{self.option}: {error}") from error

    def reload(self) -> None:
        """Load the certificates again, for new connections; on failure keep the old ones."""
        try:
            self.certificates.load()
        except BadCertificates as error:
            log.critical(
                "{listen}: {why}; the certificates loaded before stay",
                event="unloaded",
                listen=self.option,
                why=str(error),
            )
        else:
            log.info("{listen}: certificates loaded", event="reloaded", listen=self.option)

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        over: Any = TLSFactory(cast(EchoFactory, factory), self.certificates)
        return await self.listener.listen(over)
