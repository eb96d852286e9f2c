"""The numbers over HTTP, in memory: what is told, and what a client cannot do."""

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
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.policies import WrappingFactory
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.metrics import Tally, registry
from echod.daemon.page import StatusPage, readable
from echod.daemon.web import Pages, is_loopback, is_wildcard
from echod.daemon.webguard import MAX_CONNECTIONS, TIMEOUT, GuardedSite
from echod.events import Reason, Refused
from echod.factory import EchoFactory
from echod.testing import MemoryNetwork, Peer
from echod.transport import unsent
from echod.udp import EchoDatagrams
from tests.streams.memory import MemoryEndpoints
from tests.streams.server import Peers
from tests.streams.sockets import TCP4Endpoints, TCP6Endpoints, UNIXEndpoints

MIB = 1 << 20
LISTENING = ["tcp 127.0.0.1:7", "tcp [::1]:7"]
KEEP_ALIVE = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


class Reply:
    """What came first of ``received``."""

    def __init__(self, received: bytes) -> None:
        head, _, rest = received.partition(b"\r\n\r\n")
        status, *lines = head.decode().split("\r\n")
        _, code, self.reason = status.split(" ", 2)
        self.status = int(code)
        self.headers = {name.lower(): value for name, value in (x.split(": ", 1) for x in lines)}
        length = int(self.headers.get("content-length", 0))
        self.body, self.rest = rest[:length].decode(), rest[length:]


class Site:
    """The pages in memory, the echo that it tells of, and what is logged meanwhile."""

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
        self.network.advance(1_000_000_000)  # not the epoch's clock, nor that of the start
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
        """Return the reply to a request that names the host ``name``."""
        return Reply(self.send(f"GET /metrics HTTP/1.1\r\nHost: {name}\r\n\r\n".encode()).received)

    def open(self) -> list[Peer]:
        """Return the peers whose connections are open."""
        return [peer for peer in self.peers.peers if peer.ended is None]

    def held(self) -> int:
        """Return the bytes of answers that transports hold."""
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
    """A page on loopback is served under localhost, and under any IP address."""
    assert Site(host="127.0.0.1", bound="127.0.0.1").ask(name).status == 200


@pytest.mark.parametrize(
    "name",
    [
        *("attacker.example", "attacker.example:80", "localhost.attacker.example", "xlocalhost"),
        *("127.0.0.1.attacker.example", "localhost:80:90", "", "[::1].attacker.example"),
    ],
)
def test_rebound_host(name: str) -> None:
    """A name that a web page has pointed at loopback reads nothing (DNS rebinding)."""
    reply = Site(host="127.0.0.1", bound="127.0.0.1").ask(name)
    assert (reply.status, reply.reason) == (421, "Misdirected Request")
    assert "echod_" not in reply.body
    assert name == "" or name not in reply.body


def test_several_hosts() -> None:
    """A second Host header does not let the first one pass."""
    site = Site(host="127.0.0.1", bound="127.0.0.1")
    assert site.ask("attacker.example\r\nHost: localhost").status == 421


@pytest.mark.parametrize(
    ("host", "bound"), [("192.0.2.1", "192.0.2.1"), ("127.0.0.1", "0.0.0.0"), ("127.0.0.1", "::")]
)
def test_host_in_public(host: str, bound: str) -> None:
    """A page that its operator has opened to a network is served under any name."""
    assert Site(host=host, bound=bound).ask("metrics.example:9862").status == 200


def test_ip_addresses() -> None:
    """IPv4 that reached a port for both families counts as IPv4, and a UNIX socket has none."""
    assert is_loopback(IPv6Address("TCP", "::ffff:127.0.0.1", 1))
    assert is_loopback(IPv6Address("TCP", "::1", 1))
    assert not is_loopback(UNIXAddress(b"/run/echod"))
    assert is_wildcard(IPv6Address("TCP", "::", 1))
    assert not is_wildcard(IPv4Address("TCP", "127.0.0.1", 1))


class Logged:
    """Within, keeps all that anything logs."""

    def __enter__(self) -> list[LogEvent]:
        self.events: list[LogEvent] = []
        globalLogPublisher.addObserver(self.events.append)
        return self.events

    def __exit__(self, *_: object) -> None:
        globalLogPublisher.removeObserver(self.events.append)


class SilentTestCase(SynchronousTestCase):
    """Whatever its tests do, nothing is logged."""

    def setUp(self) -> None:
        logged = Logged()
        self.addCleanup(self.assertEqual, logged.__enter__(), [])
        self.addCleanup(logged.__exit__)


class PagesTests(SilentTestCase):
    def test_metrics(self) -> None:
        """/metrics is the text format, and OpenMetrics for who asks for it."""
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

    def test_odd_formats(self) -> None:
        """Formats that there are not get the plain one; no word of theirs is repeated."""
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
        """/ is the facts in aligned plain text."""
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

Refused
  max-connections           1
  max-connections-per-peer  0
  draining                  0
  handshake-timeout         0
  tls-handshake             0
  proxy-header              0""".splitlines(),
        )

    def test_datagrams(self) -> None:
        """Where datagrams are answered, the page tells of them too."""
        factory = EchoFactory()
        datagrams: Any = EchoDatagrams(Clock())
        datagrams.ports = [Mock(kernel_dropped=lambda: 3)]
        page = StatusPage(Clock(), factory, datagrams, Tally(), list)
        rows = page.sections()
        self.assertEqual(
            rows["Datagrams"], [("answered", "0"), ("bytes", "0"), ("dropped by the kernel", "3")]
        )
        self.assertIn(("low-port", "0"), rows["Not answered"])

    def test_html(self) -> None:
        """To a browser / is the same facts in HTML, each name the header of its row."""
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
        """The page has no script and needs nothing from anywhere; nor may it."""
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
        """Whatever a UNIX socket is called, it is text."""
        path = "unix /run/<script>alert('&amp;')</script>"
        site = Site([path])
        self.assertIn(path, site.get().body)
        body = site.get(accept="text/html").body
        self.assertNotIn("<script", body)
        self.assertIn("&lt;script&gt;alert('&amp;amp;')&lt;/script&gt;", body)

    def test_headers(self) -> None:
        """No answer is kept by a cache, guessed at by a browser, or the same for each Accept."""
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
        """There is nothing else, and the answer repeats nothing of the question."""
        site = Site()
        for path in ("/metricsevil", "//", "/metrics/", "/%2e", "http://x/evil"):
            reply = site.get(path)
            self.assertEqual((reply.status, reply.body), (404, "not found\n"))
            self.assertEqual(reply.headers["content-type"], "text/plain; charset=utf-8")

    def test_asterisk(self) -> None:
        """The target * is for OPTIONS alone, which describes the server (RFC 9110 9.3.7)."""
        for method, status in (("OPTIONS", 200), ("GET", 405)):
            reply = Site().get("*", method=method)
            self.assertEqual((reply.status, reply.body), (status, ""))

    def test_absolute_form(self) -> None:
        """A request from a proxy names the server in its target (RFC 9112 3.2.2)."""
        for target in ("http://x/metrics", "HTTPS://x:9862/metrics", "http://x"):
            self.assertEqual(Site().get(target).status, 200)

    def test_query(self) -> None:
        """A query changes nothing."""
        self.assertEqual(Site().get("/metrics?name[]=x&%ff=%00;=&&").status, 200)

    def test_method_not_allowed(self) -> None:
        """The pages are read and nothing else."""
        site = Site()
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "EVIL"):
            reply = site.get("/metrics", method=method)
            self.assertEqual((reply.status, reply.body), (405, "method not allowed\n"))
            self.assertEqual(reply.headers["allow"], "GET, HEAD")

    def test_draining(self) -> None:
        """While the service drains, the page says so."""
        site = Site(["unix /x"])
        site.send(b"hello", site.connect(7))
        site.factory.drain(10)
        self.assertIn("draining: nothing new is served", site.get().body)

    def test_no_limit(self) -> None:
        """Where nothing limits the connections, the page says so; with no port, it has no row."""
        factory = EchoFactory(max_connections=sys.maxsize)
        clock = Clock()
        page = StatusPage(clock, factory, EchoDatagrams(clock), Tally(), list)
        clock.advance(0.999)
        rows = [row for section in page.sections().values() for row in section]
        self.assertIn(("at most", "no limit"), rows)
        self.assertIn(("up for", "0:00:00"), rows)
        self.assertNotIn("listening on", [name for name, _ in rows])

    def test_readable(self) -> None:
        """Numbers of bytes are exact, and long ones are rounded beside."""
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
        """A connection is used again and again, as Prometheus does, once a minute too."""
        site = Site()
        peer = site.connect()
        for count in range(1, 11):
            site.send(b"GET /metrics HTTP/1.1\r\n\r\n", peer)
            self.assertEqual(peer.received.count(b"HTTP/1.1 200 OK"), count)
            site.network.advance(60)
        self.assertIsNone(peer.ended)

    def test_connection_close(self) -> None:
        """Who asks to close, or speaks HTTP/1.0, gets the whole answer and then FIN."""
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
        """Who finishes sending with its question still gets the answer (nc -N)."""
        site = Site()
        peer = site.connect()
        peer.send(b"GET /metrics HTTP/1.1\r\n\r\n")
        peer.finish()
        site.network.settle()
        reply = Reply(peer.received)
        self.assertEqual((reply.status, peer.ended), (200, "FIN"))
        self.assertEqual(len(reply.body), int(reply.headers["content-length"]))

    def test_in_pieces(self) -> None:
        """A request may come byte by byte."""
        site = Site()
        peer = site.connect()
        for byte in KEEP_ALIVE:
            site.send(bytes([byte]), peer)
        self.assertEqual(Reply(peer.received).status, 200)

    def test_listening_ends(self) -> None:
        """When the port stops listening, connections are closed with FIN, answers sent."""
        site = Site()
        idle, asking = site.connect(), site.connect()
        asking.send(KEEP_ALIVE)
        site.network.settle()
        site.network.stop(idle.transport.getPeer())
        site.network.settle()
        self.assertEqual((idle.ended, asking.ended), ("FIN", "FIN"))
        self.assertEqual(Reply(asking.received).status, 200)
        self.assertEqual(site.network.getDelayedCalls(), [])

    def test_no_ticking(self) -> None:
        """A site that nobody asks wakes nobody up."""
        self.assertEqual(Site().network.getDelayedCalls(), [])


class HostileTests(SilentTestCase):
    """What Twisted's own site does with most of these: it reads, keeps, waits, or logs."""

    def assert_serves(self, site: Site) -> None:
        self.assertEqual(site.get("/metrics").status, 200)

    def test_body(self) -> None:
        """A request with a body is refused before the body comes; what comes of it is not kept."""
        self.patch(tempfile, "TemporaryFile", None)  # where no file can be written
        for wrapped in (False, True):
            for header in (b"Content-Length: 1", b"Content-Length: 9999999", CHUNKED):
                for method in (b"POST", b"GET"):
                    site = Site(wrapped=wrapped)
                    peer = site.send(method + b" / HTTP/1.1\r\n" + header + b"\r\n\r\nbody")
                    self.assertEqual(Reply(peer.received).status, 413)
                    self.assertEqual(peer.ended, "FIN")
                    self.assert_serves(site)

    def test_after_the_last_answer(self) -> None:
        """Where the transport still delivers after the last answer, as TLS does, that is all."""
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
        """A request line or header of 1 MiB is refused when 16 KiB of it have come."""
        for start in (b"", b"GET /", b"GET / HTTP/1.1\r\nX: "):
            site = Site()
            short = site.send(start + b"x" * 16_390)
            self.assertEqual((Reply(short.received).status, short.ended), (431, "FIN"))
            long = site.send(start + b"x" * MIB)
            self.assertIsNotNone(long.ended)
            self.assert_serves(site)

    def test_many_headers(self) -> None:
        """So are 1 MiB of headers, however they are cut."""
        for header in (b"X: y\r\n", b"X: " + b"y" * 1000 + b"\r\n", b" more\r\n"):
            site = Site()
            peer = site.send(b"GET / HTTP/1.1\r\nX: y\r\n" + header * (MIB // len(header)))
            self.assertIsNotNone(peer.ended)
            self.assert_serves(site)

    def test_silent(self) -> None:
        """Who connects and says nothing is reset when its time is over."""
        site = Site()
        peer = site.connect()
        site.network.advance(TIMEOUT - 1)
        self.assertIsNone(peer.ended)
        site.network.advance(1)
        self.assertEqual(peer.ended, "RST")
        self.assertEqual(site.network.getDelayedCalls(), [])

    def test_slow(self) -> None:
        """A byte now and then does not buy more time."""
        site = Site()
        peer = site.send(b"GET / HTTP/1.1\r\nX: ")
        for _ in range(int(TIMEOUT)):
            self.assertIsNone(peer.ended)
            site.send(b"x", peer)
            site.network.advance(1)
        self.assertEqual(peer.ended, "RST")

    def test_not_reading(self) -> None:
        """Who asks and asks, and does not read, is not read from, and reset in the end."""
        for burst in (1, 1000):
            site = Site()
            peer = site.connect()
            peer.stall()
            for _ in range(1000):
                site.send(KEEP_ALIVE * burst, peer)
            self.assertLess(site.held(), 128 * 1024)
            self.assert_serves(site)
            site.network.advance(TIMEOUT)
            peer.resume()
            site.network.settle()
            self.assertEqual(peer.ended, "RST")
            self.assertEqual(site.held(), 0)

    def test_not_reading_the_last(self) -> None:
        """Nor does the last answer of a connection wait for ever to be read."""
        for last in (b"GET / HTTP/1.0\r\n\r\n", b"nonsense\r\n\r\n", b"x" * 20_000):
            site = Site()
            peer = site.connect()
            peer.stall()
            while not site.held():
                site.send(KEEP_ALIVE, peer)
            site.send(last, peer)
            site.network.advance(TIMEOUT)
            self.assertEqual(site.network.getWriters(), [])
            self.assertEqual(site.network.getDelayedCalls(), [])

    def test_reading_late(self) -> None:
        """Who reads late, but in time, gets all the answers to what was read from it."""
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
        """Of requests that come at once the first is answered, and the connection closed."""
        site = Site()
        peer = site.send(b"GET /metrics HTTP/1.1\r\n\r\n" * 2500)
        reply = Reply(peer.received)
        self.assertEqual((reply.status, reply.rest, peer.ended), (200, b"", "FIN"))
        self.assertEqual(reply.headers["connection"], "close")

    def test_many(self) -> None:
        """Of 1,000 connections left open few are held, and who comes next is served."""
        for wrapped in (False, True):
            site = Site(wrapped=wrapped)
            for _ in range(500):
                site.connect()
                site.connect()  # in the same turn of the reactor
                site.network.settle()
                held = [each for each in site.network.getReaders() if each.getHost().port == 80]
                self.assertLessEqual(len(held), MAX_CONNECTIONS)
            self.assertEqual(site.open(), site.peers.peers[-MAX_CONNECTIONS:])
            self.assert_serves(site)

    def test_unused_longest(self) -> None:
        """The connection that goes is the one that has been of no use for longest."""
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

    def test_closed_at_once(self) -> None:
        """Who is displaced has no descriptor any more when the next is accepted."""
        site = Site()
        for _ in range(MAX_CONNECTIONS):
            site.connect()
        displaced = site.peers.peers[0].transport.socket.other
        self.assertFalse(displaced._closed)
        site.connect()
        self.assertTrue(displaced._closed)

    def test_resets(self) -> None:
        """Who resets, at whatever moment, leaves nothing behind."""
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
    """Whatever a client sends, nothing is logged, little is kept, and the next is served."""
    site = Site(wrapped=wrapped)
    with Logged() as logged:
        peer = site.connect()
        for pieces in segments:
            site.send(b"".join(pieces), peer)
        if finish and peer.ended is None:
            peer.finish()
            site.network.settle()
            assert peer.ended is not None
        assert site.held() == 0
        assert site.get("/metrics").status == 200
        site.network.advance(TIMEOUT)
        assert site.open() == []
        assert site.network.getDelayedCalls() == []
    assert logged == []


@pytest.mark.parametrize("kind", [MemoryEndpoints, TCP4Endpoints, TCP6Endpoints, UNIXEndpoints])
@pytest_twisted.ensureDeferred
async def test_over_sockets(kind: Callable[[], Any]) -> None:
    """Over real sockets too: an answer, another, one to half-close, and few held of many."""
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
        for displaced in peers[:5]:
            await ends.until(displaced.when_ended())
        await ends.advance(TIMEOUT)
        for silent in peers:
            await ends.until(silent.when_ended())
    await ends.stop()
    assert logged == []
