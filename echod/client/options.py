"""The command line of ``echod-client``, read into values, or refused in one line."""

from __future__ import annotations

import functools
import sys
from argparse import (
    Action,
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    RawDescriptionHelpFormatter,
)
from collections.abc import Callable, Sequence
from typing import Any, Final, NoReturn

from echod import __version__
from echod.client.endpoint import BadTarget
from echod.client.errors import of_file
from echod.client.output import discard, printable
from echod.client.payloads import MAX_DATAGRAM, MIN_DATAGRAM
from echod.client.target import parse_target
from echod.durations import parse_duration
from echod.numbers import parse_rate, parse_whole_number

WRONG: Final = 2
"""Exit status for a command line that is wrong."""

SLOWEST: Final = 0.001
HIGHEST: Final = 1e9
"""Messages a second."""
LARGEST: Final = 1 << 27
"""Bytes of a message: randbytes() takes less than twice as much."""
PLOTS: Final = (".svg", ".png")

TARGETS: Final = """\
TARGET is host:port, [IPv6 address]:port, udp:host:port, or a Twisted client
endpoint such as unix:PATH or tls:HOST:PORT[:trustRoots=DIRECTORY].

TIME is a number of seconds, or one with a unit: 250ms, 1.5s, 10m, 2h.

Exit status: 0, everything came back right; 1, something was lost, late,
damaged or refused; 2, the command line was wrong.
"""


class Parser(ArgumentParser):
    """Refuses in one line, where argparse would say all its usage too.

    :param is_first: whether a command follows, which has a parser of its own.
    """

    def __init__(self, is_first: bool = False, **options: Any) -> None:
        self._is_first = is_first
        self._takes_value: dict[str, bool] = {}
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **options)

    def add_argument(self, *names: Any, **options: Any) -> Action:
        """Add an argument, as argparse does."""
        action = super().add_argument(*names, **options)
        self._takes_value.update(dict.fromkeys(action.option_strings, action.nargs != 0))
        return action

    def parse_known_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        """Read the command line, after a look for options that there are not.

        argparse blames what follows them, or takes ``-4`` for a TARGET.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        unknown = self._unknown(arguments)
        if unknown is not None:
            self.error(f"there is no option {unknown}")
        return super().parse_known_args(arguments, namespace)

    def _unknown(self, arguments: Sequence[str]) -> str | None:
        rest = iter(arguments)
        for each in rest:
            if each == "--" or (self._is_first and not each.startswith("-")):
                return None
            if not each.startswith("-") or each == "-":
                continue
            name = each.partition("=")[0]
            if name in self._takes_value:
                if self._takes_value[name] and name == each:
                    next(rest, None)
            elif each.startswith("--") or each[:2] not in self._takes_value:
                return name
        return None

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print, and do not hide that it fails, as argparse does."""
        file = file or sys.stderr
        try:
            print(message or "", end="", file=file, flush=True)
        except OSError as error:
            discard(file)
            if file is not sys.stderr:
                self.exit(1, f"{self.prog}: standard output: {of_file(error)}\n")

    def error(self, message: str) -> NoReturn:
        """Leave with a line that says what is wrong."""
        self.exit(WRONG, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def argument(parse: Callable[..., Any], **bounds: Any) -> Callable[[str], Any]:
    """Return ``parse`` with argparse's own error, whose message alone argparse prints."""

    def read(text: str) -> Any:
        try:
            return parse(text, **bounds)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from error

    return read


duration = argument(parse_duration)
rate = argument(parse_rate, of="messages", least=SLOWEST, most=HIGHEST)
whole = functools.partial(argument, parse_whole_number)


def plot_file(given: str) -> str:
    """Return the name of a file that a plot can be written to."""
    if not given.lower().endswith(PLOTS):
        raise ArgumentTypeError(f"takes a file that ends in .svg or .png, not {given!r}")
    return given


def parser() -> ArgumentParser:
    """Return what reads the command line."""
    top = Parser(
        is_first=True,
        prog="echod-client",
        description="Measure a path with the help of an echo service (RFC 862), any of them.",
        epilog=TARGETS,
    )
    top.add_argument("--version", action="version", version=f"echod-client {__version__}")
    commands = top.add_subparsers(dest="command", required=True, metavar="pipe | ping | load")

    def command(name: str, what: str) -> ArgumentParser:
        added = commands.add_parser(
            name,
            help=what,
            description=f"{what[0].upper()}{what[1:]}.",
            epilog=TARGETS,
        )
        added.add_argument("target", metavar="TARGET")
        added.add_argument(
            *("-W", "--timeout"),
            type=duration,
            default=10.0,
            metavar="TIME",
            help="until a reply is late, and a connection given up [default: 10s]",
        )
        added.add_argument(
            "--json", action="store_true", help="say all of it in JSON (docs/measuring.rst)"
        )
        return added

    def sizes(added: ArgumentParser) -> None:
        added.add_argument(
            *("-s", "--size"),
            type=whole(least=1, most=LARGEST),
            default=64,
            metavar="BYTES",
            help=f"of a message; by UDP {MIN_DATAGRAM} to {MAX_DATAGRAM} [default: 64]",
        )

    command("pipe", "send standard input through the service to standard output, and check it")

    ping = command("ping", "send a message now and then, and tell how long it takes to come back")
    ping.add_argument(
        *("-c", "--count"),
        type=whole(least=1, most=1 << 62),
        metavar="N",
        help="messages [default: until interrupted]",
    )
    ping.add_argument(
        *("-i", "--interval"),
        type=duration,
        default=1.0,
        metavar="TIME",
        help="between two messages, 1ms or more [default: 1s]",
    )
    sizes(ping)
    ping.add_argument(
        "--dont-fragment",
        action="store_true",
        help="by UDP: have no datagram cut on its way, to find out the MTU",
    )

    load = command("load", "send many messages, and tell how many come back, and how fast")
    load.add_argument(
        *("-C", "--connections"),
        type=whole(least=1, most=1 << 20),
        default=1,
        metavar="N",
        help="at once, or sockets by UDP [default: 1]",
    )
    sizes(load)
    load.add_argument(
        *("-d", "--duration"),
        type=duration,
        default=10.0,
        metavar="TIME",
        help="for which messages are sent [default: 10s]",
    )
    load.add_argument(
        *("-r", "--rate"),
        type=rate,
        metavar="N",
        help="messages a second in all, whatever comes back (open loop); by default each "
        "connection sends when the reply to the one before has come (closed loop)",
    )
    load.add_argument(
        "--plot",
        type=plot_file,
        metavar="FILE",
        help="draw the latencies to an .svg or .png; needs the extra plot",
    )
    load.add_argument(
        "--compare",
        action="append",
        default=[],
        metavar="FILE",
        help="draw an earlier run too, which --json has written to FILE; repeatable",
    )
    return top


def parse(arguments: Sequence[str] | None) -> Namespace:
    """Return the values of all options; ``target`` is a :class:`~echod.client.target.Target`.

    :raises SystemExit: with status 2, after a line that says what is wrong.
    """
    reader = parser()
    options: Any
    options, rest = reader.parse_known_args(arguments)

    def refuse(why: str) -> NoReturn:
        reader.exit(WRONG, f"echod-client {options.command}: {printable(why)}\n")

    if rest:
        refuse(f"takes one TARGET; leave out {rest[0]!r}")
    try:
        options.target = parse_target(options.target)
    except BadTarget as error:
        refuse(str(error))
    if options.target.udp:
        if options.command == "pipe":
            refuse("a pipe needs every byte, in order, which UDP does not promise: use TCP")
        if not MIN_DATAGRAM <= options.size <= MAX_DATAGRAM:
            refuse(f"--size takes {MIN_DATAGRAM} to {MAX_DATAGRAM} by UDP, not {options.size}")
    if options.command == "ping" and options.dont_fragment and not options.target.udp:
        refuse("--dont-fragment is for udp: targets; TCP finds out the MTU by itself")
    if options.command == "load" and options.compare and not options.plot:
        refuse("--compare is for --plot FILE")
    return options  # type: ignore[no-any-return]
