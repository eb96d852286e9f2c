"""Signals during a run: end it with a summary, print the summary so far, keep timers on time."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handled(
    has_begun: Callable[[], bool],
    actions: Mapping[signal.Signals, Callable[[], object]],
    call: Callable[[Callable[[], object]], object],
) -> Iterator[None]:
    """Handle signals while the body runs, except those that are ignored already.

    After a stop (Ctrl-Z and fg), Linux lets select(2) wait for the rest of its timeout, as if no
    time had passed. With a handler for SIGCONT, Python computes the rest again from the clock.

    :param has_begun: returns whether there is something to summarize. If not, SIGQUIT is ignored,
        and another signal kills this process: a shell sees why it ended (status 130 or 143).
    :param actions: the action of each signal.
    :param call: arranges for the call of an action; called in a signal handler.
    """

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001 - signal's signature
        if has_begun():
            call(actions[signal.Signals(number)])
        elif number != signal.SIGQUIT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    numbers = [number for number in actions if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    continuing = signal.signal(signal.SIGCONT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, continuing)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
