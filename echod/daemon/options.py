"""The command line, read into values of the right type, or refused in one line."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Sequence
from typing import Final

from twisted.python import usage

from echod import __version__
from echod.daemon.logs import on_one_line

PORT: Final = 65432
LOOPBACK: Final = ("127.0.0.1", "::1")


class CannotServe(SystemExit, Exception):
    """The daemon cannot run as asked: one line that says why, and exit status 1.

    Both bases are needed. As an Exception, twistd removes its pid file for it and
    tells the waiting parent; as a SystemExit, the interpreter prints the line and
    no traceback.
    """

    def __init__(self, why: object) -> None:
        super().__init__(on_one_line(f"twistd echod: {why}"))


class Options(usage.Options):
    """``twistd echod``'s options; after parsing, each has its value's own type.

    ``port`` int, ``interface`` list of str, ``listen`` list of str, timeouts float
    (seconds) or ``None``, limits int or ``None``, ``quiet`` bool, ``metrics`` str or
    ``None``, ``says-where`` bool: whether port, interface or listen was given.
    """

    synopsis = "Usage: twistd [options of twistd] echod [options]"
    longdesc = (
        "Sends back every byte that it receives (RFC 862), over TCP and any other stream, and UDP "
        "if asked to. SIGTERM, SIGINT and SIGHUP let the connections finish first; a second one "
        "does not wait. With ssl:, SIGHUP loads the certificates anew."
    )
    optFlags = (("quiet", None, "Log no line for each connection."),)
    optParameters = (
        ("port", None, None, f"TCP port, 0 to 65535; 0 takes a free one. [default: {PORT}]"),
        (
            "idle-timeout",
            None,
            None,
            "Seconds without a byte, and nothing owed, until a connection is closed. "
            "[default: never]",
        ),
        (
            "stall-timeout",
            None,
            "60",
            "Seconds for which the peer does not read what it is owed, until it is reset.",
        ),
        (
            "handshake-timeout",
            None,
            "10",
            "Seconds that a TLS handshake or PROXY header may take, until the connection is reset.",
        ),
        (
            "max-connections",
            None,
            None,
            "Connections at once. [default: what RLIMIT_NOFILE leaves]",
        ),
        (
            "max-connections-per-peer",
            None,
            None,
            "Connections at once of one IPv4 address or IPv6 /64. [default: no limit]",
        ),
        (
            "drain-timeout",
            None,
            "10",
            "Seconds that connections have to finish when the service stops; what is left "
            "then is reset.",
        ),
        (
            "udp-rate",
            None,
            "100",
            "Datagrams a second that one IPv4 address or IPv6 /64 is answered over UDP.",
        ),
        (
            "udp-total-rate",
            None,
            "10000",
            "Datagrams a second that all together are answered.",
        ),
        (
            "udp-longest",
            None,
            "3600",
            "Seconds after which who has sent datagrams without a pause is not answered until "
            "it pauses.",
        ),
        (
            "metrics",
            None,
            None,
            "Twisted stream endpoint for a status page and Prometheus metrics, on loopback if "
            "it names no interface, such as tcp:9862. [default: none]",
        ),
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["interface"] = []
        self["listen"] = []

    def opt_interface(self, address: str) -> None:
        """IP address to listen on; repeatable. [default: 127.0.0.1 and ::1]."""
        self["interface"].append(address)

    def opt_listen(self, description: str) -> None:
        """Instead, repeatable: Twisted stream endpoint, udp:PORT, ssl:PORT:... or haproxy:...."""
        self["listen"].append(description)

    def opt_version(self) -> None:
        """Display echod's version and exit."""
        print(f"echod {__version__}")
        raise SystemExit(0)

    def parseArgs(self, *args: str) -> None:
        """Refuse stray arguments."""
        if args:
            raise usage.UsageError(f"takes no arguments, not {' '.join(args)!r}")

    def postOptions(self) -> None:
        """Turn strings into values.

        :raises twisted.python.usage.UsageError: names the option and what it takes.
        """
        if self["listen"] and (self["port"] is not None or self["interface"]):
            raise usage.UsageError(
                "--listen stands in place of --port and --interface: give one or the other"
            )
        self["says-where"] = bool(self["listen"] or self["port"] is not None or self["interface"])
        self["port"] = self._whole("port", 0, 65535, default=PORT)
        for name in ("max-connections", "max-connections-per-peer"):
            self[name] = self._whole(name, 1, None, default=None)
        for name in (
            "idle-timeout",
            "stall-timeout",
            "handshake-timeout",
            "drain-timeout",
            "udp-longest",
        ):
            self[name] = self._number(name, "seconds", zero=name == "drain-timeout")
        for name in ("udp-rate", "udp-total-rate"):
            self[name] = self._number(name, "datagrams a second", zero=False)
        self["quiet"] = bool(self["quiet"])
        # said twice is meant once
        self["interface"] = list(dict.fromkeys(self._address(said) for said in self["interface"]))
        if {"0.0.0.0", "::"} <= set(self["interface"]):
            raise usage.UsageError(
                "--interface :: takes IPv4 as well (ipv6(7), IPV6_V6ONLY): leave out 0.0.0.0"
            )

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse, and leave with one line where twistd would print all of its help.

        :raises CannotServe: for anything that the command line has wrong.
        """
        try:
            super().parseOptions(options)  # type: ignore[no-untyped-call]
        except usage.UsageError as error:
            raise CannotServe(f"{error}; see twistd echod --help") from None

    def _whole(self, name: str, least: int, most: int | None, default: int | None) -> int | None:
        given = self[name]
        if given is None:
            return default
        try:
            number = int(given)
        except ValueError:
            number = least - 1
        if number < least or (most is not None and number > most):
            takes = f"from {least} to {most}" if most is not None else f"of {least} or more"
            raise usage.UsageError(f"--{name} takes a whole number {takes}, not {given!r}")
        return number

    def _number(self, name: str, unit: str, zero: bool) -> float | None:
        given = self[name]
        if given is None:
            return None
        try:
            number = float(given)
        except ValueError:
            number = math.nan
        if not (0 < number < math.inf or (zero and number == 0)):
            takes = "0 or more" if zero else "more than 0"
            raise usage.UsageError(f"--{name} takes a number of {unit}, {takes}, not {given!r}")
        return number

    def _address(self, given: str) -> str:
        try:
            ipaddress.ip_address(given)
        except ValueError:
            raise usage.UsageError(
                f"--interface takes an IPv4 or IPv6 address of this machine, not {given!r}"
            ) from None
        return given
