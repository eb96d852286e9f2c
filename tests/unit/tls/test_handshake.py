"""TLS handshakes: timeout, limits, failures, drain, and clients without a byte."""

from __future__ import annotations

import contextlib
import ssl
from pathlib import Path

import pytest
from twisted.internet.task import Clock

from echod.events import Closed, Ending, Opened, Reason, Refused
from echod.timeouts import FIRST_BYTE, QUIET
from echod.tls import ALERT_TIME
from tests.authority import Authority
from tests.unit.tls.client import TLSServer


def test_no_events_before_the_handshake(authority: Authority) -> None:
    """No observer is notified of a connection before its handshake is complete."""
    server = TLSServer(authority)
    client = server.connect()
    server.network.settle()
    assert server.events == []
    assert server.factory.connections == set()
    client.handshake()
    assert [type(event) for event in server.events] == [Opened]
    assert server.factory.pending == set()
    client.send(client.record(b"hello"))
    assert client.read() == b"hello"


def test_handshake_timeout(authority: Authority) -> None:
    """A handshake that is not complete in time is reset and counted; others are left alone."""
    server = TLSServer(authority, handshake_timeout=10)
    slow, quick = server.connect(), server.client()
    server.network.advance(9.9)
    assert slow.peer.ended is None
    server.network.advance(0.2)
    assert slow.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.HANDSHAKE_TIMEOUT]
    assert server.factory.pending == set()
    server.network.advance(100)
    quick.send(quick.record(b"hello"))
    assert quick.read() == b"hello"


def test_no_handshake_timeout(authority: Authority) -> None:
    """Without a handshake timeout, a handshake may take any time."""
    server = TLSServer(authority, handshake_timeout=None)
    client = server.connect()
    server.network.advance(10_000)
    client.handshake()
    assert len(server.factory.connections) == 1


def test_timeout_in_a_handshake(authority: Authority) -> None:
    """A handshake that stops halfway is reset at the timeout, and counted once."""
    server = TLSServer(authority)
    client = server.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record()[:100])
    server.network.advance(11)
    assert client.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


PLAINTEXT = [b"h", b"hell", b"hello", b"hello\n", b"GET / HTTP/1.0\r\n\r\n", bytes(100_000)]


BROKEN_HANDSHAKE = b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff"


@pytest.mark.parametrize("sent", PLAINTEXT)
@pytest.mark.parametrize("segment", [1, 3, 100_000])
@pytest.mark.parametrize("finishes", [False, True])
def test_plaintext(authority: Authority, sent: bytes, segment: int, finishes: bool) -> None:
    """Plaintext ends in RST, and is counted once: FIN would look like an empty reply."""
    server = TLSServer(authority)
    client = server.connect()
    for start in range(0, min(len(sent), 50 * segment), segment):
        client.peer.send(sent[start : start + segment])
        server.network.settle()
    if finishes and client.peer.ended is None:
        client.peer.finish()
        server.network.settle()
    if len(sent) < 5 and not finishes:  # the start of a record's header, perhaps
        assert client.peer.ended is None
        server.network.advance(11)
    assert (bytes(client.peer.received), client.peer.ended) == (b"", "RST")
    [refused] = server.events.refused
    assert refused.reason in (Reason.TLS_HANDSHAKE, Reason.HANDSHAKE_TIMEOUT)
    assert refused.peer == client.peer.transport.getHost()
    assert server.factory.pending == set()
    assert server.network.getDelayedCalls() == []


@pytest.mark.parametrize("finishes", [False, True])
def test_failed_handshake(authority: Authority, finishes: bool) -> None:
    """A client whose handshake fails gets an alert, time to read it, then RST."""
    server = TLSServer(authority)
    client = server.connect()
    client.send(BROKEN_HANDSHAKE + b"more")
    assert client.peer.received.startswith(b"\x15\x03")  # an alert (RFC 8446 5.1)
    assert client.peer.ended is None
    assert len(server.factory.pending) == 1  # it keeps its descriptor
    if finishes:
        client.peer.finish()
        server.network.settle()
    else:
        client.send(b"still more")
        server.network.advance(ALERT_TIME)
    assert (len(client.peer.received), client.peer.ended) == (7, "RST")
    [refused] = server.events
    assert refused == Refused(Reason.TLS_HANDSHAKE, client.peer.transport.getHost(), tls=True)
    assert server.factory.pending == set()
    assert server.network.getDelayedCalls() == []


@pytest.mark.parametrize("deadline", [0.5, 2])
def test_failed_handshake_in_a_drain(authority: Authority, deadline: float) -> None:
    """A drain does not extend a failed handshake, and the reason stays the same."""
    server = TLSServer(authority)
    client = server.connect()
    client.send(BROKEN_HANDSHAKE)
    drained = server.factory.drain(deadline)
    server.network.advance(1.1)
    assert drained.called
    assert client.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.TLS_HANDSHAKE]


def test_client_alert(authority: Authority, tmp_path: Path) -> None:
    """A client that does not trust the certificate sends an alert, and is reset at once."""
    server = TLSServer(authority)
    (tmp_path / "other").mkdir()
    server.trusted = Authority(tmp_path / "other").file
    client = server.connect()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.handshake()
    client.send(client.record())
    assert client.peer.ended == "RST"
    assert [event.reason for event in server.events] == [Reason.TLS_HANDSHAKE]


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_truncated_handshake(authority: Authority, end: str) -> None:
    """A client that leaves in the middle of its handshake is counted at once, and gets no FIN."""
    server = TLSServer(authority)
    client = server.connect()
    client.send(b"\x16\x03\x01")  # the start of a record
    getattr(client.peer, end)()
    server.network.settle()
    assert [event.reason for event in server.events.refused] == [Reason.TLS_HANDSHAKE]
    assert server.factory.pending == set()
    if end == "finish":
        assert client.peer.ended == "RST"
    server.network.advance(100)
    assert len(server.events) == 1


def test_handshakes_count_against_the_limits(authority: Authority) -> None:
    """Pending handshakes count against the limits, and connections above them are reset."""
    server = TLSServer(authority, max_connections=3, max_connections_per_peer=2)
    first, second = server.connect(), server.connect()
    third = server.connect()
    server.network.settle()
    assert third.peer.ended == "RST"
    first.handshake()
    second.handshake()
    fourth = server.connect()
    server.network.settle()
    assert fourth.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [
        Reason.MAX_CONNECTIONS_PER_PEER,
        Reason.MAX_CONNECTIONS_PER_PEER,
    ]
    for client in (first, second):
        client.peer.abort()
    server.network.settle()
    assert len(server.factory.connections) == 0
    server.client()
    assert len(server.factory.connections) == 1


def test_handshake_unread_at_the_timeout(authority: Authority) -> None:
    """A handshake that arrives in time, while the process is stopped, is completed."""
    server = TLSServer(authority, handshake_timeout=10)
    client = server.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record())
    client._tls.do_handshake()
    client.peer.transport.getHandle().send(client.record(b"hello"))  # type: ignore[attr-defined]
    Clock.advance(server.network, 11)  # timers, but no reading
    server.network.advance(2)
    assert client.read() == b"hello"
    assert server.events.refused == []


def test_handshake_byte_by_byte(authority: Authority) -> None:
    """A handshake that arrives byte by byte is reset, late by a quarter of the timeout at most."""
    server = TLSServer(authority, handshake_timeout=10)
    client = server.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    hello = client.record()
    client.send(hello[:1])
    for at in range(1, 13):
        assert client.peer.ended is None
        client.peer.transport.getHandle().send(hello[at : at + 1])  # type: ignore[attr-defined]
        Clock.advance(server.network, 1)
        server.network.settle()
        if client.peer.ended is not None:
            break
    assert 10 < server.network.seconds() <= 12.5
    assert client.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


def test_silent_in_a_drain(authority: Authority) -> None:
    """A drain refuses a client that has not begun its handshake after a second."""
    server = TLSServer(authority)
    old = server.connect()
    server.network.advance(FIRST_BYTE)
    new = server.connect()
    drained = server.factory.drain(10)
    server.network.advance(QUIET)
    assert (old.peer.ended, new.peer.ended) == ("RST", None)
    server.network.advance(FIRST_BYTE)
    assert drained.called
    assert new.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.DRAINING] * 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake_in_a_drain(authority: Authority, version: ssl.TLSVersion) -> None:
    """In a drain, on a path of 250 ms: the handshake is completed, then bytes are echoed, then FIN.

    The first byte is in flight when the drain begins, as after accept_waiting.
    """
    server = TLSServer(authority)
    client = server.connect(version)
    drained = server.factory.drain(10)
    done = False
    while not done:
        with contextlib.suppress(ssl.SSLWantReadError):
            client._tls.do_handshake()
            done = True
        flight = client.record() + (client.record(b"hello") if done else b"")
        server.network.advance(0.25)  # both directions together
        client.send(flight)
    assert client.read() == b"hello"
    assert not drained.called
    server.network.advance(1)
    assert drained.called
    assert client.read() == b"hello"
    assert client.closed
    assert server.events.endings == [Ending.DRAINED]


def test_handshake_timeout_in_a_drain(authority: Authority) -> None:
    """In a drain, a handshake that stays incomplete ends at the handshake timeout."""
    server = TLSServer(authority, handshake_timeout=10)
    client = server.connect()
    client.send(b"\x16\x03\x01")
    drained = server.factory.drain(60)
    server.network.advance(9)
    assert not drained.called
    server.network.advance(1.1)
    assert drained.called
    assert client.peer.ended == "RST"
    assert [event.reason for event in server.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


def test_health_check(authority: Authority) -> None:
    """A client that leaves without a byte, as a load balancer's health check does, is unused."""
    for leave in ("finish", "abort"):
        server = TLSServer(authority)
        client = server.connect()
        server.network.advance(2)
        getattr(client.peer, leave)()
        server.network.settle()
        peer = client.peer.transport.getHost()
        closed = Closed(Ending.UNUSED, 0, 2.0, 0, peer, tls=True)
        assert server.events == [Opened(peer, tls=True), closed]
        assert server.factory.pending == set()
        assert server.network.getDelayedCalls() == []


@pytest.mark.parametrize("leave", ["finish", "abort", "alert"])
def test_health_check_with_a_handshake(authority: Authority, leave: str) -> None:
    """A client that leaves without a byte after the handshake is unused, however it leaves."""
    server = TLSServer(authority)
    client = server.client()
    if leave == "alert":
        client.send(client.closing_alert())
    else:
        getattr(client.peer, leave)()
    server.network.settle()
    assert server.events.endings == [Ending.UNUSED]


def test_refused_before_it_is_done(authority: Authority) -> None:
    """A connection that was refused is not served if its handshake completes later."""
    server = TLSServer(authority)
    client = server.connect()
    [pending] = server.factory.pending
    for reason in (Reason.DRAINING, Reason.HANDSHAKE_TIMEOUT):
        pending.refuse(reason)
    pending.handshake_done()  # type: ignore[attr-defined]  # called by the transport
    server.network.settle()
    assert client.peer.ended == "RST"
    assert server.events == [Refused(Reason.DRAINING, client.peer.transport.getHost(), tls=True)]
