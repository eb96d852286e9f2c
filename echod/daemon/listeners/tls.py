"""``--listen ssl:``: echo over TLS, on a port or on sockets that systemd passed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from echod.certificates import BadCertificates, Certificates
from echod.daemon.errors import CannotServe
from echod.daemon.listeners.base import Listener
from echod.factory import EchoFactory
from echod.tls import TLSFactory

log = Logger(namespace="echod")


class TLSListener(Listener):
    """Serves TLS on the ports of another listener.

    :param listener: opens the ports.
    :param option: the option as typed, for error messages and the log.
    :param files: absolute paths, by the parameters of :class:`~echod.certificates.Certificates`.
    :raises CannotServe: where the files cannot be used.
    """

    tls = True

    def __init__(self, listener: Listener, option: str, **files: str) -> None:
        super().__init__(option)
        self._listener = listener
        self.held_by_systemd = listener.held_by_systemd
        try:
            self._certificates = Certificates(**files)
        except BadCertificates as error:
            raise CannotServe(f"{option}: {error}") from error

    def reload(self) -> None:
        """Load the certificates again, for new connections; on failure keep the old ones."""
        try:
            self._certificates.load()
        except BadCertificates as error:
            log.critical(
                "{listen}: {why}; the certificates loaded before stay",
                event="unloaded",
                listen=self._option,
                why=str(error),
            )
        else:
            log.info("{listen}: certificates loaded", event="reloaded", listen=self._option)

    async def _listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        over: Any = TLSFactory(cast(EchoFactory, factory), self._certificates)
        return await self._listener.listen(over)
