"""Client endpoints of Twisted as text: one line for what is wrong with one, and a short name."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, cast

from twisted.internet.endpoints import clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint

from echod.client.errors import of_file

USAGES: Final = {
    "tcp": "tcp:HOST:PORT",
    "unix": r"unix:PATH, with a \ before each colon and = of the path",
    "tls": "tls:HOST:PORT[:trustRoots=DIRECTORY][:certificate=FILE:privateKey=FILE]",
    "ssl": "ssl:HOST:PORT[:caCertsDir=DIRECTORY][:certKey=FILE:privateKey=FILE]",
}

NAMED: Final = re.compile(r"((?:[^=\\]|\\.)*)=(.*)", re.DOTALL)
"""An argument with a name, which has an equals sign that is not escaped."""

LONGEST_PATH: Final = 107
"""Bytes of the name of a UNIX socket (unix(7))."""


class BadTarget(ValueError):
    """TARGET is nothing to connect to: one line that says why."""


def parts(text: str) -> list[str]:
    r"""Return what is between the colons, except those that are escaped (``\:``)."""
    return re.split(r"(?<!\\):", text)


def named(given: Sequence[str]) -> dict[str, str]:
    """Return the arguments that have names, without their backslashes."""
    return {
        each[1]: re.sub(r"\\(.)", r"\1", each[2]) for each in map(NAMED.fullmatch, given) if each
    }


def short_name(text: str) -> str:
    """Return where a TARGET leads, without arguments such as the files for TLS."""
    leads = re.compile("host=|port=|path=")
    return ":".join(each for each in parts(text) if leads.match(each) or not NAMED.match(each))


def check_port(text: str, port: str) -> None:
    """Check the number of a port.

    :raises BadTarget: where it is none.
    """
    is_number = port.isascii() and port.isdecimal() and len(port) <= 5
    if not is_number or not 0 < int(port) < 65536:
        raise BadTarget(f"TARGET {text!r}: a port is from 1 to 65535, not {port!r}")


def check_arguments(text: str, kind: str, given: Sequence[str]) -> None:
    """Check that an endpoint of Twisted's own has its host and port, or its path.

    :raises BadTarget: where it has not.
    """
    names = ("path",) if kind == "unix" else ("host", "port")
    found = named(given)
    positional = [each for each in given if not NAMED.fullmatch(each)]
    found.update(zip(names, positional, strict=False))
    if len(positional) > len(names) or not all(found.get(name) for name in names):
        raise BadTarget(f"TARGET {text!r} has to be {USAGES[kind]}")
    if kind != "unix":
        check_port(text, found["port"])


def endpoint_of(reactor: Any, text: str) -> IStreamClientEndpoint:
    """Return the endpoint that ``text`` describes.

    :raises BadTarget: where it describes none.
    """
    first, *given = parts(text)
    kind = first.lower()
    if kind in USAGES:
        check_arguments(text, kind, given)
    try:
        endpoint: Any = clientFromString(reactor, text)
    except (ImportError, NameError) as error:  # NameError: Twisted has gone on without it
        raise BadTarget(
            f"TARGET {text!r} needs TLS, which is not installed: install echod with its extra tls"
        ) from error
    except Exception as error:  # whatever a plugin's parser raises
        raise BadTarget(f"TARGET {text!r} {why_not(error, kind, given)}") from error
    path = getattr(endpoint, "_path", "")  # of a UNIX socket, which Twisted trips over
    if len(os.fsencode(path)) > LONGEST_PATH:
        raise BadTarget(f"TARGET {text!r}: a path has {LONGEST_PATH} bytes at most")
    return cast("IStreamClientEndpoint", endpoint)


def why_not(error: Exception, kind: str, given: Sequence[str]) -> str:
    """Return what is wrong with an endpoint, in the user's terms.

    What Twisted raises tells of its functions and their parameters.
    """
    original = getattr(error, "originalException", error)  # UnlistableError's, of trustRoots
    if isinstance(original, OSError):
        return f"names a file that cannot be read: {original.filename!r}: {of_file(original)}"
    if type(error).__module__.startswith("OpenSSL"):
        return f"names a file that TLS cannot use: {why_not_loaded(given)}"
    if kind in USAGES:
        return f"has to be {USAGES[kind]}"
    if str(error).startswith("Unknown endpoint type"):  # as of localhost:http
        return f"has a type of endpoint that there is not: {kind!r}; a port is a number"
    return f"is nothing that the {kind} endpoint takes"


def why_not_loaded(given: Sequence[str]) -> str:
    """Return which of the files for TLS OpenSSL cannot load."""
    from twisted.internet.ssl import Certificate  # noqa: PLC0415 - needs the extra tls

    found = named(given)
    directory = found.get("trustRoots") or found.get("caCertsDir")
    for file in sorted(Path(directory).glob("*.pem")) if directory else ():
        try:
            Certificate.loadPEM(file.read_bytes())
        except Exception:
            return f"{str(file)!r} is no certificate; a directory of these has no other .pem files"
    return "a certificate and its private key are needed, each in PEM"
