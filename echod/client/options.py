"""The command line of ``echod-client``: parse it, or report an error in one line."""

from __future__ import annotations

import ipaddress
import os
from argparse import ArgumentTypeError, Namespace
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from math import inf
from socket import AF_INET, AF_INET6, SOCK_DGRAM
from typing import Any, Final

from echod import __version__
from echod.client.endpoint import BadTarget
from echod.client.errors import os_error_line
from echod.client.output import printable
from echod.client.parser import WRONG, Parser
from echod.client.payloads import MAX_DATAGRAM, MIN_DATAGRAM
from echod.client.sockets import SocketOptions
from echod.client.target import Target, parse_target
from echod.client.values import PARSERS

JSON_LINES: Final = "lines"
"""The value of ``json`` for ``--json-lines``; for ``--json``, it is ``True``."""

FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
"""Address families by IP version."""

DURATION: Final = 10.0
"""Seconds of a load."""

EPILOG: Final = """\
TARGET is host, host:port, [IPv6 address]:port, udp:host:port, or a Twisted
client endpoint such as unix:PATH or tls:HOST:PORT[:trustRoots=DIRECTORY]. A
port is a number or a service; by default 7. tcp://host and host 7 work, too.

TIME is a number of seconds, or one with a unit: 250ms, 1.5s, 10m, 2h.
Other numbers take the units k, M, G (1,000) and Ki, Mi, Gi (1,024): 10k, 1.5Mi.

Exit status: 0, everything came back right; 1, something was lost, late,
damaged or refused; 2, the command line was wrong.
"""

COMMANDS: Final = {
    "pipe": "send standard input through the service to standard output, and check it",
    "ping": "send a message at each interval, and print its round-trip time",
    "load": "send many messages, and print how many come back, and how fast",
    "merge": "add the results of several runs of ping or load",
}
"""The commands, and what they do."""

FLAG: Final = ""
"""The value of an option that takes none."""

SIZE: Final = f"of a message; over UDP {MIN_DATAGRAM} to {MAX_DATAGRAM}"

OPTIONS: Final[dict[str, tuple[tuple[Any, ...], ...]]] = {
    "pipe ping load": (
        ("-W --timeout", "TIME", "how long to wait for a connection, and for a reply", "10s"),
        ("-I --interface", "ADDRESS", "send from this address, or on this interface"),
        ("-4", ("family", AF_INET), "use IPv4 only", 0),
        ("-6", ("family", AF_INET6), "use IPv6 only", 0),
        ("-Q --tos", "BYTE", "type of service: DSCP and ECN in one byte, such as 0xb8"),
        ("--dscp", "DSCP", "DSCP: a number, or a name such as ef or cs1"),
        ("-v", FLAG, "no effect: each error is printed anyway"),
    ),
    "pipe ping load merge": (
        ("--json", FLAG, "print the result as JSON: docs/measuring-json.rst"),
    ),
    "ping": (
        ("-c --count", "N", "messages to send [default: until interrupted]"),
        ("-i --interval", "TIME", "between two messages, 1ms or more", "1s"),
        ("-w --deadline", "TIME", "end after this time, as Ctrl-C does [default: never]"),
        ("-O --outstanding", FLAG, "print each message that has no reply when the next is due"),
        ("-D --timestamps", FLAG, "print the UNIX time before each line, except the summary"),
        ("-q --quiet", FLAG, "print only the first lines and the summary"),
        ("-n", FLAG, "no effect: addresses are always numbers"),
        ("--dont-fragment", FLAG, "over UDP: send no fragments, to find the path MTU"),
    ),
    "load": (
        ("--ttl", "HOPS", "maximum number of hops to the service"),
        ("-C --connections", "SOCKETS", "concurrent connections; over UDP, sockets", "1"),
        ("-d --duration", "TIME|0", "how long to send messages, 0: until Ctrl-C [default: 10s]"),
        ("-n --count", "N", "messages after which to stop sending"),
        ("-r --rate", "RATE", "messages a second in all (open loop) [default: closed loop]"),
        ("--ramp", "FROM:TO", "change the rate evenly over --duration; in place of --rate"),
        ("--per-connection", "N", "replace a connection after this number of messages"),
        ("--start-at", "WHEN", "connect, send from a time on: 14:30 or 2030-01-31T14:30:00Z"),
        ("--warm-up", "TIME", "send for this time first, without counting it", 0.0),
        ("--find-rate", FLAG, "search for the highest rate that keeps --latency for --duration"),
        ("--latency", "P=TIME", "for --find-rate: the bound, as in p99=5ms"),
        ("--plot", "PLOT", "draw the result to an .svg or .png file; needs the extra plot"),
        ("--compare", "FILE", "draw an earlier run, too, written by --json; repeatable", []),
        ("--hdr", "FILE", "write the times of each second in HdrHistogram's log format"),
        ("--csv", "FILE", "write the figures of each second as CSV"),
    ),
    "ping load": (
        ("-s --size", "BYTES", SIZE, "64"),
        ("-e --payload", "TEXT|@FILE", r"over TCP: the message; \n and \xHH are escapes", b""),
        ("--clock", "CLOCK", "take times from the kernel, or in this program: user", "kernel"),
        ("--json-lines", ("json", JSON_LINES), "print events when they happen, as JSON", False),
    ),
    "pipe ping": (("-t --ttl", "HOPS", "maximum number of hops to the service"),),
}
"""By commands, a row for each option: its names; its value, which is a key of PARSERS, or a
variable and what it is set to; its help; its default as typed, or a list if it is repeatable."""

ONE_OF: Final = {"-4": "family", "-6": "family", "-Q --tos": "tos", "--dscp": "tos"}
"""Groups of options, of which one may be given."""

RULES: Final = (
    ("payload", "udp", True, "--payload is for TCP: each datagram has the client's own"),
    ("dont_fragment", "udp", False, "--dont-fragment is for udp: targets; TCP finds the path MTU"),
    ("per_connection", "udp", True, "--per-connection is for connections: leave it out over UDP"),
    ("compare", "plot", False, "--compare is for --plot FILE"),
    ("latency", "find_rate", False, "--latency is for --find-rate"),
    ("find_rate", "latency", False, "--find-rate needs a --latency, such as --latency p99=5ms"),
    ("find_rate", "compare", True, "--find-rate draws its own steps: leave out --compare"),
    ("find_rate", "hdr", True, "--hdr is for one rate: leave out --find-rate"),
    ("find_rate", "csv", True, "--csv is for one rate: leave out --find-rate"),
    ("ramp", "rate", True, "--ramp takes the place of --rate: leave one out"),
    ("ramp", "count", True, "--ramp ends after --duration: leave out --count"),
    ("ramp", "find_rate", True, "--find-rate chooses the rates itself: leave out --ramp"),
    ("find_rate", "start_at", True, "--start-at is for one load: leave out --find-rate"),
    ("find_rate", "count", True, "--find-rate ends each step after -d: leave out -n"),
    ("find_rate", "endless", True, "--find-rate needs a --duration above 0"),
    ("ramp", "endless", True, "--ramp needs a --duration above 0"),
)
"""An option, another one (or a UDP target, or a load without an end), and an error: it is reported
if the first is given, and the other is given (``True``) or is not (``False``)."""


def add_option(place: Any, names: str, value: Any, text: str, default: Any = None) -> None:
    """Add a row of :data:`OPTIONS` to a parser, or to a group of its options."""

    def read(typed: str) -> Any:
        try:
            return PARSERS[value](typed)
        except ValueError as error:  # argparse would not print its message
            raise ArgumentTypeError(str(error)) from error
        except OSError as error:
            raise ArgumentTypeError(f"{typed}: {os_error_line(error)}") from error

    rest: dict[str, Any] = {"type": read, "metavar": value, "default": default}
    if value == FLAG:
        rest = {"action": "store_true"}
    elif isinstance(value, tuple):
        rest = {"action": "store_const", "dest": value[0], "const": value[1], "default": default}
    elif isinstance(default, list):
        rest["action"] = "append"
    elif default:
        text = f"{text} [default: %(default)s]"
    place.add_argument(*names.split(), help=text, **rest)


def parser() -> Parser:
    """Return the parser of the command line."""
    top = Parser(
        prog="echod-client",
        description="Measure a network path with any echo service (RFC 862).",
        epilog=EPILOG,
    )
    top.is_first = True
    top.add_argument("--version", action="version", version=f"echod-client {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar=" | ".join(COMMANDS))
    top.commands = commands.choices
    for name, purpose in COMMANDS.items():
        command = commands.add_parser(name, help=purpose, description=f"{purpose.capitalize()}.")
        command.commands = commands.choices
        groups: Any = defaultdict(command.add_mutually_exclusive_group)
        for names, rows in OPTIONS.items():
            for row in rows if name in names.split() else ():
                add_option(groups[ONE_OF[row[0]]] if row[0] in ONE_OF else command, *row)
        if name == "merge":
            command.add_argument("files", nargs="+", metavar="FILE", help="written by --json")
            continue
        command.epilog = EPILOG
        several = ", or several services" if name == "ping" else ""
        command.add_argument("target", metavar="TARGET", help=f"the service{several}")
    return top


def parse_targets(words: Sequence[str]) -> Iterator[Target]:
    """Yield each TARGET; a number after it is its port.

    :raises BadTarget: if one is invalid.
    """
    rest = deque(words)
    while rest:
        text = rest.popleft()
        yield parse_target(text, rest.popleft() if rest and rest[0].isdecimal() else "")


def family_of(text: str | None) -> int:
    """Return the address family of an IP address, or 0 for other text, such as a name."""
    try:
        return FAMILIES[ipaddress.ip_address(text or "").version]
    except ValueError:
        return 0


def socket_options(options: Any) -> SocketOptions:
    """Return the options for all sockets."""
    local = options.interface or ""
    family = family_of(local)
    return SocketOptions(
        family=options.family or family,
        source=local if family else "",
        interface="" if family else local,
        tos=options.tos if options.dscp is None else options.dscp,
        ttl=options.ttl,
        dont_fragment=getattr(options, "dont_fragment", False),
        kernel_clock=getattr(options, "clock", True),
    )


def conflicts(options: Any, target: Target) -> Iterator[str]:
    """Yield the reasons for which options exclude each other, or a TARGET."""
    command, sockets = options.command, options.socket_options
    if target.udp and command == "pipe":
        yield "a pipe needs every byte, in order, which UDP does not guarantee: use TCP"
    elif target.udp and not MIN_DATAGRAM <= options.size <= MAX_DATAGRAM:
        yield f"--size takes {MIN_DATAGRAM} to {MAX_DATAGRAM} over UDP, not {options.size}"
    given = {"udp": target.udp, "endless": getattr(options, "duration", 0) == inf, **vars(options)}
    for option, other, is_given, why in RULES:
        if given.get(option) and bool(given.get(other)) is is_given:
            yield why
    files = [each for each in map(given.get, ("plot", "hdr", "csv")) if each]
    if len(set(map(os.path.realpath, files))) < len(files):
        yield "--plot, --hdr and --csv write to different files: change a name"
    if target.host is None and sockets != SocketOptions(kernel_clock=sockets.kernel_clock):
        yield "-4, -6, -I, -Q, --dscp and --ttl are for targets with a host and UDP or TCP"
    if {family_of(target.host), sockets.family} == set(FAMILIES.values()):
        asking = f"-I {sockets.source}" if sockets.source else "-4 or -6"
        yield f"{asking} and {target.host} are of different IP versions: change one"
    if options.interface:
        try:
            sockets.open(sockets.family or AF_INET, SOCK_DGRAM).close()
        except OSError as error:
            yield f"-I {options.interface}: {os_error_line(error)}: use one that this machine has"


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Parse the command line; ``targets`` is a list of :class:`~echod.client.target.Target`.

    :param arguments: without the name of the command; ``None`` for those of the process.
    :raises SystemExit: with status 2, after an error message of one line.
    """
    top = parser()
    options: Any
    options, rest = top.parse_known_args(arguments)
    words = [each for each in rest if each != "--"]
    if options.command == "merge":
        options.files += words
        return options  # type: ignore[no-any-return]
    if options.command == "load" and options.duration is None:
        options.duration = inf if options.count else DURATION
    try:
        options.targets = list(parse_targets([options.target, *words]))
        options.target = options.targets[0]
        options.socket_options = socket_options(options)
        reasons = (why for target in options.targets for why in conflicts(options, target))
        why = next(reasons, "")
        if options.command != "ping" and len(options.targets) > 1:
            why = f"takes one TARGET; leave out {options.targets[1].text!r}"
    except BadTarget as error:
        why = str(error)
    if why:
        top.exit(WRONG, f"echod-client {options.command}: {printable(why)}\n")
    return options  # type: ignore[no-any-return]
