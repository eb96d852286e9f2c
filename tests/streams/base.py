"""The base class of all pairs of endpoints."""

from __future__ import annotations

import socket
from typing import Any, ClassVar, cast

from twisted.internet.error import ConnectionAborted
from twisted.python.failure import Failure

from echod.testing import Peer
from echod.transport import beneath


class Endpoints:
    """A server endpoint and a client endpoint of one kind of stream.

    A subclass provides ``listen``, ``connect``, ``until``, ``turn``, ``advance``, ``stop``,
    the attribute ``clock``, and the ``options`` of the EchoFactory.
    """

    knows_reset = True
    knows_addresses = True
    begins_with: ClassVar[list[type]] = []
    """The events between Accepted and Opened."""

    def send_unseen(self, peer: Peer, data: bytes) -> None:
        """Deliver ``data`` to the server's kernel without an iteration of the reactor."""
        cast(Any, peer.transport).getHandle().send(data)

    def send_urgent(self, peer: Peer, data: bytes) -> None:
        """Deliver ``data`` to the server's kernel, its last byte urgent (RFC 6093)."""
        cast(Any, peer.transport).getHandle().send(data, socket.MSG_OOB)

    def reset_unseen(self, peer: Peer) -> None:
        """Deliver a reset to the server's kernel without an iteration of the reactor."""
        cast(Any, beneath(peer.transport)).connectionLost(Failure(ConnectionAborted()))
