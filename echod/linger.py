"""Linger: wait for the next message without a turn of the reactor.

A turn of the reactor takes longer than an echo. One poll(2) covers the connections and the
reactor's own descriptors, so that any other event ends the wait, and no wait begins that a timer of
the reactor could interrupt: nothing is late.
"""

from __future__ import annotations

import select
import typing
from collections.abc import Collection
from typing import Any, Final

from twisted.internet.base import ReactorBase

from echod.turns import TURN

LINGER: Final = 0.01
"""Seconds of a wait. A shorter one is dearer: below a tick of the kernel (4 ms with the usual 250
Hz) each wait programs the timer of the CPU, which took a third of the time of a message."""

CROWD: Final = 16
PATIENCE: Final = 1000
"""With more than ``CROWD`` descriptors in the reactor, do not wait: each takes time in poll(2). Do
not even count them in the next ``PATIENCE`` turns."""

ENDLESS: Final = 3600.0
"""Seconds without a timer."""


class Watching(typing.Protocol):
    """The reader on whose behalf a :class:`Linger` waits."""

    def descriptors(self) -> Collection[int]:
        """Return the descriptors that it serves."""


class Linger:
    """Waits for the descriptors of a reader, and for those of the reactor.

    :param reactor: waits are possible with those of Twisted that call their timers themselves: not
        with asyncio's loop, which has other events too.
    :param reader: is itself one of the reactor's readers.
    :ivar stale: whether a wait might miss an event: the descriptors of ``reader`` have changed, or
        other code has run, which may have added a timer or a descriptor to the reactor.
    """

    def __init__(self, reactor: Any, reader: Watching) -> None:
        self.stale = True
        self._reactor = reactor
        self._reader = reader
        self._possible = getattr(type(reactor), "callLater", None) is ReactorBase.callLater
        self._own: frozenset[int] = frozenset()
        self._others: tuple[list[Any], list[Any]] | None = None
        self._poll = select.poll()
        self._crowded = 0

    def begin(self) -> float:
        """Prepare for the waits of one turn, and return its length in seconds; 0: do not wait."""
        if not self._possible:
            return 0.0
        if self.stale:
            # Not in the turn after a change: each short connection is one, and costs a fifth more
            # CPU time with a new poll object.
            self.stale = False
            self._others = None
            return 0.0
        if self._crowded:
            self._crowded -= 1
            return 0.0
        timeout = self._reactor.timeout()
        spare: float = ENDLESS if timeout is None else timeout - LINGER
        others = (self._reactor.getReaders(), self._reactor.getWriters())
        if sum(map(len, others)) > CROWD:
            self._crowded = PATIENCE
            return 0.0
        if others != self._others:
            self._own = self._register(*others)
            self._others = others  # last: after a MemoryError, the next turn tries again
        return spare if self._own and spare > TURN else 0.0

    def _register(self, readers: list[Any], writers: list[Any]) -> frozenset[int]:
        """Make the poll object, and return the reader's descriptors; none if it is not usable."""
        own = self._reader.descriptors()
        self._poll = select.poll()
        masks = dict.fromkeys(own, select.POLLIN)
        try:
            for mask, others in ((select.POLLIN, readers), (select.POLLOUT, writers)):
                for each in others:
                    if each is not self._reader:
                        descriptor = each.fileno()
                        masks[descriptor] = masks.get(descriptor, 0) | mask
            for descriptor, mask in masks.items():
                self._poll.register(descriptor, mask)
        except Exception:  # from a reader that is closed, which the reactor finds
            return frozenset()
        return frozenset(own)

    def wait(self) -> list[tuple[int, int]]:
        """Return the reader's ready descriptors; none after the timeout, or for another event."""
        ready = self._poll.poll(LINGER * 1000)
        for descriptor, _ in ready:
            if descriptor not in self._own:
                return []
        return ready
