"""Entry point of the command ``echod`` and of ``python -m echod``."""

import signal
import sys


def main() -> None:
    """Run the daemon in the foreground.

    Until the service handles SIGINT, Ctrl-C ends the process by the signal's default action:
    Python's own handler would print a traceback of the import that it interrupts.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from echod.daemon.command import run  # noqa: PLC0415 - imports Twisted

    run(sys.argv[1:])


if __name__ == "__main__":
    main()
