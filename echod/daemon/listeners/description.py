"""What ``--listen`` and ``--metrics`` describe, as listeners."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Final, cast

from twisted.internet.interfaces import IListeningPort, IProtocolFactory

from echod.daemon.errors import CannotServe
from echod.daemon.listeners.systemd import PassedSocket, take_named
from echod.daemon.listeners.tcp import (
    ON_LOOPBACK,
    TCP_PARTS,
    UNESCAPED_COLON,
    EndpointListener,
    Listener,
    UDPListener,
    named_values,
    tcp_listener,
)
from echod.daemon.listeners.unix import UNIXListener
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from echod.udp import EchoDatagrams

PLAIN: Final = ("tcp", "tcp6", "unix", "systemd")
"""Endpoints on which a PROXY header is the first that comes."""

EXTRAS: Final = {
    "metrics": {"prometheus_client": "prometheus-client"},
    "tls": {"OpenSSL": "pyOpenSSL", "cryptography": "cryptography"},
}
"""The modules that echod imports of each extra, and the distributions that they come from."""


class ProxyListener:
    """Where a proxy connects, which says by the PROXY protocol for whom.

    :param listener: listens.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self.passed = listener.passed
        self.tls = listener.tls

    async def listen(self, factory: IProtocolFactory) -> Sequence[IListeningPort]:
        """Listen there."""
        return await self._listener.listen(ProxyFactory(cast(EchoFactory, factory)))


def echo_listener(
    reactor: Any, datagrams: EchoDatagrams, description: str, passed: list[PassedSocket]
) -> Listener:
    """Return what ``--listen`` describes.

    :param passed: the sockets that systemd passed. Those that it describes are removed.
    :raises CannotServe: where that is nothing to listen on.
    """
    said = f"--listen {description!r}"
    kind = kind_of(description)
    if kind == "udp":
        return UDPListener(reactor, datagrams, description)
    if kind == "ssl":
        secure: Listener = import_extra("listeners.tls", "tls", "--listen ssl: needs").TLSListener(
            reactor, description, passed
        )
        return secure
    if kind == "tls":  # Twisted's has no half-close, and takes what follows for a directory
        raise CannotServe(f"{said}: echo over TLS is ssl:PORT:privateKey=FILE:certKey=FILE")
    if kind == "systemd":
        return systemd_listener(reactor, description, said, passed, datagrams)
    if kind == "haproxy":
        behind = description.partition(":")[2]
        if kind_of(behind) == "systemd":
            return ProxyListener(systemd_listener(reactor, behind, said, passed))
        if kind_of(behind) not in PLAIN:
            raise CannotServe(f"{said}: haproxy: goes before one of {', '.join(PLAIN)}")
        return ProxyListener(stream_listener(reactor, behind, said))
    return stream_listener(reactor, description, said)


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return a module of this package that needs an extra.

    :param what: needs it, and the verb, for the error message.
    :raises CannotServe: where the extra is not installed.
    """
    try:
        return import_module(f"echod.daemon.{module}")
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in EXTRAS[extra]:
            raise
        raise CannotServe(
            f"{what} {EXTRAS[extra][missing]}, which is not installed: "
            f"install echod with its extra {extra}"
        ) from error


def stream_listener(reactor: Any, description: str, said: str) -> Listener:
    """Return the stream endpoint that ``description`` describes.

    :param said: the option and what it was given, for error messages.
    :raises CannotServe: where it describes none.
    """
    kind = kind_of(description)
    if kind in TCP_PARTS:
        return tcp_listener(reactor, description, said)
    if kind == "unix":
        return UNIXListener(reactor, description, said)
    return EndpointListener(reactor, description, said)


def metrics_listener(reactor: Any, description: str, said: str) -> Listener:
    """Return what ``--metrics`` describes, on loopback if it is IP and names no interface.

    :param said: the option and what it was given, for error messages.
    :raises CannotServe: for anything else.
    """
    kind = kind_of(description)
    if kind in TCP_PARTS:
        return tcp_listener(reactor, description, said, ON_LOOPBACK)
    if kind == "unix":
        return UNIXListener(reactor, description, said)
    if kind == "ssl":
        parts = UNESCAPED_COLON.split(description)
        if "interface=" in parts:  # which Twisted takes for all addresses
            raise CannotServe(f"{said}: interface= is empty: name an address, or leave it out")
        if not any(part.startswith("interface=") for part in parts):
            description += ":interface=127.0.0.1"
        return EndpointListener(reactor, description, said)
    raise CannotServe(f"{said}: metrics are served on tcp:, tcp6:, unix: or ssl:, such as tcp:9862")


def systemd_listener(
    reactor: Any,
    description: str,
    said: str,
    passed: list[PassedSocket],
    datagrams: EchoDatagrams | None = None,
) -> Listener:
    """Return a listener for the sockets that ``systemd:name=NAME`` describes: all of that name.

    :param said: the option and what it was given, for error messages.
    :param datagrams: answers on UDP sockets; ``None``: there must be none.
    :raises CannotServe: where it describes none.
    """
    try:
        values = named_values(description.split(":")[1:], {"name"})
        if not values:
            raise ValueError("it has no name=")
    except ValueError as error:
        raise CannotServe(
            f"{said}: {error}; it takes systemd:name=NAME, for all sockets of that name"
        ) from None
    return take_named(values["name"], passed, reactor, said, datagrams)


def kind_of(description: str) -> str:
    """Return the type of the endpoint, as Twisted compares it."""
    return description.partition(":")[0].lower()
