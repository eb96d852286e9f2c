"""The command line of ``echod-client``: parse it, or report an error in one line."""

from __future__ import annotations

import ipaddress
from argparse import ArgumentParser, Namespace
from collections import deque
from collections.abc import Iterator, Sequence
from socket import AF_INET, AF_INET6, SOCK_DGRAM
from typing import Any, Final

from echod import __version__
from echod.client.endpoint import BadTarget
from echod.client.errors import os_error_line
from echod.client.output import printable
from echod.client.parser import WRONG, Parser, add_flag, add_option
from echod.client.payloads import MAX_DATAGRAM, MIN_DATAGRAM
from echod.client.planoptions import add_plan, complete_plan, plan_conflicts
from echod.client.sockets import SocketOptions
from echod.client.target import Target, parse_target
from echod.client.values import (
    LARGEST,
    dscp,
    duration,
    hops,
    is_kernel_clock,
    payload,
    plot_file,
    tos,
    whole,
)

JSON_LINES: Final = "lines"
"""The value of ``json`` for ``--json-lines``; for ``--json``, it is ``True``."""

FAMILIES: Final = {4: AF_INET, 6: AF_INET6}
"""Address families by IP version."""


EPILOG: Final = """\
TARGET is host, host:port, [IPv6 address]:port, udp:host:port, or a Twisted
client endpoint such as unix:PATH or tls:HOST:PORT[:trustRoots=DIRECTORY]. A
port is a number or a service; by default 7. tcp://host and host 7 work, too.

TIME is a number of seconds, or one with a unit: 250ms, 1.5s, 10m, 2h.
N and BYTES take the units k, M, G (1,000) and Ki, Mi, Gi (1,024): 10k, 1.5Mi.

Exit status: 0, everything came back right; 1, something was lost, late,
damaged or refused; 2, the command line was wrong.
"""


def add_socket_options(command: ArgumentParser, ttl: str) -> None:
    """Add the options for :class:`~echod.client.sockets.SocketOptions`.

    :param ttl: the names of that for the TTL.
    """
    versions: Any = command.add_mutually_exclusive_group()
    for version, family in FAMILIES.items():
        text = f"use IPv{version} only"
        versions.add_argument(
            f"-{version}", action="store_const", const=family, default=0, dest="family", help=text
        )
    text = "send from this address, or on this interface"
    add_option(command, "-I --interface", str, "ADDRESS", text, default="")
    fields = command.add_mutually_exclusive_group()
    text = "type of service: DSCP and ECN in one byte, such as 0xb8"
    add_option(fields, "-Q --tos", tos, "BYTE", text)
    text = "DSCP: a number, or a name such as ef or cs1"
    add_option(fields, "--dscp", dscp, "DSCP", text)
    add_option(command, ttl, hops, "N", "maximum number of hops there")
    add_flag(command, "-v", "ignored: each error is printed")


def add_file_options(load: ArgumentParser) -> None:
    """Add the options for files that a load writes, or reads."""
    text = "draw the latencies and the losses to an .svg or .png file; needs the extra plot"
    add_option(load, "--plot", plot_file, "FILE", text)
    text = "also draw an earlier run, from a file that --json has written; repeatable"
    add_option(load, "--compare", str, "FILE", text, default=[])
    text = "write the times of each second to a file in HdrHistogram's log format"
    add_option(load, "--hdr", str, "FILE", text)
    add_option(load, "--csv", str, "FILE", "write the figures of each second to a file as CSV")


def add_merge(commands: Any) -> None:
    """Add the command ``merge``."""
    purpose = "add the results of several runs of ping or load"
    command = commands.add_parser(
        "merge", help=purpose, description=f"A{purpose[1:]}.", commands=commands.choices
    )
    command.add_argument("files", nargs="+", metavar="FILE", help="written by --json")
    add_flag(command, "--json", "print the result as JSON (docs/measuring.rst)")


def parser() -> ArgumentParser:
    """Return the parser of the command line."""
    top = Parser(
        is_first=True,
        prog="echod-client",
        description="Measure a network path with any echo service (RFC 862).",
        epilog=EPILOG,
    )
    top.add_argument("--version", action="version", version=f"echod-client {__version__}")
    commands = top.add_subparsers(
        dest="command", required=True, metavar="pipe | ping | load | merge"
    )
    top.commands = commands.choices

    def add_command(name: str, purpose: str) -> ArgumentParser:
        description = f"{purpose[0].upper()}{purpose[1:]}."
        command = commands.add_parser(
            name, help=purpose, description=description, epilog=EPILOG, commands=commands.choices
        )
        command.add_argument("target", metavar="TARGET", help="the service; ping takes several")
        text = "how long to wait for a connection, and for a reply"
        add_option(command, "-W --timeout", duration, "TIME", text, default=10.0)
        add_flag(command, "--json", "print the result as JSON (docs/measuring.rst)")
        return command

    size = whole(least=1, most=LARGEST)
    size_text = f"of a message; over UDP {MIN_DATAGRAM} to {MAX_DATAGRAM}"

    add_command("pipe", "send standard input through the service to standard output, and check it")

    ping = add_command("ping", "send a message at each interval, and print its round-trip time")
    text = "messages to send [default: until interrupted]"
    add_option(ping, "-c --count", whole(least=1, most=1 << 62), "N", text)
    text = "between two messages, 1ms or more"
    add_option(ping, "-i --interval", duration, "TIME", text, default=1.0)
    add_option(ping, "-s --size", size, "BYTES", size_text, default=64)
    text = "end after this time, as Ctrl-C does [default: never]"
    add_option(ping, "-w --deadline", duration, "TIME", text)
    text = "print a line for each message that has no answer when the next one is due"
    add_flag(ping, "-O --outstanding", text)
    add_flag(ping, "-D --timestamps", "print the UNIX time at the beginning of each line")
    add_flag(ping, "-q --quiet", "print the first lines and the summary alone")
    add_flag(ping, "-n", "ignored: addresses are numbers")
    add_flag(ping, "--dont-fragment", "over UDP: send no fragments, to find the path MTU")

    load = add_command("load", "send many messages, and print how many come back, and how fast")
    text = "concurrent connections; over UDP, sockets"
    add_option(load, "-C --connections", whole(least=1, most=1 << 20), "N", text, default=1)
    add_option(load, "-s --size", size, "BYTES", size_text, default=64)
    add_plan(load)
    add_file_options(load)
    lines = "print each event as a line of JSON when it happens, and the result as the last"
    text = "date the replies by the kernel's stamps, or when this program receives them: user"
    for command in (ping, load):
        command.add_argument(
            "--json-lines", action="store_const", const=JSON_LINES, dest="json", help=lines
        )
        add_option(command, "--clock", is_kernel_clock, "CLOCK", text, default="kernel")
        what = r"over TCP, the message: text, with \n, \r, \t, \\ and \xHH as escapes, or a file"
        add_option(command, "-e --payload", payload, "TEXT|@FILE", what, default=b"")
    for name, command in commands.choices.items():
        add_socket_options(command, "--ttl" if name == "load" else "-t --ttl")
    add_merge(commands)
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
    local = options.interface
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
    elif target.udp and options.payload:
        yield "--payload is for TCP: each datagram has the client's own, by which it is recognised"
    if sockets.dont_fragment and not target.udp:
        yield "--dont-fragment is for udp: targets; TCP discovers the path MTU by itself"
    if command == "load":
        yield from plan_conflicts(options, target)
    if target.host is None and sockets != SocketOptions(kernel_clock=sockets.kernel_clock):
        yield "-4, -6, -I, -Q, --dscp and --ttl are for targets with a host and UDP or TCP"
    if {family_of(target.host), sockets.family} == set(FAMILIES.values()):
        asking = f"-I {sockets.source}" if sockets.source else "-4 or -6"
        yield f"{asking} and {target.host} are of different IP versions: change one"
    if options.interface:
        try:
            sockets.open(sockets.family or AF_INET, SOCK_DGRAM).close()
        except OSError as error:
            yield f"-I {options.interface}: {os_error_line(error)}: use one of this machine"


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
    if options.command == "load":
        complete_plan(options)
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
