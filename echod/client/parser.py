"""A parser of command lines that reports an error in one line, with what to type instead."""

from __future__ import annotations

import re
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NoReturn

from echod.client.errors import os_error_line
from echod.client.output import discard, printable

NEGATIVE: Final = re.compile(r"-\.?[0-9]")

WRONG: Final = 2
"""Exit status for a command line that is wrong."""

EXAMPLES: Final = """\
echod-client: type a command, as in these examples; see echod-client --help
  echod-client ping localhost:7 -c 3
  echod-client load udp:localhost:7 -r 100 -d 10s
  echod-client pipe localhost:7 < FILE | cmp - FILE
"""

OUT: Final = "leave it out"

HABITS: Final = {
    "ping": {
        "-A -f": "type -i 1ms, or use load",
        "-d": "type -w for a time",
        "-l": "type -s for a size, or use load",
        "-p": "type -e for a payload, HOST:PORT for a port",
        "-L -N -R -S -T -U -a -b -m -r": OUT,
    },
    "load": {
        "-c": "type -C for connections, -n for messages",
        "-P --parallel --threads": "type -C for connections",
        "-t --time": "type -d for a time, -C for threads",
        "-R": "type -r for a rate; an echo comes back without it",
        "-b -qps --bitrate": "type -r for messages a second",
        "-k --bytes": "type -n for messages",
        "-O --omit": "type --warm-up",
        "-keepalive": "type --per-connection 1",
        "-i --interval": "type --json-lines for each second",
        "-A -F -H -N -T -U -X -Z -f -k -w -jitter -nocatchup -uniform --bidir --window": OUT,
    },
    "pipe": {"-w": "type -W", "-N -q": OUT},
}
"""By command: options of ping(8), irtt(1), iperf3(1), wrk, fortio and nc(1), which are typed from
habit, and what to do instead."""

ALL: Final = {
    "-B --bind --local": "type -I",
    "-J": "type --json",
    "-M --df": "type --dont-fragment",
    "-S": "type -Q",
    "-V -version --version": "type echod-client --version",
    "-verbose --verbose": "type -v",
    "-l --length -payload-size": "type -s",
    "-o --logfile": "type --json > FILE",
    "-p --port": "type HOST:PORT",
    "-payload --fill": "type -e for a payload",
    "-u --udp": "type udp:HOST:PORT",
    "--connect-timeout --wait": "type -W",
    "--reverse": OUT,
}
"""The same, for each command."""


DASHES: Final = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d"
"""The dashes, hyphens and minus signs that a text editor puts in place of an ASCII hyphen."""


class Parser(ArgumentParser):
    """A parser that reports an error in one line, without the usage.

    :ivar commands: the parsers of all commands, by name.
    :ivar is_first: whether a command follows, which has a parser of its own.
    """

    commands: Mapping[str, Parser] = {}
    is_first = False

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, formatter_class=RawDescriptionHelpFormatter, **options)

    def parse_known_args(self, arguments: Any = None, namespace: Any = None) -> Any:
        """Parse the command line, after a check for unknown options.

        argparse would report the argument after them, or take ``-x`` for a TARGET.
        """
        arguments = sys.argv[1:] if arguments is None else arguments
        if self.is_first and not arguments:
            self.exit(WRONG, EXAMPLES)
        unknown = ", ".join(self._unknown(arguments))
        if unknown:
            self.error(f"there is no option {unknown}")
        if self.is_first and arguments[0] not in self.commands and arguments[0][:1] != "-":
            choice = " | ".join(self.commands)
            self.error(f"{arguments[0]!r} is not a command: type {choice} before TARGET")
        return super().parse_known_args(self._joined(arguments), namespace)

    def _joined(self, arguments: Sequence[str]) -> list[str]:
        """Join each negative number to its option: argparse would take it for an option."""
        joined = [""]
        for each in arguments:
            action = self._option_string_actions.get(joined[-1])
            if action is not None and action.nargs != 0 and NEGATIVE.match(each):
                joined[-1] += f"={each}" if joined[-1].startswith("--") else each
            else:
                joined.append(each)
        return joined[1:]

    def _unknown(self, arguments: Sequence[str]) -> Iterator[str]:
        options, rest = self._option_string_actions, iter(arguments)
        for each in rest:
            name = each.partition("=")[0]
            if each == "--" or (self.is_first and not each.startswith("-")):
                return
            if name in options:
                if name == each and options[name].nargs != 0:
                    next(rest, None)  # its value
            elif each[:1] in DASHES and each:
                plain = f"-{name[1:]}"
                full = plain if plain in options else f"-{plain}"
                yield f"{name} (type {full if full in options else plain})"
            elif each.startswith("-") and each != "-":
                hint = next(filter(None, self._hints(name)), "")
                if hint or each[:2] not in options:
                    yield f"{name} ({hint})" if hint else name
                elif options[each[:2]].nargs == 0:  # a group of flags, otherwise -c3
                    yield from self._unknown([f"-{each[2:]}"])

    def _hints(self, name: str) -> Iterator[str]:
        """Yield what to do instead of typing an unknown option; the first that is not ``""``."""
        options, command = self._option_string_actions, self.prog.split()[-1]
        yield habit(command, name)
        full = f"--{name.lstrip('-')}"  # -rate, --rat
        yield from (f"type {each}" for each in options if len(full) > 3 and each.startswith(full))
        if name[:2] not in options:  # -t10
            yield habit(command, name[:2])
        for each, parser in self.commands.items():
            if name in parser._option_string_actions:
                yield "type it after the command" if self.is_first else f"for {each}"

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print, and report a failure, which argparse would ignore."""
        file = file or sys.stderr
        try:
            print(message or "", end="", file=file, flush=True)
        except OSError as error:
            discard(file)
            if file is not sys.stderr:
                self.exit(1, f"{self.prog}: standard output: {os_error_line(error)}\n")

    def error(self, message: str) -> NoReturn:
        """Exit with one line: the error, and where to find help."""
        self.exit(WRONG, f"{self.prog}: {printable(message)}; see {self.prog} --help\n")


def habit(command: str, option: str) -> str:
    """Return what to do instead of typing ``option``, or ``""``."""
    rows = {**ALL, **HABITS.get(command, {})}
    return next((rows[names] for names in reversed(rows) if option in names.split()), "")
