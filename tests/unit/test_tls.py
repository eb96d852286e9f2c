"""What TLS adds: a handshake first, and ends of its own. In memory, each record by hand."""

from __future__ import annotations

import contextlib
import itertools
import random
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from OpenSSL import SSL
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent, globalLogPublisher
from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol
from twisted.python.failure import Failure
from zope.interface import implementer

from echod.certificates import Certificates
from echod.daemon.metrics import Tally, transferred
from echod.events import Closed, Dropped, Ending, Opened, Reason, Refused, broadcast
from echod.protocol import MAX_BUFFERED, Echo
from echod.timeouts import FIRST_BYTE, QUIET
from echod.tls import ALERT_TIME, TLSFactory
from echod.tlsrecords import RECORD, RECORDS
from echod.tlstransport import MAX_EMPTY
from echod.transport import beneath, buffered, has_unread_input, lose, unsent
from tests import TIMEOUT
from tests.authority import Authority
from tests.coroutines import now
from tests.streams.memory import MemoryEndpoints
from tests.streams.server import EchoServer, Peers
from tests.unit.records import Records, client_secret

MIB = 1 << 20


class Scene(EchoServer):
    """An EchoFactory over TLS, in memory."""

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(MemoryEndpoints(), **options)
        self.network = self.ends.network
        self.trusted = authority.file
        self.keylog = Path(authority.file).with_name("keys.log")
        self.over = TLSFactory(self.factory, Certificates(*authority.issue("server")))
        now(self.ends.listen(self.over))

    def connect(self, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> Client:
        return Client(self, version=version)

    def client(self) -> Client:
        """Connect, and do the handshake."""
        client = self.connect()
        client.handshake()
        return client

    @property
    def echo(self) -> Echo:
        [echo] = self.factory.connections
        return echo


class Client:
    """A client that does TLS by hand, so that a test has each of its bytes.

    :ivar closed: whether the service's closing alert has come.
    """

    def __init__(
        self, scene: Scene, port: int = 7, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3
    ) -> None:
        self._network = scene.network
        connecting: list[Any] = []
        scene.network.client_endpoint(port).connect(Peers()).addCallback(connecting.append)
        [self.peer] = connecting
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.create_default_context(cafile=scene.trusted)
        context.maximum_version = version
        context.keylog_filename = str(scene.keylog)
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._fed = 0
        self.received = bytearray()
        self.closed = False

    def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.send(self.record())
            else:
                self.send(self.record())
                return

    def record(self, data: bytes = b"") -> bytes:
        """Return what goes to the service for ``data``, and what else OpenSSL has to send."""
        if data:
            self._tls.write(data)
        return self._outgoing.read()

    def closing_alert(self) -> bytes:
        """Return the closing alert, once."""
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.unwrap()
        return self._outgoing.read()

    def send(self, data: bytes) -> None:
        """Send these very bytes, and take in what comes."""
        self.peer.send(data)
        self.settle()

    def settle(self) -> None:
        self._network.settle()
        self._incoming.write(bytes(self.peer.received[self._fed :]))
        self._fed = len(self.peer.received)

    def read(self) -> bytes:
        """Return all that was sent back until now."""
        self.settle()
        try:
            while data := self._tls.read(1 << 16):
                self.received += data
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return bytes(self.received)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[LogEvent]]:
    """What is logged as a failure: nothing, whatever a client does."""
    events: list[LogEvent] = []

    def keep(event: LogEvent) -> None:
        if "log_failure" in event or event.get("isError"):  # as of log.err, which reactors call
            events.append(event)

    globalLogPublisher.addObserver(keep)
    yield events
    globalLogPublisher.removeObserver(keep)
    assert events == []


def test_nobody_before_the_handshake(authority: Authority) -> None:
    """Until its handshake is done, a connection is no connection: nobody is told of it."""
    scene = Scene(authority)
    client = scene.connect()
    scene.network.settle()
    assert scene.events == []
    assert scene.factory.connections == set()
    client.handshake()
    assert [type(event) for event in scene.events] == [Opened]
    assert scene.factory.pending == set()
    client.send(client.record(b"hello"))
    assert client.read() == b"hello"


def test_handshake_timeout(authority: Authority) -> None:
    """Who has not done its handshake in time is reset and counted; who has, is left alone."""
    scene = Scene(authority, handshake_timeout=10)
    slow, quick = scene.connect(), scene.client()
    scene.network.advance(9.9)
    assert slow.peer.ended is None
    scene.network.advance(0.2)
    assert slow.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.HANDSHAKE_TIMEOUT]
    assert scene.factory.pending == set()
    scene.network.advance(100)
    quick.send(quick.record(b"hello"))
    assert quick.read() == b"hello"


def test_no_handshake_timeout(authority: Authority) -> None:
    """An application can have handshakes take any time."""
    scene = Scene(authority, handshake_timeout=None)
    client = scene.connect()
    scene.network.advance(10_000)
    client.handshake()
    assert len(scene.factory.connections) == 1


def test_half_a_handshake(authority: Authority) -> None:
    """A handshake that stops half-way is reset when its time is over, and counted once."""
    scene = Scene(authority)
    client = scene.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record()[:100])
    scene.network.advance(11)
    assert client.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


PLAINTEXT = [b"h", b"hell", b"hello", b"hello\n", b"GET / HTTP/1.0\r\n\r\n", bytes(100_000)]
BROKEN_HANDSHAKE = b"\x16\x03\x01\x00\x05\xff\xff\xff\xff\xff"


@pytest.mark.parametrize("sent", PLAINTEXT)
@pytest.mark.parametrize("segment", [1, 3, 100_000])
@pytest.mark.parametrize("finishes", [False, True])
def test_plaintext(authority: Authority, sent: bytes, segment: int, finishes: bool) -> None:
    """Plaintext ends in RST: FIN would look like a whole, empty reply. It is counted once."""
    scene = Scene(authority)
    client = scene.connect()
    for start in range(0, min(len(sent), 50 * segment), segment):
        client.peer.send(sent[start : start + segment])
        scene.network.settle()
    if finishes and client.peer.ended is None:
        client.peer.finish()
        scene.network.settle()
    if len(sent) < 5 and not finishes:  # less than a record's header may yet become one
        assert client.peer.ended is None
        scene.network.advance(11)
    assert (bytes(client.peer.received), client.peer.ended) == (b"", "RST")
    [refused] = scene.events.refused
    assert refused.reason in (Reason.TLS_HANDSHAKE, Reason.HANDSHAKE_TIMEOUT)
    assert refused.peer == client.peer.transport.getHost()
    assert scene.factory.pending == set()
    assert scene.network.getDelayedCalls() == []


@pytest.mark.parametrize("finishes", [False, True])
def test_failed_handshake(authority: Authority, finishes: bool) -> None:
    """A client whose handshake fails gets the alert that says why, time to read it, then RST."""
    scene = Scene(authority)
    client = scene.connect()
    client.send(BROKEN_HANDSHAKE + b"more")
    assert client.peer.received.startswith(b"\x15\x03")  # an alert (RFC 8446 5.1)
    assert client.peer.ended is None
    assert len(scene.factory.pending) == 1  # it still has its descriptor
    if finishes:
        client.peer.finish()
        scene.network.settle()
    else:
        client.send(b"still more")
        scene.network.advance(ALERT_TIME)
    assert (len(client.peer.received), client.peer.ended) == (7, "RST")
    [refused] = scene.events
    assert refused == Refused(Reason.TLS_HANDSHAKE, client.peer.transport.getHost(), tls=True)
    assert scene.factory.pending == set()
    assert scene.network.getDelayedCalls() == []


@pytest.mark.parametrize("deadline", [0.5, 2])
def test_failed_handshake_in_a_drain(authority: Authority, deadline: float) -> None:
    """A drain finds a failed handshake: it ends in time, and the reason stays."""
    scene = Scene(authority)
    client = scene.connect()
    client.send(BROKEN_HANDSHAKE)
    drained = scene.factory.drain(deadline)
    scene.network.advance(1.1)
    assert drained.called
    assert client.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.TLS_HANDSHAKE]


def test_alert_of_the_client(authority: Authority, tmp_path: Path) -> None:
    """A client that trusts another authority says so, has nothing to read, and is reset at once."""
    scene = Scene(authority)
    (tmp_path / "other").mkdir()
    scene.trusted = Authority(tmp_path / "other").file
    client = scene.connect()
    with pytest.raises(ssl.SSLCertVerificationError):
        client.handshake()
    client.send(client.record())
    assert client.peer.ended == "RST"
    assert [event.reason for event in scene.events] == [Reason.TLS_HANDSHAKE]


@pytest.mark.parametrize("end", ["finish", "abort"])
def test_broken_off_handshake(authority: Authority, end: str) -> None:
    """A client that leaves before its handshake is done is counted at once, and gets no FIN."""
    scene = Scene(authority)
    client = scene.connect()
    client.send(b"\x16\x03\x01")  # the beginning of a record
    getattr(client.peer, end)()
    scene.network.settle()
    assert [event.reason for event in scene.events.refused] == [Reason.TLS_HANDSHAKE]
    assert scene.factory.pending == set()
    if end == "finish":
        assert client.peer.ended == "RST"
    scene.network.advance(100)
    assert len(scene.events) == 1


def test_handshakes_count_against_the_limits(authority: Authority) -> None:
    """Who has not done its handshake takes a place; who comes over the limit is reset before."""
    scene = Scene(authority, max_connections=3, max_connections_per_peer=2)
    first, second = scene.connect(), scene.connect()
    third = scene.connect()
    scene.network.settle()
    assert third.peer.ended == "RST"
    first.handshake()
    second.handshake()
    fourth = scene.connect()
    scene.network.settle()
    assert fourth.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [
        Reason.MAX_CONNECTIONS_PER_PEER,
        Reason.MAX_CONNECTIONS_PER_PEER,
    ]
    for client in (first, second):
        client.peer.abort()
    scene.network.settle()
    assert len(scene.factory.connections) == 0
    scene.client()
    assert len(scene.factory.connections) == 1


def test_handshake_that_arrived_in_time(authority: Authority) -> None:
    """A handshake whose rest arrives in time, while the process is stopped, is completed."""
    scene = Scene(authority, handshake_timeout=10)
    client = scene.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record())
    client._tls.do_handshake()
    client.peer.transport.getHandle().send(client.record(b"hello"))  # type: ignore[attr-defined]
    Clock.advance(scene.network, 11)  # timers, but no reading
    scene.network.advance(2)
    assert client.read() == b"hello"
    assert scene.events.refused == []


def test_handshake_that_dribbles(authority: Authority) -> None:
    """A handshake that comes byte by byte is ended all the same, late by a quarter at most."""
    scene = Scene(authority, handshake_timeout=10)
    client = scene.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    hello = client.record()
    client.send(hello[:1])
    for at in range(1, 13):
        assert client.peer.ended is None
        client.peer.transport.getHandle().send(hello[at : at + 1])  # type: ignore[attr-defined]
        Clock.advance(scene.network, 1)
        scene.network.settle()
        if client.peer.ended is not None:
            break
    assert 10 < scene.network.seconds() <= 12.5
    assert client.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


def test_drain_refuses_the_silent(authority: Authority) -> None:
    """A drain refuses a client that has not begun its handshake after a second."""
    scene = Scene(authority)
    old = scene.connect()
    scene.network.advance(FIRST_BYTE)
    new = scene.connect()
    drained = scene.factory.drain(10)
    scene.network.advance(QUIET)
    assert (old.peer.ended, new.peer.ended) == ("RST", None)
    scene.network.advance(FIRST_BYTE)
    assert drained.called
    assert new.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.DRAINING] * 2


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_handshake_in_a_drain(authority: Authority, version: ssl.TLSVersion) -> None:
    """A drain, on a path of 250 ms: the handshake is finished, what follows echoed, then FIN.

    The first byte is on its way when the drain begins, as after accept_waiting.
    """
    scene = Scene(authority)
    client = scene.connect(version)
    drained = scene.factory.drain(10)
    done = False
    while not done:
        with contextlib.suppress(ssl.SSLWantReadError):
            client._tls.do_handshake()
            done = True
        flight = client.record() + (client.record(b"hello") if done else b"")
        scene.network.advance(0.25)  # what the client has sent, and the answer to it, travel
        client.send(flight)
    assert client.read() == b"hello"
    assert not drained.called
    scene.network.advance(1)
    assert drained.called
    assert client.read() == b"hello"
    assert client.closed
    assert scene.events.endings == [Ending.DRAINED]


def test_half_a_handshake_in_a_drain(authority: Authority) -> None:
    """A handshake that is not completed in a drain ends at the handshake timeout."""
    scene = Scene(authority, handshake_timeout=10)
    client = scene.connect()
    client.send(b"\x16\x03\x01")
    drained = scene.factory.drain(60)
    scene.network.advance(9)
    assert not drained.called
    scene.network.advance(1.1)
    assert drained.called
    assert client.peer.ended == "RST"
    assert [event.reason for event in scene.events.refused] == [Reason.HANDSHAKE_TIMEOUT]


def test_health_check(authority: Authority) -> None:
    """A client that leaves without a byte, as a load balancer's health check does, is unused."""
    for leave in ("finish", "abort"):
        scene = Scene(authority)
        client = scene.connect()
        scene.network.advance(2)
        getattr(client.peer, leave)()
        scene.network.settle()
        peer = client.peer.transport.getHost()
        closed = Closed(Ending.UNUSED, 0, 2.0, 0, peer, tls=True)
        assert scene.events == [Opened(peer, tls=True), closed]
        assert scene.factory.pending == set()
        assert scene.network.getDelayedCalls() == []


@pytest.mark.parametrize("leave", ["finish", "abort", "alert"])
def test_health_check_with_a_handshake(authority: Authority, leave: str) -> None:
    """A client that leaves without a byte after the handshake is unused, however it leaves."""
    scene = Scene(authority)
    client = scene.client()
    if leave == "alert":
        client.send(client.closing_alert())
    else:
        getattr(client.peer, leave)()
    scene.network.settle()
    assert scene.events.endings == [Ending.UNUSED]


@pytest.mark.parametrize("leave", ["finish", "abort"])
def test_part_of_a_record(authority: Authority, leave: str) -> None:
    """A client that leaves in the middle of its first record is lost, and not unused."""
    scene = Scene(authority)
    client = scene.client()
    client.send(client.record(b"hello")[:-1])
    getattr(client.peer, leave)()
    scene.network.settle()
    assert scene.events.endings == [Ending.LOST]


def test_refused_in_the_last_moment(authority: Authority) -> None:
    """Who is refused is not served, even if its handshake is done in that very moment."""
    scene = Scene(authority)
    client = scene.connect()
    [pending] = scene.factory.pending
    for reason in (Reason.DRAINING, Reason.HANDSHAKE_TIMEOUT):
        pending.refuse(reason)
    pending.handshake_done()  # type: ignore[attr-defined]  # as the transport calls it
    scene.network.settle()
    assert client.peer.ended == "RST"
    assert scene.events == [Refused(Reason.DRAINING, client.peer.transport.getHost(), tls=True)]


def test_all_that_came_before_the_closing_alert(authority: Authority) -> None:
    """Bytes and closing alert in one piece: all come back, then the service's own alert."""
    scene = Scene(authority)
    client = scene.client()
    client.send(client.record(b"hello") + client.record(bytes(40_000)) + client.closing_alert())
    assert client.read() == b"hello" + bytes(40_000)
    assert client.closed
    assert client.peer.ended == "FIN"
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.FINISHED, 40_005, 0)


def test_closing_alert_of_a_slow_reader(authority: Authority) -> None:
    """What is owed when the closing alert comes is delivered whole, also when it is read late."""
    scene = Scene(authority)
    client = scene.client()
    client.peer.stall()
    client.send(b"".join(client.record(bytes(16_000)) for _ in range(100)) + client.closing_alert())
    scene.network.advance(50)
    assert scene.events.closed == []
    client.peer.resume()
    assert client.read() == bytes(1_600_000)
    assert client.closed
    assert scene.events.endings == [Ending.FINISHED]


def test_closing_alert_of_who_reads_no_more(authority: Authority) -> None:
    """Who says that it has finished, and does not read the rest, is reset: stalled."""
    scene = Scene(authority, stall_timeout=40)
    client = scene.client()
    client.peer.stall()
    sent = b"".join(client.record(bytes(16_000)) for _ in range(6)) + client.closing_alert()
    client.send(sent)
    scene.network.advance(60)
    [closed] = scene.events.closed
    assert closed.ending is Ending.STALLED
    assert 0 < closed.unsent <= closed.bytes == 96_000
    client.peer.resume()
    scene.network.settle()
    assert client.peer.ended == "RST"


def test_stalled_who_talks(authority: Authority) -> None:
    """Who reads nothing is reset in time, also if it says a byte now and then."""
    scene = Scene(authority, stall_timeout=40)
    client = scene.client()
    client.peer.stall()
    while not unsent(scene.echo.transport):
        client.send(client.record(bytes(4000)))
    for _ in range(18):
        client.send(client.record(b"x"))
        scene.network.advance(3)
    assert scene.events.endings == [Ending.STALLED]


def test_slow_reader_is_not_stalled(authority: Authority) -> None:
    """Who reads a little now and then is left alone, whether it talks or not."""
    scene = Scene(authority, stall_timeout=40)
    client = scene.client()
    client.peer.stall()
    while not unsent(scene.echo.transport):
        client.send(client.record(bytes(4000)))
    bottom: Any = beneath(scene.echo.transport)
    for number in range(60):
        del bottom.socket.other._incoming[:1]  # as if the peer's application had read it
        client.send(client.record(b"x") if number % 2 else b"")
        scene.network.advance(3)
    assert scene.events.endings == []


def test_end_without_a_closing_alert(authority: Authority) -> None:
    """FIN without a closing alert: all comes back, but it was anybody's end: lost."""
    scene = Scene(authority)
    client = scene.client()
    client.peer.send(client.record(b"hello"))
    client.peer.finish()
    assert client.read() == b"hello"
    assert client.closed
    assert client.peer.ended == "FIN"
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.LOST, 5, 0)


@pytest.mark.parametrize("much", [False, True])
def test_damaged_record(authority: Authority, much: bool) -> None:
    """A record that somebody has changed ends the connection as lost, behind what was right.

    Also where the reply has to wait for the reader.
    """
    scene = Scene(authority)
    client = scene.client()
    good = [b"hello", *([bytes(16_000)] * 4 if much else [])]
    records = b"".join(map(client.record, good))
    bad = bytearray(client.record(b"world"))
    bad[-1] ^= 1
    client.peer.stall()
    client.send(records + bad)
    scene.network.advance(1)
    client.peer.resume()
    client.settle()
    with pytest.raises(ssl.SSLError, match=r"(?i)bad.record.mac|decrypt"):
        client.read()
    assert client.received == b"".join(good)
    assert client.peer.ended == "FIN"
    [closed] = scene.events.closed
    assert (closed.ending, closed.unsent) == (Ending.LOST, 0)


def test_reset(authority: Authority) -> None:
    """A reset is lost, as without TLS."""
    scene = Scene(authority)
    client = scene.client()
    client.send(client.record(b"hello"))
    client.peer.abort()
    scene.network.settle()
    assert scene.events.endings == [Ending.LOST]


@pytest.mark.parametrize("ending", [Ending.IDLE, Ending.DRAINED])
def test_no_answer_to_the_closing_alert(authority: Authority, ending: Ending) -> None:
    """The service closes behind its closing alert, whether or not the peer answers it."""
    scene = Scene(authority, idle_timeout=10)
    client = scene.client()
    client.send(client.record(b"hello"))
    if ending is Ending.DRAINED:
        scene.factory.drain(5)
    scene.network.advance(13)
    assert scene.events.endings == [ending]
    assert client.peer.ended == "FIN"
    assert client.read() == b"hello"
    assert client.closed


def test_talking_in_the_midst_of_a_record(authority: Authority) -> None:
    """Who sends a record bit by bit is talking: neither idle nor quiet, and gets it back."""
    scene = Scene(authority, idle_timeout=10)
    client = scene.client()
    record = client.record(b"hello")
    for at in range(len(record)):
        client.send(record[at : at + 1])
        scene.network.advance(9 if at < 5 else 0.15)
        if at == 5:
            scene.factory.drain(100)
    assert client.read() == b"hello"
    assert scene.events.closed == []
    scene.network.advance(1)
    assert scene.events.endings == [Ending.DRAINED]


def test_room_for_the_closing_alert(authority: Authority) -> None:
    """Who leaves no room for the closing alert, and does not read, is reset all the same."""
    scene = Scene(authority, idle_timeout=10, stall_timeout=40)
    client = scene.client()
    client.peer.stall()
    bottom: Any = beneath(scene.echo.transport)
    while room := bottom.socket._space():
        # a record is 22 bytes more than what is in it; tiny ones fill the rest
        client.send(client.record(bytes(min(16_000, room - 22))) if room > 22 else b"")
        if room <= 22:
            bottom.socket.other._incoming += bytes(room)
    assert unsent(scene.echo.transport) == 0
    scene.network.advance(14)
    assert scene.events.closed == []  # the alert is owed
    scene.network.advance(60)
    assert scene.events.endings == [Ending.STALLED]


def test_closed_by_the_application(authority: Authority) -> None:
    """``loseConnection`` sends what is owed, the closing alert, and FIN: finished."""
    scene = Scene(authority)
    client = scene.client()
    client.peer.stall()
    client.send(b"".join(client.record(bytes(16_000)) for _ in range(10)))
    scene.echo.transport.loseConnection()
    scene.network.advance(1)
    client.peer.resume()
    assert client.read() == bytes(160_000)
    assert client.closed
    assert scene.events.endings == [Ending.FINISHED]


def test_closed_in_the_midst(authority: Authority) -> None:
    """Who closes at a byte gets no more of them, and what it writes then is not sent."""

    class Once(Echo):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            self.transport.loseConnection()
            self.transport.write(b"more")

    scene = Scene(authority)
    scene.factory.protocol = Once
    client = scene.client()
    client.send(client.record(b"hello") + client.record(b"world"))
    assert client.read() == b"hello"
    assert client.closed
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.FINISHED, 5, 0)


def test_written_by_the_application(authority: Authority) -> None:
    """What an application writes is encrypted, in one piece or several, of any length."""
    scene = Scene(authority)
    client = scene.client()
    transport = scene.echo.transport
    transport.write(b"one ")
    transport.writeSequence([b"two ", b"three ", bytes(40_000)])
    assert client.read() == b"one two three " + bytes(40_000)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="openssl is not installed")
def test_written_to_who_takes_small_records(authority: Authority) -> None:
    """All of what an application writes is sent, also where the peer has asked for 512 bytes each.

    Not every client can (RFC 6066 4): openssl's bytes are carried from its socket and back.
    """

    class Greeter(Echo):
        def connectionMade(self) -> None:
            super().connectionMade()
            self.transport.write(bytes(40_000))
            self.transport.loseConnection()

    scene = Scene(authority)
    scene.factory.protocol = Greeter
    peer, fed = scene.connect().peer, 0
    with socket.create_server(("127.0.0.1", 0)) as port:
        port.settimeout(TIMEOUT)
        there = f"127.0.0.1:{port.getsockname()[1]}"
        command = f"openssl s_client -quiet -maxfraglen 512 -CAfile {authority.file} -connect"
        with subprocess.Popen(
            [*command.split(), there],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as process:
            sock, _ = port.accept()
            with sock:
                sock.settimeout(TIMEOUT)
                while peer.ended is None:
                    peer.send(sock.recv(1 << 16))
                    scene.network.settle()
                    sock.sendall(bytes(peer.received[fed:]))
                    fed = len(peer.received)
            assert process.stdout is not None
            assert process.stdout.read() == bytes(40_000)
            process.kill()


def test_written_where_openssl_waits(authority: Authority, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be sent, because the peer has sent half of a KeyUpdate, is no FIN, but RST."""
    scene = Scene(authority)
    client = scene.client()
    transport: Any = scene.echo.transport

    def waits(_: bytes) -> None:
        raise SSL.WantReadError

    monkeypatch.setattr(transport._tls, "sendall", waits)
    transport.write(b"more")
    scene.network.settle()
    assert client.peer.ended == "RST"
    assert scene.events.endings == [Ending.ABORTED]


def test_written_too_late(authority: Authority) -> None:
    """What an application writes when the connection is gone is dropped, as without TLS."""
    scene = Scene(authority)
    client = scene.client()
    transport: Any = scene.echo.transport
    client.peer.abort()
    scene.network.settle()
    transport.write(b"more")
    transport.writeSequence([b"more"])
    transport.finish()
    transport.loseConnection()
    assert scene.events.endings == [Ending.UNUSED]


def test_certificate_of_the_peer(authority: Authority) -> None:
    """An application can ask for the client's certificate: here it has shown none."""
    scene = Scene(authority)
    scene.client()
    transport: Any = scene.echo.transport
    assert transport.getPeerCertificate() is None


def client_over_twisted(scene: Scene, authority: Authority) -> Client:
    """Listen over Twisted's own TLS too, connect there, and do the handshake."""
    certificates = Certificates(*authority.issue("server"))

    @implementer(IOpenSSLServerConnectionCreator)
    class Creator:
        def serverConnectionForTLS(self, protocol: object) -> Any:
            return SSL.Connection(certificates(), None)

    over = TLSMemoryBIOFactory(Creator(), False, scene.factory, scene.network)
    over.protocol = TLSMemoryBIOProtocol
    scene.network.server_endpoint(8).listen(over)
    client = Client(scene, port=8)
    client.handshake()
    return client


def test_tls_of_twisted(authority: Authority) -> None:
    """Over Twisted's own TLS, a slow reader's closing alert ends the connection: lost."""
    scene = Scene(authority)
    client = client_over_twisted(scene, authority)
    client.peer.stall()
    client.send(b"".join(client.record(bytes(14_000)) for _ in range(5)))
    client.send(b"".join(client.record(bytes(15_500)) for _ in range(4)) + client.closing_alert())
    assert unsent(scene.echo.transport) > 64 * 1024
    assert scene.events.closed == []
    client.peer.resume()
    assert client.read() == bytes(132_000)
    assert client.closed
    assert scene.events.endings == [Ending.LOST]


def test_events_say_tls(authority: Authority) -> None:
    """Each event says that the connection is encrypted, over Twisted's own TLS too."""
    scene = Scene(authority, max_connections=1)
    client = scene.client()
    scene.connect()
    client.peer.abort()
    scene.network.settle()
    other = client_over_twisted(scene, authority)
    other.peer.abort()
    scene.network.settle()
    assert [type(event) for event in scene.events] == [Opened, Refused, Closed, Opened, Closed]
    assert all(event.tls for event in scene.events if not isinstance(event, Dropped))


def test_aborted_by_the_application(authority: Authority) -> None:
    """``abort`` resets, and says so; what was sent back is not called unsent. Twice is once."""
    scene = Scene(authority)
    client = scene.client()
    client.send(client.record(b"hello"))
    echo = scene.echo
    for _ in range(2):
        echo.abort()
        scene.network.settle()
    echo.transport.loseConnection()
    scene.network.settle()
    assert client.peer.ended == "RST"
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes, closed.unsent) == (Ending.ABORTED, 5, 0)


def test_network_gives_up_in_the_end(authority: Authority) -> None:
    """A connection that breaks while the rest of the reply is on its way is lost, and how much."""
    scene = Scene(authority)
    client = scene.client()
    client.peer.stall()
    client.send(b"".join(client.record(bytes(16_000)) for _ in range(8)) + client.closing_alert())
    bottom: Any = beneath(scene.echo.transport)
    bottom.connectionLost(Failure(ConnectionLost()))
    [closed] = scene.events.closed
    assert closed.ending is Ending.LOST
    assert 0 < closed.unsent <= closed.bytes


def test_owed_is_bounded(authority: Authority) -> None:
    """Of peers that never read, whatever they send, little is taken and held."""
    scene = Scene(authority)
    for size, count in ((16_000, 100), (1, 10_000), (300, 3000)):
        client = scene.client()
        client.peer.stall()
        client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
    held = [unsent(echo.transport) for echo in scene.factory.connections]
    assert len(held) == 3
    assert all(60_000 < each < MAX_BUFFERED for each in held)


@pytest.mark.parametrize("seed", range(5))
def test_sent_never_goes_back(authority: Authority, seed: int) -> None:
    """What is owed is counted as it was received, without what TLS adds: sent never goes back."""
    chance = random.Random(seed)
    scene = Scene(authority)
    client = scene.client()
    before = paused = 0
    for _ in range(100):
        (client.peer.stall if chance.random() < 0.7 else client.peer.resume)()
        size, count = chance.choice(((1, 300), (1, 1), (300, 40), (16_000, 4)))
        client.send(b"".join(client.record(bytes(size)) for _ in range(count)))
        received, sent = transferred(Tally(), scene.factory)
        assert before <= sent <= received
        assert buffered(scene.echo.transport) <= unsent(scene.echo.transport) + RECORD
        before = sent
        paused += sent < received
    assert paused
    client.peer.resume()
    assert len(client.read()) == sum(transferred(Tally(), scene.factory)) / 2
    assert buffered(scene.echo.transport) == 0


def test_little_is_kept_of_what_is_unsent(authority: Authority) -> None:
    """A record that comes byte by byte, while something is unsent, costs nothing for each."""
    scene = Scene(authority)
    client = scene.client()
    client.peer.stall()
    tls: Any = scene.echo.transport
    while not unsent(tls):
        client.send(client.record(bytes(8192)))
    before = len(tls._ledger._marks)
    record = client.record(bytes(1000))
    for at in range(len(record)):
        client.send(record[at : at + 1])
    assert len(tls._ledger._marks) <= before + 1
    client.peer.resume()
    scene.network.settle()
    assert tls.unsent_plaintext == 0
    assert len(tls._ledger._marks) == 0


@pytest.mark.parametrize("within", ["the handshake", "a message"])
def test_ended_within(authority: Authority, log: list[LogEvent], within: str) -> None:
    """Who ends a connection at once, while bytes of it are delivered, has nothing fail."""
    scene = Scene(authority)
    ended = []

    def end(about: object) -> None:
        ended.append(about)
        lose(scene.echo.transport)

    class Short(Echo):
        def dataReceived(self, data: bytes) -> None:
            super().dataReceived(data)
            end(data)

    if within == "a message":
        scene.factory.protocol = Short
    else:
        observer = scene.factory.observer
        scene.factory.observer = broadcast(
            observer, lambda event: end(event) if isinstance(event, Opened) else None
        )
    client = scene.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    client.send(client.record())
    client._tls.do_handshake()
    client.send(client.record(b"hello") + client.record(b"hello"))
    assert len(ended) == 1
    assert scene.events.endings == [Ending.LOST if within == "a message" else Ending.UNUSED]
    assert log == []


def test_sent_never_goes_back_over_tls_of_twisted(authority: Authority) -> None:
    """Over Twisted's own TLS, too, where more becomes unsent than is received."""
    scene, tally = Scene(authority), Tally()
    client = client_over_twisted(scene, authority)
    scene.factory.observer = tally
    client.peer.stall()
    while not unsent(scene.echo.transport):
        client.send(client.record(bytes(8192)))
    before = transferred(tally, scene.factory)
    for _ in range(10):
        client.send(client.record(b"x"))
        received, sent = transferred(tally, scene.factory)
        assert received > before[0]
        assert before[1] <= sent < received
        before = received, sent
    client.peer.resume()
    client.read()
    assert transferred(tally, scene.factory) == (len(client.received), len(client.received))


class SlowScene(Scene):
    """In it each record takes a millisecond, so that the time of a turn is soon over.

    :ivar seen: for each record the port of its client, and whether more has been read and waits.
    """

    def __init__(self, authority: Authority, **options: Any) -> None:
        super().__init__(authority, **options)
        scene, self.seen = self, cast("list[tuple[int, bool]]", [])

        class Slow(Echo):
            def dataReceived(self, data: bytes) -> None:
                transport: Any = self.transport
                scene.network.rightNow += 0.001
                scene.seen.append((transport.getPeer().port, transport.has_undecrypted_input))
                if transport.has_undecrypted_input:
                    assert has_unread_input(transport)
                    assert beneath(transport) not in scene.network.getReaders()
                scene.act(self)
                super().dataReceived(data)

        self.factory.protocol = Slow

    def act(self, echo: Echo) -> None:
        """Do what a test wants while a record is delivered."""


def tiny_records(client: Client, count: int) -> tuple[bytes, bytes]:
    """Return ``count`` bytes, and what goes to the service for them as one record each."""
    data = random.Random(862).randbytes(count)
    return data, b"".join(client.record(data[at : at + 1]) for at in range(count))


def test_turns_are_shared(authority: Authority) -> None:
    """Tiny records of several clients take turns: every byte comes back, whole and in order."""
    scene = SlowScene(authority)
    clients = [scene.client() for _ in range(3)]
    sent = [tiny_records(client, 200) for client in clients]
    for client, (_, records) in zip(clients, sent, strict=True):
        client.peer.send(records)
    scene.network.settle()
    assert [client.read() for client in clients] == [data for data, _ in sent]
    ports = [port for port, _ in scene.seen]
    runs = [len(list(run)) for _, run in itertools.groupby(ports)]
    assert max(runs) <= 2 * RECORDS
    scene.network.advance(10)
    assert scene.network.getDelayedCalls() == []
    for client in clients:  # and they are read from again
        client.send(client.record(b"more"))
        assert client.read().endswith(b"more")


@pytest.mark.parametrize("end", ["closing alert", "FIN"])
def test_end_behind_records_that_wait(authority: Authority, end: str) -> None:
    """The end of the peer's sending is not seen before what was sent before it."""
    scene = SlowScene(authority)
    client = scene.client()
    data, records = tiny_records(client, 200)
    client.peer.send(records + (client.closing_alert() if end == "closing alert" else b""))
    client.peer.finish()
    scene.network.settle()
    assert client.read() == data
    assert client.closed
    assert client.peer.ended == "FIN"
    assert scene.events.endings == [Ending.FINISHED if end == "closing alert" else Ending.LOST]
    assert scene.events.closed[0].bytes == 200


def test_records_that_wait_of_a_slow_reader(authority: Authority) -> None:
    """A peer that does not read is read from again when it does, and everything is decrypted."""
    scene = SlowScene(authority)
    client = scene.client()
    client.peer.stall()
    data, records = tiny_records(client, 20_000)
    client.send(records)
    echo: Any = scene.echo
    assert echo._paused
    assert not echo.transport.has_undecrypted_input
    assert unsent(echo.transport) < MAX_BUFFERED
    client.peer.resume()
    assert client.read() == data


@pytest.mark.parametrize("ending", [Ending.LOST, Ending.ABORTED, Ending.FINISHED])
def test_end_while_records_wait(authority: Authority, ending: Ending) -> None:
    """A connection may end, by whatever, while its records wait: then they are dropped."""
    scene = SlowScene(authority)
    client = scene.client()
    data, records = tiny_records(client, 200)

    def act(echo: Echo) -> None:
        if len(scene.seen) == 50:
            if ending is Ending.LOST:
                lose(echo.transport)
            elif ending is Ending.ABORTED:
                echo.abort()
            else:
                echo.transport.loseConnection()

    scene.act = act  # type: ignore[method-assign]
    client.send(records)
    assert scene.events.endings == [ending]
    assert len(scene.seen) == 50
    if ending is Ending.FINISHED:
        assert client.read() == data[:49]
    scene.network.advance(100)
    assert scene.network.getDelayedCalls() == []


def test_reactor_stops_while_records_wait(authority: Authority) -> None:
    """When the reactor stops, a connection whose records wait is reset: the reply is not whole."""
    scene = SlowScene(authority)
    client = scene.client()

    def act(echo: Echo) -> None:
        if len(scene.seen) == 50:
            below: Any = beneath(echo.transport)
            below.doWrite()  # nothing is unsent
            below.connectionLost(connectionDone)  # as each of them, when it stops

    scene.act = act  # type: ignore[method-assign]
    client.send(tiny_records(client, 200)[1])
    assert client.peer.ended == "RST"
    assert scene.events.endings == [Ending.LOST]


def test_failure_in_a_later_turn(authority: Authority, log: list[LogEvent]) -> None:
    """An exception ends its own connection with RST, and is logged; others go on."""
    scene = SlowScene(authority)
    clients = [scene.client() for _ in range(2)]
    sent = [tiny_records(client, 200) for client in clients]

    def act(echo: Echo) -> None:
        if len(scene.seen) > 50 and echo.peer.port == scene.seen[0][0]:  # type: ignore[attr-defined]
            raise MemoryError

    scene.act = act  # type: ignore[method-assign]
    for client, (_, records) in zip(clients, sent, strict=True):
        client.peer.send(records)
    scene.network.settle()
    assert clients[0].peer.ended == "RST"
    assert clients[1].read() == sent[1][0]
    assert scene.events.endings == [Ending.ABORTED]
    [failure] = log
    assert failure["log_failure"].check(MemoryError)
    log.clear()


def test_transport_that_does_not_pause(authority: Authority) -> None:
    """What a transport delivers although it was paused is decrypted in its turn, too."""
    scene = SlowScene(authority)
    client = scene.client()
    data, records = tiny_records(client, 200)
    first, last = records[:-1000], [records[-1000:]]

    def act(echo: Echo) -> None:
        transport: Any = echo.transport
        if transport.has_undecrypted_input and last:
            transport.dataReceived(last.pop())

    scene.act = act  # type: ignore[method-assign]
    client.send(first)
    assert client.read() == data


def test_paused_while_records_wait(authority: Authority) -> None:
    """A transport that is resumed while records wait reads again when they are decrypted."""
    scene = SlowScene(authority)
    client = scene.client()
    data, records = tiny_records(client, 200)

    def act(echo: Echo) -> None:
        if len(scene.seen) in (50, 150):
            echo.transport.pauseProducing()
        elif len(scene.seen) == 100:
            echo.transport.resumeProducing()

    scene.act = act  # type: ignore[method-assign]
    client.send(records)
    assert client.read() == data
    assert beneath(scene.echo.transport) not in scene.network.getReaders()
    scene.echo.transport.resumeProducing()
    client.send(client.record(b"more"))
    assert client.read() == data + b"more"


def test_handshake_that_waits(authority: Authority) -> None:
    """A handshake that waits for its turn is not given up: its time ends at the next look."""
    scene = SlowScene(authority, handshake_timeout=10)
    other, client = scene.client(), scene.connect()
    with pytest.raises(ssl.SSLWantReadError):
        client._tls.do_handshake()
    hello = client.record()

    def act(echo: Echo) -> None:
        if len(scene.seen) == 20:
            [pending] = scene.factory.pending
            assert has_unread_input(pending.transport)
            scene.network.rightNow += 11  # and the timeout is due

    scene.act = act  # type: ignore[method-assign]
    data, records = tiny_records(other, 100)
    other.peer.send(records)
    client.peer.send(hello)
    scene.network.settle()
    client.settle()
    client._tls.do_handshake()
    client.send(client.record())
    assert scene.events.refused == []
    assert other.read() == data


def test_only_key_updates(authority: Authority) -> None:
    """A peer that sends KeyUpdates and no data is reset, and counted as aborted."""
    scene = Scene(authority)
    client = scene.client()
    records = Records(client_secret(scene.keylog))
    half = MAX_EMPTY // 2
    for answer in (False, True):
        client.send(b"".join(records.key_update(answer=answer) for _ in range(half)))
    client.send(records.record(b"hello"))  # which begins it anew
    client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
    client.send(records.record(b"world"))
    for _ in range(MAX_EMPTY):  # OpenSSL returns to its caller behind each answer
        client.read()
    assert client.read() == b"helloworld"
    client.send(b"".join(records.key_update() for _ in range(MAX_EMPTY)))
    assert client.peer.ended is None
    client.send(records.key_update())
    assert client.peer.ended == "RST"
    [closed] = scene.events.closed
    assert (closed.ending, closed.bytes) == (Ending.ABORTED, 10)
