"""Connect a TCP socket, and time it from connect(2) until the kernel reports success.

Twisted's own endpoint calls connect(2) in a later turn of the reactor, and notices success in
another turn. On a short path, this takes several times as long as the handshake.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IWriteDescriptor
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.sockets import DEFAULTS, SocketOptions
from echod.client.target import Address
from echod.client.tls import with_tls


@implementer(IWriteDescriptor)
class ConnectAttempt:
    """One attempt to connect.

    :param reactor: the clock, and the reactor that watches the socket.
    :param family: AF_INET or AF_INET6.
    :param address: as for connect(2).
    :param options: of the socket.
    :param endpoint: an endpoint of Twisted whose TLS the connection has; ``None``: no TLS.
    :ivar seconds: how long it took.
    """

    seconds = 0.0

    def __init__(
        self,
        reactor: Any,
        family: int,
        address: Address,
        options: SocketOptions = DEFAULTS,
        endpoint: object = None,
    ) -> None:
        self._reactor = reactor
        self._endpoint = endpoint
        self._options = options
        self._family = family
        self._address = address

    def connect(self, protocol: Any) -> Deferred[Any]:
        """Connect ``protocol``. This can be cancelled.

        :return: fires with the protocol; fails with :class:`OSError`.
        :raises OSError: if no descriptor is left, or the kernel refuses an option.
        """
        self._protocol = protocol
        self._done: Deferred[Any] = Deferred(lambda _: self._cancel())
        self._socket = self._options.open(self._family, socket.SOCK_STREAM)
        self._begun = self._reactor.seconds()
        number = self._socket.connect_ex(self._address)
        if number in (0, errno.EINPROGRESS):
            self._reactor.addWriter(self)
        else:
            self._finish(number)
        return self._done

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return the name for log messages."""
        return "echod-client"

    def doWrite(self) -> None:
        """Finish: the attempt has succeeded or failed."""
        self.seconds = self._reactor.seconds() - self._begun
        self._reactor.removeWriter(self)
        self._finish(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Finish: a reactor may report the failure this way (EPOLLERR)."""
        self.doWrite()

    def _finish(self, number: int) -> None:
        factory: Any = Factory.forProtocol(lambda: self._protocol)
        if self._endpoint is not None:
            factory = with_tls(self._endpoint, factory)
        with self._socket:  # the reactor duplicates it
            try:
                if number:
                    raise OSError(number, os.strerror(number))
                self._reactor.adoptStreamConnection(self.fileno(), self._family, factory)
            except OSError as error:  # also if out of descriptors, or reset since
                self._done.errback(error)
            else:
                self._done.callback(self._protocol)

    def _cancel(self) -> None:
        self._reactor.removeWriter(self)
        self._socket.close()
