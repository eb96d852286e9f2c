"""The HTTP pages: their content, and what a hostile HTTP client cannot do to them."""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from html.parser import HTMLParser
from typing import Any
from unittest.mock import Mock

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as prometheus
from twisted.internet.address import IPv4Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.metrics import Tally, registry
from echod.daemon.page import StatusPage, readable
from echod.daemon.web import Pages
from echod.daemon.webguard import MAX_CONNECTIONS, TIMEOUT, GuardedSite
from echod.events import Reason, Refused
from echod.factory import EchoFactory
from echod.faultplan import Plan, when
from echod.faults import Faults
from echod.testing import MemoryNetwork, Peer
from echod.transport import unsent
from echod.udp import EchoDatagrams
from tests.daemon.responses import Logged, Reply
from tests.streams.memory import MemoryEndpoints
from tests.streams.server import Peers
from tests.streams.sockets import TCP4Endpoints, TCP6Endpoints, UNIXEndpoints

MIB = 1 << 20
LISTENING = ["tcp 127.0.0.1:7", "tcp [::1]:7"]
KEEP_ALIVE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Site:
    """The pages on a memory network, beside the echo service that they describe."""

    def __init__(
        self,
        listening: list[str] = LISTENING,
        wrapped: bool = False,
        host: str = "192.0.2.1",
        bound: str = "192.0.2.1",
        **echo: Any,
    ) -> None:
        self.network = MemoryNetwork()
        self.tally = Tally()
        self.factory = EchoFactory(clock=self.network, observer=self.tally, **echo)
        self.network.advance(1_000_000_000)  # neither the time since the epoch nor since the start
        datagrams = EchoDatagrams(self.network, self.tally)
        self.status = StatusPage(
            self.network, self.factory, datagrams, self.tally, lambda: listening
        )
        metrics = registry(self.tally, self.factory, datagrams)
        self.pages = Pages(self.status, metrics, lambda: [IPv4Address("TCP", bound, 80)])
        self.site = GuardedSite(self.pages, self.network)
        self.host = host
        serving: Any = WrappingFactory(self.site) if wrapped else self.site
        serving.noisy = False
        self.network.server_endpoint(7).listen(self.factory)
        self.network.server_endpoint(80, host).listen(serving)
        self.peers = Peers()

    def connect(self, port: int = 80) -> Peer:
        self.network.client_endpoint(port, self.host).connect(self.peers)
        return self.peers.peers[-1]

    def send(self, request: bytes, peer: Peer | None = None) -> Peer:
        peer = peer or self.connect()
        peer.send(request)
        self.network.settle()
        return peer

    def get(self, path: str = "/", accept: str = "*/*", method: str = "GET") -> Reply:
        request = f"{method} {path} HTTP/1.1\r\nHost: x\r\nAccept: {accept}\r\n\r\n"
        return Reply(self.send(request.encode()).received)

    def ask(self, name: str) -> Reply:
        """Return the reply to a request with the Host header ``name``."""
        return Reply(self.send(f"GET /metrics HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()).received)

    def open(self) -> list[Peer]:
        """Return the peers whose connections are open."""
        return [peer for peer in self.peers.peers if peer.ended is None]

    def buffered(self) -> int:
        """Return the response bytes that the transports buffer."""
        transports = [each for each in self.network.getWriters() if each.getHost().port == 80]
        return sum(unsent(transport) for transport in transports)


@pytest.mark.parametrize(
    "name",
    [
        *("localhost", "LOCALHOST:80", "localhost.:80", "dev.localhost", "127.0.0.1"),
        *("127.0.0.1:80", "10.1.2.3:9862", "[::1]", "[::1]:9862", "[::ffff:127.0.0.1]:80"),
    ],
)
def test_host_on_loopback(name: str) -> None:
    """A page on loopback is served to a Host of localhost or of any IP address."""
    assert Site(host="127.0.0.1", bound="127.0.0.1").ask(name).status == 200


@pytest.mark.parametrize(
    "name",
    [
        *("attacker.example", "attacker.example:80", "localhost.attacker.example", "xlocalhost"),
        *("127.0.0.1.attacker.example", "localhost:80:90", "", "[::1].attacker.example"),
    ],
)
def test_rebound_host(name: str) -> None:
    """A page on loopback is not served to any other Host (DNS rebinding)."""
    reply = Site(host="127.0.0.1", bound="127.0.0.1").ask(name)
    assert (reply.status, reply.reason) == (421, "Misdirected Request")
    assert "echod_" not in reply.body
    assert name == "" or name not in reply.body


def test_several_hosts() -> None:
    """With two Host headers, both have to be allowed."""
    site = Site(host="127.0.0.1", bound="127.0.0.1")
    assert site.ask("attacker.example\r\nHost: localhost").status == 421


@pytest.mark.parametrize(
    ("host", "bound"), [("192.0.2.1", "192.0.2.1"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "::")]
)
def test_host_off_loopback(host: str, bound: str) -> None:
    """A page on an address other than loopback, or on all addresses, is served to any Host."""
    assert Site(host=host, bound=bound).ask("metrics.example:9862").status == 200


def test_host_on_unix() -> None:
    """A UNIX socket has no IP address, and is served to any Host."""
    pages = Site().pages
    assert pages._serves_host(Mock(getHost=lambda: UNIXAddress(b"/run/echod")))


class SilentTestCase(SynchronousTestCase):
    """None of its tests may log anything."""

    def setUp(self) -> None:
        logged = Logged()
        self.addCleanup(self.assertEqual, logged.__enter__(), [])
        self.addCleanup(logged.__exit__)


class PagesTests(SilentTestCase):
    def test_metrics(self) -> None:
        """/metrics is in the text format, or in OpenMetrics if the client accepts that."""
        site = Site()
        site.send(b"hello", site.connect(7))
        for accept, content_type, parse in (
            ("*/*", "text/plain; version=0.0.4; charset=utf-8", prometheus),
            (
                "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5",
                "application/openmetrics-text; version=",
                openmetrics,
            ),
        ):
            reply = site.get("/metrics", accept)
            self.assertEqual(reply.status, 200)
            self.assertTrue(reply.headers["content-type"].startswith(content_type))
            values = {
                sample.name: sample.value
                for family in parse(reply.body)
                for sample in family.samples
            }
            self.assertEqual(values["echod_received_bytes_total"], 5)

    def test_unknown_formats(self) -> None:
        """An unknown format gets the text format, and is not copied into the response."""
        site = Site()
        for accept in (
            "application/openmetrics-text;version=abc",
            "application/openmetrics-text;version=2.evil",
            "application/openmetrics-text;version=9.9.9",
            "text/plain;version=" + "9" * 5000,
            "text/plain;version=\xb2",
            "application/openmetrics-text;;=;version",
            ",;,=",
        ):
            reply = site.get("/metrics", accept)
            self.assertEqual(
                reply.headers["content-type"], "text/plain; version=0.0.4; charset=utf-8", accept
            )

    def test_text(self) -> None:
        """/ is aligned plain text."""
        site = Site(max_connections=1000)
        peer = site.send(b"x" * 1_000_000, site.connect(7))
        peer.finish()
        site.network.settle()
        site.send(b"x" * 234, site.connect(7))
        site.tally(Refused(Reason.MAX_CONNECTIONS, None))
        site.network.advance(3723.75)
        self.assertLess(datetime.now(timezone.utc) - site.status.since, timedelta(minutes=5))
        site.status.since = datetime(2026, 11, 30, 7, 3, 31, 999_999, timezone.utc)
        reply = site.get()
        self.assertEqual(reply.headers["content-type"], "text/plain; charset=utf-8")
        title, *rest = reply.body.splitlines()
        self.assertRegex(title, r"^echod \d+\.\d+")
        self.assertEqual(
            rest,
            """
Service
  state                     serving
  listening on              tcp 127.0.0.1:7
  listening on              tcp [::1]:7
  since                     2026-11-30T07:03:31Z
  up for                    1:02:03

Connections
  open                      1
  at most                   1,000
  accepted                  2
  bytes received            1,000,234 (1.0 MB)
  bytes sent                1,000,234 (1.0 MB)

Closed
  finished                  1
  idle                      0
  stalled                   0
  drained                   0
  aborted                   0
  unused                    0
  lost                      0
  fault                     0

Refused
  max-connections           1
  max-connections-per-peer  0
  draining                  0
  handshake-timeout         0
  tls-handshake             0
  proxy-header              0
  fault                     0""".splitlines(),
        )

    def test_datagrams(self) -> None:
        """With a UDP listener, the page has sections about datagrams."""
        factory = EchoFactory()
        datagrams: Any = EchoDatagrams(Clock())
        datagrams.ports = [Mock(kernel_dropped=lambda: 3)]
        page = StatusPage(Clock(), factory, datagrams, Tally(), list)
        rows = page.sections()
        self.assertEqual(
            rows["Datagrams"], [("answered", "0"), ("bytes", "0"), ("dropped by the kernel", "3")]
        )
        self.assertIn(("low-port", "0"), rows["Not answered"])

    def test_faults(self) -> None:
        """With a faulty port, the page has its seed, and how often each rule has fired."""
        plan = Plan((when.first(2).refuse(), when.close()), 7)
        faults = Faults(plan, 0, port="tcp 127.0.0.1:7")
        for _ in range(2):
            faults.fire(faults.rules[0], 1, 0, 0)
        clock = Clock()
        page = StatusPage(
            clock, EchoFactory(), EchoDatagrams(clock), Tally(), lambda: LISTENING, [faults]
        )
        refuse, close = (each.text for each in faults.rules)
        self.assertEqual(
            page.sections()["Faults"],
            [(faults.port, line) for line in ("seed 7", f"{refuse}: 2", f"{close}: 0")],
        )

    def test_html(self) -> None:
        """For a browser, / is HTML with the same facts, and each name is a row header."""
        site = Site()
        site.send(b"hello", site.connect(7))
        for accept in ("text/html,application/xhtml+xml,*/*;q=0.8", "TEXT/HTML ; q=0.9"):
            reply = site.get(accept=accept)
            self.assertEqual(reply.headers["content-type"], "text/html; charset=utf-8")
            rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', reply.body)
            plain = site.get().body
            self.assertEqual(
                rows, re.findall(r"(?m)^  (\S+(?: \S+)*)  +(\S.*)$", plain), "not the same facts"
            )
            self.assertIn(("bytes received", "5"), rows)
        self.assertTrue(reply.body.startswith("<!DOCTYPE html>"))

    def test_html_stands_alone(self) -> None:
        """The page has no scripts and no references, and its policy forbids them."""
        reply = Site().get(accept="text/html")
        found: list[tuple[str, str | None]] = []

        class Finder(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                found.append((tag, None))
                found.extend(attrs)

        Finder().feed(reply.body)
        names = {name for name, _ in found}
        self.assertEqual(
            names & {"script", "link", "img", "iframe", "src", "href", "onload"}, set()
        )
        self.assertNotIn("url(", reply.body)
        self.assertEqual(
            reply.headers["content-security-policy"],
            "default-src 'none'; style-src 'unsafe-inline'",
        )

    def test_html_is_escaped(self) -> None:
        """The path of a UNIX socket is escaped."""
        path = "unix /run/<script>alert('&amp;')</script>"
        site = Site([path])
        self.assertIn(path, site.get().body)
        body = site.get(accept="text/html").body
        self.assertNotIn("<script", body)
        self.assertIn("&lt;script&gt;alert('&amp;amp;')&lt;/script&gt;", body)

    def test_headers(self) -> None:
        """No response is cached, sniffed, or reused for another Accept header."""
        site = Site()
        for path in ("/", "/metrics", "/nothing"):
            headers = site.get(path).headers
            self.assertEqual(headers["cache-control"], "no-store")
            self.assertEqual(headers["vary"], "Accept")
            self.assertEqual(headers["x-content-type-options"], "nosniff")
            self.assertIn("date", headers)
            self.assertNotIn("server", headers)

    def test_head(self) -> None:
        """HEAD gets the headers of GET, and no body."""
        site = Site()
        for path in ("/", "/metrics"):
            peer = site.send(b"HEAD %s HTTP/1.1\r\n\r\n" % path.encode())
            head = Reply(peer.received)
            self.assertEqual(head.status, 200)
            self.assertEqual(head.headers["content-type"], site.get(path).headers["content-type"])
            self.assertGreater(int(head.headers["content-length"]), 100)
            self.assertTrue(peer.received.endswith(b"\r\n\r\n"))

    def test_not_found(self) -> None:
        """Any other path is not found, and is not copied into the response."""
        site = Site()
        for path in ("/metricsevil", "//", "/metrics/", "/%2e", "http://x/evil"):
            reply = site.get(path)
            self.assertEqual((reply.status, reply.body), (404, "not found\n"))
            self.assertEqual(reply.headers["content-type"], "text/plain; charset=utf-8")

    def test_asterisk(self) -> None:
        """The target * is for OPTIONS alone (RFC 9110 9.3.7)."""
        for method, status in (("OPTIONS", 200), ("GET", 405)):
            reply = Site().get("*", method=method)
            self.assertEqual((reply.status, reply.body), (status, ""))

    def test_absolute_form(self) -> None:
        """A request from a proxy names the server in its target (RFC 9112 3.2.2)."""
        for target in ("http://x/metrics", "HTTPS://x:9862/metrics", "http://x"):
            self.assertEqual(Site().get(target).status, 200)

    def test_query(self) -> None:
        """A query string is ignored."""
        self.assertEqual(Site().get("/metrics?name[]=x&%ff=%00;=&&").status, 200)

    def test_method_not_allowed(self) -> None:
        """The pages can be read, and nothing else."""
        site = Site()
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "EVIL"):
            reply = site.get("/metrics", method=method)
            self.assertEqual((reply.status, reply.body), (405, "method not allowed\n"))
            self.assertEqual(reply.headers["allow"], "GET, HEAD")

    def test_draining(self) -> None:
        """The page shows that the service drains."""
        site = Site(["unix /x"])
        site.send(b"hello", site.connect(7))
        site.factory.drain(10)
        self.assertIn("draining: nothing new is served", site.get().body)

    def test_no_limit(self) -> None:
        """The page shows that there is no limit, and has no row for a listener if there is none."""
        factory = EchoFactory(max_connections=sys.maxsize)
        clock = Clock()
        page = StatusPage(clock, factory, EchoDatagrams(clock), Tally(), list)
        clock.advance(0.999)
        rows = [row for section in page.sections().values() for row in section]
        self.assertIn(("at most", "no limit"), rows)
        self.assertIn(("up for", "0:00:00"), rows)
        self.assertNotIn("listening on", [name for name, _ in rows])

    def test_readable(self) -> None:
        """Numbers of bytes are exact; large ones are rounded, too."""
        for count, text in (
            (0, "0"),
            (999, "999"),
            (1000, "1,000 (1.0 kB)"),
            (1_234_567_890, "1,234,567,890 (1.2 GB)"),
            (9 * 10**18, "9,000,000,000,000,000,000 (9.0 EB)"),
        ):
            self.assertEqual(readable(count), text)


class ConnectionTests(SilentTestCase):
    def test_keep_alive(self) -> None:
        """A connection is kept alive, even for a Prometheus that scrapes once a minute."""
        site = Site()
        peer = site.connect()
        for count in range(1, 11):
            site.send(b"GET /metrics HTTP/1.1\r\n\r\n", peer)
            self.assertEqual(peer.received.count(b"HTTP/1.1 200 OK"), count)
            site.network.advance(60)
        self.assertIsNone(peer.ended)

    def test_connection_close(self) -> None:
        """With Connection: close or HTTP/1.0, the whole response is followed by FIN."""
        for request in (
            b"GET /metrics HTTP/1.0\r\n\r\n",
            b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n",
        ):
            peer = Site().send(request)
            reply = Reply(peer.received)
            self.assertEqual((reply.status, peer.ended), (200, "FIN"))
            self.assertTrue(reply.body.endswith("\n"))
            self.assertEqual(len(reply.body), int(reply.headers["content-length"]))

    def test_half_close(self) -> None:
        """A client that half-closes after its request gets the response (nc -N)."""
        site = Site()
        peer = site.connect()
        peer.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        peer.finish()
        site.network.settle()
        reply = Reply(peer.received)
        self.assertEqual((reply.status, peer.ended), (200, "FIN"))
        self.assertEqual(len(reply.body), int(reply.headers["content-length"]))

    def test_in_pieces(self) -> None:
        """A request can arrive byte by byte."""
        site = Site()
        peer = site.connect()
        for byte in KEEP_ALIVE:
            site.send(bytes([byte]), peer)
        self.assertEqual(Reply(peer.received).status, 200)

    def test_listener_closes(self) -> None:
        """When the listener closes, responses are sent, and connections are closed with FIN."""
        site = Site()
        idle, asking = site.connect(), site.connect()
        asking.send(KEEP_ALIVE)
        site.network.settle()
        site.network.stop(idle.transport.getPeer())
        site.network.settle()
        self.assertEqual((idle.ended, asking.ended), ("FIN", "FIN"))
        self.assertEqual(Reply(asking.received).status, 200)
        self.assertEqual(site.network.getDelayedCalls(), [])

    def test_no_timers(self) -> None:
        """A site without connections has no timers."""
        self.assertEqual(Site().network.getDelayedCalls(), [])


class HostileTests(SilentTestCase):
    """Attacks. Twisted's own site reads, stores, waits or logs in most of these cases."""

    def assert_serves(self, site: Site) -> None:
        self.assertEqual(site.get("/metrics").status, 200)

    def test_body(self) -> None:
        """A request with a body is refused before the body arrives, and the body is not stored."""
        self.patch(tempfile, "TemporaryFile", None)  # as on a read-only file system
        for wrapped in (False, True):
            for header in (b"Content-Length: 1", b"Content-Length: 9999999", CHUNKED):
                for method in (b"POST", b"GET"):
                    site = Site(wrapped=wrapped)
                    peer = site.send(method + b" / HTTP/1.1\r\n" + header + b"\r\n\r\nbody")
                    self.assertEqual(Reply(peer.received).status, 413)
                    self.assertEqual(peer.ended, "FIN")
                    self.assert_serves(site)

    def test_long_length(self) -> None:
        """A Content-Length above the 4300 digits that int() takes is refused."""
        for wrapped in (False, True):
            for after in (b"", b"Host: x\r\n"):
                site = Site(wrapped=wrapped)
                length = b"Content-Length: " + b"9" * 5000
                peer = site.send(b"GET / HTTP/1.1\r\n" + length + b"\r\n" + after + b"\r\n")
                self.assertEqual((Reply(peer.received).status, peer.ended), (400, "FIN"))
                self.assert_serves(site)

    def test_after_the_last_response(self) -> None:
        """Data that the transport delivers after the last response, as TLS does, is ignored."""
        for last in (
            b"POST / HTTP/1.1\r\n" + CHUNKED + b"\r\n\r\n",
            b"GET / HTTP/1.0\r\n\r\n",
            b"nonsense\r\n\r\n",
            b"x" * 20_000,
        ):
            channel, transport = Site().site.buildProtocol(None), StringTransport()
            channel.makeConnection(transport)
            channel.dataReceived(last)
            self.assertTrue(transport.disconnecting)
            transport.clear()
            channel.dataReceived(b"5\r\nhello\r\n" + KEEP_ALIVE)
            self.assertEqual(transport.value(), b"")

    def test_long_lines(self) -> None:
        """A request line or header above 16 KiB is refused."""
        for start in (b"", b"GET /", b"GET / HTTP/1.1\r\nX: "):
            site = Site()
            short = site.send(start + b"x" * 16_390)
            self.assertEqual((Reply(short.received).status, short.ended), (431, "FIN"))
            long = site.send(start + b"x" * MIB)
            self.assertIsNotNone(long.ended)
            self.assert_serves(site)

    def test_many_headers(self) -> None:
        """1 MiB of headers is refused, in lines of any length."""
        for header in (b"X: y\r\n", b"X: " + b"y" * 1000 + b"\r\n", b" more\r\n"):
            site = Site()
            peer = site.send(b"GET / HTTP/1.1\r\nX: y\r\n" + header * (MIB // len(header)))
            self.assertIsNotNone(peer.ended)
            self.assert_serves(site)

    def test_silent(self) -> None:
        """A client that sends nothing is reset after the timeout."""
        site = Site()
        peer = site.connect()
        site.network.advance(TIMEOUT - 1)
        self.assertIsNone(peer.ended)
        site.network.advance(1)
        self.assertEqual(peer.ended, "RST")
        self.assertEqual(site.network.getDelayedCalls(), [])

    def test_slow(self) -> None:
        """A byte of a request does not restart the timeout."""
        site = Site()
        peer = site.send(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(int(TIMEOUT)):
            self.assertIsNone(peer.ended)
            site.send(b"x", peer)
            site.network.advance(1)
        self.assertEqual(peer.ended, "RST")

    def test_not_reading(self) -> None:
        """A client that sends requests and reads nothing is paused, and reset after the timeout."""
        for burst in (1, 1000):
            site = Site()
            peer = site.connect()
            peer.stall()
            for _ in range(1000):
                site.send(KEEP_ALIVE * burst, peer)
            self.assertLess(site.buffered(), 128 * 1024)
            self.assert_serves(site)
            site.network.advance(TIMEOUT)
            peer.resume()
            site.network.settle()
            self.assertEqual(peer.ended, "RST")
            self.assertEqual(site.buffered(), 0)

    def test_not_reading_the_last_response(self) -> None:
        """A client that does not read the last response is reset after the timeout, too."""
        for last in (b"GET / HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n", b"x" * 20_000):
            site = Site()
            peer = site.connect()
            peer.stall()
            while not site.buffered():
                site.send(KEEP_ALIVE, peer)
            site.send(last, peer)
            site.network.advance(TIMEOUT)
            self.assertEqual(site.network.getWriters(), [])
            self.assertEqual(site.network.getDelayedCalls(), [])

    def test_reading_late(self) -> None:
        """A client that reads late, but within the timeout, gets all responses."""
        site = Site()
        peer = site.connect()
        peer.stall()
        for _ in range(1000):
            site.send(KEEP_ALIVE, peer)
        peer.resume()
        for _ in range(1000):
            site.network.settle()
        replies = 0
        rest = bytes(peer.received)
        while rest:
            reply = Reply(rest)
            self.assertEqual(reply.status, 200)
            replies, rest = replies + 1, reply.rest
        self.assertGreater(replies, 50)

    def test_pipelined(self) -> None:
        """Of pipelined requests the first is answered, and the connection is closed."""
        site = Site()
        peer = site.send(b"GET /metrics HTTP/1.1\r\n\r\n" * 2500)
        reply = Reply(peer.received)
        self.assertEqual((reply.status, reply.rest, peer.ended), (200, b"", "FIN"))
        self.assertEqual(reply.headers["connection"], "close")

    def test_many(self) -> None:
        """Of 1,000 connections left open, the latest few are kept, and the next one is served."""
        for wrapped in (False, True):
            site = Site(wrapped=wrapped)
            for _ in range(500):
                site.connect()
                site.connect()  # in the same turn of the reactor
                site.network.settle()
                kept = [each for each in site.network.getReaders() if each.getHost().port == 80]
                self.assertLessEqual(len(kept), MAX_CONNECTIONS)
            self.assertEqual(site.open(), site.peers.peers[-MAX_CONNECTIONS:])
            self.assert_serves(site)

    def test_least_recently_used(self) -> None:
        """A new connection replaces the least recently used one."""
        site = Site()
        used, slow = site.connect(), site.connect()
        for _ in range(100):
            site.send(KEEP_ALIVE, used)
            site.send(b"x", slow)
            site.connect()
            site.network.settle()
        self.assertIsNone(used.ended)
        self.assertEqual(slow.ended, "RST")

    def test_closed_connections_free_their_places(self) -> None:
        """Connections that are closed do not count against the limit."""
        site = Site()
        first = site.connect()
        for _ in range(2 * MAX_CONNECTIONS):
            site.connect().finish()
            site.network.settle()
        self.assertEqual(site.open(), [first])

    def test_replaced_at_once(self) -> None:
        """The descriptor of a replaced connection is closed before the next accept."""
        site = Site()
        for _ in range(MAX_CONNECTIONS):
            site.connect()
        replaced = site.peers.peers[0].transport.socket.other
        self.assertFalse(replaced._closed)
        site.connect()
        self.assertTrue(replaced._closed)

    def test_resets(self) -> None:
        """A reset, at any moment, leaves no descriptor and no timer."""
        site = Site()
        for request in (b"", b"GET", KEEP_ALIVE, b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"):
            peer = site.connect()
            peer.stall()
            site.send(request, peer)
            peer.abort()
            site.network.settle()
        self.assertEqual(site.network.getReaders(), [])
        self.assertEqual(site.network.getDelayedCalls(), [])


CHUNKED = b"Transfer-Encoding: chunked"

PIECES = st.one_of(
    st.binary(max_size=50),
    st.sampled_from(
        [
            b"GET / HTTP/1.1\r\n",
            b"GET /metrics HTTP/1.1\r\n",
            b"HEAD /metrics HTTP/1.0\r\n",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"\r\n",
            b"\r\n\r\n",
            b"\n",
            b" folded\r\n",
            b"Accept: text/html\r\n",
            b"Accept: application/openmetrics-text;version=",
            b"Content-Length: 5\r\n",
            b"Content-Length: -1\r\n",
            CHUNKED + b"\r\n",
            b"Transfer-Encoding: identity\r\n",
            b"Expect: 100-continue\r\n",
            b"Connection: close\r\n",
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
            b"Cookie: a=b; =; ;\xff\r\n",
            b"Host: \x00\r\n",
            b"Authorization: Basic ???\r\n",
            b": empty\r\n",
            b"5\r\nhello\r\n0\r\n\r\n",
            b"x" * 17_000,
        ]
    ),
)


@given(st.lists(st.lists(PIECES, max_size=12), max_size=5), st.booleans(), st.booleans())
def test_any_bytes(segments: list[list[bytes]], finish: bool, wrapped: bool) -> None:
    """For any input, nothing is logged, nothing stays buffered, and the next client is served."""
    site = Site(wrapped=wrapped)
    with Logged() as logged:
        peer = site.connect()
        for pieces in segments:
            site.send(b"".join(pieces), peer)
        if finish and peer.ended is None:
            peer.finish()
            site.network.settle()
            assert peer.ended is not None
        assert site.buffered() == 0
        assert site.get("/metrics").status == 200
        site.network.advance(TIMEOUT)
        assert site.open() == []
        assert site.network.getDelayedCalls() == []
    assert logged == []


@pytest.mark.parametrize("kind", [MemoryEndpoints, TCP4Endpoints, TCP6Endpoints, UNIXEndpoints])
@pytest_twisted.ensureDeferred
async def test_over_sockets(kind: Callable[[], Any]) -> None:
    """Over sockets: keep-alive, a half-close, the limit on connections, and the timeout."""
    ends = kind()
    tally = Tally()
    factory = EchoFactory(clock=ends.clock, observer=tally)
    datagrams = EchoDatagrams(ends.clock)
    status = StatusPage(ends.clock, factory, datagrams, tally, list)
    pages = Pages(status, registry(tally, factory, datagrams))
    await ends.listen(GuardedSite(pages, ends.clock))
    with Logged() as logged:
        peer: Peer = await ends.connect(Peers())
        for _ in range(2):
            peer.send(b"HEAD /metrics HTTP/1.1\r\n\r\n")
            await ends.until(peer.when_received(len(peer.received) + 1))
        peer.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        peer.finish()
        await ends.until(peer.when_ended())
        assert peer.received.count(b"HTTP/1.1 200 OK") == 3
        assert peer.received.endswith(b"\n")
        peers = [await ends.connect(Peers()) for _ in range(MAX_CONNECTIONS + 5)]
        for replaced in peers[:5]:
            await ends.until(replaced.when_ended())
        await ends.advance(TIMEOUT)
        for silent in peers:
            await ends.until(silent.when_ended())
    await ends.stop()
    assert logged == []
