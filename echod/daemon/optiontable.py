"""The options of the daemon by topic: names, defaults, help and validators."""

from __future__ import annotations

import functools
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from echod.daemon.faultfile import read_faults
from echod.daemon.listeners.interfaces import check_interface
from echod.durations import parse_duration
from echod.faultgrammar import parse_plan
from echod.faultplan import Plan
from echod.numbers import parse_rate, parse_whole_number
from echod.udprules import MAX_RATE, MIN_RATE

PORT: Final = 65432
MOST: Final = 1_000_000_000
"""The highest limit on connections: no machine has that many descriptors."""

GENERAL: Final = "Other options"
"""The topic of the options that every command has."""

INDENT: Final = 32
"""Columns before the help text: the longest name, and two spaces on each side."""


class Option(NamedTuple):
    """One option of the command line.

    :ivar name: long name, without the dashes.
    :ivar value: the placeholder for its value in the help; empty for a flag.
    :ivar help: one sentence for the help.
    :ivar parse: converts a value, a str or that of ``opt_NAME``; its ValueError completes the
        sentence «--name ...».
    :ivar default: the default value, as an operator would type it.
    :ivar repeatable: whether the option collects a list of values.
    """

    name: str
    value: str
    help: str
    parse: Callable[[Any], Any] = str
    default: str | None = None
    repeatable: bool = False

    @property
    def words(self) -> str:
        """The option as in a command line; one with two values is followed by a space."""
        between = " " if " " in self.value else "="
        return f"--{self.name}{between}{self.value}" if self.value else f"--{self.name}"

    def usage(self, width: int) -> str:
        """Return the lines of the help for this option."""
        default = f" [default: {self.default}]" if self.default else ""
        return textwrap.fill(
            self.help + default,
            width,
            initial_indent=f"  {self.words:<{INDENT - 2}}",
            subsequent_indent=" " * INDENT,
            break_long_words=False,
            break_on_hyphens=False,
        )


def parse_faulty(words: tuple[str, str]) -> tuple[str, Plan]:
    """Return the endpoint and the plan of ``--faulty``; raise ValueError for a wrong plan."""
    endpoint, text = words
    try:
        return endpoint, parse_plan(text)
    except ValueError as error:
        raise ValueError(f"{endpoint!r}: {error}") from None


rate = functools.partial(parse_rate, of="datagrams", least=MIN_RATE, most=MAX_RATE)
port = functools.partial(parse_whole_number, least=0, most=65535)
count = functools.partial(parse_whole_number, least=1, most=MOST)

TOPICS: Final[Mapping[str, Sequence[Option]]] = {
    "Where to listen": (
        Option("port", "PORT", f"TCP port; 0 takes a free one. [default: {PORT}]", port),
        Option(
            "interface",
            "ADDRESS",
            "IP address to listen on, repeatable. [default: 127.0.0.1 and ::1]",
            check_interface,
            repeatable=True,
        ),
        Option(
            "listen",
            "ENDPOINT",
            "Endpoint to listen on instead, repeatable: tcp:PORT:interface=ADDRESS, unix:PATH, "
            "udp:PORT, ssl:PORT:privateKey=FILE:certKey=FILE, haproxy:tcp:PORT, or any other "
            "stream endpoint of Twisted.",
            repeatable=True,
        ),
        Option(
            "faulty",
            "ENDPOINT PLAN",
            "Open a port that misbehaves as a plan says, repeatable, such as tcp:65433 'first 2: "
            "refuse; every 7th message of 64: delay 200ms'. Like --listen, it replaces the default "
            "port. docs/faults.rst describes plans.",
            parse_faulty,
            repeatable=True,
        ),
        Option("faults", "FILE", "Open the faulty ports of a TOML file.", read_faults),
    ),
    "Limits and timeouts": (
        Option(
            "idle-timeout",
            "DURATION",
            "Close a connection after this long without a byte in either direction, unless the "
            "peer still has replies to read. [default: never]",
            parse_duration,
        ),
        Option(
            "stall-timeout",
            "DURATION",
            "Reset a connection whose peer has not read its replies for this long.",
            parse_duration,
            "60s",
        ),
        Option(
            "handshake-timeout",
            "DURATION",
            "Reset a connection whose TLS handshake or PROXY header takes longer.",
            parse_duration,
            "10s",
        ),
        Option(
            "max-connections",
            "N",
            "Refuse more connections than this. [default: as many as RLIMIT_NOFILE allows]",
            count,
        ),
        Option(
            "max-connections-per-peer",
            "N",
            "Refuse more connections than this from one IPv4 address or IPv6 /64. "
            "[default: no limit]",
            count,
        ),
        Option(
            "drain-timeout",
            "DURATION",
            "When the service stops, wait this long for connections to end, then reset the rest.",
            functools.partial(parse_duration, least=0),
            "10s",
        ),
    ),
    "UDP": (
        Option(
            "udp-rate",
            "N",
            "Datagrams a second to answer for one IPv4 address or IPv6 /64.",
            rate,
            "100",
        ),
        Option("udp-total-rate", "N", "Datagrams a second to answer in total.", rate, "10000"),
        Option(
            "udp-longest",
            "DURATION",
            "Stop answering a source that sends datagrams for longer than this without a pause, "
            "until it pauses.",
            parse_duration,
            "1h",
        ),
    ),
    "Observing": (
        Option(
            "metrics",
            "ENDPOINT",
            "Serve metrics for Prometheus and a status page over HTTP, such as on tcp:9862; on "
            "loopback unless the endpoint names an interface. [default: none]",
        ),
        Option(
            "control",
            "ENDPOINT",
            "Read and replace the plans of faulty ports over HTTP, such as on tcp:9863: on "
            "loopback, or on a UNIX socket. [default: none]",
        ),
        Option("quiet", "", "Log no line for each connection."),
        Option(
            "verbose",
            "",
            "Log each accept, TLS handshake, PROXY header, half-close and health check, too.",
        ),
    ),
    GENERAL: (
        Option("version", "", "Print the version of echod and exit."),
        Option("help", "", "Print this help and exit."),
    ),
}

ABOUT: Final = (
    "Send back every byte received (RFC 862), over TCP and other stream sockets, and over UDP with "
    "--listen udp:PORT. SIGTERM, SIGINT and SIGHUP stop the service after its connections have "
    "ended; a second signal stops it at once. With ssl:, SIGHUP reloads the certificates instead."
)
DURATIONS: Final = (
    "DURATION is a number with a unit of ms, s, m or h, such as 250ms; without a unit, in seconds."
)

EXAMPLES: Final = (
    "{program} --port 65432",
    "{program} --interface 0.0.0.0 --max-connections-per-peer 100 --idle-timeout 10m",
    "{program} --faulty tcp:65433:interface=127.0.0.1 'first 2: refuse'",
    "{program} --listen tcp:7:interface=127.0.0.1 --listen udp:7 --metrics tcp:9862",
)


def usage_text(topics: Mapping[str, Iterable[Option]], program: str, width: int) -> str:
    """Return the help: a description, the options by topic, and examples.

    :param program: the command that runs it, for the examples.
    :param width: columns of the terminal.
    """
    parts = [textwrap.fill(ABOUT, width)]
    for topic, options in topics.items():
        parts.append("\n".join([f"{topic}:", *(option.usage(width) for option in options)]))
    parts.append(textwrap.fill(DURATIONS, width))
    examples = [f"  {example.format(program=program)}" for example in EXAMPLES]
    parts.append("\n".join(["Examples:", *examples]))
    return "\n\n".join(parts) + "\n"
