"""Events of a ping: small records, whose field names are those of the JSON output."""

from __future__ import annotations

from typing import Final, NamedTuple

PENDING: Final = "pending"
LOST: Final = "lost"
NOT_SENT: Final = "not_sent"
"""States of a message without an answer."""


class Connected(NamedTuple):
    """The first connection is made, or the UDP socket is open.

    :ivar address: the address that was reached, as text.
    :ivar connect_seconds: how long it took to connect; ``None`` over UDP.
    :ivar tls_handshake_seconds: how long the TLS handshake took, or ``None`` without TLS.
    """

    address: str
    connect_seconds: float | None = None
    tls_handshake_seconds: float | None = None


class Moved(NamedTuple):
    """Over UDP, an address refuses, and the next one is used.

    :ivar refusing: the old address.
    :ivar address: the new address.
    """

    refusing: str
    address: str


class Reply(NamedTuple):
    """A reply.

    :ivar number: of the message, from 0 on.
    :ivar seconds: the round-trip time.
    :ivar damaged_bytes: the number of wrong bytes.
    :ivar late: whether it came after the timeout.
    """

    number: int
    seconds: float
    damaged_bytes: int
    late: bool


class Unanswered(NamedTuple):
    """A message has no answer when the next one is due, or will have none.

    :ivar number: of the message, from 0 on.
    :ivar state: ``pending``; ``lost``, after the timeout or with its connection; or ``not_sent``:
        it was due without a connection.
    """

    number: int
    state: str


class Disconnected(NamedTuple):
    """The connection is lost: an outage begins.

    :ivar error: a word of :mod:`echod.client.errors`.
    """

    error: str


class Reconnected(NamedTuple):
    """The first reply after an outage has come.

    :ivar seconds: from the loss of the connection until the connection of this reply was made.
    :ivar not_sent: messages that were due in this time. They count as sent and lost.
    """

    seconds: float
    not_sent: int


Event = Connected | Moved | Reply | Unanswered | Disconnected | Reconnected
