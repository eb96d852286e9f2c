"""Run many command lines of the daemon, each in a fork: to import Twisted takes a second."""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from collections.abc import Callable

from twisted.scripts import twistd

from echod import certificates
from echod.__main__ import main
from echod.daemon import command, web

LOADED = (certificates, command, web)
"""Modules that each child would import otherwise."""

SECONDS = 20
"""Time until a daemon that serves is ended."""


def run_line(words: list[str], directory: str) -> tuple[int, str]:
    """Run ``words`` in a child, and return its exit status (negative: a signal) and its output."""
    reads, writes = os.pipe()
    child = os.fork()
    if not child:
        os.chdir(directory)
        signal.alarm(SECONDS)
        os.dup2(writes, 1)
        os.dup2(writes, 2)
        sys.argv = words
        run: Callable[[], None] = main if words[0] == "echod" else twistd.run
        os._exit(status_of(run))
    os.close(writes)
    with os.fdopen(reads, errors="backslashreplace") as pipe:
        output = pipe.read()
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), output


def status_of(run: Callable[[], None]) -> int:
    """Run, print an exception as the interpreter does, and return the exit status."""
    status = 0
    try:
        run()
    except SystemExit as ended:
        status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    print(json.dumps([run_line(words, sys.argv[1]) for words in json.load(sys.stdin)]))
