"""``--listen ssl:``, echo over TLS: read, listened on, and its certificates loaded anew."""

from __future__ import annotations

from os.path import abspath
from typing import Any, Final

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTCP
from twisted.logger import Logger

from echod.daemon.certificates import BadCertificates, Certificates
from echod.daemon.listening import TCPListener, port_and_values
from echod.daemon.options import CannotServe
from echod.tls import TLSFactory

TAKES: Final = (
    "it takes ssl:PORT:privateKey=FILE:certKey=FILE, and with a colon before each "
    r"extraCertChain=FILE, clientCA=FILE, interface=ADDRESS; \: is a colon within one"
)
FILES: Final = {
    "privateKey": "key",
    "certKey": "certificate",
    "extraCertChain": "chain",
    "clientCA": "clients",
}
"""The names of Twisted's ``ssl:`` endpoint, and clientCA, which that does not have."""

log = Logger(namespace="echod")


class TLSListener(TCPListener):
    r"""What ``--listen ssl:`` asks for: one TCP port number, over TLS.

    :param reactor: listens.
    :param description: ``ssl:PORT:NAME=VALUE:...``; ``\:`` is a colon within a value.
    :raises CannotServe: where it is not such a description, or the files are no good.
    """

    tls = True

    def __init__(self, reactor: IReactorTCP, description: str) -> None:
        self._said_as = f"--listen {description!r}"
        try:
            port, values = port_and_values(description, {*FILES, "interface"})
            for name in ("privateKey", "certKey"):
                if name not in values:
                    raise ValueError(f"it has no {name}=")
        except ValueError as error:
            raise CannotServe(f"{self._said_as}: {error}; {TAKES}") from None
        # As they are now: who makes it a daemon may change its directory.
        files = {FILES[name]: abspath(value) for name, value in values.items() if name in FILES}
        try:
            self._certificates = Certificates(**files)
        except BadCertificates as error:
            raise CannotServe(f"{self._said_as}: {error}") from error
        interfaces = [values["interface"]] if "interface" in values else []
        super().__init__(reactor, port, interfaces)

    def reload(self) -> None:
        """Load the certificates anew, for connections that come; where it fails, the old stay."""
        try:
            self._certificates.load()
        except BadCertificates as error:
            log.critical(
                "{listen}: {why}; the certificates loaded before stay",
                event="unloaded",
                listen=self._said_as,
                why=str(error),
            )
        else:
            log.info("{listen}: certificates loaded", event="reloaded", listen=self._said_as)

    async def _open(self, factory: IProtocolFactory, interface: str, port: int) -> IListeningPort:
        over: Any = TLSFactory(factory, self._certificates)  # type: ignore[arg-type]  # echo's
        return await super()._open(over, interface, port)

    def _said(self, number: int) -> str:  # noqa: ARG002 - all of it is one option
        return self._said_as
