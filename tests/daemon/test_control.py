"""The control endpoint: responses match its OpenAPI document, and web pages have no access."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from typing import Any

import pytest
import pytest_twisted
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from referencing import Registry
from referencing.jsonschema import DRAFT202012

from echod.daemon.control import MAX_BODY, Control, ControlSite
from echod.daemon.webguard import TIMEOUT
from echod.faultgrammar import parse_plan
from echod.faultplan import ON
from echod.faults import DATAGRAM, STREAM, TLS, Faults
from echod.testing import MemoryNetwork, Peer
from tests.daemon.responses import Logged, Reply
from tests.streams.server import Peers
from tests.streams.sockets import TCP4Endpoints, TCP6Endpoints, UNIXEndpoints

DOCUMENT = json.loads((files("echod.daemon") / "openapi.json").read_text())
REGISTRY: Any = Registry().with_resource("urn:openapi", DRAFT202012.create_resource(DOCUMENT))

HOST = b"Host: localhost\r\n"
AS_JSON = b"Content-Type: application/json\r\n"
PLAN = b'{"plan": "first 2: reset", "seed": 9}'
NAMES = ["tcp 127.0.0.1:7", "unix /run/a b", "udp [::1]:7"]


def documented(path: str) -> str:
    """Return the path of the OpenAPI document that matches ``path``."""
    first, faults, *rest = path.split("/")
    return "/".join([first, faults, *(["{port}", *rest[1:]] if rest else [])])


def resolved(node: Any) -> Any:
    """Return the part of the document that a $ref names, or ``node`` itself."""
    while "$ref" in node:
        node = REGISTRY.resolver("urn:openapi").lookup(node["$ref"]).contents
    return node


def validate(schema: Any, value: Any) -> None:
    """Validate ``value`` by a schema, all of which are references."""
    schema = {"$ref": f"urn:openapi{schema['$ref']}"}
    Draft202012Validator(schema, registry=REGISTRY).validate(value)


class Endpoint:
    """The control endpoint of three faulty ports on a memory network."""

    def __init__(self) -> None:
        self.network = MemoryNetwork()
        self.network.advance(1000)
        now = self.network.seconds()
        self.faults = [
            Faults(parse_plan(f"first 2: {fault}"), now, kind, name)
            for fault, kind, name in zip(
                ("refuse", "refuse", "drop"), (STREAM, TLS, DATAGRAM), NAMES, strict=True
            )
        ]
        self.site = ControlSite(Control(self.faults, self.network), self.network)
        self.network.server_endpoint().listen(self.site)
        self.peers = Peers()

    def send(self, request: bytes, peer: Peer | None = None) -> Peer:
        if peer is None:
            self.network.client_endpoint().connect(self.peers)
            peer = self.peers.peers[-1]
        peer.send(request)
        self.network.settle()
        return peer

    def ask(
        self, path: str, method: str = "GET", headers: bytes = HOST, body: bytes = b""
    ) -> Reply:
        """Return the reply to a request; it must be valid by the document."""
        length = b"Content-Length: %d\r\n" % len(body) if body else b""
        start = f"{method} {path} HTTP/1.1\r\n".encode()
        peer = self.send(start + headers + length + b"\r\n" + body)
        reply = Reply(peer.received)
        assert reply.rest == b""
        assert peer.ended == ("FIN" if body else None)
        operations = DOCUMENT["paths"].get(documented(path), {})
        responses = operations.get(method.lower().replace("head", "get"), {}).get("responses")
        if responses is not None:
            response = resolved(responses.get(str(reply.status), responses["default"]))
            if reply.body:
                validate(response["content"]["application/json"]["schema"], json.loads(reply.body))
        return reply

    def put(self, path: str, body: bytes = PLAN, headers: bytes = HOST + AS_JSON) -> Reply:
        return self.ask(path, "PUT", headers, body)

    def fire(self) -> None:
        """Let the first rule of the first port fire once."""
        faults = self.faults[0]
        number, rules = faults.next()
        faults.fire(next(rules), number, 5, self.network.seconds())


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    """Return the endpoint. It may log its plans and the counts of their rules, and nothing else."""
    with Logged() as logged:
        yield Endpoint()
    assert {event["event"] for event in logged} <= {"faulty", "fault-count"}


def result(reply: Reply) -> Any:
    """Return the result of a request that succeeds."""
    assert reply.status == 200, reply.body
    assert reply.headers["content-type"] == "application/json"
    return json.loads(reply.body)


def error(reply: Reply) -> str:
    """Return the error of a request that fails."""
    [(name, line)] = json.loads(reply.body).items()
    assert name == "error"
    assert line.isprintable()
    return str(line)


def test_ports(endpoint: Endpoint) -> None:
    """/faults lists the ports, with their plans and the counts of their rules; / is the same."""
    endpoint.fire()
    [first, second, third] = result(endpoint.ask("/faults"))["ports"]
    faults = endpoint.faults[0]
    assert first == {
        "name": "tcp 127.0.0.1:7",
        "serves": "stream",
        "plan": str(faults.plan),
        "seed": faults.plan.seed,
        "number": 1,
        "rules": [{"rule": faults.rules[0].text, "fault": "refuse", "fired": 1}],
    }
    assert [second["name"], second["serves"], second["number"]] == ["unix /run/a b", "tls", 0]
    assert [third["name"], third["serves"]] == ["udp [::1]:7", "datagram"]
    assert endpoint.ask("/").body == endpoint.ask("/faults").body


@pytest.mark.parametrize(
    ("path", "name"),
    [
        *(("/faults/0", NAMES[0]), ("/faults/tcp%20127.0.0.1:7", NAMES[0])),
        *(("/faults/1", NAMES[1]), ("/faults/unix%20%2frun%2Fa%20b", NAMES[1])),
        *(("/faults/udp%20[::1]:7", NAMES[2]), ("/faults/2?x=1", NAMES[2])),
        ("http://localhost/faults/2", NAMES[2]),
    ],
)
def test_port(endpoint: Endpoint, path: str, name: str) -> None:
    """A path names a port by its position, or by its name with percent-encoding (RFC 3986 2.1)."""
    assert result(endpoint.ask(path))["name"] == name


@pytest.mark.parametrize(
    "path",
    [
        *("/faults/3", "/faults/-1", "/faults/00", "/faults/", "/faults/" + "9" * 5000),
        *("/faults/\xb2", "/faults/%ff", "/faults/tcp", "/faults/0/", "/faults/0/other"),
        *("/faults/0/firings/0", "/faults/3/firings", "/fault", "//", "/openapi.json/", "/metrics"),
        *("/faults/unix /run/a", "/faults%2f0", "/%", "http://localhost/none", "x", "/faults/.."),
    ],
)
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
def test_not_found(endpoint: Endpoint, path: str, method: str) -> None:
    """A path or a port that does not exist is not found, with any method."""
    request = f"{method} {path} HTTP/1.1\r\n\r\n".encode("latin-1")
    reply = Reply(endpoint.send(request[:-2] + HOST + b"\r\n").received)
    if " " in path or not path.isascii():  # no request line
        assert reply.status == 400
    else:
        assert reply.status == 404
        assert "GET /" in error(reply)


@pytest.mark.parametrize(
    ("path", "allowed"),
    [
        *(("/", "GET, HEAD"), ("/faults", "GET, HEAD"), ("/openapi.json", "GET, HEAD")),
        *(("/faults/0", "GET, HEAD, PUT"), ("/faults/0/firings", "GET, HEAD")),
        ("/faults/0/reset", "POST"),
    ],
)
def test_methods(endpoint: Endpoint, path: str, allowed: str) -> None:
    """A path has the methods of the document, and refuses all others; OPTIONS, too."""
    methods = {name.upper() for name in DOCUMENT["paths"][documented(path)]} - {"PARAMETERS"}
    assert set(allowed.split(", ")) - {"HEAD"} == methods
    methods = {"GET", "HEAD", "PUT", "POST", "DELETE", "OPTIONS", "TRACE", "PATCH", "put", "EVIL"}
    for method in methods - set(allowed.split(", ")):
        reply = endpoint.ask(path, method, HOST + AS_JSON)
        assert (reply.status, reply.headers["allow"]) == (405, allowed)
        assert method == "HEAD" or f"one of {allowed}" in error(reply)


def test_headers(endpoint: Endpoint) -> None:
    """No response is cached, sniffed, or available to another origin."""
    for path, method in (("/", "GET"), ("/faults/0", "OPTIONS"), ("/none", "GET")):
        headers = endpoint.ask(path, method).headers
        assert headers["cache-control"] == "no-store"
        assert headers["content-security-policy"].startswith("default-src 'none'")
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["x-content-type-options"] == "nosniff"
        assert not [name for name in headers if name.startswith("access-control")]
        assert "server" not in headers


@pytest.mark.parametrize("path", ["/", "/faults/0", "/faults/0/firings", "/openapi.json"])
def test_head(endpoint: Endpoint, path: str) -> None:
    """HEAD gets the headers of GET, and no body."""
    peer = endpoint.send(f"HEAD {path} HTTP/1.1\r\n".encode() + HOST + b"\r\n")
    head, got = Reply(peer.received), endpoint.ask(path)
    assert peer.received.endswith(b"\r\n\r\n")
    head.headers.pop("date"), got.headers.pop("date")
    assert (head.status, head.headers) == (200, got.headers)


def test_openapi(endpoint: Endpoint) -> None:
    """/openapi.json is the document. All its schemas are valid, and all its references exist."""
    assert result(endpoint.ask("/openapi.json")) == DOCUMENT
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)

    assert DOCUMENT["components"]["schemas"]["Port"]["properties"]["serves"]["enum"] == [*ON]

    def check(node: Any) -> None:
        for each in node.values() if isinstance(node, dict) else node:
            if isinstance(each, dict):
                resolved(each)
            if isinstance(each, dict | list):
                check(each)

    check(DOCUMENT)


def test_replace(endpoint: Endpoint, log: list[Any]) -> None:
    """PUT replaces the plan and the seed. The counts so far and the new plan are logged."""
    endpoint.fire()
    reply = endpoint.put("/faults/0")
    assert reply.headers["connection"] == "close"
    state = result(reply)
    faults = endpoint.faults[0]
    assert [rule.fault.name for rule in faults.plan.rules] == ["reset"]
    assert (state["plan"], state["seed"], state["number"]) == (str(faults.plan), 9, 0)
    assert [(rule["fault"], rule["fired"]) for rule in state["rules"]] == [("reset", 0)]
    assert state == result(endpoint.ask("/faults/0"))
    assert result(endpoint.ask("/faults/0/firings")) == {"firings": []}
    *counts, entry = log
    assert [(each["event"], each["port"], each["count"]) for each in counts] == [
        ("fault-count", NAMES[0], 1)
    ]
    assert (entry["event"], entry["port"], entry["seed"]) == ("faulty", NAMES[0], 9)


def test_replace_without_seed(endpoint: Endpoint) -> None:
    """Without a seed, the text of the plan decides; an empty plan has no rules."""
    assert result(endpoint.put("/faults/0", b'{"plan": ""}'))["rules"] == []
    again = json.dumps({"plan": str(parse_plan("first 2: refuse"))}).encode()
    assert result(endpoint.put("/faults/0", again))["rules"][0]["fault"] == "refuse"


WRONG_BODIES = [
    *((b"{", "the body is not JSON: "), (b"\xff", "the body is not JSON: ")),
    *((b'{"plan": "\xe9"}', "the body is not JSON: "), (b"[" * 60_000, "is not JSON: ")),
    *((b"\xef\xbb\xbf{}", "is not JSON: "), ('{"plan": ""}'.encode("utf-16"), "is not JSON: ")),
    *((b"9" * 5000, "is not JSON: "), (b"{}", "the body must be {"), (b"7", "must be {")),
    *((b"[]", "the body must be {"), (b'"plan"', "must be {"), (b"null", "must be {")),
    *((b'{"seed": 7}', "must be {"), (b'{"plan": "", "x": 1}', "must be {")),
    *((b'{"plan": 7}', "plan must be a string"), (b'{"plan": null}', "plan must be a string")),
    *((b'{"plan": "first 2: refsue"}', "^"), (b'{"plan": "\\u0000\\ud800\\n\\u202e"}', "")),
    (b'{"plan": "first 2: drop"}', "'first 2: ^drop': drop is a fault of datagram ports"),
    *(
        (b'{"plan": "", "seed": %b}' % seed, "seed takes a whole number")
        for seed in (b'"7"', b"null", b"-1", b"true", b"NaN", b"1e999", b"7.0", b"[]", b"9" * 13)
    ),
]


@pytest.mark.parametrize(("body", "why"), WRONG_BODIES)
def test_wrong_bodies(endpoint: Endpoint, body: bytes, why: str) -> None:
    """A wrong body is refused with one line, and the plan stays as it was."""
    before = endpoint.ask("/faults/0").body
    reply = endpoint.put("/faults/0", body)
    assert reply.status == 400
    assert why in error(reply)
    assert endpoint.ask("/faults/0").body == before


def test_no_body(endpoint: Endpoint) -> None:
    """PUT without a body is refused; the connection is kept."""
    reply = endpoint.put("/faults/0", b"")
    assert (reply.status, "connection" in reply.headers) == (400, False)
    assert "the body is not JSON" in error(reply)


def test_kinds(endpoint: Endpoint) -> None:
    """A plan is checked against what the port serves."""
    plan = b'{"plan": "first 2: %b"}'
    for path, fault, status in (
        *(("/faults/0", b"stall", 400), ("/faults/1", b"stall", 200), ("/faults/2", b"stall", 400)),
        *(("/faults/1", b"drop", 400), ("/faults/2", b"drop", 200)),
    ):
        assert endpoint.put(path, plan % fault).status == status


def test_reset(endpoint: Endpoint, log: list[Any]) -> None:
    """POST logs and resets the counts of one port, and its firings; plan and numbers stay."""
    endpoint.fire()
    before = result(endpoint.ask("/faults/0"))
    state = result(endpoint.ask("/faults/0/reset", "POST", HOST + AS_JSON))
    assert before["rules"][0].pop("fired") == 1
    assert state["rules"][0].pop("fired") == 0
    assert (state, state["number"]) == (before, 1)
    assert [(each["event"], each["port"], each["count"]) for each in log] == [
        ("fault-count", NAMES[0], 1)
    ]
    assert result(endpoint.ask("/faults/0/firings")) == {"firings": []}
    assert endpoint.ask("/faults/0/reset", "POST", HOST + AS_JSON, b"ignored").status == 200


def test_firings(endpoint: Endpoint) -> None:
    """Each firing has its rule, connection, offset, and time; only the latest are kept."""
    endpoint.network.advance(1.5)
    endpoint.fire()
    text = endpoint.faults[0].rules[0].text
    [firing] = result(endpoint.ask("/faults/0/firings"))["firings"]
    assert firing == {"rule": text, "connection": 1, "offset": 5, "seconds": 1.5}
    faults = endpoint.faults[2]
    for number in range(1, 1500):
        faults.fire(faults.rules[0], number, 0, endpoint.network.seconds())
    firings = result(endpoint.ask("/faults/2/firings"))["firings"]
    assert [each["connection"] for each in firings] == [*range(500, 1500)]


SENDERS = [
    (b"", 400),
    *((b"Host: %b\r\n" % name, 200) for name in (b"127.0.0.1:7", b"[::1]", b"x.localhost")),
    *((b"Host: %b\r\n" % name, 421) for name in (b"", b"attacker.example", b"[::1].a.example")),
    *((HOST + HOST, 400), (HOST + b"Host: attacker.example\r\n", 400)),
    *((HOST + b"Origin: %b\r\n" % each, 403) for each in (b"", b"null", b"http://localhost")),
    (HOST + b"origin: http://attacker.example\r\n", 403),
    *(
        (HOST + b"Sec-Fetch-Site: %b\r\n" % each, 403)
        for each in (b"", b"cross-site", b"same-site", b"same-origin", b"None", b"none, cross-site")
    ),
    (HOST + b"Sec-Fetch-Site: none\r\n", 200),
    (HOST + b"Sec-Fetch-Site: none\r\nSec-Fetch-Site: cross-site\r\n", 403),
]


@pytest.mark.parametrize(("headers", "status"), SENDERS)
@pytest.mark.parametrize("path", ["/faults", "/none", "/faults/0/reset"])
def test_senders(endpoint: Endpoint, headers: bytes, status: int, path: str) -> None:
    """A request needs one Host header, of this machine; one sent by a web page is refused."""
    method = "POST" if "reset" in path else "GET"
    reply = endpoint.ask(path, method, AS_JSON + headers)
    assert reply.status == (404 if status == 200 and path == "/none" else status)
    if reply.status >= 400:
        assert error(reply)
        assert "attacker" not in reply.body


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        (b"", 415),
        *(
            (b"Content-Type: %b\r\n" % each, 200)
            for each in (b"application/json;charset=utf-8", b'APPLICATION/JSON ; charset="UTF-8"')
        ),
        *(
            (b"Content-Type: %b\r\n" % each, 415)
            for each in (
                *(b"", b"text/plain", b"multipart/form-data; boundary=x", b"application/jsonx"),
                *(b"application/x-www-form-urlencoded", b"application/json, text/plain"),
                *(b"application/json; charset=utf-16", b"text/plain; application/json"),
            )
        ),
        (AS_JSON + AS_JSON, 415),
        *((AS_JSON + b"Content-Encoding: gzip\r\n", 415), (AS_JSON + b"X: y\r\n", 200)),
    ],
)
def test_content_types(endpoint: Endpoint, headers: bytes, status: int) -> None:
    """PUT and POST need Content-Type: application/json, which no HTML form can send."""
    assert endpoint.put("/faults/0", PLAN, HOST + headers).status == status
    for body in (b"", PLAN, b"plan=x&seed=1"):
        reply = endpoint.ask("/faults/0/reset", "POST", HOST + headers, body)
        assert reply.status == status
        assert bool(reply.body) == (status == 200 or not body)


def test_longest_body(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body has 64 KiB at most, and Twisted stores none in a file."""
    monkeypatch.delattr(tempfile, "TemporaryFile")  # as on a read-only file system
    assert endpoint.put("/faults/0", PLAN.ljust(MAX_BODY)).status == 200
    for length in (MAX_BODY + 1, 10**20, 10**4000):
        start = f"PUT /faults/0 HTTP/1.1\r\nContent-Length: {length}\r\n".encode()
        peer = endpoint.send(start + HOST + AS_JSON + b"\r\n" + PLAN)
        reply = Reply(peer.received)
        assert (reply.status, reply.body, peer.ended) == (413, "", "FIN")


SMUGGLED = b"POST /faults/0/reset HTTP/1.1\r\n" + HOST + AS_JSON + b"\r\n"


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        *((b"Transfer-Encoding: chunked\r\n", 411), (b"Transfer-Encoding: identity\r\n", 411)),
        (b"Content-Length: 37\r\nTransfer-Encoding: identity\r\n", 411),
        (b"Content-Length: 37\r\nTransfer-Encoding: chunked\r\n", 400),
        (b"Transfer-Encoding: chunked\r\nContent-Length: 37\r\n", 400),
        *(
            (b"Transfer-Encoding: gzip, chunked\r\n", 400),
            (b"Transfer-Encoding: \x0bchunked\r\n", 400),
        ),
        *((b"Content-Length: %b\r\n" % each, 400) for each in (b"+37", b"-1", b"0x5", b"3 7", b"")),
        *((b"Content-Length: %b\r\n" % each, 400) for each in (b"37, 37", b"\xb237", b"9" * 5000)),
        (b"Content-Length: 37\r\nContent-Length: 37\r\n", 400),
        (b"Content-Length: 0\r\nContent-Length: 37\r\n", 400),
        *((b"Content-Length : 37\r\n", 400), (b"Content-Length\r\n: 37\r\n", 400)),
        *((b"Content-Length: 3\r\n 7\r\n", 400), (b"Content-Length: 37\nX: y\r\n", 400)),
        (b"X: y\r\n\x00Content-Length: 37\r\n", 400),
    ],
)
def test_framing(endpoint: Endpoint, headers: bytes, status: int) -> None:
    """A length that two readers can read differently is refused, and nothing after it is read."""
    before = endpoint.faults[0].plan
    endpoint.fire()
    for wrong in (headers + AS_JSON, AS_JSON + headers):
        request = b"PUT /faults/0 HTTP/1.1\r\n" + HOST + wrong + b"\r\n" + PLAN + SMUGGLED
        peer = endpoint.send(request)
        reply = Reply(peer.received)
        assert (reply.status, reply.rest, peer.ended) == (status, b"", "FIN")
    assert (endpoint.faults[0].plan, endpoint.faults[0].rules[0].fired) == (before, 1)


def put_request(after: bytes = b"", headers: bytes = b"") -> bytes:
    """Return a request that replaces the plan of the first port, followed by ``after``."""
    length = b"Content-Length: %d\r\n" % len(PLAN)
    start = b"PUT /faults/0 HTTP/1.1\r\n"
    return start + HOST + AS_JSON + length + headers + b"\r\n" + PLAN + after


@pytest.mark.parametrize(
    "after", [SMUGGLED, b"GET / HTTP/1.1\r\n\r\n" * 3000, b"\r\n", b"x" * 9000]
)
def test_pipelined(endpoint: Endpoint, after: bytes) -> None:
    """Bytes after a body, in the same segment or later, are not read."""
    peers = [endpoint.send(put_request(after)), endpoint.send(put_request()[:-7])]
    endpoint.send(PLAN[-7:] + after, peers[1])
    for peer in peers:
        reply = Reply(peer.received)
        assert (reply.status, reply.rest, peer.ended) == (200, b"", "FIN")
    assert result(endpoint.ask("/faults/0"))["rules"][0]["fault"] == "reset"


def test_in_pieces(endpoint: Endpoint) -> None:
    """A request can arrive byte by byte."""
    request = put_request()
    peer = endpoint.send(request[:1])
    for byte in request[1:]:
        endpoint.send(bytes([byte]), peer)
    assert Reply(peer.received).status == 200


def test_expect(endpoint: Endpoint) -> None:
    """Expect: 100-continue is answered before the body, unless the body is refused."""
    expect = b"Expect: 100-continue\r\n"
    peer = endpoint.send(put_request(headers=expect)[: -len(PLAN)])
    assert peer.received == b"HTTP/1.1 100 Continue\r\n\r\n"
    received = endpoint.send(PLAN, peer).received
    assert Reply(received.partition(b"\r\n\r\n")[2]).status == 200
    long = b"PUT /faults/0 HTTP/1.1\r\nContent-Length: 99999\r\n" + expect
    assert Reply(endpoint.send(long + b"\r\n").received).status == 413


def test_slow(endpoint: Endpoint) -> None:
    """A body has to arrive within the timeout, and a half-close before its end is no request."""
    peer = endpoint.send(put_request()[:-5])
    for byte in PLAN[-5:-1]:
        endpoint.network.advance(TIMEOUT / 5)
        assert peer.ended is None
        endpoint.send(bytes([byte]), peer)
    endpoint.network.advance(TIMEOUT / 5)
    assert (peer.ended, peer.received) == ("RST", b"")
    half = endpoint.send(put_request()[:-5])
    half.finish()
    endpoint.network.settle()
    assert (half.ended, half.received) == ("FIN", b"")
    assert endpoint.network.getDelayedCalls() == []
    assert endpoint.faults[0].plan.seed != 9


PIECES = st.one_of(
    st.binary(max_size=50),
    st.sampled_from(
        [
            *(b"GET / HTTP/1.1\r\n", b"PUT /faults/0 HTTP/1.1\r\n", SMUGGLED, b"\r\n", b"\r\n\r\n"),
            *(b"PUT /faults/%30 HTTP/1.1\r\n", b"HEAD http://x/faults/0/firings HTTP/1.0\r\n"),
            *(HOST, AS_JSON, b"Host: x\r\n", b"Content-Type: text/plain\r\n", b"Origin: null\r\n"),
            *(b"Content-Length: 5\r\n", b"Content-Length: 37\r\n", b"Content-Length: 99999\r\n"),
            *(b"Transfer-Encoding: chunked\r\n", b"5\r\nhello\r\n0\r\n\r\n", b"\n", b" folded\r\n"),
            *(b"Content-Length: " + b"9" * 5000 + b"\r\n", b"Expect: 100-continue\r\n"),
            *(PLAN, b'{"plan": "\\ud800"}', b"[" * 9000, put_request(), put_request(SMUGGLED)),
        ]
    ),
)


@given(st.lists(st.lists(PIECES, max_size=12), max_size=5), st.booleans())
def test_any_bytes(segments: list[list[bytes]], finish: bool) -> None:
    """For any input, no error is logged, nothing stays buffered, and the next client is served."""
    with Logged() as logged:
        endpoint = Endpoint()
        peer = endpoint.send(b"")
        for pieces in segments:
            endpoint.send(b"".join(pieces), peer)
        if finish and peer.ended is None:
            peer.finish()
            endpoint.network.settle()
            assert peer.ended is not None
        assert endpoint.ask("/faults").status == 200
        assert endpoint.put("/faults/1").status == 200
        endpoint.network.advance(TIMEOUT)
        assert endpoint.network.getDelayedCalls() == []
    assert {event["event"] for event in logged} == {"faulty", "fault-count"}


@given(st.binary(max_size=200) | st.text().map(lambda text: json.dumps({"plan": text}).encode()))
def test_any_body(body: bytes) -> None:
    """Any body is a plan or a mistake, and a mistake changes nothing."""
    with Logged():
        endpoint = Endpoint()
        before = endpoint.ask("/faults/0").body
        reply = endpoint.put("/faults/0", body or b"?")
        assert reply.status in (200, 400)
        assert reply.status == 200 or endpoint.ask("/faults/0").body == before


@pytest.mark.parametrize("kind", [TCP4Endpoints, TCP6Endpoints, UNIXEndpoints])
@pytest_twisted.ensureDeferred
async def test_over_sockets(kind: Callable[[], Any]) -> None:
    """Over sockets: a plan is replaced, and a body that is too long is refused."""
    ends = kind()
    faults = Faults(parse_plan("first 2: refuse"), ends.clock.seconds())
    await ends.listen(ControlSite(Control([faults], ends.clock), ends.clock))
    for request, status in (
        (put_request(), 200),
        (b"PUT / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n", 413),
    ):
        peer: Peer = await ends.connect(Peers())
        peer.send(request)
        await ends.until(peer.when_ended())
        assert Reply(bytes(peer.received)).status == status
    assert faults.plan.seed == 9
    await ends.stop()
