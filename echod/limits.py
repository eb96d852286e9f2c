"""Connection limits: how many connections are served at once, in total and per peer."""

from __future__ import annotations

import os
import resource
import socket
import sys
from collections import Counter
from collections.abc import Collection, Sized
from contextlib import suppress
from typing import Final

from twisted.internet.interfaces import IAddress
from twisted.internet.selectreactor import SelectReactor

from echod.addresses import peer_key
from echod.events import Reason

SPARE_DESCRIPTORS: Final = 16
"""File descriptors that the default limit keeps free: for listening sockets, log files, name
look-ups, and the connection that is being refused."""

FD_SETSIZE: Final = 1024
"""The lowest file descriptor that select(2) cannot watch."""


class ConnectionLimits:
    """Limits on the connections that are served at once.

    :param opened: collections of all open connections.

    :ivar total: connections, 1 or more.
    :ivar per_peer: connections of one peer (:func:`~echod.addresses.peer_key`), 1 or more;
        ``None``: no limit.
    """

    def __init__(self, total: int, per_peer: int | None, opened: Collection[Sized]) -> None:
        self.total = total
        self.per_peer = per_peer
        self._opened = opened
        self._keys: dict[object, str] = {}
        self._counts: Counter[str | None] = Counter()

    def exceeded(self, peer: IAddress | None) -> Reason | None:
        """Return the limit that one more connection would exceed, if any.

        :param peer: its address; ``None``: not known, and under no limit per peer.
        """
        if sum(map(len, self._opened)) >= self.total:
            return Reason.MAX_CONNECTIONS
        if self.per_peer is not None and self._counts[peer_key(peer)] >= self.per_peer:
            return Reason.MAX_CONNECTIONS_PER_PEER
        return None

    def admit(self, connection: object, peer: IAddress | None) -> None:
        """Count ``connection`` for ``peer``, if there is a limit per peer."""
        key = None if self.per_peer is None else peer_key(peer)
        if key is not None:
            self._keys[connection] = key
            self._counts[key] += 1

    def replace(self, connection: object, successor: object) -> None:
        """Count ``successor`` in place of ``connection``."""
        if connection in self._keys:
            self._keys[successor] = self._keys.pop(connection)

    def release(self, connection: object) -> None:
        """Stop counting ``connection``; ignore one that is not counted."""
        key = self._keys.pop(connection, None)
        if key is not None:
            self._counts[key] -= 1
            if not self._counts[key]:
                del self._counts[key]


def descriptors_left(reactor: object = None) -> int:
    """Return the number of connections for which file descriptors are left, at least 1.

    RLIMIT_NOFILE (getrlimit(2)) limits them, and FD_SETSIZE if ``reactor`` uses select(2).
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        limit = sys.maxsize
    if isinstance(reactor, SelectReactor):
        limit = min(limit, FD_SETSIZE)
    if limit == sys.maxsize:
        return limit
    return max(1, limit - descriptors_in_use() - SPARE_DESCRIPTORS)


def descriptors_in_use() -> int:
    """Return the number of open file descriptors; without /dev/fd, the lowest free descriptor.

    A chroot may have no /dev/fd.
    """
    with suppress(OSError):
        return len(os.listdir("/dev/fd"))
    with suppress(OSError), socket.socket(socket.AF_UNIX) as lowest_free:
        return lowest_free.fileno()
    return sys.maxsize  # none is left
