"""Events of connections and datagrams, and the observers that are notified of them.

An observer is any callable that takes one event. The core emits events and never imports their
consumers: the daemon's logs and metrics are observers, and an application can add its own.
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
    """How a connection ended: the word that logs, metrics and tests use."""

    FINISHED = "finished"
    """The peer finished sending, every buffered byte was sent, then FIN (RFC 9293 3.6).

    Also a connection that the embedding application closed with ``loseConnection``.
    """

    IDLE = "idle"
    """No byte arrived for the idle timeout, and nothing was buffered: closed with FIN."""

    STALLED = "stalled"
    """Bytes were buffered, and the peer did not read for the stall timeout: RST."""

    DRAINED = "drained"
    """Closed with FIN after :meth:`EchoFactory.drain`, as soon as the connection was quiet."""

    ABORTED = "aborted"
    """Reset: at the deadline of a drain, by the embedding application, after an exception, or
    because the peer sent nothing but TLS records without data."""

    UNUSED = "unused"
    """The peer closed or reset the connection without having sent a byte: a health check, or a
    port scan.

    Over TLS, without a byte after the handshake. Also a connection that ended before its TLS
    handshake or PROXY header had begun.
    """

    LOST = "lost"
    """The peer reset the connection, or it timed out in the network.

    Also a connection that the peer closed over a transport without half-close: it is unknown how
    much the peer received. Also one that ended without TLS's closing alert: it is unknown how much
    the peer wanted to send.
    """

    FAULT = "fault"
    """A rule of a fault plan closed or reset the connection (:mod:`echod.faults`)."""


class Reason(Enum):
    """Why a connection was refused: a limit, or an error in its TLS handshake or PROXY header."""

    MAX_CONNECTIONS = "max-connections"
    MAX_CONNECTIONS_PER_PEER = "max-connections-per-peer"
    DRAINING = "draining"
    HANDSHAKE_TIMEOUT = "handshake-timeout"
    """Its TLS handshake or PROXY header was not complete in time."""
    TLS_HANDSHAKE = "tls-handshake"
    """Its TLS handshake failed, or ended early."""
    PROXY_HEADER = "proxy-header"
    """It did not begin with a valid PROXY header."""
    FAULT = "fault"
    """A rule of a fault plan refused it, or ended its TLS handshake (:mod:`echod.faults`)."""


class Drop(Enum):
    """Why a datagram got no reply: the word that logs, metrics and tests use."""

    NO_PORT = "no-port"
    """Its source port is 0, to which no reply can be sent (RFC 768)."""

    LOW_PORT = "low-port"
    """Its source port is below 1024, where a service may reply to the reply."""

    NFS_PORT = "nfs-port"
    """Its source port is 2049: NFS, the one service above 1024 that trusts source addresses."""

    OWN_PORT = "own-port"
    """Its source port is one that this service itself listens on, on any host."""

    MULTICAST = "multicast"
    BROADCAST = "broadcast"
    """Its source is a multicast or broadcast address."""

    UNSPECIFIED = "unspecified"
    """Its source is 0.0.0.0 or ``::``, the address of a host that has none yet."""

    SENT_TO_MANY = "sent-to-many"
    """Its destination is a multicast or broadcast address, so that many hosts would reply."""

    SOURCE_RATE = "source-rate"
    """Its source exceeds the rate of replies to one source."""

    TOTAL_RATE = "total-rate"
    """All sources together exceed the total rate of replies."""

    NO_PAUSE = "no-pause"
    """Its source has sent for very long without a pause, as a loop does."""

    NOT_SENT = "not-sent"
    """The kernel refused the reply: no buffer space, no route, or a firewall.

    On a port with faults, too many delayed replies can wait (:mod:`echod.faultdatagrams`).
    """

    FAULT = "fault"
    """A rule of a fault plan dropped it (:mod:`echod.faults`)."""


@dataclass(frozen=True, slots=True)
class Opened:
    """A connection was accepted and is served.

    A connection that ended before its TLS handshake or PROXY header had begun also has this event;
    :class:`Closed` follows at once.

    :ivar peer: the peer's address.
    :ivar tls: whether the connection is encrypted.
    """

    peer: IAddress
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Refused:
    """A connection was accepted by the kernel, and reset without service.

    A TLS alert may precede the reset.
    """

    reason: Reason
    peer: IAddress | None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Closed:
    """A connection that was :class:`Opened` has ended.

    :ivar ending: how it ended.
    :ivar bytes: bytes received from the peer.
    :ivar seconds: seconds from :class:`Opened` to now.
    :ivar unsent: how many of these bytes were never passed to the kernel for sending; 0 where the
        ending is finished, idle, drained or unused. Bytes in the kernel's send queue at a reset
        are not included: some of them may have been in flight. On a port with faults, the bytes
        received less those sent, whatever the ending: negative if more were sent.
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
    """A datagram was received and gets no reply."""

    drop: Drop
    peer: IAddress


@dataclass(frozen=True, slots=True)
class Accepted:
    """A connection was accepted, and not refused at once. Emitted only with ``verbose``.

    Over TLS or behind a proxy, the handshake or header comes next.
    """

    peer: IAddress | None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class HandshakeDone:
    """A TLS handshake is complete. Emitted only with ``verbose``.

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
    """A PROXY header is complete. Emitted only with ``verbose``.

    :ivar proxy: the address of the socket's peer, the proxy.
    :ivar peer: the client's address, or the proxy's own if the header has none.
    """

    proxy: IAddress
    peer: IAddress


@dataclass(frozen=True, slots=True)
class HalfClosed:
    """The peer has finished sending (FIN, or TLS's closing alert). Emitted only with ``verbose``.

    :ivar bytes: bytes received from the peer.
    :ivar peer: the peer's address.
    :ivar tls: whether the connection is encrypted.
    """

    bytes: int
    peer: IAddress
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Fired:
    """A rule of a fault plan has fired.

    :ivar rule: the rule, as text.
    :ivar connection: the number of the connection or datagram on its port, from 1, counted from the
        time when the plan was set.
    :ivar offset: bytes of the reply before the place of the fault; 0 for a datagram.
    :ivar port: the name of the port.
    """

    rule: str
    connection: int
    offset: int
    port: str = ""


Event: TypeAlias = (
    Opened | Refused | Closed | Dropped | Accepted | HandshakeDone | HeaderRead | HalfClosed | Fired
)
Observer: TypeAlias = Callable[[Event], object]


def ignore(event: Event) -> None:
    """Ignore ``event``: the default observer."""


def notify(observer: Observer, event: Event) -> None:
    """Call ``observer`` with ``event``. If it raises an exception, log that, and continue."""
    try:
        observer(event)
    except Exception:  # an observer's bug must not end the connection
        log.failure("the observer failed at {observed}", observed=event)


def broadcast(*observers: Observer) -> Observer:
    """Return an observer that calls each of ``observers``, even if one of them fails.

    :raises TypeError: for an observer that cannot be called.
    """
    for observer in observers:
        check_callable("broadcast", observer, "callables that take one event")
    if len(observers) == 1:
        return observers[0]

    def notify_each(event: Event) -> None:
        failure: Exception | None = None
        for observer in observers:
            try:
                observer(event)
            except Exception as error:  # raised after the last observer was called
                failure = error
        if failure is not None:
            raise failure

    return notify_each
