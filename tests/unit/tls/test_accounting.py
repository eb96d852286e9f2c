"""Bounded memory over TLS, and counts of bytes that are sent."""

from __future__ import annotations

import random
from typing import Any

import pytest

from echod.daemon.metrics import Tally, transferred
from echod.events import Ending
from echod.protocol import MAX_BUFFERED
from echod.tlsrecords import RECORD
from echod.tlstransport import MAX_EMPTY
from echod.transport import buffered, unsent
from tests.authority import Authority
from tests.unit.tls.client import TLSServer, client_over_twisted
from tests.unit.tls.records import Records, client_secret


def test_bounded_buffer(authority: Authority) -> None:
    """Whatever a peer that never reads sends, little is read and buffered."""
    server = TLSServer(authority)
    for size, count in ((16_000, 100), (1, 10_000), (300, 3000)):
        client = server.client()
        client.peer.stall()
        client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
    held = [unsent(echo.transport) for echo in server.factory.connections]
    assert len(held) == 3
    assert all(60_000 < each < MAX_BUFFERED for each in held)


@pytest.mark.parametrize("seed", range(5))
def test_sent_never_decreases(authority: Authority, seed: int) -> None:
    """Unsent bytes are counted without TLS overhead, so that the bytes sent never decrease."""
    chance = random.Random(seed)
    server = TLSServer(authority)
    client = server.client()
    before = paused = 0
    for _ in range(100):
        (client.peer.stall if chance.random() < 0.7 else client.peer.resume)()
        size, count = chance.choice(((1, 300), (1, 1), (300, 40), (16_000, 4)))
        client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
        received, sent = transferred(Tally(), server.factory)
        assert before <= sent <= received
        assert buffered(server.echo.transport) <= unsent(server.echo.transport) + RECORD
        before = sent
        paused += sent < received
    assert paused
    client.peer.resume()
    assert len(client.read()) == sum(transferred(Tally(), server.factory)) / 2
    assert buffered(server.echo.transport) == 0


def test_bounded_ledger(authority: Authority) -> None:
    """A record that arrives byte by byte while bytes are unsent takes no memory for each byte."""
    server = TLSServer(authority)
    client = server.client()
    client.peer.stall()
    tls: Any = server.echo.transport
    while not unsent(tls):
        client.send(client.record(bytes(8192)))
    before = len(tls._ledger._marks)
    record = client.record(bytes(1000))
    for at in range(len(record)):
        client.send(record[at : at + 1])
    assert len(tls._ledger._marks) <= before + 1
    client.peer.resume()
    server.network.settle()
    assert tls.unsent_plaintext == 0
    assert len(tls._ledger._marks) == 0


def test_sent_never_decreases_over_twisted_tls(authority: Authority) -> None:
    """The bytes sent never decrease over Twisted's own TLS, where overhead counts too."""
    server, tally = TLSServer(authority), Tally()
    client = client_over_twisted(server, authority)
    server.factory.observer = tally
    client.peer.stall()
    while not unsent(server.echo.transport):
        client.send(client.record(bytes(8192)))
    before = transferred(tally, server.factory)
    for _ in range(10):
        client.send(client.record(b"x"))
        received, sent = transferred(tally, server.factory)
        assert received > before[0]
        assert before[1] <= sent < received
        before = received, sent
    client.peer.resume()
    client.read()
    assert transferred(tally, server.factory) == (len(client.received), len(client.received))


def test_empty_records(authority: Authority) -> None:
    """A peer that sends KeyUpdates and no data is reset, and counted as aborted."""
    server = TLSServer(authority)
    client = server.client()
    records = Records(client_secret(server.keylog))
    half = MAX_EMPTY // 2
    for answer in (False, True):
        client.send(b"".join(records.key_update(answer=answer) for _ in range(half)))
    client.send(records.record(b"hello"))  # resets the count of empty records
    client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
    client.send(records.record(b"world"))
    for _ in range(MAX_EMPTY):  # OpenSSL returns after each KeyUpdate that it answers
        client.read()
    assert client.read() == b"helloworld"
    client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
    assert client.peer.ended is None
    client.send(records.key_update())
    assert client.peer.ended == "RST"
    [closed] = server.events.closed
    assert (closed.ending, closed.bytes) == (Ending.ABORTED, 10)
