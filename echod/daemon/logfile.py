"""The log file of twistd, which SIGUSR1 reopens after logrotate(8) has renamed it.

Twisted's own log file does not support this: on SIGUSR1 it renames files itself, and after
logrotate has renamed the file, it keeps writing to the renamed one. A function that ``--logger``
names is not given the log file at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, MutableMapping
from typing import Any, Final, TextIO

from twisted.logger import ILogObserver, Logger

from echod.daemon.logs import journal, json_lines, text_lines

DEFAULT: Final = "twistd.log"
"""The file that twistd logs to in the background, if the command line names none."""

TEXT: Final = "echod.daemon.logs.text_lines"
"""The value of ``--logger`` for the lines of twistd, which echod makes faster."""

FORMATS: Final[Mapping[str | None, Callable[[TextIO], ILogObserver]]] = {
    None: text_lines,
    TEXT: text_lines,
    "echod.daemon.logs.journal": journal,
    "echod.daemon.logs.json_lines": json_lines,
}
"""The maker of the log observer, for each value of ``--logger``."""

log = Logger(namespace="echod")


class LogFile:
    """A log file that can be reopened.

    :param path: the file, to which the log is appended.
    :param make: returns a log observer that writes to an open file.
    :raises OSError: if the file cannot be opened.

    :ivar file: the open file.
    :ivar observer: the log observer that writes to it.
    """

    def __init__(self, path: str, make: Callable[[TextIO], ILogObserver]) -> None:
        self._path = os.path.abspath(path)  # twistd changes the working directory later
        # It stays open until the process ends. ``errors``: any text can be written.
        self.file = open(  # noqa: SIM115
            self._path, "a", encoding="utf-8", errors="backslashreplace"
        )
        self.observer = make(self.file)

    def reopen(self) -> None:
        """Open the path again and log to it; if that fails, continue in the old file."""
        try:
            with open(self._path, "ab") as new:
                os.dup2(new.fileno(), self.file.fileno(), inheritable=False)
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


def log_file(twistd: MutableMapping[str, Any]) -> LogFile | None:
    """Open the log file that twistd's own options ask for, in place of twistd.

    Return ``None`` if twistd is to log to standard output, to syslog, or with a ``--logger`` that
    is not one of :data:`FORMATS`.

    :param twistd: twistd's own options. For a log file, ``logger`` is removed from them; for
        standard output, it is :data:`TEXT` if the command line has none.
    :raises ValueError: if the file cannot be opened, or is ``-`` and the service runs in the
        background; with one line for the user.
    """
    logger, path = twistd["logger"], twistd["logfile"]
    if logger not in FORMATS or (twistd["syslog"] and logger is None):
        return None
    foreground = twistd["nodaemon"] or twistd["debug"]
    if foreground and path in (None, "-"):
        if logger is None:
            twistd["logger"] = TEXT
        return None
    if path == "-":
        raise ValueError(
            "--logfile - is standard output, which a service in the background does not have: "
            "add -n, or name a file"
        )
    path = path or DEFAULT
    try:
        opened = LogFile(path, FORMATS[logger])
    except OSError as error:
        why = str(error.strerror).lower()
        raise ValueError(f"--logfile {path}: {why}: name a file to append to") from None
    twistd["logger"] = None
    return opened
