"""The log file of twistd, which SIGUSR1 opens again after logrotate(8) has renamed it.

Twisted's own log file cannot: on SIGUSR1 it renames files itself, and after logrotate has, it
goes on in the old one. And a function that ``--logger`` names is not given the log file.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO

from twisted.logger import ILogObserver, Logger, textFileLogObserver

from echod.daemon.logs import journal, json_lines

DEFAULT: Final = "twistd.log"
"""Where twistd logs when it runs in the background, and the command line names no file."""

FORMATS: Final[Mapping[str | None, Callable[[TextIO], ILogObserver]]] = {
    None: textFileLogObserver,
    "echod.daemon.logs.journal": journal,
    "echod.daemon.logs.json_lines": json_lines,
}
"""What makes the log observer, by the value of ``--logger``."""

log = Logger(namespace="echod")


class LogFile:
    """A log file, and the observer that appends to it.

    :param path: the file; one that exists is kept.
    :param make: returns the observer that writes to an open file.
    :raises OSError: where it cannot be opened.

    :ivar observer: what ``make`` has returned.
    """

    def __init__(self, path: str, make: Callable[[TextIO], ILogObserver]) -> None:
        self._path = os.path.abspath(path)  # twistd changes the working directory later
        # Never an error because of a character: the text may have any.
        self._file = open(  # noqa: SIM115 - until the process ends
            self._path, "a", encoding="utf-8", errors="backslashreplace"
        )
        self.observer = make(self._file)

    def reopen(self) -> None:
        """Open the path again, and go on there; where that fails, go on in the old file."""
        try:
            with open(self._path, "ab") as new:
                os.dup2(new.fileno(), self._file.fileno(), inheritable=False)
        except OSError as error:
            log.error(
                "received SIGUSR1, but {path} cannot be opened: {why}; the log goes on in the "
                "old file",
                event="not-reopened",
                path=self._path,
                why=error.strerror,
            )
        else:
            log.info("received SIGUSR1, opened {path} again", event="reopened", path=self._path)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def log_file(twistd: MutableMapping[str, Any]) -> LogFile | None:
    """Return the log file that twistd's own options ask for, opened in place of twistd.

    ``None``: twistd logs to standard output or to syslog, or by a ``--logger`` that is not one of
    :data:`FORMATS`. All this is left to it.

    :param twistd: twistd's own options. ``logger`` is taken out of them.
    :raises ValueError: where the file cannot be opened, or is ``-`` and the service is going to run
        in the background; with one line for the user.
    """
    logger, path = twistd["logger"], twistd["logfile"]
    if logger not in FORMATS or (twistd["syslog"] and logger is None):
        return None
    foreground = twistd["nodaemon"] or twistd["debug"]
    if foreground and path in (None, "-"):
        return None
    if path == "-":
        raise ValueError(
            "--logfile - is standard output, which a service in the background does not have: "
            "add -n, or name a file"
        )
    try:
        opened = LogFile(path or DEFAULT, FORMATS[logger])
    except OSError as error:
        why = str(error.strerror).lower()
        raise ValueError(f"--logfile {path or DEFAULT}: {why}: name a file to append to") from None
    twistd["logger"] = None
    return opened
