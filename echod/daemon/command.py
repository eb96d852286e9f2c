"""The command ``echod``: run the daemon in the foreground, as ``twistd -n --pidfile= echod``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

from twisted.application.reactors import installReactor
from twisted.application.service import ServiceMaker
from twisted.logger import ILogObserver
from twisted.python.reflect import namedAny
from twisted.scripts.twistd import ServerOptions, runApp  # type: ignore[attr-defined]

from echod.daemon.errors import CannotServe, WrongOption
from echod.daemon.logfile import TEXT
from echod.daemon.options import Options
from echod.daemon.optiontable import GENERAL, TOPICS, Option

REACTOR: Final = Option(
    "reactor",
    "NAME",
    "Event loop of Twisted, such as epoll, poll, select or asyncio. [default: epoll]",
)
LOGGER: Final = Option(
    "logger",
    "NAME",
    "Function that makes a log observer of Twisted, such as echod.daemon.logs.json_lines or "
    "echod.daemon.logs.journal. [default: lines of text]",
)


class Command(Options):
    """The options of ``echod``: those of ``twistd echod``, and two of twistd itself."""

    topics: ClassVar = {**TOPICS, GENERAL: (REACTOR, LOGGER, *TOPICS[GENERAL])}
    name = program = "echod"
    synopsis = "Usage: echod [options]"
    optParameters = tuple((each.name, None, None, each.help) for each in (REACTOR, LOGGER))


def run(arguments: Sequence[str]) -> None:
    """Serve until a signal stops the service.

    :raises SystemExit: after a one-line message, if the daemon cannot serve.
    """
    try:
        options = Command()
        options.parseOptions(arguments)
        install_reactor(options["reactor"])
        logger = log_observer(TEXT if options["logger"] is None else options["logger"])
        config: Any = ServerOptions()
        config.parseOptions(["--nodaemon", "--no_save", "--pidfile="])
        config["logger"] = lambda: logger
        config.subCommand, config.subOptions, options.parent = "echod", options, config
        config.loadedPlugins = {"echod": ServiceMaker("echod", "echod.daemon", "", "echod")}
        runApp(config)
    except CannotServe as error:
        error.exit("echod")


def install_reactor(name: str | None) -> None:
    """Install Twisted's event loop ``name``; if it is ``None``, Twisted chooses.

    :raises WrongOption: if Twisted does not know the name, or cannot use it on this machine.
    """
    if name is None:
        return
    try:
        installReactor(name)
    except Exception as error:
        raise WrongOption(
            "--reactor takes an event loop of Twisted that works on this machine, "
            f"such as epoll, poll, select or asyncio, not {name!r}"
        ) from error


def log_observer(name: str) -> ILogObserver:
    """Return the log observer that the function ``name`` makes.

    :raises WrongOption: if the name cannot be imported, or makes no log observer.
    """
    try:
        observer = namedAny(name)()
    except Exception:
        observer = None
    if not ILogObserver.providedBy(observer):
        raise WrongOption(
            "--logger takes the name of a function that makes a log observer of Twisted, "
            f"such as echod.daemon.logs.json_lines, not {name!r}"
        )
    return observer
