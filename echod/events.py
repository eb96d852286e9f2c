"""What can happen to a connection, as small frozen classes, and who is told.

An observer is any callable that takes one event. The core tells; it does not
know who listens. Logs and metrics are two observers, an application's own is a
third.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

from twisted.internet.interfaces import IAddress


class Ending(Enum):
    """How a connection ended: one word, which log, metric and test all share."""

    FINISHED = "finished"
    """The peer finished sending, everything owed was sent, then FIN (RFC 9293 3.6).

    So ends too what the embedding application closes by ``loseConnection``.
    """

    IDLE = "idle"
    """No byte came for the idle timeout, nothing was owed: closed with FIN."""

    STALLED = "stalled"
    """Something was owed, and the peer did not read for the stall timeout: RST."""

    DRAINED = "drained"
    """Closed with FIN at its first quiet moment after :meth:`EchoFactory.drain`."""

    ABORTED = "aborted"
    """Cut off with RST: by the deadline of a drain, or by the embedding application."""

    LOST = "lost"
    """The peer reset the connection, or the network gave it up; or the peer closed it
    over a transport without half-close, and what it has received is not known."""


class Reason(Enum):
    """Why a connection was refused: the name of the limit that it met."""

    MAX_CONNECTIONS = "max-connections"
    MAX_CONNECTIONS_PER_PEER = "max-connections-per-peer"
    DRAINING = "draining"


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was accepted and is served."""

    peer: IAddress


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection was accepted by the kernel and reset at once, unserved."""

    reason: Reason
    peer: IAddress | None


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection that was :class:`Opened` is over.

    :ivar ending: how it ended.
    :ivar bytes: bytes received from the peer.
    :ivar seconds: seconds from :class:`Opened` to now.
    :ivar unsent: of these bytes, how many never reached the kernel for sending.
        Always 0 where the ending is finished, idle or drained.
    :ivar peer: the peer's address.
    """

    ending: Ending
    bytes: int
    seconds: float
    unsent: int
    peer: IAddress


Event: TypeAlias = Opened | Refused | Closed
Observer: TypeAlias = Callable[[Event], object]


def ignore(event: Event) -> None:
    """Observe nothing: the observer of who gives none."""


def tell_each(*observers: Observer) -> Observer:
    """Return an observer that tells each of ``observers``, also when one of them fails."""

    def tell(event: Event) -> None:
        failure: Exception | None = None
        for observer in observers:
            try:
                observer(event)
            except Exception as error:  # raised when all have been told
                failure = error
        if failure is not None:
            raise failure

    return tell
