"""``--listen ssl:``: the certificates of a listener, which SIGHUP reloads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from twisted.internet.interfaces import IProtocolFactory
from twisted.logger import Logger

from echod.certificates import BadCertificates, Certificates
from echod.daemon.errors import CannotServe
from echod.faulty import FaultyEchoFactory
from echod.faultytls import FaultyTLSFactory
from echod.tls import TLSFactory

log = Logger(namespace="echod")


@dataclass
class ListenerCertificates:
    """The certificates of a listener.

    :param option: the option as typed, for error messages and the log.
    :param files: absolute paths, by the parameters of :class:`~echod.certificates.Certificates`.
    :raises CannotServe: if the files cannot be used.
    """

    option: str
    files: Mapping[str, str]

    def __post_init__(self) -> None:
        try:
            self.certificates = Certificates(**self.files)
        except BadCertificates as error:
            raise CannotServe(f"{self.option}: {error}") from error

    @property
    def serves(self) -> str:
        """What the ports serve, a key of :data:`~echod.faultplan.ON`.

        :raises CannotServe: if no fault is possible.
        """
        try:
            return FaultyTLSFactory.serves(self.certificates)
        except BadCertificates as error:
            raise CannotServe(f"{self.option}: {error}") from error

    def wrap(self, factory: IProtocolFactory) -> IProtocolFactory:
        """Return a factory that serves ``factory`` over TLS."""
        kind = FaultyTLSFactory if isinstance(factory, FaultyEchoFactory) else TLSFactory
        over: Any = kind(cast(Any, factory), self.certificates)
        return cast(IProtocolFactory, over)

    def reload(self) -> None:
        """Load the certificates again, for new connections; on failure keep the old ones."""
        try:
            self.certificates.load()
        except BadCertificates as error:
            log.critical(
                "{listen}: {why}; the old certificates stay in use",
                event="unloaded",
                listen=self.option,
                why=str(error),
            )
        else:
            log.info("{listen}: certificates loaded", event="reloaded", listen=self.option)
