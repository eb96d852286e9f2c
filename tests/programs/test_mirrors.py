"""The services that misbehave (``tests/programs/mirrors.py``) do what they count, and no more."""

from __future__ import annotations

import select
import socket
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests import TIMEOUT
from tests.programs.mirrors import HOST, LIMIT, Mirror
from tests.programs.sockets import receive_all

STREAMS = ["plain", "delay --seconds .01", "late --every 9 --size 9999 --seconds .01"]
"""Those that answer everything, if late."""

TEXT = bytes(range(256)) * 40


def connect(mirror: Mirror) -> socket.socket:
    sock = socket.create_connection((HOST, mirror.port), TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def asker(mirror: Mirror) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.connect((HOST, mirror.port))
    return sock


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and finish; return what comes until the other end has finished too."""
    sender = threading.Thread(target=lambda: (sock.sendall(data), sock.shutdown(socket.SHUT_WR)))
    sender.start()
    try:
        return receive_all(sock)
    finally:
        sender.join()


def exactly(sock: socket.socket, length: int) -> bytes:
    received = b""
    while len(received) < length:
        part = sock.recv(length - len(received))
        assert part, received
        received += part
    return received


def ask(sock: socket.socket, data: bytes) -> float:
    """Send ``data``, see that it comes back, and return after how many seconds."""
    begun = time.monotonic()
    sock.sendall(data)
    came = exactly(sock, len(data)) if sock.type == socket.SOCK_STREAM else sock.recv(LIMIT)
    assert came == data
    return time.monotonic() - begun


def flips(data: bytes, first: int, every: int) -> bytes:
    """Return ``data``, the first byte of which is number ``first``, with every N-th flipped."""
    return bytes(byte ^ (number % every == 0) for number, byte in enumerate(data, start=first))


@pytest.mark.parametrize("options", STREAMS)
def test_streams_come_back(options: str) -> None:
    """Whatever is sent comes back in order, to the half-close and beyond."""
    with Mirror(*options.split()) as mirror, connect(mirror) as one, connect(mirror) as other:
        assert exchange(one, TEXT) == TEXT
        assert exchange(other, b"") == b""
        counts = mirror.stop()
    if options == "plain":
        assert counts == {"bytes": len(TEXT), "connections": 2}


def test_more_than_fits() -> None:
    """What nobody reads is not taken in without end, and all of it comes back once read."""
    with Mirror("plain") as mirror, connect(mirror) as sock:
        sock.settimeout(0.05)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100 * LIMIT:
                sent += sock.send(bytes(LIMIT))
        assert sent < 100 * LIMIT
        sock.settimeout(TIMEOUT)
        assert len(exchange(sock, b"")) == sent
        assert mirror.stop() == {"bytes": sent, "connections": 1}


def test_silent() -> None:
    """It answers nothing, and finishes when its peer has. What came before the end is counted."""
    with Mirror("silent") as mirror:
        with connect(mirror) as sock:
            assert exchange(sock, TEXT) == b""
        for _ in range(50):
            with connect(mirror) as sock:
                sock.sendall(TEXT)
        assert mirror.stop() == {"connections": 51, "bytes": 51 * len(TEXT)}


def test_damage() -> None:
    """Every N-th byte of all connections is damaged, whatever the chunks."""
    with Mirror("damage", "--every", 7) as mirror, connect(mirror) as one, connect(mirror) as other:
        one.sendall(TEXT[:10])
        assert exactly(one, 10) == flips(TEXT[:10], 1, 7)
        assert exchange(other, TEXT) == flips(TEXT, 11, 7)
        assert exchange(one, b"abcde") == flips(b"abcde", 11 + len(TEXT), 7)
        total = 15 + len(TEXT)
        assert mirror.stop() == {"bytes": total, "damaged": total // 7}


def test_damage_of_much() -> None:
    """A partial send does not shift what is damaged."""
    data = bytes(3 * LIMIT)
    with Mirror("damage", "--every", 1000) as mirror, connect(mirror) as sock:
        expected = bytearray(data)
        expected[999::1000] = b"\1" * (len(data) // 1000)
        assert exchange(sock, data) == expected
        assert mirror.stop() == {"bytes": len(data), "damaged": len(data) // 1000}


@pytest.mark.parametrize("connector", [connect, asker])
def test_delay(connector: Callable[[Mirror], socket.socket]) -> None:
    """Nothing comes too early, and it can come less than a millisecond late."""
    udp = ["--udp"] if connector == asker else []
    with Mirror("delay", "--seconds", 0.02, *udp) as mirror, connector(mirror) as sock:
        took = [ask(sock, b"first")]
        while min(took) >= 0.021 and len(took) < 50:  # on a busy machine
            took.append(ask(sock, b"again"))
        assert 0.02 <= min(took) < 0.021
        begun = time.monotonic()
        for _ in range(50):
            sock.send(b"many")
        for _ in range(50):
            assert exactly(sock, 4) == b"many"
        assert 0.02 <= time.monotonic() - begun < 0.5  # under way at once
        mirror.stop()


def test_late() -> None:
    """Every N-th message of a connection waits, and the others do not."""
    with Mirror("late", "--every", 3, "--size", 5, "--seconds", 0.1) as mirror:
        with connect(mirror) as sock:
            took = [ask(sock, b"%05d" % number) for number in range(4)]
            assert [seconds >= 0.1 for seconds in took] == [False, False, True, False]
        with connect(mirror) as sock:
            begun = time.monotonic()
            sock.sendall(b"first2ndrythird4th??")
            assert exactly(sock, 10) == b"first2ndry"
            assert time.monotonic() - begun < 0.1
            assert exactly(sock, 10) == b"third4th??"
            assert time.monotonic() - begun >= 0.1
        assert mirror.stop() == {"messages": 8, "paused": 2}


def test_late_in_parts() -> None:
    """A message is late by its last byte; a pause within a pause comes after it."""
    with Mirror("late", "--every", 1, "--size", 5, "--seconds", 0.05) as mirror:
        with connect(mirror) as sock:
            assert ask(sock, b"on") >= 0.05
            begun = time.monotonic()
            assert ask(sock, b"es?") >= 0.05
            sock.sendall(b"twice" * 2)
            exactly(sock, 10)
            assert time.monotonic() - begun >= 0.15
        assert mirror.stop() == {"messages": 3, "paused": 3}


@pytest.mark.parametrize("connector", [connect, asker])
def test_freeze(connector: Callable[[Mirror], socket.socket]) -> None:
    """It freezes when the first byte comes, and again after the period."""
    udp = ["--udp"] if connector == asker else []
    with Mirror("freeze", "--every", 0.3, "--seconds", 0.1, *udp) as mirror:
        with connector(mirror) as sock:
            begun = time.monotonic()
            assert ask(sock, b"first") >= 0.1
            prompt = 0
            while ask(sock, b"again") < 0.05 or time.monotonic() < begun + 0.3:
                prompt += 1
            assert prompt > 1
            assert 0.4 <= time.monotonic() - begun < 0.7
        assert mirror.stop() == {"freezes": 2}


def test_stopped_in_a_freeze() -> None:
    """A freeze does not put off the end, and nothing is sent in it for all that."""
    with Mirror("freeze", "--every", 99, "--seconds", 98) as mirror, connect(mirror) as sock:
        sock.sendall(b"first")
        assert mirror.stop() == {"freezes": 1}
        assert sock.recv(9) == b""


def test_no_room_in_a_freeze() -> None:
    """It tells of datagrams that the kernel had no room for."""
    sent = 15_000
    with Mirror("freeze", "--every", 9, "--seconds", 0.2, "--udp") as mirror:
        with asker(mirror) as sock:
            for _ in range(sent):
                sock.send(b"much")
            sock.recv(9)
        counts = mirror.stop()
    assert counts["freezes"] == 1
    assert 0 < counts["missed"] < sent


@pytest.mark.parametrize("after", [0, 10, 3 * LIMIT])
def test_close(after: int) -> None:
    """It finishes after exactly so many bytes, and does not reset for those that still come."""
    data = bytes(after + 10 * len(TEXT))
    with Mirror("close", "--after", after) as mirror:
        with connect(mirror) as sock:
            assert exchange(sock, data) == data[:after]
        with connect(mirror) as sock:
            if after:
                assert exchange(sock, data[: after - 1]) == data[: after - 1]
            else:
                assert sock.recv(1) == b""
        assert mirror.stop() == {"closed": 1 if after else 2}


@pytest.mark.parametrize("after", [10, LIMIT])
def test_reset(after: int) -> None:
    """It resets after so many bytes, all of which come before."""
    data = bytes(after)
    with Mirror("reset", "--after", after) as mirror:
        with connect(mirror) as sock:
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            sender.join()
            if after > LIMIT // 2:  # more than the kernel sends to who does not read
                poll = select.poll()
                poll.register(sock, 0)
                assert poll.poll(50) == [], "reset too early"
            assert exactly(sock, after) == data
            with pytest.raises(ConnectionResetError):
                sock.recv(1)
        with connect(mirror) as sock:
            assert exchange(sock, data[1:]) == data[1:]
        assert mirror.stop() == {"reset": 1}


def test_reset_at_once() -> None:
    """It may reset before its peer knows of a connection."""
    with Mirror("reset", "--after", 0) as mirror:
        with pytest.raises(ConnectionResetError), connect(mirror) as sock:
            sock.recv(1)
        assert mirror.stop() == {"reset": 1}


@pytest.mark.parametrize("after", [LIMIT, 20 * LIMIT])
def test_reset_of_what_nobody_reads(after: int) -> None:
    """It waits until the kernel has sent everything, and counts none who is gone by then."""
    with Mirror("reset", "--after", after) as mirror:
        with connect(mirror) as sock:
            sock.settimeout(0.05)
            with suppress(TimeoutError):
                sock.sendall(bytes(after))
            with pytest.raises(TimeoutError):
                sock.sendall(bytes(20 * LIMIT))  # which nobody takes
        assert mirror.stop() == {"reset": 0}


@pytest.mark.parametrize("after", [0, 5, len(TEXT)])
def test_extra(after: int) -> None:
    """A byte comes that nobody sent, whatever the chunks; once for each connection."""
    expected = TEXT[:after] + b"!" + TEXT[after:]
    with Mirror("extra", "--after", after) as mirror:
        with connect(mirror) as sock:
            assert exchange(sock, TEXT) == expected
        with connect(mirror) as sock:
            start = b""
            for at in range(8):
                sock.sendall(TEXT[at : at + 1])
                start += sock.recv(9)
            assert start + exchange(sock, TEXT[8:]) == expected
        assert mirror.stop() == {"extra": 2}


@pytest.mark.parametrize("after", [0, 5, len(TEXT) - 1])
def test_swallow(after: int) -> None:
    """One byte of each connection is missing, whatever the chunks."""
    expected = TEXT[:after] + TEXT[after + 1 :]
    with Mirror("swallow", "--after", after) as mirror:
        with connect(mirror) as sock:
            assert exchange(sock, TEXT) == expected
        with connect(mirror) as sock:
            sock.sendall(TEXT[:5])
            start = exactly(sock, 4 + (after > 0))
            assert start + exchange(sock, TEXT[5:]) == expected
        with connect(mirror) as sock:
            assert exchange(sock, TEXT[:after]) == TEXT[:after]
        assert mirror.stop() == {"swallowed": 2}


def test_refuse() -> None:
    """Nobody is there, and nobody else can be."""
    with Mirror("refuse") as mirror:
        with pytest.raises(ConnectionRefusedError):
            connect(mirror)
        with socket.socket() as sock, pytest.raises(OSError, match="in use"):
            sock.bind((HOST, mirror.port))
        assert mirror.stop() == {}


def test_refuse_datagrams() -> None:
    """Nobody is there, and nobody else can be."""
    with Mirror("refuse", "--udp") as mirror, asker(mirror) as sock:
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(9)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, mirror.port))
        assert mirror.stop() == {}


def answers(sock: socket.socket, mirror: Mirror, expected: int) -> tuple[str, dict[str, int]]:
    """Send ten digits; return what comes back, which is so many, and what is counted."""
    for digit in b"1234567890":
        sock.send(bytes([digit]))
    received = b"".join(sock.recv(99) for _ in range(expected))
    counts = mirror.stop()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(99)
    return received.decode(), counts


def test_plain_datagrams() -> None:
    """Each comes back, be it empty or the largest."""
    with Mirror("plain", "--udp") as mirror, asker(mirror) as sock:
        for size in (0, 1, 65_507):
            ask(sock, bytes(size))
        assert mirror.stop() == {"datagrams": 3, "bytes": 65_508}


def test_damaged_datagrams() -> None:
    with Mirror("damage", "--every", 5, "--udp") as mirror, asker(mirror) as sock:
        passed = 0
        for size in (4, 0, 3, 22, 1):
            sock.send(TEXT[:size])
            assert sock.recv(99) == flips(TEXT[:size], passed + 1, 5)
            passed += size
        assert mirror.stop() == {"bytes": 30, "damaged": 6, "datagrams_damaged": 3}


@pytest.mark.parametrize(
    ("options", "expected", "counts"),
    [
        ("drop --every 4", "12356790", {"dropped": 2}),
        ("duplicate --every 5", "123455678900", {"duplicated": 2}),
        ("reorder --every 4", "1235467980", {"reordered": 2}),
        ("reorder --every 5", "1234657890", {"reordered": 1}),  # nothing overtakes the last one
        ("late --every 4 --seconds 0.05", "1235679048", {"late": 2}),
        ("delay --seconds 0.05", "1234567890", {"bytes": 10}),
        ("silent", "", {"bytes": 10}),
    ],
)
def test_datagrams(options: str, expected: str, counts: dict[str, int]) -> None:
    """What comes back, and in what order."""
    with Mirror(*options.split(), "--udp") as mirror, asker(mirror) as sock:
        assert answers(sock, mirror, len(expected)) == (expected, {"datagrams": 10} | counts)


def test_reorder_keeps_addresses_apart() -> None:
    """Who is to see another order sees it, and nobody is answered for somebody else."""
    with Mirror("reorder", "--every", 2, "--udp") as mirror:
        with asker(mirror) as one, asker(mirror) as other:
            ask(one, b"1")
            one.send(b"2")
            ask(other, b"3")
            one.send(b"4")
            assert [one.recv(9), one.recv(9)] == [b"4", b"2"]
            other.send(b"5")
            assert other.recv(9) == b"5"
        assert mirror.stop() == {"datagrams": 5, "reordered": 1}


@pytest.mark.parametrize(
    "options",
    [
        "damage",
        "damage --every 0",
        "freeze --every 1 --seconds 1",
        "close --after 1 --udp",
    ],
)
def test_wrong_options(options: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What a kind needs it has to be told, and nothing else."""
    with pytest.raises(AssertionError, match=r"mirrors\.py"), Mirror(*options.split()):
        pass
    assert "error: " in capfd.readouterr().err


def test_ends_with_its_context() -> None:
    """Who is not stopped is killed; and who is told, by an end of input, exits as it should."""
    with Mirror("plain") as mirror, connect(mirror) as sock:
        ask(sock, b"there?")
    assert mirror.process.returncode == -9
    ended = subprocess.run(
        mirror.command, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    first, last = ended.stdout.decode().splitlines()
    assert first.startswith("listening on 127.0.0.1:")
    assert last == '{"bytes": 0, "connections": 0}'
