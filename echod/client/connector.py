"""Connect to a target: resolve its name, and use the first address that answers."""

from __future__ import annotations

import functools
import socket
from collections import Counter
from collections.abc import Callable
from datetime import datetime, timezone
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from echod.client.datagrams import DatagramChannel
from echod.client.epoll import EpollReader
from echod.client.sockets import DEFAULTS, SocketOptions, udp_socket
from echod.client.streams import StreamChannel
from echod.client.target import Address, Target, address_text, resolve
from echod.client.tcp import ConnectAttempt

T = TypeVar("T")


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
        self._endpoint: IStreamClientEndpoint | None = None
        if target.host is None or target.description:
            self._endpoint = target.endpoint(reactor)
            self.protocol = target.text.partition(":")[0].lower()
            self.includes_lookup = target.host is None and self.protocol != "unix"
        else:
            self.protocol = "udp" if target.udp else "tcp"

    async def resolve(self) -> None:
        """Resolve the target's name, if it has one and that is not done.

        :raises socket.gaierror: if the name has no address.
        :raises twisted.internet.defer.TimeoutError: if there is no answer in time.
        """
        if self.target.host is not None:
            found = resolve(self.reactor, self.target, self.options.family)
            self._addresses = await self._in_time(found, self.timeout)

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
            connect = functools.partial(connectProtocol, self._endpoint)
            return await self._until_ready(connect, protocol, self.timeout)
        deadline = self.clock.seconds() + self.timeout
        while True:
            attempt = ConnectAttempt(
                self.reactor, *self._addresses[0], self.options, self._endpoint
            )
            share = max(0.0, deadline - self.clock.seconds()) / len(self._addresses)
            try:
                await self._until_ready(attempt.connect, protocol, share)
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
                sock = udp_socket(family, address, self.options)
            except OSError:
                if len(self._addresses) == 1:
                    raise
                del self._addresses[0]
            else:
                self.address = address_text(address)
                return sock, address

    async def _until_ready(
        self, connect: Callable[[Any], Deferred[Any]], protocol: Any, timeout: float
    ) -> float:
        begun = self.clock.seconds()
        await self._in_time(connect(protocol), timeout)
        seconds = self.clock.seconds() - begun
        self.address = address_text(protocol.transport.getPeer())
        try:
            await self._in_time(protocol.ready, max(0.0, timeout - seconds))
        except BaseException:
            protocol.transport.abortConnection()
            raise
        return seconds

    def _in_time(self, deferred: Deferred[T], timeout: float) -> Deferred[T]:
        return deferred.addTimeout(timeout, self.clock)
