"""Choose the listener for an endpoint description of ``--listen`` or ``--metrics``."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from os.path import abspath
from typing import Any, Final, cast

from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.listeners.base import BACKLOG, EndpointListener, Listener
from echod.daemon.listeners.description import (
    FILES,
    METRICS_SYNTAX,
    SYNTAX,
    kind_of,
    parse_description,
)
from echod.daemon.listeners.interfaces import is_loopback
from echod.daemon.listeners.systemd import PassedSocket, take_named
from echod.daemon.listeners.tcp import TCPListener
from echod.daemon.listeners.udp import UDPListener
from echod.daemon.listeners.unix import OWNER_ONLY, UNIXListener
from echod.udp import EchoDatagrams

EVERYWHERE: Final = {"tcp": "0.0.0.0", "tcp6": "::"}
ON_LOOPBACK: Final = {"tcp": "127.0.0.1", "tcp6": "::1"}
"""The default addresses of ``tcp:`` and ``tcp6:``, for the echo service and for metrics."""

BEHIND_PROXY: Final = ("tcp", "tcp6", "unix", "systemd")
"""Kinds of endpoint that can follow ``haproxy:``."""

EXTRAS: Final = {
    "metrics": {"prometheus_client": "prometheus-client"},
    "tls": {"OpenSSL": "pyOpenSSL", "cryptography": "cryptography"},
}
"""For each extra the modules that echod imports, and the distributions that provide them."""


def echo_listener(
    reactor: Any,
    datagrams: EchoDatagrams,
    description: str,
    passed: list[PassedSocket],
    name: str = "--listen",
) -> Listener:
    """Return the listener for an endpoint of the echo service.

    :param datagrams: echoes datagrams.
    :param passed: the sockets that systemd passed. Those that the listener takes are removed.
    :param name: the option that has the description, for error messages.
    :raises CannotServe: if the description has a mistake.
    """
    option = f"{name} {description!r}"
    kind, _, behind = description.partition(":")
    if kind.lower() == "haproxy":
        if kind_of(behind) not in BEHIND_PROXY:
            raise WrongOption(f"{option}: haproxy: goes before one of {', '.join(BEHIND_PROXY)}")
        listener = make_listener(reactor, behind, option, passed=passed)
        listener.proxied = True
        return listener
    # Twisted's tls: endpoint has no half-close, and its first parameter is a directory, not a port.
    if kind.lower() == "tls":
        raise WrongOption(f"{option}: echo over TLS is ssl:PORT:privateKey=FILE:certKey=FILE")
    return make_listener(reactor, description, option, passed=passed, datagrams=datagrams)


def metrics_listener(reactor: Any, description: str, option: str) -> Listener:
    """Return the listener for a value of ``--metrics``: by default on loopback.

    :param option: the option as typed, for error messages.
    :raises CannotServe: if the description has a mistake, or metrics cannot be served on it.
    """
    kind = kind_of(description)
    if kind in (*ON_LOOPBACK, "unix"):
        return make_listener(reactor, description, option, hosts=ON_LOOPBACK)
    if kind != "ssl":
        raise WrongOption(
            f"{option}: metrics are served on tcp:, tcp6:, unix: or ssl:, such as tcp:9862"
        )
    values = parse_description(kind, description, option, METRICS_SYNTAX)
    if "interface" not in values:  # Twisted would listen on all addresses
        description += ":interface=127.0.0.1"
    try:
        return EndpointListener(option, reactor, description)
    except CannotServe:
        # Twisted's error does not name the file that is wrong.
        tls = import_extra("listeners.tls", "tls", "--metrics ssl: needs")
        key = values.get("privateKey", abspath("server.pem"))  # Twisted's default
        values = {"privateKey": key, "certKey": key, **values}
        tls.ListenerCertificates(option, files_of(values))
        raise


def control_listener(reactor: Any, description: str) -> Listener:
    """Return the listener for ``--control``: on loopback, or a UNIX socket with mode 600.

    :raises WrongOption: if the description has a mistake, or another machine could connect.
    """
    option = f"--control {description!r}"
    if kind_of(description) in (*ON_LOOPBACK, "unix"):
        listener = make_listener(reactor, description, option, hosts=ON_LOOPBACK)
        if isinstance(listener, UNIXListener):
            listener.mode = OWNER_ONLY if listener.mode is None else listener.mode
            return listener
        if all(map(is_loopback, cast(TCPListener, listener).interfaces)):
            return listener
    raise WrongOption(
        f"{option}: control is served on loopback, such as tcp:9863, or on a UNIX socket, unix:PATH"
    )


def make_listener(
    reactor: Any,
    description: str,
    option: str,
    *,
    hosts: Mapping[str, str] = EVERYWHERE,
    passed: list[PassedSocket] | None = None,
    datagrams: EchoDatagrams | None = None,
) -> Listener:
    """Return the listener for an endpoint description.

    :param option: the option as typed, for error messages.
    :param hosts: for ``tcp`` and ``tcp6``, the address if the description names none.
    :param passed: the sockets that systemd passed. Those that the listener takes are removed.
    :param datagrams: echoes datagrams, for ``udp`` and ``systemd``.
    :raises CannotServe: if the description has a mistake.
    """
    kind = kind_of(description)
    if kind not in SYNTAX:
        return EndpointListener(option, reactor, description)
    tls = import_extra("listeners.tls", "tls", f"{option}: ssl: needs") if "ssl" in kind else None
    values = parse_description(kind, description, option)
    if kind == "unix":
        return UNIXListener(option, reactor, values.pop("address"), **values)
    if "name" in values:
        answers = None if tls else datagrams
        listener: Listener = take_named(values["name"], passed or [], reactor, option, answers)
    else:
        interface = values.get("interface", hosts.get(kind))
        where = (option, reactor, values["port"], [interface] if interface else [])
        if kind == "udp":
            return UDPListener(*where, cast(EchoDatagrams, datagrams))
        listener = TCPListener(*where, values.get("backlog", BACKLOG))
    if tls is not None:
        listener.tls = tls.ListenerCertificates(option, files_of(values))
    return listener


def files_of(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the files in ``values``, by the parameters of ``Certificates``."""
    return {parameter: values[name] for name, parameter in FILES.items() if name in values}


def import_extra(module: str, extra: str, what: str) -> Any:
    """Return a module of the daemon that needs an extra.

    :param what: the start of the error message, such as ``--metrics ssl: needs``.
    :raises CannotServe: if the extra is not installed.
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
