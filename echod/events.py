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
from twisted.logger import Logger

from echod.arguments import check_callable

log = Logger(namespace="echod")


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
    """Cut off with RST: by the deadline of a drain, by the embedding application, because of an
    exception, or because the peer sent nothing but TLS records without data."""

    UNUSED = "unused"
    """The peer closed or reset it, and had sent no byte: a health check, or a port scan.

    Over TLS no byte after the handshake. So ends, too, a connection whose TLS handshake or
    PROXY header has not begun.
    """

    LOST = "lost"
    """The peer reset the connection, or the network gave it up; or the peer closed it
    over a transport without half-close, and what it has received is not known; or TLS ended
    without its closing alert, and what the peer had to say is not known."""


class Reason(Enum):
    """Why a connection was refused: the limit that it met, or what was wrong with how it began."""

    MAX_CONNECTIONS = "max-connections"
    MAX_CONNECTIONS_PER_PEER = "max-connections-per-peer"
    DRAINING = "draining"
    HANDSHAKE_TIMEOUT = "handshake-timeout"
    """Its TLS handshake, or its PROXY header, was not done in time."""
    TLS_HANDSHAKE = "tls-handshake"
    """Its TLS handshake failed, or broke off."""
    PROXY_HEADER = "proxy-header"
    """It began with no PROXY header that could be read."""


class Drop(Enum):
    """Why a datagram was not answered: one word, which log, metric and test all share."""

    NO_PORT = "no-port"
    """It came from port 0, where nobody can be answered (RFC 768)."""

    LOW_PORT = "low-port"
    """It came from a port below 1024, where services listen that may answer the answer."""

    NFS_PORT = "nfs-port"
    """It came from port 2049, the one service above 1024 that trusts by address."""

    OWN_PORT = "own-port"
    """It came from a port on which this service listens itself, here or elsewhere."""

    MULTICAST = "multicast"
    BROADCAST = "broadcast"
    """Its source is an address of many."""

    UNSPECIFIED = "unspecified"
    """Its source is 0.0.0.0 or ``::``, the address of who has none yet."""

    SENT_TO_MANY = "sent-to-many"
    """It was sent to a multicast or broadcast address, from where many would answer."""

    SOURCE_RATE = "source-rate"
    """Its source is answered as often as one source may be."""

    TOTAL_RATE = "total-rate"
    """All sources together are answered as often as they may be."""

    NO_PAUSE = "no-pause"
    """Its source has been answered for very long without a pause, as a loop would be."""

    NOT_SENT = "not-sent"
    """The kernel did not take the answer: no room, no route, a firewall."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was accepted and is served.

    Or it was left unused before its TLS handshake or PROXY header: then :class:`Closed` follows
    at once.

    :ivar peer: the peer's address.
    :ivar tls: whether the connection is encrypted.
    """

    peer: IAddress
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection was accepted by the kernel and reset, unserved. An alert of TLS may precede."""

    reason: Reason
    peer: IAddress | None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection that was :class:`Opened` is over.

    :ivar ending: how it ended.
    :ivar bytes: bytes received from the peer.
    :ivar seconds: seconds from :class:`Opened` to now.
    :ivar unsent: of these bytes, how many never reached the kernel for sending.
        Always 0 where the ending is finished, idle, drained or unused. What the kernel still held
        when the connection was reset is not included: a part of it may have been on its way.
    :ivar peer: the peer's address.
    :ivar tls: whether the connection was encrypted.
    """

    ending: Ending
    bytes: int
    seconds: float
    unsent: int
    peer: IAddress
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Dropped:
    """A datagram was received and is not answered."""

    drop: Drop
    peer: IAddress


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection was accepted, and not refused at once. Only with ``verbose``.

    Over TLS or behind a proxy, its handshake or header is expected now.
    """

    peer: IAddress | None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """A TLS handshake is complete. Only with ``verbose``.

    :ivar peer: the peer's address.
    :ivar version: the version of TLS, such as ``TLSv1.3``.
    :ivar cipher: the cipher suite.
    :ivar seconds: seconds since the connection was accepted.
    """

    peer: IAddress
    version: str
    cipher: str
    seconds: float


@dataclass(frozen=True, slots=True)
class HeaderRead:
    """A PROXY header is complete. Only with ``verbose``.

    :ivar proxy: the address from which the connection comes.
    :ivar peer: the client's address; the proxy's own where the header states none.
    """

    proxy: IAddress
    peer: IAddress


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The peer has finished sending: FIN, or over TLS its closing alert. Only with ``verbose``.

    :ivar bytes: bytes received from the peer.
    :ivar peer: the peer's address.
    :ivar tls: whether the connection is encrypted.
    """

    bytes: int
    peer: IAddress
    tls: bool = False


Event: TypeAlias = (
    Opened | Refused | Closed | Dropped | Accepted | HandshakeDone | HeaderRead | HalfClosed
)
Observer: TypeAlias = Callable[[Event], object]


def ignore(event: Event) -> None:
    """Observe nothing: the observer of who gives none."""


def notify(observer: Observer, event: Event) -> None:
    """Tell ``observer``; that it fails is logged, and costs nobody a byte or an answer."""
    try:
        observer(event)
    except Exception:  # an observer's fault is not its peers'
        log.failure("the observer failed at {told}", told=event)


def broadcast(*observers: Observer) -> Observer:
    """Return an observer that notifies each of ``observers``, even when one of them fails.

    :raises TypeError: for an observer that cannot be called.
    """
    for observer in observers:
        check_callable("broadcast", observer, "callables that take one event")
    if len(observers) == 1:
        return observers[0]

    def tell_them(event: Event) -> None:
        failure: Exception | None = None
        for observer in observers:
            try:
                observer(event)
            except Exception as error:  # raised when all have been told
                failure = error
        if failure is not None:
            raise failure

    return tell_them
