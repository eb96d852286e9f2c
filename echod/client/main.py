"""The entry point of ``echod-client``: handle SIGINT, then import the rest."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # importing typing takes 10 ms, in which Ctrl-C would print a traceback

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

EXTRA: Final = {"hdrh": "hdrhistogram", "tqdm": "tqdm"}
"""The modules of the extra ``client``, and the distributions that contain them."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Until the first message is sent, SIGINT has its default action: Python's own handler would print
    a traceback of the import that it interrupts. Python's start, and the script that an installer
    writes, run before this function, and cannot be protected.

    :param arguments: without the name of the command; ``None`` for those of the process.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stderr is None:  # closed: print(file=None) would write to standard output
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - until the end
    from echod.client.options import parse  # noqa: PLC0415 - imports Twisted
    from echod.client.output import prepare  # noqa: PLC0415 - imports typing

    prepare(sys.stdout, sys.stderr)
    options = parse(arguments)
    try:
        from echod.client.runner import run  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in EXTRA:
            raise
        why = f"echod-client {options.command} needs {EXTRA[missing]}, which is not installed"
        print(f"{why}: install echod with its extra client", file=sys.stderr)
        return 2
    return run(options)
