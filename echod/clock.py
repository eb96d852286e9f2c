"""Monotonic time: clocks and timers that do not follow the time of day.

Twisted's reactors take the time from ``time.time``. When the time of day is set (by an operator,
by NTP, when a machine boots or is restored), their timers fire early or late by the difference.
Everything in echod follows CLOCK_MONOTONIC (clock_gettime(2)), which is never set:

- :func:`use_monotonic_time` makes a whole reactor follow it. The daemon calls it.
- :class:`MonotonicClock` adds monotonic timers to a reactor, and does not change the reactor. In
  an application that embeds echod, :func:`clock_of` returns one, unless the reactor is monotonic.
"""

from __future__ import annotations

import functools
import os
import struct
import time
import weakref
from collections.abc import Callable
from contextlib import suppress
from heapq import heapify, heappop, heappush
from typing import Any, Final

from twisted.internet.base import DelayedCall, ReactorBase
from twisted.internet.interfaces import (
    IDelayedCall,
    IReactorFDSet,
    IReactorTime,
    IReadDescriptor,
)
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.arguments import check_provider
from echod.durations import LONGEST

CANCELLED: Final = 50
"""The number of cancelled calls that a clock may keep, however few pending calls it has."""

logged = Logger().failureHandler("while handling timed call")
"""Log an exception and continue, as Twisted's reactors do for timed calls."""


def clock_of(reactor: Any) -> IReactorTime:
    """Return a monotonic clock for the timers of ``reactor``.

    :param reactor: any IReactorTime.
    :return: the :class:`MonotonicClock` of ``reactor`` if that follows the time of day, otherwise
        ``reactor`` itself.
    """
    return monotonic_clock(reactor) if follows_time_of_day(reactor) else reactor


def follows_time_of_day(reactor: Any) -> bool:
    """Return whether ``reactor`` uses the time of day, the default of Twisted's reactors."""
    return reactor.seconds is ReactorBase.seconds


def use_monotonic_time(reactor: Any) -> None:
    """Make ``reactor`` and its timers follow CLOCK_MONOTONIC from now on.

    ``reactor.seconds()`` continues from the current time of day, but no longer jumps when that is
    set. Pending calls stay due at the same moment, and times taken before and after can be
    compared. A second call does nothing.

    :param reactor: one of Twisted's reactors, running or not.
    :raises TypeError: for an argument of another type.
    """
    check_provider("reactor", reactor, IReactorTime)
    if follows_time_of_day(reactor):
        ahead = reactor.seconds() - time.monotonic()
        reactor.seconds = lambda: ahead + time.monotonic()
        for call in reactor.getDelayedCalls():
            call.seconds = reactor.seconds


@implementer(IReactorTime)
class MonotonicClock:
    """Monotonic time and timers, beside a reactor that follows the time of day.

    No call is early by CLOCK_MONOTONIC. No call is late either, because a timerfd(2) wakes the
    reactor. Where there is none (not on Linux, or a sandbox forbids it), the reactor's
    ``callLater`` wakes it; then calls are late by the amount that the time of day is set back.

    :param reactor: any IReactorTime. A timerfd needs an IReactorFDSet, as Twisted's reactors are.
    :raises TypeError: for an argument of another type.
    """

    def __init__(self, reactor: Any) -> None:
        check_provider("reactor", reactor, IReactorTime)
        self._calls: list[DelayedCall] = []  # a heap
        self._cancelled = 0
        self._timer: DescriptorTimer | ReactorTimer
        try:
            self._timer = DescriptorTimer(reactor, self._run)
        except (AttributeError, ImportError, OSError):
            self._timer = ReactorTimer(reactor, self._run)

    def seconds(self) -> float:
        """Return the seconds of CLOCK_MONOTONIC."""
        return time.monotonic()

    def callLater(
        self,
        delay: float,
        callable: Callable[..., Any],  # noqa: A002 - IReactorTime's name
        *args: object,
        **kw: object,
    ) -> IDelayedCall:
        """Call ``callable`` after ``delay`` seconds (IReactorTime)."""
        moment = time.monotonic() + delay
        call = DelayedCall(moment, callable, args, kw, self._cancel, self._moved, self.seconds)
        heappush(self._calls, call)
        self._set_timer()
        return call

    def getDelayedCalls(self) -> list[IDelayedCall]:
        """Return the pending calls, in any order."""
        return [call for call in self._calls if not call.cancelled]

    def _cancel(self, call: DelayedCall) -> None:
        call.cancelled = 1  # DelayedCall sets it after this returns
        self._cancelled += 1
        # A cancelled call stays in the heap until it is due, and most timeouts are cancelled.
        if self._cancelled > CANCELLED and self._cancelled > len(self._calls) / 2:
            self._calls = [each for each in self._calls if not each.cancelled]
            self._cancelled = 0
            heapify(self._calls)
        self._set_timer()

    def _moved(self, _: DelayedCall) -> None:
        heapify(self._calls)
        self._set_timer()

    def _run(self) -> None:
        now = time.monotonic()
        while self._calls and self._calls[0].time <= now:
            call = heappop(self._calls)
            if call.cancelled:
                self._cancelled -= 1
            elif call.delayed_time > 0:
                call.activate_delay()
                heappush(self._calls, call)
            else:
                call.called = 1
                with logged:
                    call.func(*call.args, **call.kw)
        self._set_timer()

    def _set_timer(self) -> None:
        while self._calls and self._calls[0].cancelled:
            heappop(self._calls)
            self._cancelled -= 1
        if self._calls:
            self._timer.start(self._calls[0].time)
        else:
            self._timer.stop()


monotonic_clock = functools.cache(MonotonicClock)
"""Return the clock of a reactor. The cache stays small: a process has one reactor."""


@implementer(IReadDescriptor)
class DescriptorTimer:
    """A timer on CLOCK_MONOTONIC that a reactor watches as a file descriptor (timerfd(2)).

    :param reactor: watches the descriptor.
    :param expired: is called when the timer expires, and sometimes slightly earlier.
    :raises OSError: if the kernel or a sandbox refuses the timer, or no descriptor is left.
    :raises AttributeError: if the C library has no timerfd, or the reactor cannot watch
        descriptors.
    :raises ImportError: if Python was built without libffi.
    """

    def __init__(self, reactor: IReactorFDSet, expired: Callable[[], None]) -> None:
        import ctypes  # noqa: PLC0415 - not in every Python; os.timerfd_create needs 3.13

        self._add, self._remove = reactor.addReader, reactor.removeReader
        self._expired = expired
        libc = ctypes.CDLL(None, use_errno=True)
        self._settime = libc.timerfd_settime
        self._descriptor = libc.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        weakref.finalize(self, os.close, self._descriptor)

    def start(self, moment: float) -> None:
        """Expire at ``moment`` (seconds of CLOCK_MONOTONIC) instead of any moment set before."""
        # Never 0, which disarms a timerfd. Expiring early is harmless: the clock starts it again.
        delay = min(max(moment - time.monotonic(), 1e-9), LONGEST)
        # struct itimerspec: no interval, then seconds and nanoseconds.
        value = struct.pack("llll", 0, 0, *divmod(int(delay * 1e9), 10**9))
        # Not TFD_TIMER_ABSTIME: libfaketime shifts absolute times by its offset.
        self._settime(self._descriptor, 0, value, None)
        self._add(self)

    def stop(self) -> None:
        """Stop the timer."""
        self._remove(self)

    def fileno(self) -> int:
        """Return the timer's file descriptor."""
        return int(self._descriptor)

    def doRead(self) -> None:
        """Call ``expired``."""
        with suppress(BlockingIOError):  # the timer was started again since it expired
            os.read(self._descriptor, 8)
        self._expired()

    def connectionLost(self, reason: Failure) -> None:
        """Do nothing: the reactor has stopped."""

    def logPrefix(self) -> str:
        """Return the prefix of the reactor's log lines."""
        return "echod"


class ReactorTimer:
    """A timer on a reactor's ``callLater``, for platforms without timerfd(2).

    :param reactor: its ``callLater`` is used.
    :param expired: is called when the timer expires: late if the time of day has been set back,
        early if it has been set forward.
    """

    def __init__(self, reactor: IReactorTime, expired: Callable[[], None]) -> None:
        self._reactor = reactor
        self._expired = expired
        self._call: IDelayedCall | None = None

    def start(self, moment: float) -> None:
        """Expire at ``moment`` (seconds of CLOCK_MONOTONIC) instead of any moment set before."""
        self.stop()
        delay = max(0.0, moment - time.monotonic())
        self._call = self._reactor.callLater(delay, self._expired)

    def stop(self) -> None:
        """Stop the timer."""
        if self._call is not None and self._call.active():
            self._call.cancel()
        self._call = None
