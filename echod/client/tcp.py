"""TCP connections whose making is timed from the first packet to the third, and nothing else.

Twisted's own endpoint connects in a later turn of the reactor than it was asked in, and finds out
in one more: on a short path, that takes several times as long as the handshake.
"""

from __future__ import annotations

import errno
import os
import socket
from typing import Any

from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import (
    IAddress,
    IProtocolFactory,
    IStreamClientEndpoint,
    IWriteDescriptor,
)
from twisted.internet.protocol import Factory
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.target import Address


class Built(Factory):
    """Builds what ``factory`` does, once, and knows it."""

    noisy = False
    protocol: Any = None

    def __init__(self, factory: IProtocolFactory) -> None:
        self._factory = factory

    def buildProtocol(self, addr: IAddress | None) -> Any:
        """Build it."""
        self.protocol = self._factory.buildProtocol(addr)  # type: ignore[arg-type]
        return self.protocol


@implementer(IStreamClientEndpoint, IWriteDescriptor)
class TCPEndpoint:
    """Connects once.

    :param reactor: tells the time, and when the kernel is done.
    :param family: AF_INET or AF_INET6.
    :param address: as connect(2) takes it.
    :ivar seconds: how long it took, from connect(2) until this was told that it is done.
    """

    seconds = 0.0

    def __init__(self, reactor: Any, family: int, address: Address) -> None:
        self._reactor = reactor
        self._family = family
        self._address = address

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[Any]:
        """Connect.

        :return: fires with the protocol; fails with :class:`OSError`. Cancelled, it connects no
            more.
        """
        done: Deferred[Any] = Deferred(lambda _: self._leave())
        self._done, self._factory = done, protocolFactory
        try:
            self._socket = socket.socket(self._family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            return fail(error)
        self._begun = self._reactor.seconds()
        number = self._socket.connect_ex(self._address)
        if number in (0, errno.EINPROGRESS):
            self._reactor.addWriter(self)
        else:
            self._socket.close()
            done.errback(OSError(number, os.strerror(number)))
        return done

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._socket.fileno()

    def logPrefix(self) -> str:
        """Return what a log calls it."""
        return "echod-client"

    def doWrite(self) -> None:
        """Find out how it went."""
        self.seconds = self._reactor.seconds() - self._begun
        number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        self._reactor.removeWriter(self)
        if number:
            self._socket.close()
            self._done.errback(OSError(number, os.strerror(number)))
            return
        built = Built(self._factory)
        try:
            self._reactor.adoptStreamConnection(self.fileno(), self._family, built)
        except OSError as error:  # no descriptor is left, or the service has just reset it
            self._done.errback(error)
        else:
            self._done.callback(built.protocol)
        finally:
            self._socket.close()  # the reactor has one of its own

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Find out how it went: the reactor says so where it failed (EPOLLERR)."""
        self.doWrite()

    def _leave(self) -> None:
        self._reactor.removeWriter(self)
        self._socket.close()
