"""Tiny TLS records: connections share the time of each turn."""

from __future__ import annotations

import itertools
import random
import ssl
from typing import Any, cast

import pytest
from twisted.internet.protocol import connectionDone
from twisted.logger import LogEvent

from echod.events import Ending
from echod.protocol import MAX_BUFFERED, Echo
from echod.tlsrecords import RECORDS
from echod.transport import beneath, has_unread_input, lose, unsent
from tests.authority import Authority
from tests.unit.tls.client import TLSClient, TLSServer


class SlowTLSServer(TLSServer):
    """A server on which each record takes a millisecond, so that the budget of a turn runs out.

    :ivar seen: for each record, the client's port and whether more input waits.
    """

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(authority, **options)
        server, self.seen = self, cast("list[tuple[int, bool]]", [])

        class Slow(Echo):
            def dataReceived(self, data: bytes) -> None:
                transport: Any = self.transport
                server.network.rightNow += 0.001
                server.seen.append((transport.getPeer().port, transport.has_undecrypted_input))
                if transport.has_undecrypted_input:
                    assert has_unread_input(transport)
                    assert beneath(transport) not in server.network.getReaders()
                server.act(self)
                super().dataReceived(data)

        self.factory.protocol = Slow

    def act(self, echo: Echo) -> None:
        """Run a test's code in the delivery of a record."""


def tiny_records(client: TLSClient, count: int) -> tuple[bytes, bytes]:
    """Return ``count`` bytes, and their ciphertext as one record for each byte."""
    data = random.Random(862).randbytes(count)
    return data, b"".join(client.record(data[at : at + 1]) for at in range(count))


def test_shared_turns(authority: Authority) -> None:
    """Tiny records of several clients take turns, and every byte is echoed in order."""
    server = SlowTLSServer(authority)
    clients = [server.client() for _ in range(3)]
    sent = [tiny_records(client, 200) for client in clients]
    for client, (_, records) in zip(clients, sent, strict=True):
        client.peer.send(records)
    server.network.settle()
    assert [client.read() for client in clients] == [data for data, _ in sent]
    ports = [port for port, _ in server.seen]
    runs = [len(list(run)) for _, run in itertools.groupby(ports)]
    assert max(runs) <= 2 * RECORDS
    server.network.advance(10)
    assert server.network.getDelayedCalls() == []
    for client in clients:  # the server reads again
        client.send(client.record(b"more"))
        assert client.read().endswith(b"more")


@pytest.mark.parametrize("end", ["closing alert", "FIN"])
def test_end_after_waiting_records(authority: Authority, end: str) -> None:
    """The end of the stream is handled after all records that were received before it."""
    server = SlowTLSServer(authority)
    client = server.client()
    data, records = tiny_records(client, 200)
    client.peer.send(records + (client.closing_alert() if end == "closing alert" else b""))
    client.peer.finish()
    server.network.settle()
    assert client.read() == data
    assert client.closed
    assert client.peer.ended == "FIN"
    assert server.events.endings == [Ending.FINISHED if end == "closing alert" else Ending.LOST]
    assert server.events.closed[0].bytes == 200


def test_waiting_records_of_a_slow_reader(authority: Authority) -> None:
    """A peer that stalls and then reads again gets every byte."""
    server = SlowTLSServer(authority)
    client = server.client()
    client.peer.stall()
    data, records = tiny_records(client, 20_000)
    client.send(records)
    echo: Any = server.echo
    assert echo._paused
    assert not echo.transport.has_undecrypted_input
    assert unsent(echo.transport) < MAX_BUFFERED
    client.peer.resume()
    assert client.read() == data


@pytest.mark.parametrize("ending", [Ending.LOST, Ending.ABORTED, Ending.FINISHED])
def test_end_while_records_wait(authority: Authority, ending: Ending) -> None:
    """If a connection ends while its records wait, they are dropped."""
    server = SlowTLSServer(authority)
    client = server.client()
    data, records = tiny_records(client, 200)

    def act(echo: Echo) -> None:
        if len(server.seen) == 50:
            if ending is Ending.LOST:
                lose(echo.transport)
            elif ending is Ending.ABORTED:
                echo.abort()
            else:
                echo.transport.loseConnection()

    server.act = act  # type: ignore[method-assign]
    client.send(records)
    assert server.events.endings == [ending]
    assert len(server.seen) == 50
    if ending is Ending.FINISHED:
        assert client.read() == data[:49]
    server.network.advance(100)
    assert server.network.getDelayedCalls() == []


def test_reactor_stops_while_records_wait(authority: Authority) -> None:
    """If the reactor stops while records wait, the connection is reset: its reply is not whole."""
    server = SlowTLSServer(authority)
    client = server.client()

    def act(echo: Echo) -> None:
        if len(server.seen) == 50:
            below: Any = beneath(echo.transport)
            below.doWrite()  # send all buffered bytes
            below.connectionLost(connectionDone)  # as the reactor does when it stops

    server.act = act  # type: ignore[method-assign]
    client.send(tiny_records(client, 200)[1])
    assert client.peer.ended == "RST"
    assert server.events.endings == [Ending.LOST]


def test_exception_in_a_later_turn(authority: Authority, log: list[LogEvent]) -> None:
    """An exception resets its own connection and is logged; others are not affected."""
    server = SlowTLSServer(authority)
    clients = [server.client() for _ in range(2)]
    sent = [tiny_records(client, 200) for client in clients]

    def act(echo: Echo) -> None:
        if len(server.seen) > 50 and echo.peer.port == server.seen[0][0]:  # type: ignore[attr-defined]
            raise MemoryError

    server.act = act  # type: ignore[method-assign]
    for client, (_, records) in zip(clients, sent, strict=True):
        client.peer.send(records)
    server.network.settle()
    assert clients[0].peer.ended == "RST"
    assert clients[1].read() == sent[1][0]
    assert server.events.endings == [Ending.ABORTED]
    [failure] = log
    assert failure["log_failure"].check(MemoryError)
    log.clear()


def test_data_while_paused(authority: Authority) -> None:
    """Bytes that a transport delivers while it is paused are decrypted in their turn."""
    server = SlowTLSServer(authority)
    client = server.client()
    data, records = tiny_records(client, 200)
    first, last = records[:-1000], [records[-1000:]]

    def act(echo: Echo) -> None:
        transport: Any = echo.transport
        if transport.has_undecrypted_input and last:
            transport.dataReceived(last.pop())

    server.act = act  # type: ignore[method-assign]
    client.send(first)
    assert client.read() == data


def test_paused_while_records_wait(authority: Authority) -> None:
    """A transport that is resumed while records wait reads again when they are decrypted."""
    server = SlowTLSServer(authority)
    client = server.client()
    data, records = tiny_records(client, 200)

    def act(echo: Echo) -> None:
        if len(server.seen) in (50, 150):
            echo.transport.pauseProducing()
        elif len(server.seen) == 100:
            echo.transport.resumeProducing()

    server.act = act  # type: ignore[method-assign]
    client.send(records)
    assert client.read() == data
    assert beneath(server.echo.transport) not in server.network.getReaders()
    server.echo.transport.resumeProducing()
    client.send(client.record(b"more"))
    assert client.read() == data + b"more"


def test_waiting_handshake(authority: Authority) -> None:
    """A handshake that waits for its turn gets another check before it times out."""
    server = SlowTLSServer(authority, handshake_timeout=10)
    other, client = server.client(), server.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    hello = client.record()

    def act(echo: Echo) -> None:
        if len(server.seen) == 20:
            [pending] = server.factory.pending
            assert has_unread_input(pending.transport)
            server.network.rightNow += 11  # past the timeout

    server.act = act  # type: ignore[method-assign]
    data, records = tiny_records(other, 100)
    other.peer.send(records)
    client.peer.send(hello)
    server.network.settle()
    client.settle()
    client._tls.do_handshake()
    client.send(client.record())
    assert server.events.refused == []
    assert other.read() == data
