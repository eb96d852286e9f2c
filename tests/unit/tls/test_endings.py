"""Endings over TLS: closing alert, truncated streams, damaged records, timeouts."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
from twisted.internet.error import ConnectionLost
from twisted.logger import LogEvent
from twisted.python.failure import Failure

from echod.events import Ending, Opened, broadcast
from echod.protocol import Echo
from echod.transport import beneath, lose, unsent
from tests.authority import Authority
from tests.unit.tls.client import TLSServer


@pytest.mark.parametrize("leave", ["finish", "abort"])
def test_truncated_record(authority: Authority, leave: str) -> None:
    """A client that leaves in the middle of its first record is lost, and not unused."""
    server = TLSServer(authority)
    client = server.client()
    client.send(client.record(b"hello")[:-1])
    getattr(client.peer, leave)()
    server.network.settle()
    assert server.events.endings == [Ending.LOST]


def test_data_and_closing_alert(authority: Authority) -> None:
    """Bytes and closing alert in one segment: all bytes are echoed, then echod sends its alert."""
    server = TLSServer(authority)
    client = server.client()
    client.send(client.record(b"hello") + client.record(bytes(40_000)) + client.closing_alert())
    assert client.read() == b"hello" + bytes(40_000)
    assert client.closed
    assert client.peer.ended == "FIN"
    [closed] = server.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.FINISHED, 40_005, 0)


def test_closing_alert_of_a_slow_reader(authority: Authority) -> None:
    """Bytes buffered at the closing alert are delivered, however late they are read."""
    server = TLSServer(authority)
    client = server.client()
    client.peer.stall()
    client.send(b"".join(client.record(bytes(16_000)) for _ in range(100)) + client.closing_alert())
    server.network.advance(50)
    assert server.events.closed == []
    client.peer.resume()
    assert client.read() == bytes(1_600_000)
    assert client.closed
    assert server.events.endings == [Ending.FINISHED]


def test_closing_alert_without_reading(authority: Authority) -> None:
    """A client that sends its closing alert and reads nothing more is reset: stalled."""
    server = TLSServer(authority, stall_timeout=40)
    client = server.client()
    client.peer.stall()
    sent = b"".join(client.record(bytes(16_000)) for _ in range(6)) + client.closing_alert()
    client.send(sent)
    server.network.advance(60)
    [closed] = server.events.closed
    assert closed.ending is Ending.STALLED
    assert 0 < closed.unsent <= closed.bytes == 96_000
    client.peer.resume()
    server.network.settle()
    assert client.peer.ended == "RST"


def test_stalled_while_sending(authority: Authority) -> None:
    """A client that reads nothing is reset in time, even if it sends a byte now and then."""
    server = TLSServer(authority, stall_timeout=40)
    client = server.client()
    client.peer.stall()
    while not unsent(server.echo.transport):
        client.send(client.record(bytes(4000)))
    for _ in range(18):
        client.send(client.record(b"x"))
        server.network.advance(3)
    assert server.events.endings == [Ending.STALLED]


def test_slow_reader_is_not_stalled(authority: Authority) -> None:
    """A client that reads a little now and then is not stalled, whether it sends or not."""
    server = TLSServer(authority, stall_timeout=40)
    client = server.client()
    client.peer.stall()
    while not unsent(server.echo.transport):
        client.send(client.record(bytes(4000)))
    bottom: Any = beneath(server.echo.transport)
    for number in range(60):
        del bottom.socket.other._incoming[:1]  # the peer's application reads a byte
        client.send(client.record(b"x") if number % 2 else b"")
        server.network.advance(3)
    assert server.events.endings == []


def test_end_without_a_closing_alert(authority: Authority) -> None:
    """FIN without a closing alert: all bytes are echoed, and the ending is lost."""
    server = TLSServer(authority)
    client = server.client()
    client.peer.send(client.record(b"hello"))
    client.peer.finish()
    assert client.read() == b"hello"
    assert client.closed
    assert client.peer.ended == "FIN"
    [closed] = server.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.LOST, 5, 0)


@pytest.mark.parametrize("much", [False, True])
def test_damaged_record(authority: Authority, much: bool) -> None:
    """A damaged record ends the connection as lost, after the records before it are echoed.

    The reply may have to wait for a slow reader.
    """
    server = TLSServer(authority)
    client = server.client()
    good = [b"hello", *([bytes(16_000)] * 4 if much else [])]
    records = b"".join(map(client.record, good))
    bad = bytearray(client.record(b"world"))
    bad[-1] ^= 1
    client.peer.stall()
    client.send(records + bad)
    server.network.advance(1)
    client.peer.resume()
    client.settle()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac|decrypt"):
        client.read()
    assert client.received == b"".join(good)
    assert client.peer.ended == "FIN"
    [closed] = server.events.closed
    assert (closed.ending, closed.unsent) == (Ending.LOST, 0)


def test_reset(authority: Authority) -> None:
    """A reset is lost, as without TLS."""
    server = TLSServer(authority)
    client = server.client()
    client.send(client.record(b"hello"))
    client.peer.abort()
    server.network.settle()
    assert server.events.endings == [Ending.LOST]


@pytest.mark.parametrize("ending", [Ending.IDLE, Ending.DRAINED])
def test_no_answer_to_the_closing_alert(authority: Authority, ending: Ending) -> None:
    """Echod closes after its closing alert, whether or not the peer answers it."""
    server = TLSServer(authority, idle_timeout=10)
    client = server.client()
    client.send(client.record(b"hello"))
    if ending is Ending.DRAINED:
        server.factory.drain(5)
    server.network.advance(13)
    assert server.events.endings == [ending]
    assert client.peer.ended == "FIN"
    assert client.read() == b"hello"
    assert client.closed


def test_record_byte_by_byte(authority: Authority) -> None:
    """A client that sends a record byte by byte is not idle, and its record is echoed."""
    server = TLSServer(authority, idle_timeout=10)
    client = server.client()
    record = client.record(b"hello")
    for at in range(len(record)):
        client.send(record[at : at + 1])
        server.network.advance(9 if at < 5 else 0.15)
        if at == 5:
            server.factory.drain(100)
    assert client.read() == b"hello"
    assert server.events.closed == []
    server.network.advance(1)
    assert server.events.endings == [Ending.DRAINED]


def test_no_space_for_the_closing_alert(authority: Authority) -> None:
    """A client whose receive buffer is full, and stays so, is reset as stalled."""
    server = TLSServer(authority, idle_timeout=10, stall_timeout=40)
    client = server.client()
    client.peer.stall()
    bottom: Any = beneath(server.echo.transport)
    while room := bottom.socket._space():
        # a record is 22 bytes longer than its plaintext
        client.send(client.record(bytes(min(16_000, room - 22))) if room > 22 else b"")
        if room <= 22:
            bottom.socket.other._incoming += bytes(room)
    assert unsent(server.echo.transport) == 0
    server.network.advance(14)
    assert server.events.closed == []  # the alert is buffered
    server.network.advance(60)
    assert server.events.endings == [Ending.STALLED]


def test_lost_while_closing(authority: Authority) -> None:
    """A connection that is lost while the reply is in flight reports the unsent bytes."""
    server = TLSServer(authority)
    client = server.client()
    client.peer.stall()
    client.send(b"".join(client.record(bytes(16_000)) for _ in range(8)) + client.closing_alert())
    bottom: Any = beneath(server.echo.transport)
    bottom.connectionLost(Failure(ConnectionLost()))
    [closed] = server.events.closed
    assert closed.ending is Ending.LOST
    assert 0 < closed.unsent <= closed.bytes


@pytest.mark.parametrize("within", ["the handshake", "a message"])
def test_ended_in_delivery(authority: Authority, log: list[LogEvent], within: str) -> None:
    """A connection may be ended from within the delivery of its bytes."""
    server = TLSServer(authority)
    ended = []

    def end(about: object) -> None:
        ended.append(about)
        lose(server.echo.transport)

    class Short(Echo):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            end(data)

    if within == "a message":
        server.factory.protocol = Short
    else:
        observer = server.factory.observer
        server.factory.observer = broadcast(
            observer, lambda event: end(event) if isinstance(event, Opened) else None
        )
    client = server.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record())
    client._tls.do_handshake()
    client.send(client.record(b"hello") + client.record(b"hello"))
    assert len(ended) == 1
    assert server.events.endings == [Ending.LOST if within == "a message" else Ending.UNUSED]
    assert log == []
