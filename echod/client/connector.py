"""The way to a target: its addresses, the one that answers, and connections to that."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import connectProtocol
from twisted.internet.interfaces import IReactorTime, IStreamClientEndpoint

from echod.client.channels import DatagramChannel, EpollReader, StreamChannel
from echod.client.protocol import EchoClient
from echod.client.target import Address, Target, name_of, resolve, udp_socket
from echod.client.tcp import TCPEndpoint

T = TypeVar("T")


class Connector:
    """How to get to one target.

    :param reactor: connects, and tells the time.
    :param target: where to.
    :param timeout: seconds that finding the address may take, and then each connection.
    :ivar address: what was reached, as it is written; "" before.
    :ivar protocol: ``tcp``, ``udp``, or the type of an endpoint.
    :ivar looks_up: whether the time to connect has that to look up a name in it, as it has where
        Twisted's endpoints do both.
    :ivar moved: called with an address that refuses datagrams, and the next one.
    :ivar errors: what went wrong, by the words of :mod:`echod.client.errors`.
    """

    def __init__(self, reactor: Any, target: Target, timeout: float) -> None:
        self.reactor = reactor
        self.clock: IReactorTime = reactor
        self.target = target
        self.timeout = timeout
        self.address = ""
        self.errors: Counter[str] = Counter()
        self._addresses: list[tuple[int, Address]] = []
        self.looks_up = False
        self.moved: Callable[[str, str], None] = lambda *_: None
        self._endpoint: IStreamClientEndpoint | None = None
        if target.host is None:
            self._endpoint = target.endpoint(reactor)
            self.protocol = target.text.partition(":")[0].lower()
            self.looks_up = self.protocol != "unix"
        else:
            self.protocol = "udp" if target.udp else "tcp"

    async def find(self) -> None:
        """Learn the addresses of a target that has a name.

        :raises socket.gaierror: where it has none.
        :raises TimeoutError: of Twisted's, where nobody says so in time.
        """
        if self.target.host is not None:
            self._addresses = await self._in_time(resolve(self.reactor, self.target), self.timeout)

    async def channel(self, sockets: EpollReader) -> StreamChannel:
        """Return a connection, with TLS one whose handshake is done.

        :raises Exception: why there is none; :mod:`echod.client.errors` has a word for it.
        """
        return await self._first(lambda *connector: self._channel(sockets, *connector))

    async def client(self, client: EchoClient, ready: Deferred[None]) -> None:
        """Connect ``client``, and wait until it is ready.

        :raises Exception: as above.
        """

        async def connect(endpoint: IStreamClientEndpoint, timeout: float) -> None:
            begun = self.clock.seconds()
            await self._in_time(connectProtocol(endpoint, client), timeout)
            self.address = name_of(client.transport.getPeer())
            try:
                left = max(0.0, timeout - (self.clock.seconds() - begun))
                await self._in_time(ready, left)
            except BaseException:
                client.transport.abortConnection()
                raise

        await self._first(connect)

    def datagrams(
        self, sockets: EpollReader, dont_fragment: bool, is_new: Callable[[], bool] = lambda: True
    ) -> DatagramChannel:
        """Return a UDP socket for the first address to which there is a way.

        :param dont_fragment: have no datagram cut into fragments.
        :param is_new: tells whether no reply has come yet. Then an address that refuses, as shows
            only after a datagram (ICMP), is given up for the next, as it is over TCP.
        :raises OSError: where there is none.
        """
        sock, address = self._udp_socket(dont_fragment)

        def another() -> socket.socket | None:
            nonlocal address
            refusing = address
            if self._addresses[0][1] is refusing:  # and no other channel has gone on before
                if len(self._addresses) == 1 or not is_new():
                    return None
                del self._addresses[0]
            try:
                sock, address = self._udp_socket(dont_fragment)
            except OSError:
                return None
            self.moved(name_of(refusing), self.address)
            return sock

        return DatagramChannel(sock, sockets, self.errors, another)

    def _udp_socket(self, dont_fragment: bool) -> tuple[socket.socket, Address]:
        while True:
            family, address = self._addresses[0]
            try:
                sock = udp_socket(family, address, dont_fragment)
            except OSError:
                if len(self._addresses) == 1:
                    raise
                del self._addresses[0]
            else:
                self.address = name_of(address)
                return sock, address

    async def _first(self, connect: Callable[[IStreamClientEndpoint, float], Awaitable[T]]) -> T:
        """Return what connects to the first address that answers, and from then on to that one.

        Each has its share of the time: one that says nothing does not take that of the next.
        """
        if self._endpoint is not None:
            return await connect(self._endpoint, self.timeout)
        give_up = self.clock.seconds() + self.timeout
        while True:
            family, address = self._addresses[0]
            share = max(0.0, give_up - self.clock.seconds()) / len(self._addresses)
            try:
                found = await connect(TCPEndpoint(self.reactor, family, address), share)
            except Exception:
                if len(self._addresses) == 1:
                    raise
                del self._addresses[0]
            else:
                del self._addresses[1:]
                return found

    async def _channel(
        self, sockets: EpollReader, endpoint: IStreamClientEndpoint, timeout: float
    ) -> StreamChannel:
        channel = StreamChannel(self.clock, sockets)
        begun = self.clock.seconds()
        try:
            await self._in_time(connectProtocol(endpoint, channel), timeout)
            self.address = name_of(channel.transport.getPeer())
            left = max(0.0, timeout - (self.clock.seconds() - begun))
            await self._in_time(channel.ready, left)
        except BaseException:
            channel.abort()
            raise
        took = endpoint.seconds if isinstance(endpoint, TCPEndpoint) else None
        channel.connect_seconds = channel.connected_at - begun if took is None else took
        if channel.secure:
            channel.handshake_seconds = self.clock.seconds() - channel.connected_at
        return channel

    def _in_time(self, deferred: Deferred[T], timeout: float) -> Deferred[T]:
        return deferred.addTimeout(timeout, self.clock)
