"""The command line of the daemon: parse and validate it; a mistake is one line."""

from __future__ import annotations

import getopt
import os
import shutil
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, NoReturn

from twisted.python import usage

from echod import __version__
from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.logfile import LogFile, log_file
from echod.daemon.optiontable import PORT, TOPICS, Option, usage_text


def check_pid_file(twistd: Mapping[str, Any]) -> None:
    """Check that twistd can write its pid file; without it, twistd fails with a traceback.

    :param twistd: the options of twistd.
    :raises CannotServe: if twistd cannot write it.
    """
    file = twistd["pidfile"]
    if not file or twistd["chroot"]:
        return
    path = os.path.abspath(file)
    if not os.access(path if os.path.exists(path) else os.path.dirname(path), os.W_OK):
        raise CannotServe(
            f"--pidfile {file}: cannot write a file there: "
            "choose another place, or none (--pidfile=)"
        )


def print_and_exit(text: str) -> NoReturn:
    """Print ``text`` and exit, without an error if head(1) closes the pipe early.

    :raises CannotServe: if standard output cannot be written.
    """
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        print(text, flush=True)
    except OSError as error:
        # The rest of the buffer would fail again when the process ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise CannotServe(f"standard output: {str(error.strerror).lower()}") from None
    raise SystemExit(0)


def join_plans(words: Iterable[str]) -> list[str]:
    """Join the words of ``--faulty ENDPOINT PLAN`` to one: an option of getopt takes one value.

    A null byte, which no command line has, is between endpoint and plan.

    :raises twisted.python.usage.UsageError: if one of the words is missing.
    """
    joined = []
    rest = iter(words)
    for word in rest:
        name, equals, endpoint = word.partition("=")
        if name == "--faulty":
            endpoint = endpoint if equals else next(rest, "")
            plan = next(rest, "")
            if any(not each or each.startswith("--") for each in (endpoint, plan)):
                raise usage.UsageError(
                    "--faulty needs an endpoint and a plan, as in --faulty tcp:65433 "
                    "'first 2: refuse'"
                )
            word = f"--faulty={endpoint}\0{plan}"  # noqa: PLW2901
        joined.append(word)
    return joined


class Options(usage.Options):
    """The options of ``twistd echod``; after parsing, each value has its own type.

    ``port`` is int, ``interface`` and ``listen`` list of str, ``faulty`` list of endpoint (str) and
    :class:`~echod.faultplan.Plan`, ``faults`` the same or ``None``, timeouts float (seconds) or
    ``None``, limits int or ``None``, ``quiet`` and ``verbose`` bool, ``metrics`` and ``control``
    str or ``None``.
    ``has-address`` is whether port, interface or listen was given.

    :ivar log_file: the log file; ``None`` if twistd does not log to a file.
    :cvar name: the name of the program in error messages.
    :cvar program: the command that runs it, for the help.
    """

    topics: ClassVar[Mapping[str, Sequence[Option]]] = TOPICS
    log_file: LogFile | None = None
    name = "twistd echod"
    program = "twistd -n echod"
    synopsis = "Usage: twistd [options of twistd] echod [options]"
    optFlags = (("quiet", None, ""), ("verbose", None, ""))
    optParameters = tuple(
        (option.name, None, option.default, option.help)
        for options in TOPICS.values()
        for option in options
        if option.value and not option.repeatable
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self["interface"] = []
        self["listen"] = []
        self["faulty"] = []

    def opt_interface(self, address: str) -> None:
        """Add an IP address to listen on."""
        self["interface"].append(address)

    def opt_listen(self, description: str) -> None:
        """Add an endpoint to listen on."""
        self["listen"].append(description)

    def opt_faulty(self, words: str) -> None:
        """Add an endpoint with faults, and its plan: see :func:`join_plans`."""
        endpoint, _, plan = words.partition("\0")
        self["faulty"].append((endpoint, plan))

    def opt_version(self) -> NoReturn:
        """Print the version of echod and exit."""
        print_and_exit(f"echod {__version__}")

    def opt_help(self) -> NoReturn:
        """Print the help and exit."""
        print_and_exit(str(self))

    opt_h = opt_help

    def getSynopsis(self) -> str:
        """Return the first line of the help; Twisted would put twistd's synopsis before it."""
        return f"{self.synopsis}\n"

    def getUsage(self, width: int | None = None) -> str:
        """Return the rest of the help."""
        columns = width or min(shutil.get_terminal_size().columns, 100)
        return usage_text(self.topics, self.program, columns)

    def parseArgs(self, *args: str) -> None:
        """Refuse stray arguments."""
        if args:
            raise usage.UsageError(f"takes no arguments, not {' '.join(args)!r}")

    def postOptions(self) -> None:
        """Convert and validate the values.

        :raises twisted.python.usage.UsageError: with the option, and the values that it takes.
        :raises CannotServe: if the pid file or the log file cannot be opened.
        """
        if self["listen"] and (self["port"] is not None or self["interface"]):
            raise usage.UsageError(
                "--listen replaces --port and --interface: give one or the other"
            )
        self["has-address"] = bool(self["listen"] or self["port"] is not None or self["interface"])
        if self["control"] is not None and not (self["faulty"] or self["faults"]):
            raise usage.UsageError("--control needs a faulty port: add --faulty ENDPOINT PLAN")
        for name, option in self._options().items():
            if option.value and self[name] is not None:
                self[name] = self._value(option)
        if self["port"] is None:
            self["port"] = PORT
        if self["quiet"] and self["verbose"]:
            raise usage.UsageError("--quiet and --verbose exclude each other: give one or neither")
        for name in ("quiet", "verbose"):
            self[name] = bool(self[name])
        if {"0.0.0.0", "::"} <= set(self["interface"]):
            raise usage.UsageError(
                "--interface :: takes IPv4 as well (ipv6(7), IPV6_V6ONLY): leave out 0.0.0.0"
            )
        if self.parent is not None:
            check_pid_file(self.parent)
            try:
                self.log_file = log_file(self.parent)
            except ValueError as error:  # names an option of twistd
                raise CannotServe(error) from None

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse the command line; on a mistake, twistd would print all of its help.

        :raises WrongOption: for a mistake in the command line; under twistd, exit with status 2.
        """
        words = sys.argv[1:] if options is None else options
        try:
            super().parseOptions(join_plans(words))  # type: ignore[no-untyped-call]
        except WrongOption as error:  # in a file that an option names
            self.refuse(error)
        except usage.UsageError as error:
            cause = error.__context__
            why = self._mistake(cause) if isinstance(cause, getopt.GetoptError) else error
            self.refuse(WrongOption(f"{why}; see {self.program} --help"))

    def refuse(self, error: WrongOption) -> NoReturn:
        """Raise ``error``; under twistd, which would exit with status 1, exit with its status."""
        if self.parent is not None:
            error.exit(self.name)
        raise error from None

    def _options(self) -> dict[str, Option]:
        return {option.name: option for topic in self.topics.values() for option in topic}

    def _value(self, option: Option) -> Any:
        given = self[option.name]
        try:
            if isinstance(given, list):  # a repeated value counts once
                return list(dict.fromkeys(option.parse(each) for each in given))
            return option.parse(given)
        except ValueError as error:
            raise usage.UsageError(f"--{option.name} {error}") from None

    def _mistake(self, error: getopt.GetoptError) -> str:
        """Describe the mistake in an option, in the operator's terms."""
        name = error.opt
        options = self._options()
        dashes = "--" if f"--{name}" in error.msg else "-"
        if self.parent is not None and name in self.parent.synonyms:
            return f"{dashes}{name} is an option of twistd: give it before echod"
        meant = [name] if name in options else [each for each in options if each.startswith(name)]
        if dashes == "-" or not name or not meant:
            return f"there is no option {dashes}{name}"
        if len(meant) > 1:
            return f"--{name} may mean --{' or --'.join(meant)}"
        [option] = [options[each] for each in meant]
        wrong = f"needs a value, {option.value}" if option.value else "takes no value"
        return f"--{option.name} {wrong}"
