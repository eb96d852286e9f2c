"""An echo peer on a reactor of its own: its addresses, its life, and what it leaves."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from twisted.internet import tcp

from echod.peer import EchoPeer
from echod.transport import send_now
from tests import ROOT, TIMEOUT
from tests.plugin.clients import TRANSPORTS, connect, echo, resources

each_transport = pytest.mark.parametrize("transport", TRANSPORTS)


@each_transport
def test_echo(transport: str) -> None:
    """A peer serves as soon as it is made, and sends back each byte."""
    with EchoPeer(transport) as peer:
        assert echo(peer, transport) == b"hello"
        if transport != "udp":
            data = bytes(range(256)) * 100
            assert echo(peer, transport, data) == data


@each_transport
def test_stop_and_start(transport: str) -> None:
    """A stopped peer refuses clients; a started one serves them at the same address."""
    with EchoPeer(transport) as peer:
        for _ in range(2):
            assert echo(peer, transport) == b"hello"
            peer.stop()
            peer.stop()
            with pytest.raises((ConnectionRefusedError, FileNotFoundError)):
                echo(peer, transport)
            peer.start()
            peer.start()
        assert echo(peer, transport) == b"hello"


def test_stop_drains() -> None:
    """To stop a peer closes each connection when it is quiet, or resets it at the deadline."""
    with EchoPeer() as peer:
        with connect(peer) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            peer.stop(TIMEOUT)
            assert sock.recv(1) == b""
        assert peer.endings == ["drained"]
        peer.start()
        with connect(peer) as sock:
            sock.sendall(b"hello")
            assert sock.recv(5) == b"hello"
            peer.stop(0)
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        assert peer.endings == ["drained", "aborted"]


@each_transport
def test_leaves_nothing(transport: str) -> None:
    """After the end of a peer, its thread, its descriptors and its files are gone."""
    before = resources()
    with EchoPeer(transport) as peer:
        echo(peer, transport)
        with connect(peer, transport):
            pass
        peer.stop()
        peer.start()
        assert resources() != before
    assert resources() == before
    assert not Path(peer.ca).parent.exists()


@pytest.mark.parametrize(
    ("error", "arguments", "options"),
    [
        (ValueError, ("carrier pigeon",), {}),
        (TypeError, ("tcp",), {"max_conections": 3}),
        (TypeError, ("tcp",), {"idle_timeout": "long"}),
        (ValueError, ("tls",), {"idle_timeout": -1}),
        (TypeError, ("udp",), {"max_conections": 3}),
        (TypeError, ("tcp",), {"seed": "seven"}),
        (ValueError, ("udp",), {"seed": -1}),
    ],
)
def test_wrong_arguments(error: type, arguments: tuple[str], options: dict[str, object]) -> None:
    """Wrong arguments raise an exception, and leave nothing."""
    before = resources()
    with pytest.raises(error):
        EchoPeer(*arguments, **options)  # type: ignore[arg-type]
    assert resources() == before


def test_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without cryptography, a TLS peer names the extra to install, and leaves nothing."""
    monkeypatch.setitem(sys.modules, "cryptography", None)
    monkeypatch.delitem(sys.modules, "echod.certificates", raising=False)
    before = resources()
    with pytest.raises(ImportError, match=r"cryptography.*: install echod with its extra tls"):
        EchoPeer("tls")
    assert resources() == before


def test_options_of_the_factory() -> None:
    """A peer takes the options of an EchoFactory."""
    with EchoPeer(max_connections=1) as peer, connect(peer) as first:
        first.sendall(b"hello")
        assert first.recv(5) == b"hello"
        with pytest.raises(ConnectionResetError):
            echo(peer)


def test_wait_for_an_ending() -> None:
    """A test waits for an ending, for several, or for anything that a function returns."""
    with EchoPeer() as peer:
        echo(peer)
        peer.wait_for("finished")
        echo(peer)
        peer.wait_for("finished", 2)
        peer.wait_for(lambda: peer.endings == ["finished", "finished"])


def test_wait_in_vain() -> None:
    """What does not happen in time raises TimeoutError, with the report of the peer."""
    with EchoPeer(seed=7) as peer:
        echo(peer)
        peer.wait_for("finished")
        with pytest.raises(TimeoutError) as raised:
            peer.wait_for("lost", timeout=0.01)
    lines = str(raised.value).splitlines()
    assert lines[0] == "lost has not happened in 0.01 s"
    assert lines[1] == f"tcp 127.0.0.1:{peer.port}, seed 7"
    assert [line.split("(")[0].strip() for line in lines[2:]] == ["Opened", "Closed"]


def test_further_peers() -> None:
    """A peer makes further ones on other transports; all end with it."""
    before = resources()
    with EchoPeer(seed=7) as peer:
        others = [peer(transport) for transport in TRANSPORTS]
        assert peer.peers == [peer, *others]
        for transport, other in zip(TRANSPORTS, others, strict=True):
            assert echo(other, transport) == b"hello"
            assert other.report().splitlines()[0].endswith("seed 7")
    assert resources() == before


def test_after_its_end() -> None:
    """After its end, a peer still has its counts, and cannot start again."""
    with EchoPeer() as peer:
        echo(peer)
        peer.wait_for("finished")
    assert peer.endings == ["finished"]
    assert not peer.counts
    assert peer.firings == []
    peer.stop()
    for use in (peer.start, peer):
        with pytest.raises(RuntimeError, match="has ended"):
            use()


@pytest.mark.parametrize("transport", ["tcp", "tls", "unix"])
def test_rules_of_streams(transport: str) -> None:
    """Rules act on each transport of streams, in the order in which the test adds them."""
    with EchoPeer(transport) as peer:
        peer.first(1).refuse()
        peer.number(2).insert(b"[")
        peer.number(2).from_byte(3).reset()
        with suppress(OSError):  # over a UNIX socket, a reset looks like EOF
            assert echo(peer, transport) == b""
        with connect(peer, transport) as sock:
            sock.sendall(b"hello")
            received = b""
            with suppress(ConnectionResetError):
                while part := sock.recv(100):
                    received += part
        assert received == b"[he"
        assert echo(peer, transport) == b"hello"
        assert peer.counts == {"refuse": 1, "insert": 1, "reset": 1}
        places = [(each.connection, each.offset) for each in peer.firings]
        assert places == [(1, 0), (2, 0), (2, 3)]
        peer.wait_for("fault")


def test_rules_of_datagrams() -> None:
    """Rules act on datagrams, and a test can wait for a firing that the client does not see."""
    with EchoPeer("udp") as peer, connect(peer, "udp") as sock:
        peer.first(2).drop()
        peer.numbers(3, 4).truncate(2)
        for data in (b"first", b"second"):
            sock.sendall(data)
        peer.wait_for("drop", 2)
        sock.sendall(b"third")
        assert sock.recv(100) == b"th"
        assert peer.counts == {"drop": 2, "truncate": 1}


def test_rules_of_tls() -> None:
    """The faults of the handshake are those of a ``tls`` peer alone."""
    with EchoPeer("tls") as peer:
        peer.first(1).certificate("expired")
        with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
            echo(peer, "tls")
        assert echo(peer, "tls") == b"hello"
        plain = peer()
        with pytest.raises(ValueError, match="expired"):
            plain.certificate("expired")


def test_numbers_count_from_the_rule() -> None:
    """The first connections of a rule are those after it was added."""
    with EchoPeer() as peer:
        for _ in range(2):
            assert echo(peer) == b"hello"
            peer.first(1).refuse()
            with pytest.raises(ConnectionResetError):
                echo(peer)
        assert [each.connection for each in peer.firings] == [2, 4]


def test_counts_after_a_reply(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a client has seen is counted, also if the reactor counts it after it has sent."""

    def send_slowly(sock: socket.socket, data: bytes) -> int:
        sent = send_now(sock, data)
        time.sleep(0.1)  # in the reactor's thread, as on a busy machine
        return sent

    monkeypatch.setattr("echod.faulty.send_now", send_slowly)
    with EchoPeer() as peer:
        peer.truncate(3)
        with connect(peer) as sock:
            sock.sendall(b"hello")
            assert sock.recv(3) == b"hel"
            assert peer.counts == {"truncate": 1}
            assert [each.offset for each in peer.firings] == [3]


def test_unused_rules() -> None:
    """A rule that has not fired is unused, unless it may; bytes in flight may fire it."""
    with EchoPeer() as peer:
        peer.every(1, "message", 5).damage()
        peer.number(9).reset()
        peer.number(9).may_not_fire().reset()
        with connect(peer) as sock:
            sock.sendall(b"hello")
        assert peer.unused() == [f"tcp 127.0.0.1:{peer.port}: number 9: reset"]
        assert peer.counts["damage"] == 1


def test_plan_as_text() -> None:
    """A plan as text replaces the rules; those before it are unused if they have not fired."""
    with EchoPeer() as peer:
        peer.first(1).refuse()
        peer.number(2).close()
        with pytest.raises(ConnectionResetError):
            echo(peer)
        peer.plan('first 1: insert "[("; message 2 of 2: swallow')
        assert echo(peer) == b"[(llo"
        assert peer.counts == {"insert": 1, "swallow": 1}
        assert peer.unused() == [f"tcp 127.0.0.1:{peer.port}: number 2: close"]


def test_wrong_plan() -> None:
    """A mistake in a plan raises ValueError, and the rules stay."""
    with EchoPeer() as peer:
        peer.first(1).refuse()
        for wrong in ("first 2: refsue", "drop"):
            with pytest.raises(ValueError, match=r"refuse|drop"):
                peer.plan(wrong)
        assert peer.report().count("number 1: refuse") == 1
        assert len(peer.unused()) == 1


def test_peers_in_threads() -> None:
    """Peers can begin and end in several threads at the same time, in any order.

    All reactors of a process share one spare descriptor of Twisted, which they keep until then.
    """
    before = resources()
    ended = threading.Event()

    def outlive() -> bytes:
        with EchoPeer() as peer:
            ended.wait(TIMEOUT)
            return echo(peer, "tcp")

    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            ended.clear()
            with EchoPeer() as first:
                others = [pool.submit(outlive) for _ in range(7)]
                assert echo(first, "tcp") == b"hello"
            ended.set()
            assert [each.result(TIMEOUT) for each in others] == [b"hello"] * 7
    assert resources() == before


@pytest.mark.parametrize("was_open", [False, True])
def test_spare_descriptor(monkeypatch: pytest.MonkeyPatch, was_open: bool) -> None:
    """The last peer closes the spare descriptor, if the first one has opened it."""
    spare = tcp._FileDescriptorReservation(Path("/dev/null").open)
    monkeypatch.setattr(tcp, "_reservedFD", spare)
    if was_open:
        spare.reserve()
    with EchoPeer(), EchoPeer():
        assert spare.available()
    assert spare.available() == was_open
    if was_open:
        spare.__enter__()


def test_no_spare_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    """A peer ends without an error if no descriptor was left to spare."""
    monkeypatch.setattr(tcp, "_reservedFD", tcp._NullFileDescriptorReservation())
    with EchoPeer() as peer:
        assert echo(peer, "tcp") == b"hello"


def test_no_such_condition() -> None:
    """A misspelt condition or fault raises AttributeError."""
    with EchoPeer() as peer, pytest.raises(AttributeError, match="frist"):
        peer.frist(2).refuse()


def test_wrong_rule() -> None:
    """A rule that the transport cannot have raises ValueError where it is written."""
    with EchoPeer("udp") as peer:
        with pytest.raises(ValueError, match="refuse"):
            peer.first(2).refuse()
        assert peer.unused() == []


def test_no_global_reactor() -> None:
    """A peer on any transport neither imports nor installs the global reactor."""
    program = """
import sys
from echod.peer import EchoPeer
for transport in ("tcp", "tls", "unix", "udp"):
    with EchoPeer(transport) as peer:
        peer.stop()
print("twisted.internet.reactor" in sys.modules)
"""
    run = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=ROOT,
    )
    assert (run.stdout, run.stderr) == ("False\n", "")
