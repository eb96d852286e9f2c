"""Twisted's client endpoint descriptions as a TARGET: check one, build it, shorten it."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from echod.addresses import LONGEST_PATH
from echod.client.errors import os_error_line

USAGES: Final = {
    "tcp": "tcp:HOST:PORT",
    "unix": r"unix:PATH, with a \ before each colon and = of the path",
    "tls": "tls:HOST:PORT[:trustRoots=DIRECTORY][:certificate=FILE:privateKey=FILE]",
    "ssl": "ssl:HOST:PORT[:caCertsDir=DIRECTORY][:certKey=FILE:privateKey=FILE]",
}

NAMED: Final = re.compile(r"((?:[^=\\]|\\.)*)=(.*)", re.DOTALL)
"""A named argument: it contains an equals sign without a backslash before it."""

LOCATION: Final = re.compile("host=|port=|path=")
"""The named arguments that a short name keeps."""


class BadTarget(ValueError):
    """TARGET is invalid; the message is one line that says why."""


def split(text: str) -> list[str]:
    r"""Split a description at its colons, except those that are escaped (``\:``)."""
    return re.split(r"(?<!\\):", text)


def arguments_by_name(arguments: Iterable[str], names: Sequence[str] = ()) -> dict[str, str]:
    """Return the values of arguments by name, without escapes.

    :param names: the names of positional arguments, in order. Further ones get the name ``""``.
    """
    positional = iter(names)
    found = {}
    for each in arguments:
        named = NAMED.fullmatch(each)
        name, value = named.groups() if named else (next(positional, ""), each)
        found[name] = re.sub(r"\\(.)", r"\1", value)
    return found


def short_name(text: str) -> str:
    """Return a TARGET without arguments such as the files for TLS."""
    return ":".join(each for each in split(text) if LOCATION.match(each) or not NAMED.match(each))


def check_port(text: str, port: str) -> None:
    """Check the port of a TARGET.

    :raises BadTarget: for anything but a port number.
    """
    if not re.fullmatch("[0-9]{1,5}", port) or not 0 < int(port) < 65536:
        raise BadTarget(f"TARGET {text!r}: a port is from 1 to 65535, not {port!r}")


def check_arguments(text: str, kind: str, arguments: Iterable[str]) -> None:
    """Check the host and port, or the path, of an endpoint in :data:`USAGES`.

    :raises BadTarget: if one is missing or invalid, or if there are more.
    """
    names = ("path",) if kind == "unix" else ("host", "port")
    found = arguments_by_name(arguments, names)
    if "" in found or not all(map(found.get, names)):
        raise BadTarget(f"TARGET {text!r} has to be {USAGES[kind]}")
    if kind != "unix":
        check_port(text, found["port"])
    elif len(os.fsencode(found["path"])) > LONGEST_PATH:  # Twisted does not check it
        raise BadTarget(f"TARGET {text!r}: a path has {LONGEST_PATH} bytes at most")


def endpoint_of(reactor: Any, text: str, description: str) -> IStreamClientEndpoint:
    """Return the endpoint of TARGET.

    :param text: TARGET as typed, for error messages.
    :param description: of the endpoint, for Twisted.
    :raises BadTarget: if there is no such endpoint.
    """
    first, *arguments = split(description)
    kind = first.lower()
    if kind in USAGES:
        check_arguments(text, kind, arguments)
    try:
        return cast("IStreamClientEndpoint", clientFromString(reactor, description))
    except (ImportError, NameError) as error:  # NameError: Twisted ignores that its import failed
        raise BadTarget(
            f"TARGET {text!r} needs TLS, which is not installed: install echod with its extra tls"
        ) from error
    except Exception as error:  # a plugin's parser may raise any
        raise BadTarget(f"TARGET {text!r} {reason_for(error, kind, arguments)}") from error


def reason_for(error: Exception, kind: str, arguments: Sequence[str]) -> str:
    """Return the mistake in a description: Twisted's exceptions name its own functions."""
    original = getattr(error, "originalException", error)  # of an UnlistableError
    if isinstance(original, OSError):
        return f"names a file that cannot be read: {original.filename!r}: {os_error_line(original)}"
    if type(error).__module__.startswith("OpenSSL"):
        return f"names a file that TLS cannot use: {certificate_problem(arguments)}"
    if kind in USAGES:
        return f"has to be {USAGES[kind]}"
    if str(error).startswith("Unknown endpoint type"):  # such as localhost:http
        return f"has an unknown endpoint type: {kind!r}; a port is a number or a service"
    return f"is not accepted by the {kind} endpoint"


def certificate_problem(arguments: Sequence[str]) -> str:
    """Return which of the files for TLS OpenSSL cannot load."""
    from twisted.internet.ssl import Certificate  # noqa: PLC0415 - needs the extra tls

    found = arguments_by_name(arguments)
    directory = found.get("trustRoots") or found.get("caCertsDir")
    for file in sorted(Path(directory).glob("*.pem")) if directory else ():
        try:
            Certificate.loadPEM(file.read_bytes())
        except Exception:
            return f"{str(file)!r} is not a certificate; each .pem file there has to be one"
    return "a certificate and its private key are needed, each in PEM"
