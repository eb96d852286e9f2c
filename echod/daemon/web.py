"""The numbers over HTTP: ``/metrics`` for Prometheus, ``/`` for people.

Whoever reaches the port must not disturb the echo, which the same reactor serves. So a
connection is answered one request at a time, has a time for each, and a bound on what it
can make the process hold; there are few of them at once, and none makes a line in the log.
"""

# mypy: allow-untyped-calls
# because most of twisted.web is not annotated, and is called by super() here

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from typing import Final

from prometheus_client.exposition import choose_encoder
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, HTTPFactory, Request, datetimeToString
from zope.interface import implementer

from echod.daemon.metrics import Tally, registry
from echod.daemon.page import facts, html, text
from echod.factory import EchoFactory
from echod.transport import IStreamTransport, reset
from echod.udp import EchoDatagrams

MAX_CONNECTIONS: Final = 16
"""HTTP connections at once. One more takes the place of the one that is unused longest."""

TIMEOUT: Final = 75.0
"""Seconds from opening, or the last answer, to the end of the next request. More than a
minute, so that the connection of a Prometheus that asks once a minute lives on."""

HEADERS: Final = {
    b"Cache-Control": b"no-store",
    b"Content-Security-Policy": b"default-src 'none'; style-src 'unsafe-inline'",
    b"Vary": b"Accept",
    b"X-Content-Type-Options": b"nosniff",
}

# What choose_encoder() of prometheus_client can be asked: it repeats the version that it is
# told in its answer, and raises TypeError for one that is not a number.
FORMAT: Final = re.compile(
    r"\s*(application/openmetrics-text|text/plain)\s*"
    r"(;\s*(version=(0\.0\.[14]|1\.0\.0)|escaping=[a-z0-9-]+|charset=utf-8|q=[0-9.]+)\s*)*",
    re.ASCII,
)

# How a proxy asks for a path, which servers take too (RFC 9112 3.2.2).
ABSOLUTE: Final = re.compile(rb"^https?://[^/]*/?", re.IGNORECASE)


LOCAL_HOST: Final = re.compile(
    rb"(([a-z0-9-]+\.)*localhost\.?|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?", re.IGNORECASE
)
"""Host headers that no name service can point elsewhere: localhost and the names below it
(RFC 6761 6.3), and IP addresses (RFC 3986 3.2.2)."""


def is_loopback(address: IAddress) -> bool:
    """Return whether ``address`` is a loopback address of IPv4 or IPv6."""
    ip = ip_address_of(address)
    return ip is not None and ip.is_loopback


def is_wildcard(address: IAddress) -> bool:
    """Return whether a port at ``address`` listens on all addresses of the machine."""
    ip = ip_address_of(address)
    return ip is not None and ip.is_unspecified


def ip_address_of(address: IAddress) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address in ``address``, IPv4 in its own form; ``None`` for other kinds."""
    if not isinstance(address, IPv4Address | IPv6Address):
        return None
    ip = ipaddress.ip_address(address.host)
    return getattr(ip, "ipv4_mapped", None) or ip


class Answer(Request):
    """One request, and the whole answer to it at once."""

    channel: Channel

    def process(self) -> None:
        """Answer. Nothing that the client sent is repeated."""
        page = self.channel.factory.pages.get(ABSOLUTE.sub(b"/", self.path))
        accept = b",".join(self.requestHeaders.getRawHeaders(b"Accept", []))
        content_type, body = "text/plain; charset=utf-8", b"not found\n"
        if not self.channel.knows_host(self.requestHeaders.getRawHeaders(b"Host", [])):
            self.setResponseCode(421, b"Misdirected Request")  # RFC 9110 15.5.20
            body = b"ask for localhost, or for an IP address of this machine\n"
        elif page is None:
            self.setResponseCode(404)
        elif self.method not in (b"GET", b"HEAD"):
            self.setResponseCode(405)
            self.setHeader(b"Allow", b"GET, HEAD")
            body = b"method not allowed\n"
        else:
            content_type, body = page(accept.decode("latin-1"))
        for name, value in HEADERS.items():
            self.setHeader(name, value)
        self.setHeader(b"Date", datetimeToString())
        self.setHeader(b"Content-Type", content_type.encode())
        self.setHeader(b"Content-Length", b"%d" % len(body))
        self.write(body)
        self.finish()


@implementer(IHalfCloseableProtocol)
class Channel(HTTPChannel):
    """One HTTP connection, which holds little and does not last."""

    factory: MetricsSite
    transport: IStreamTransport
    requestFactory = Answer
    _over = False

    def connectionMade(self) -> None:
        """Begin, in place of the connection that is unused longest, if there are many."""
        super().connectionMade()
        self.factory.used(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse ``data``, unless the last answer has been given."""
        if not self._over:
            super().dataReceived(data)

    def knows_host(self, names: Sequence[bytes]) -> bool:
        """Return whether a request with these Host headers is answered.

        A web page may have its own name resolve to 127.0.0.1, and would then read this one (DNS
        rebinding). On loopback, Host has to be an IP address or localhost, unless the service
        listens on all addresses: then its operator may have given it any name.
        """
        address = self.transport.getHost()
        if not is_loopback(address) or any(map(is_wildcard, self.factory.listening_on())):
            return True
        return all(LOCAL_HOST.fullmatch(name) for name in names)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - Twisted's signature
        """Refuse a line of more than 16 KiB."""
        self._refuse(b"431 Request Header Fields Too Large")

    def allHeadersReceived(self) -> None:
        """Refuse a request that has a body, before any of it is read.

        Of requests that come at once the first is answered alone: they are small, and
        what they ask for is not.
        """
        if self.length != 0:
            self._refuse(b"413 Content Too Large")
            return
        super().allHeadersReceived()
        if self.clearLineBuffer():
            self.persistent = 0
            self.requests[-1].setHeader(b"Connection", b"close")

    def requestDone(self, request: Answer) -> None:
        """Go on to the next request."""
        self.factory.used(self)
        super().requestDone(request)

    def pauseProducing(self) -> None:
        """Read no more until the client has read its answers.

        Twisted's does so only between requests, where nothing is ever written.
        """
        super().pauseProducing()
        self.transport.pauseProducing()

    def resetTimeout(self) -> None:
        """Do nothing: not each byte buys time, but each answer."""

    def timeoutConnection(self) -> None:
        """Cut it off. Twisted's logs that, and waits for the client to read."""
        self.cut()

    def loseConnection(self) -> None:
        """Read no more, and close when all is sent, which may not take for ever either."""
        self._over = True
        self.setTimeout(self.factory.timeOut)
        super().loseConnection()

    def readConnectionLost(self) -> None:
        """Answer what the client has asked, although it has finished sending, and close."""
        self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: the sending side is never closed before the whole connection."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Forget it."""
        self.factory.forget(self)
        super().connectionLost(reason)

    def cut(self) -> None:
        """Reset the connection."""
        self.factory.forget(self)
        reset(self.transport)

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n")
        self.transport.write(b"Connection: close\r\n\r\n")
        self.loseConnection()


class MetricsSite(HTTPFactory):
    """Serve the two pages.

    :param reactor: tells the time.
    :param factory: serves the echo.
    :param datagrams: answers datagrams.
    :param tally: observes both.
    :param listening: returns the names of what is listened on.
    :param listening_on: returns the addresses on which the two pages are served.

    :ivar since: when it was made, by the time of day.
    """

    noisy = False
    protocol = Channel  # type: ignore[assignment]  # Twisted's is narrower

    def __init__(
        self,
        *,
        reactor: IReactorTime,
        factory: EchoFactory,
        datagrams: EchoDatagrams,
        tally: Tally,
        listening: Callable[[], Sequence[str]],
        listening_on: Callable[[], Sequence[IAddress]] = list,
    ) -> None:
        super().__init__(reactor=reactor, timeout=TIMEOUT)
        self._factory = factory
        self._datagrams = datagrams
        self._tally = tally
        self._listening = listening
        self.listening_on = listening_on
        self._registry = registry(tally, factory, datagrams)
        self.since = datetime.now(timezone.utc)
        self._start = reactor.seconds()
        # In the order of their last use.
        self._channels: dict[Channel, None] = {}
        self.pages = {b"/": self.status, b"/metrics": self.metrics}

    def startFactory(self) -> None:
        """Do nothing. Twisted's opens a log of requests, and ticks each second for its dates."""

    def stopFactory(self) -> None:
        """Close all connections: the ports have stopped listening."""
        for channel in list(self._channels):
            channel.loseConnection()

    def used(self, channel: Channel) -> None:
        """Note that ``channel`` was opened, or has had an answer. :class:`Channel` calls this."""
        if channel not in self._channels and len(self._channels) >= MAX_CONNECTIONS:
            next(iter(self._channels)).cut()
        self.forget(channel)
        self._channels[channel] = None

    def forget(self, channel: Channel) -> None:
        """Note that ``channel`` is gone. :class:`Channel` calls this."""
        self._channels.pop(channel, None)

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the type and body of ``/metrics``, in the format that Prometheus asks for."""
        formats = ",".join(each for each in accept.split(",") if FORMAT.fullmatch(each))
        encode, content_type = choose_encoder(formats)
        return content_type, encode(self._registry)

    def status(self, accept: str) -> tuple[str, bytes]:
        """Return the type and body of ``/``: HTML for who asks for it, or else plain text."""
        sections = facts(
            factory=self._factory,
            datagrams=self._datagrams,
            tally=self._tally,
            listening=self._listening(),
            since=self.since,
            uptime=self.reactor.seconds() - self._start,
        )
        types = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
        if "text/html" in types:
            return "text/html; charset=utf-8", html(sections)
        return "text/plain; charset=utf-8", text(sections)
