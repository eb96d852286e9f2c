"""``--listen ssl:``: echo over TLS on a port of its own, or on sockets that systemd passed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os.path import abspath
from typing import Any, Final, cast

from twisted.internet.interfaces import IListeningPort, IProtocolFactory
from twisted.logger import Logger

from echod.certificates import BadCertificates, Certificates
from echod.daemon.errors import CannotServe
from echod.daemon.listeners.systemd import PassedSocket, take_named
from echod.daemon.listeners.tcp import (
    UNESCAPED_COLON,
    Listener,
    TCPListener,
    named_values,
    port_and_values,
)
from echod.factory import EchoFactory
from echod.tls import TLSFactory

TAKES: Final = (
    "it takes ssl:PORT:privateKey=FILE:certKey=FILE, and with a colon before each "
    r"extraCertChain=FILE, clientCA=FILE, interface=ADDRESS; \: is a colon within one; "
    "for sockets that systemd passes, ssl:systemd:name=NAME:privateKey=FILE:certKey=FILE"
)
FILES: Final = {
    "privateKey": "key",
    "certKey": "certificate",
    "extraCertChain": "chain",
    "clientCA": "clients",
}
"""The names of Twisted's ``ssl:`` endpoint, and clientCA, which that does not have."""

REQUIRED: Final = ("privateKey", "certKey")

log = Logger(namespace="echod")


class TLSListener:
    r"""What ``--listen ssl:`` asks for: TLS on one TCP port number, or on passed sockets.

    :param reactor: listens.
    :param description: ``ssl:PORT:NAME=VALUE:...`` or ``ssl:systemd:name=NAME:NAME=VALUE:...``;
        ``\:`` is a colon within a value.
    :param passed: the sockets that systemd passed. Those served here are removed.
    :raises CannotServe: where it is not such a description, or the files are no good.
    """

    tls = True

    def __init__(self, reactor: Any, description: str, passed: list[PassedSocket]) -> None:
        self._option = f"--listen {description!r}"
        _, where, *rest = [*UNESCAPED_COLON.split(description), ""]
        try:
            if where.lower() == "systemd":
                values = named_values(rest, {*FILES, "name"})
                require(values, "name", *REQUIRED)
                self._listener: Listener = take_named(values["name"], passed, reactor, self._option)
            else:
                port, values = port_and_values(description, {*FILES, "interface"})
                require(values, *REQUIRED)
                interfaces = [values["interface"]] if "interface" in values else []
                self._listener = TCPListener(reactor, port, interfaces, self._option)
        except ValueError as error:
            raise CannotServe(f"{self._option}: {error}; {TAKES}") from None
        self.passed = self._listener.passed
        # As they are now: who makes it a daemon may change its directory.
        files = {FILES[name]: abspath(value) for name, value in values.items() if name in FILES}
        try:
            self._certificates = Certificates(**files)
        except BadCertificates as error:
            raise CannotServe(f"{self._option}: {error}") from error

    def reload(self) -> None:
        """Load the certificates anew, for connections that come; where it fails, the old stay."""
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

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen there."""
        over: Any = TLSFactory(cast(EchoFactory, factory), self._certificates)
        return await self._listener.listen(over)


def require(values: Mapping[str, str], *names: str) -> None:
    """Raise ValueError where one of ``names`` has no value."""
    for name in names:
        if name not in values:
            raise ValueError(f"it has no {name}=")
