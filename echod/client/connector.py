"""Connect to a target: resolve its name, and use the first address that answers."""

from __future__ import annotations

import errno
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.error import ConnectError
from twisted.internet.interfaces import IProtocolFactory, IReactorTime, IWriteDescriptor
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.client.datagrams import DatagramChannel
from echod.client.epoll import EpollReader
from echod.client.sockets import DEFAULTS, SocketOptions
from echod.client.streams import StreamChannel
from echod.client.target import Address, Target, address_text, resolve

RETRY: Final = 0.01
"""Seconds between two attempts to connect to a UNIX socket whose backlog is full. A blocking
connect(2) waits until there is space; nothing tells that to a non-blocking one."""


@implementer(IWriteDescriptor)
@dataclass(eq=False)
class ConnectAttempt:
    """One attempt to connect a TCP socket, timed from connect(2) until the kernel reports success.

    Twisted's own endpoint calls connect(2) in a later turn of the reactor, and notices success in
    another turn. On a short path, this takes several times as long as the handshake.

    :ivar reactor: the clock, and the reactor that watches the socket.
    :ivar family: AF_INET or AF_INET6.
    :ivar address: as for connect(2).
    :ivar options: of the socket.
    :ivar endpoint: an endpoint of Twisted whose TLS the connection has; ``None``: no TLS.
    :ivar seconds: how long it took.
    """

    reactor: Any
    family: int
    address: Address
    options: SocketOptions = DEFAULTS
    endpoint: object = None
    seconds: float = 0.0

    def connect(self, factory: IProtocolFactory) -> Deferred[None]:
        """Connect the protocol of ``factory``. This can be cancelled.

        :return: fails with :class:`OSError`.
        :raises OSError: if no descriptor is left, or the kernel refuses an option.
        """
        self._factory = factory if self.endpoint is None else with_tls(self.endpoint, factory)
        self._done: Deferred[None] = Deferred(lambda _: self._cancel())
        self._socket = self.options.open(self.family, socket.SOCK_STREAM)
        self._begun = self.reactor.seconds()
        number = self._socket.connect_ex(self.address)
        if number in (0, errno.EINPROGRESS):
            self.reactor.addWriter(self)
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
        self.seconds = self.reactor.seconds() - self._begun
        self.reactor.removeWriter(self)
        self._finish(self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR))

    def connectionLost(self, reason: Failure) -> None:  # noqa: ARG002 - Twisted's signature
        """Finish: a reactor may report the failure this way (EPOLLERR)."""
        self.doWrite()

    def _finish(self, number: int) -> None:
        with self._socket:  # the reactor duplicates it
            try:
                if number:
                    raise OSError(number, os.strerror(number))
                self.reactor.adoptStreamConnection(self.fileno(), self.family, self._factory)
            except OSError as error:  # also if out of descriptors, or reset since
                self._done.errback(error)
            else:
                self._done.callback(None)

    def _cancel(self) -> None:
        self.reactor.removeWriter(self)
        self._socket.close()


def with_tls(endpoint: Any, factory: IProtocolFactory) -> IProtocolFactory:
    """Return a factory of TLS transports around the protocols of ``factory``.

    :param endpoint: of the type ``tls``.
    """
    from twisted.protocols.tls import TLSMemoryBIOProtocol  # noqa: PLC0415 - needs the extra tls

    wrapped: Any = endpoint._wrapperFactory(factory)
    # Twisted's default, a subclass of this, encrypts in the next turn of the reactor.
    wrapped.protocol = TLSMemoryBIOProtocol
    return wrapped  # type: ignore[no-any-return]


def is_backlog_full(protocol: str, error: ConnectError) -> bool:
    """Return whether a UNIX socket has no space for another connection (EAGAIN in connect(2)).

    Twisted tries again, and reports that the connection was closed.
    """
    return protocol == "unix" and isinstance(error.args[0], Failure)


class Connector:
    """Connections and UDP sockets to one target.

    :param reactor: connects; its clock times the connections.
    :param target: where to connect to.
    :param timeout: seconds that resolving the name may take, and then each connection.
    :param options: of the sockets; they do not apply to connections that Twisted makes.
    :ivar address: the address that was reached, as text; ``""`` before.
    :ivar started_at: the time of day when the connector was made.
    :ivar protocol: ``tcp``, ``udp``, or the type of a Twisted endpoint.
    :ivar includes_lookup: whether the time to connect includes the name lookup: Twisted does both
        in one.
    :ivar on_address_change: called with the old and the new address when the old one refuses
        datagrams.
    :ivar errors: counts errors by the words of :mod:`echod.client.errors`.
    """

    def __init__(
        self, reactor: Any, target: Target, timeout: float, options: SocketOptions = DEFAULTS
    ) -> None:
        self.reactor = reactor
        self.clock: IReactorTime = reactor
        self.target = target
        self.timeout = timeout
        self.options = options
        self.address = ""
        self.started_at = datetime.now(timezone.utc)
        self.errors: Counter[str] = Counter()
        self.includes_lookup = False
        self.on_address_change: Callable[[str, str], None] = lambda *_: None
        self._addresses: list[tuple[int, Address]] = []
        self._endpoint: Any = None
        self.protocol = "udp" if target.udp else "tcp"
        if target.host is None or target.description:
            self._endpoint = target.endpoint(reactor)
            self.protocol = target.text.partition(":")[0].lower()
            self.includes_lookup = target.host is None and self.protocol != "unix"

    async def resolve(self) -> None:
        """Resolve the target's name, if it has one and that is not done.

        :raises socket.gaierror: if the name has no address.
        :raises twisted.internet.defer.TimeoutError: if there is no answer in time.
        """
        if self.target.host is not None:
            found = resolve(self.reactor, self.target, self.options.family)
            self._addresses = await found.addTimeout(self.timeout, self.clock)

    async def channel(self, reader: EpollReader) -> StreamChannel:
        """Return a connection; over TLS, its handshake is complete.

        :raises Exception: if there is none: see :func:`echod.client.errors.error_word`.
        """
        channel = StreamChannel(self.clock, reader)
        channel.connect_seconds = await self.connect(channel)
        return channel

    async def connect(self, protocol: Any) -> float:
        """Connect ``protocol`` to the first address that answers, and drop the other addresses.

        Each address has an equal share of the time that is left, so that a silent one does not
        take the time of the next.

        :param protocol: has a Deferred ``ready`` that fires when it is connected and a TLS
            handshake is complete.
        :return: seconds that it took to connect, without the TLS handshake.
        :raises Exception: if there is no connection: see :func:`echod.client.errors.error_word`.
        """
        if self.target.host is None:
            return await self._connect_endpoint(protocol)
        deadline = self.clock.seconds() + self.timeout
        while True:
            attempt = ConnectAttempt(
                self.reactor, *self._addresses[0], self.options, self._endpoint
            )
            share = max(0.0, deadline - self.clock.seconds()) / len(self._addresses)
            try:
                await self._connect(attempt, protocol, share)
            except Exception as error:
                if len(self._addresses) == 1 or isinstance(error, CancelledError):
                    raise
                del self._addresses[0]
            else:
                del self._addresses[1:]
                return attempt.seconds

    def datagrams(
        self, reader: EpollReader, is_unanswered: Callable[[], bool] = lambda: True
    ) -> DatagramChannel:
        """Return a UDP socket for the first address that has a route.

        :param is_unanswered: returns whether no reply has come yet. Until then, an address that
            refuses is dropped for the next one, as over TCP; ICMP reports that only after a
            datagram was sent.
        :raises OSError: if no address has a route.
        """
        sock, address = self._udp_socket()

        def next_socket() -> socket.socket | None:
            nonlocal address
            refusing = address
            if self._addresses[0][1] is refusing:  # no other channel has dropped it yet
                if len(self._addresses) == 1 or not is_unanswered():
                    return None
                del self._addresses[0]
            try:
                sock, address = self._udp_socket()
            except OSError:
                return None
            self.on_address_change(address_text(refusing), self.address)
            return sock

        return DatagramChannel(sock, reader, self.errors, next_socket)

    def _udp_socket(self) -> tuple[socket.socket, Address]:
        while True:
            family, address = self._addresses[0]
            try:
                sock = self.options.open(family, socket.SOCK_DGRAM, address)
            except OSError:
                if len(self._addresses) == 1:
                    raise
                del self._addresses[0]
            else:
                self.address = address_text(address)
                return sock, address

    async def _connect_endpoint(self, protocol: Any) -> float:
        """Connect by Twisted's endpoint; return the seconds that it took, with all its attempts."""
        waited, begun = 0.0, self.clock.seconds()
        while True:
            left = max(0.0, self.timeout - waited)
            try:
                return waited + await self._connect(self._endpoint, protocol, left)
            except ConnectError as error:
                if not is_backlog_full(self.protocol, error):
                    raise
            await deferLater(self.clock, RETRY)
            waited = self.clock.seconds() - begun

    async def _connect(self, endpoint: Any, protocol: Any, timeout: float) -> float:
        begun = self.clock.seconds()
        await connectProtocol(endpoint, protocol).addTimeout(timeout, self.clock)
        seconds = self.clock.seconds() - begun
        self.address = address_text(protocol.transport.getPeer())
        try:
            await protocol.ready.addTimeout(max(0.0, timeout - seconds), self.clock)
        except BaseException:
            protocol.transport.abortConnection()
            raise
        return seconds
