"""A reactor for who measures: it wakes at the microsecond, by a clock that nobody sets."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any

from twisted.internet.epollreactor import EPollReactor


class PreciseReactor(EPollReactor):
    """Twisted's epoll reactor, and what it is late by is no longer most of a millisecond.

    epoll_wait(2) waits for whole milliseconds, select(2) for microseconds; and an epoll set can
    itself be waited for. Twisted's own time is that of the day, which is set now and then.
    """

    seconds = staticmethod(time.monotonic)
    _is_stopping = False

    def startRunning(self, *arguments: Any, **options: Any) -> None:
        """Begin. The kernel is not to make a wait longer, to spare a wakeup (prctl(2))."""
        with suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
            slack.write("1")
        super().startRunning(*arguments, **options)

    def stop(self) -> None:
        """Stop, once: whoever is impatient may send more than one signal."""
        if not self._is_stopping:
            self._is_stopping = True
            super().stop()

    def doPoll(self, timeout: float | None) -> None:
        """Wait, and then do what there is to do."""
        if timeout is None or timeout > 0:
            try:
                select.select((self._poller,), (), (), timeout)
            except ValueError:  # of a descriptor above 1023, where so many were inherited
                super().doPoll(timeout)  # type: ignore[no-untyped-call]
                return
        super().doPoll(0)  # type: ignore[no-untyped-call]

    doIteration = doPoll
