"""The HTTP pages: ``/metrics`` in the Prometheus formats, and ``/``, the status page."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Final

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from twisted.internet.interfaces import IAddress
from twisted.web.resource import Resource

from echod.daemon.listeners.interfaces import is_loopback
from echod.daemon.metrics import Tally, registry
from echod.daemon.page import StatusPage, html, text
from echod.daemon.webguard import (
    ABSOLUTE,
    MAX_CONNECTIONS,
    GuardedSite,
    is_local_host,
    respond,
)

__all__ = ["MAX_CONNECTIONS", "GuardedSite", "Pages", "StatusPage", "Tally", "registry"]

WILDCARDS: Final = ("0.0.0.0", "::")
"""The addresses of listeners on all addresses of the machine."""

PLAIN: Final = "text/plain; charset=utf-8"

FORMAT: Final = re.compile(
    r"\s*(application/openmetrics-text|text/plain)\s*"
    r"(;\s*(version=(0\.0\.[14]|1\.0\.0)|escaping=[a-z0-9-]+|charset=utf-8|q=[0-9.]+)\s*)*",
    re.ASCII,
)
"""Media types that are passed to choose_encoder() of prometheus_client, which copies any version
into its answer, and raises TypeError for one that is not a number."""


class Pages(Resource):
    """The root resource, which serves both pages.

    :param status: the status page.
    :param metrics: the metrics.
    :param listening_on: returns the addresses of the HTTP listeners.
    """

    isLeaf = True

    def __init__(
        self,
        status: StatusPage,
        metrics: CollectorRegistry,
        listening_on: Callable[[], Sequence[IAddress]] = list,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._status = status
        self._metrics = metrics
        self._listening_on = listening_on
        self._pages = {b"/": self.status, b"/metrics": self.metrics}

    def render(self, request: Any) -> int:
        """Answer a request. The response repeats nothing that the client sent."""
        page = self._pages.get(ABSOLUTE.sub(b"/", request.path))
        content_type = PLAIN
        if not self._serves_host(request):
            request.setResponseCode(421, b"Misdirected Request")  # RFC 9110 15.5.20
            body = b"the Host header has to be localhost or an IP address\n"
        elif page is None:
            request.setResponseCode(404)
            body = b"not found\n"
        elif request.method not in (b"GET", b"HEAD"):
            request.setResponseCode(405)
            request.setHeader(b"Allow", b"GET, HEAD")
            body = b"method not allowed\n"
        else:
            accept = b",".join(request.requestHeaders.getRawHeaders(b"Accept", []))
            content_type, body = page(accept.decode("latin-1"))
        return respond(request, content_type, body)

    def metrics(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the body of ``/metrics``, in an accepted format."""
        formats = ",".join(each for each in accept.split(",") if FORMAT.fullmatch(each))
        encode, content_type = choose_encoder(formats)
        return content_type, encode(self._metrics)

    def status(self, accept: str) -> tuple[str, bytes]:
        """Return the content type and the body of ``/``: HTML where accepted, or plain text."""
        sections = self._status.sections()
        types = [each.partition(";")[0].strip().lower() for each in accept.split(",")]
        if "text/html" in types:
            return "text/html; charset=utf-8", html(sections)
        return PLAIN, text(sections)

    def _serves_host(self, request: Any) -> bool:
        """Return whether the Host headers of ``request`` name this server.

        On a loopback address, Host has to be an IP address or localhost. A server that listens on
        all addresses may have any name.
        """
        host = getattr(request.getHost(), "host", None)
        if host is None or not is_loopback(host):
            return True
        if any(getattr(each, "host", None) in WILDCARDS for each in self._listening_on()):
            return True
        return is_local_host(request)
