"""The command ``echod``, until its modules are imported; ``python -m echod`` is the same."""

import signal
import sys


def main() -> None:
    """Run the daemon in the foreground.

    Until the service handles it, Ctrl-C ends the process as it ends one that is written in C:
    Python's own handler would print a traceback of whatever import it interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from echod.daemon.command import run  # noqa: PLC0415 - imports Twisted

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
