"""Signals during a run: an end in order for SIGINT and SIGTERM, timers in time after SIGCONT."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def handled(has_begun: Callable[[], bool], stop: Callable[[], None]) -> Iterator[None]:
    """Answer signals while the body runs, except those that the caller's parent ignores.

    After a stop (Ctrl-Z and fg), Linux has select(2) wait for the rest of its timeout, unless there
    is a handler for SIGCONT: then Python computes the rest anew, by the clock.

    :param has_begun: tells whether there is something to sum up; if not, a signal kills this
        process at once, so that a shell sees why it ended (status 130, 143).
    :param stop: ends the run in order. It is called in a signal handler.
    """

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        if has_begun():
            stop()
        else:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    numbers = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    continuing = signal.signal(signal.SIGCONT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, continuing)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
