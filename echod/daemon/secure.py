"""``--listen ssl:``, echo over TLS: read, listened on, and its certificates loaded anew."""

from __future__ import annotations

import ipaddress
from os.path import abspath
from typing import Any, Final

from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IReactorTCP
from twisted.logger import Logger

from echod.daemon.certificates import BadCertificates, Certificates
from echod.daemon.listening import UNESCAPED_COLON, TCPListener
from echod.daemon.options import CannotServe
from echod.tls import TLSFactory

TAKES: Final = (
    "it takes ssl:PORT:privateKey=FILE:certKey=FILE, and with a colon before each "
    "extraCertChain=FILE, clientCA=FILE, interface=ADDRESS"
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
        _, number, *rest = [*UNESCAPED_COLON.split(description), ""]
        values: dict[str, str] = {"port": number.removeprefix("port=")}
        try:
            for part in filter(None, rest):
                name, equals, value = part.replace("\\:", ":").partition("=")
                if name not in {*FILES, "interface"} or not (equals and value):
                    raise ValueError(f"it knows no {part!r}")
                if name in values:
                    raise ValueError(f"it has {name}= twice")
                values[name] = value
            if not (number.isascii() and values["port"].isdigit() and int(values["port"]) <= 65535):
                port = values["port"]
                raise ValueError(f"a port is a whole number from 0 to 65535, not {port!r}")
            for name in ("privateKey", "certKey"):
                if name not in values:
                    raise ValueError(f"it has no {name}=")
            interfaces = [values["interface"]] if "interface" in values else []
            for interface in interfaces:
                ipaddress.ip_address(interface)
        except ValueError as error:
            raise CannotServe(f"{self._said_as}: {error}; {TAKES}") from None
        # As they are now: who makes it a daemon may change its directory.
        files = {FILES[name]: abspath(value) for name, value in values.items() if name in FILES}
        try:
            self._certificates = Certificates(**files)
        except BadCertificates as error:
            raise CannotServe(f"{self._said_as}: {error}") from error
        super().__init__(reactor, int(values["port"]), interfaces)

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
