"""A reactor for measurements: timers to the microsecond, on a monotonic clock."""

from __future__ import annotations

import select
import time
from contextlib import suppress
from typing import Any

from twisted.internet.epollreactor import EPollReactor


class PreciseReactor(EPollReactor):
    """Twisted's epoll reactor with timers that are late by microseconds, not by a millisecond.

    epoll_wait(2) takes whole milliseconds, select(2) takes microseconds, and select(2) can wait for
    an epoll set. Twisted's own clock is the time of day, which may be set during a run.
    """

    seconds = staticmethod(time.monotonic)
    _is_stopping = False

    def startRunning(self, *arguments: Any, **options: Any) -> None:
        """Start, with the minimum timer slack: the kernel must not delay wakeups (prctl(2))."""
        with suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
            slack.write("1")
        super().startRunning(*arguments, **options)

    def stop(self) -> None:
        """Stop; ignore further calls, such as from a second signal."""
        if not self._is_stopping:
            self._is_stopping = True
            super().stop()

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, and handle them."""
        if timeout is None or timeout > 0:
            try:
                select.select((self._poller,), (), (), timeout)
            except ValueError:  # a descriptor above 1023: many were inherited
                super().doPoll(timeout)  # type: ignore[no-untyped-call]
                return
        super().doPoll(0)  # type: ignore[no-untyped-call]

    doIteration = doPoll
