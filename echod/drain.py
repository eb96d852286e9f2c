"""Drain (graceful shutdown): end connections at a quiet moment, or at a deadline."""

from __future__ import annotations

import typing
from contextlib import suppress

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IReactorTime, ITransport

from echod.timeouts import Watched
from echod.transport import cut_off


class Draining(typing.Protocol):
    """A connection that a drain ends."""

    @property
    def transport(self) -> ITransport:
        """Its transport, which :func:`~echod.transport.cut_off` can close."""

    def cut_short(self) -> None:
        """Reset the connection now: the deadline has passed."""

    def forget(self) -> None:
        """Stop counting the connection: its transport cannot reset it."""


class Served(Watched, Draining, typing.Protocol):
    """A connection that a factory serves, with or without a transport."""

    @property
    def peer(self) -> IAddress:
        """The peer's address."""

    @property
    def received(self) -> int:
        """Bytes received so far."""

    @property
    def buffered(self) -> int:
        """Bytes received that the kernel has not accepted for sending."""

    def abort(self) -> None:
        """Reset the connection."""


class Drain:
    """The connections that a drain ends, and its deadline.

    :ivar connections: the connections that are not closed yet. Their owner adds and removes them,
        and calls :meth:`finish` after it has removed one.
    :ivar waiting: the Deferreds of :meth:`wait` that have not fired.
    """

    def __init__(self) -> None:
        self.connections: set[Draining] = set()
        self.waiting: list[Deferred[None]] = []
        self._deadline: IDelayedCall | None = None

    def wait(self, deadline: float, clock: IReactorTime) -> Deferred[None]:
        """Return a Deferred that fires when no connection is left.

        :param deadline: seconds from now, after which the remaining connections are reset. The
            earliest deadline of several calls applies.
        """
        if self._deadline is None:
            self._deadline = clock.callLater(deadline, self._cut_short)
        elif self._deadline.getTime() > clock.seconds() + deadline:
            self._deadline.reset(deadline)
        drained: Deferred[None] = Deferred()
        self.waiting.append(drained)
        return drained

    def finish(self) -> None:
        """Notify the callers of :meth:`wait` if no connection is left."""
        if not self.waiting or self.connections:
            return
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        waiting, self.waiting = self.waiting, []
        for drained in waiting:
            drained.callback(None)

    def _cut_short(self) -> None:
        self._deadline = None
        for connection in list(self.connections):
            try:
                connection.cut_short()
            except BaseException:  # one failure must not keep the drain from ending
                with suppress(BaseException):
                    cut_off(connection.transport)
                connection.forget()
        self.finish()
