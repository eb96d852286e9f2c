r"""Endpoint descriptions, such as ``tcp:7:interface=127.0.0.1``: parse and validate.

The grammar is Twisted's: parts are separated by colons, and ``\:`` is a colon within a part. A
part is ``NAME=VALUE``, or a value alone, whose position implies the name. Twisted's own parser does
not validate: it reads an empty interface as all addresses, and accepts a host name as an address.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable, Mapping
from os.path import abspath
from typing import Any, Final, NamedTuple

from echod.addresses import LONGEST_PATH
from echod.daemon.errors import WrongOption
from echod.daemon.listeners.interfaces import check_interface
from echod.daemon.optiontable import port
from echod.numbers import parse_whole_number

UNESCAPED_COLON: Final = re.compile(r"(?<!\\):")

LABELS: Final = {"port": "port", "address": "path"}
"""Labels in error messages, for parameters that descriptions usually give without a name."""

Parameters = Mapping[str, Callable[[str], Any]]
"""The validator of each parameter; its ValueError completes the sentence «NAME= ...»."""


class Syntax(NamedTuple):
    """The parameters of one kind of endpoint.

    :ivar takes: an example, for error messages.
    :ivar required: the parameters that a description must have.
    :ivar positional: parameters that need no name, in their order.
    :ivar named: parameters that need their name.
    """

    takes: str
    required: tuple[str, ...]
    positional: Parameters
    named: Parameters


def check_ipv6(text: str) -> str:
    """Return ``text``, an IPv6 address; raise ValueError for any other text."""
    if ":" not in check_interface(text):
        raise ValueError(f"takes an IPv6 address for tcp6:, not {text!r}")
    return text


def check_path(text: str) -> str:
    """Return ``text``, a path short enough for a UNIX socket; raise ValueError if it is not."""
    if len(os.fsencode(text)) > LONGEST_PATH:
        raise ValueError(f"takes {LONGEST_PATH} bytes at most (unix(7))")
    return text


def parse_mode(text: str) -> int:
    """Return the permission bits that ``text`` stands for; raise ValueError for any other text."""
    if not re.fullmatch("0*[0-7]{1,3}", text):
        raise ValueError(f"takes an octal number from 0 to 777, not {text!r}")
    return int(text, 8)


backlog = functools.partial(parse_whole_number, least=0, most=2**31 - 1)
flag = functools.partial(parse_whole_number, least=0, most=1)

FILES: Final = {
    "privateKey": "key",
    "certKey": "certificate",
    "extraCertChain": "chain",
    "clientCA": "clients",
}
"""The parameters of ``ssl:`` that name files, and the parameter of
:class:`~echod.certificates.Certificates` that takes each file. ``clientCA`` is echod's own; the
other names are those of Twisted's endpoint."""

# Absolute paths, because twistd may change its directory before a reload.
PATHS: Final = dict.fromkeys(FILES, abspath)

TCP_TAKES: Final = (
    r"{kind}:PORT, {kind}:PORT:interface=ADDRESS, with \: for each colon of the address, "
    "and backlog=NUMBER"
)

SSL_TAKES: Final = (
    "ssl:PORT:privateKey=FILE:certKey=FILE, and optionally :extraCertChain=FILE, :clientCA=FILE "
    r"and :interface=ADDRESS, with \: for each colon in a value; "
    "for sockets that systemd passes, ssl:systemd:name=NAME:privateKey=FILE:certKey=FILE"
)

SYNTAX: Final = {
    "tcp": Syntax(
        TCP_TAKES.format(kind="tcp"),
        ("port",),
        {"port": port, "interface": check_interface, "backlog": backlog},
        {},
    ),
    "tcp6": Syntax(
        TCP_TAKES.format(kind="tcp6"),
        ("port",),
        {"port": port, "backlog": backlog, "interface": check_ipv6},
        {},
    ),
    "udp": Syntax(
        r"udp:PORT or udp:PORT:interface=ADDRESS, with \: for each colon of the address",
        ("port",),
        {"port": port},
        {"interface": check_interface},
    ),
    "unix": Syntax(
        "unix:PATH, unix:PATH:mode=660, and Twisted's backlog= and lockfile=",
        ("address",),
        {"address": check_path, "mode": parse_mode, "backlog": backlog, "lockfile": flag},
        {},
    ),
    "systemd": Syntax(
        "systemd:name=NAME, for all sockets of that name", ("name",), {}, {"name": str}
    ),
    "ssl": Syntax(
        SSL_TAKES,
        ("port", "privateKey", "certKey"),
        {"port": port},
        {"interface": check_interface, **PATHS},
    ),
    "ssl:systemd": Syntax(SSL_TAKES, ("name", "privateKey", "certKey"), {}, {"name": str, **PATHS}),
}

METRICS_SYNTAX: Final = {
    "ssl": Syntax(
        "ssl:PORT:privateKey=FILE:certKey=FILE, and optionally :extraCertChain=FILE "
        r"and :interface=ADDRESS, with \: for each colon in a value",
        ("port",),
        {"port": port, "privateKey": abspath, "certKey": abspath},
        {
            "interface": check_interface,
            "backlog": backlog,
            "extraCertChain": abspath,
            "dhParameters": abspath,
            "sslmethod": str,
        },
    ),
}
"""The parameters of Twisted's own ``ssl:``, which serves the metrics."""


def kind_of(description: str) -> str:
    """Return the kind of endpoint, in lower case, as Twisted compares it.

    ``ssl:systemd`` is a separate kind: its parameters differ from those of ``ssl``.
    """
    first, _, rest = description.lower().partition(":")
    systemd = first == "ssl" and rest.partition(":")[0] == "systemd"
    return "ssl:systemd" if systemd else first


def parse_description(
    kind: str, description: str, option: str, kinds: Mapping[str, Syntax] = SYNTAX
) -> dict[str, Any]:
    """Return the parameters in ``description``, validated.

    :param kind: a key of ``kinds``.
    :param option: the option as typed, for the error message.
    :param kinds: the parameters of each kind of endpoint.
    :raises WrongOption: if a parameter is missing, unknown, empty, repeated or invalid.
    """
    parts = UNESCAPED_COLON.split(description)[1 + kind.count(":") :]
    try:
        return parse_parts(parts, kinds[kind])
    except ValueError as error:
        raise WrongOption(f"{option}: {error}; it takes {kinds[kind].takes}") from None


def parse_parts(parts: list[str], syntax: Syntax) -> dict[str, Any]:
    """Return the parameters in the parts of a description; raise ValueError for a mistake."""
    validators = {**syntax.positional, **syntax.named}
    positions = iter(syntax.positional)
    values: dict[str, Any] = {}
    for part in parts:
        name, equals, value = re.sub(r"\\([:\\])", r"\1", part).partition("=")
        if not equals:
            name, value = next(positions, ""), name
            if not name and not value:  # a trailing colon
                continue
        label = LABELS.get(name, f"{name}=")
        if name not in validators:
            raise ValueError(f"there is no parameter {part!r}")
        if not value:
            raise ValueError(f"{label} is empty")
        if name in values:
            raise ValueError(f"{label} is given twice")
        try:
            values[name] = validators[name](value)
        except ValueError as error:
            raise ValueError(f"{label} {error}") from None
    for name in syntax.required:
        if name not in values:
            raise ValueError(f"it has no {LABELS.get(name, f'{name}=')}")
    return values
