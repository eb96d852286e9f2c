"""Limits for ``twisted.web``: bound the memory and the time that each HTTP client can take.

It also has what all HTTP resources of the daemon share: the check of the Host header, and the
headers of a response.

The HTTP server shares its reactor with the echo service, so no HTTP client may take much
memory or time from it. Twisted's own channel allows more than that:

- It answers pipelined requests of a client that never reads, and buffers all responses. A full
  buffer does not stop it from reading while it handles a request, and its buffer becomes full only
  while it handles one.
- It stores a request body, of any size, before the request is processed.
- Each byte that arrives restarts its timeout, and a response that is never read has none.
- It accepts any number of connections, and logs each timeout.

:class:`GuardedChannel` and :class:`GuardedSite` override these, and nothing else.
"""

# mypy: allow-untyped-calls
# because most of twisted.web is not annotated, and super() calls it here

from __future__ import annotations

import re
from typing import Any, Final

from twisted.internet.interfaces import IHalfCloseableProtocol, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel, Request
from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET, Site
from zope.interface import implementer

from echod.transport import IStreamTransport, reset

MAX_CONNECTIONS: Final = 16
"""Concurrent HTTP connections. A further one replaces the least recently used."""

TIMEOUT: Final = 75.0
"""Seconds from the accept, or from the last response, to the end of the next request. Above a
minute, so that the connection of a Prometheus server that scrapes once a minute is kept."""

HEADERS: Final = {
    b"Cache-Control": b"no-store",
    b"Content-Security-Policy": b"default-src 'none'; style-src 'unsafe-inline'",
    b"Vary": b"Accept",
    b"X-Content-Type-Options": b"nosniff",
}
"""The headers of every response."""

ABSOLUTE: Final = re.compile(rb"^https?://[^/]*/?", re.IGNORECASE)
"""The absolute form of a request target, which proxies send and servers accept (RFC 9112 3.2.2)."""

LOCAL_HOST: Final = re.compile(
    rb"(([a-z0-9-]+\.)*localhost\.?|[0-9.]+|\[[0-9a-f:.]+\])(:[0-9]+)?", re.IGNORECASE
)
"""Host headers that no name server can point elsewhere: localhost and the names below it
(RFC 6761 6.3), and IP addresses (RFC 3986 3.2.2)."""


def is_local_host(request: Request) -> bool:
    """Return whether each Host header is localhost or an IP address.

    A web page can have its own name resolve to 127.0.0.1 and then read this server (DNS
    rebinding), but its name stays in the Host header.
    """
    names = request.requestHeaders.getRawHeaders(b"Host", [])
    return all(LOCAL_HOST.fullmatch(name) for name in names)


def respond(request: Any, content_type: str, body: bytes) -> int:
    """Send the whole response at once, and return what ``Resource.render`` has to return."""
    request.responseHeaders.removeHeader(b"Server")
    for name, value in HEADERS.items():
        request.setHeader(name, value)
    request.setHeader(b"Content-Type", content_type.encode())
    request.setHeader(b"Content-Length", b"%d" % len(body))
    # Twisted would log a body that is returned for a HEAD request.
    request.write(body)
    request.finish()
    return NOT_DONE_YET


@implementer(IHalfCloseableProtocol)
class GuardedChannel(HTTPChannel):
    """An HTTP connection that answers one request at a time, within :data:`TIMEOUT`."""

    site: GuardedSite
    transport: IStreamTransport
    _closing = False

    def connectionMade(self) -> None:
        """Take the place of the least recently used connection, if there are too many."""
        super().connectionMade()
        self.site.used(self)

    def dataReceived(self, data: bytes) -> None:
        """Parse ``data``, unless the last response is written: over TLS, data can still arrive."""
        if not self._closing:
            super().dataReceived(data)

    def lineLengthExceeded(self, line: bytes) -> None:  # noqa: ARG002 - Twisted's signature
        """Refuse a line above 16 KiB."""
        self._refuse(b"431 Request Header Fields Too Large")

    def headerReceived(self, line: bytes) -> bool:
        """Refuse a Content-Length that int() refuses: Twisted's channel raises its ValueError."""
        try:
            return bool(super().headerReceived(line))
        except ValueError:
            self._refuse(b"400 Bad Request")
            return False

    def allHeadersReceived(self) -> None:
        """Refuse a body that the site does not take. Of pipelined requests, answer the first.

        Pipelined requests are small and their responses are large, so one read of 64 KiB would
        otherwise buffer megabytes of responses. The connection is closed after the first response,
        and after that to a request with a body, because another request may follow the body.
        """
        refusal = self.site.refuse_body(self.requests[-1], self.length)
        if refusal:
            self._refuse(refusal)
            self.length = None  # Twisted processes a request whose length is 0
            return
        super().allHeadersReceived()
        if self.length or self.clearLineBuffer():
            self.persistent = 0
            self.requests[-1].setHeader(b"Connection", b"close")

    def requestDone(self, request: Request) -> None:
        """Go on to the next request."""
        self.site.used(self)
        super().requestDone(request)

    def pauseProducing(self) -> None:
        """Read nothing more until the client has read its responses.

        Twisted's channel stops reading only if it handles no request at that moment. But its buffer
        becomes full while it handles one, because it writes only then.
        """
        super().pauseProducing()
        self.transport.pauseProducing()

    def resetTimeout(self) -> None:
        """Do nothing: a response restarts the timeout, a byte from the client does not."""

    def timeoutConnection(self) -> None:
        """Reset the connection. Twisted's channel logs this, and waits for the client to read."""
        self.cut()

    def loseConnection(self) -> None:
        """Close when everything is sent, or reset after :data:`TIMEOUT`."""
        self._closing = True
        self.setTimeout(TIMEOUT)
        super().loseConnection()

    def readConnectionLost(self) -> None:
        """Close when the responses are sent: the client has half-closed (``nc -N``)."""
        self.loseConnection()

    def writeConnectionLost(self) -> None:
        """Do nothing: this side never half-closes."""

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Free the connection's place."""
        self.site.forget(self)
        super().connectionLost(reason)

    def cut(self) -> None:
        """Reset the connection, and free its place at once."""
        self.site.forget(self)
        reset(self.transport)

    def _refuse(self, status: bytes) -> None:
        self.transport.write(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n")
        self.transport.write(b"Connection: close\r\n\r\n")
        self.loseConnection()


class GuardedSite(Site):
    """A site that holds at most :data:`MAX_CONNECTIONS`, and keeps no log of requests.

    :param resource: the root of the resources.
    :param reactor: the clock of all timeouts.
    """

    noisy = False
    max_connections = MAX_CONNECTIONS
    protocol = GuardedChannel  # type: ignore[assignment]  # Twisted's is narrower

    def __init__(self, resource: IResource, reactor: IReactorTime) -> None:
        super().__init__(resource, reactor=reactor, timeout=TIMEOUT)
        self._channels: dict[GuardedChannel, None] = {}  # the least recently used first

    def startFactory(self) -> None:
        """Do nothing. Twisted's site opens a log, and wakes up each second for its dates."""

    def stopFactory(self) -> None:
        """Close all connections: the listeners are closed."""
        for channel in list(self._channels):
            channel.loseConnection()

    def refuse_body(self, request: Request, length: int | None) -> bytes:  # noqa: ARG002 - subclasses choose by it
        """Return the status with which to refuse the body of ``request``; empty: read the body.

        :param length: bytes; ``None`` if the body is chunked.
        """
        return b"" if length == 0 else b"413 Content Too Large"

    def used(self, channel: GuardedChannel) -> None:
        """Record that ``channel`` is new, or has sent a response."""
        if channel not in self._channels and len(self._channels) >= MAX_CONNECTIONS:
            next(iter(self._channels)).cut()
        self.forget(channel)
        self._channels[channel] = None

    def forget(self, channel: GuardedChannel) -> None:
        """Record that ``channel`` is closed."""
        self._channels.pop(channel, None)
