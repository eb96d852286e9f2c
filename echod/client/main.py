"""The command ``echod-client``, until its modules are imported."""

from __future__ import annotations

import os
import signal
import sys

TYPE_CHECKING = False  # as in typing, which takes ten milliseconds, and Ctrl-C would be in these

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

EXTRA: Final = {"hdrh": "hdrhistogram", "tqdm": "tqdm"}
"""The modules that echod-client imports of its extra, and the distributions that they come from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status.

    Until a message has left, SIGINT has its default action: Python's own handler would print a
    traceback of whatever import it interrupts. What runs before this function, Python's own start
    and the script that an installer writes, is out of reach.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    if sys.stderr is None:  # print() would take standard output for it, which has other bytes
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
        print(
            f"echod-client {options.command} needs {EXTRA[missing]}, which is not installed: "
            "install echod with its extra client",
            file=sys.stderr,
        )
        return 2
    return run(options)
