"""The services of ``mirrors.py`` have exactly the faults that they count."""

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
from tests.programs.mirrors import HOST, MAX_QUEUED, Mirror
from tests.programs.sockets import receive_all

STREAMS = ["plain", "delay --seconds .01", "late --every 9 --size 9999 --seconds .01"]
"""Kinds that echo everything, some of them late."""

TEXT = bytes(range(256)) * 40


def connect(mirror: Mirror) -> socket.socket:
    sock = socket.create_connection((HOST, mirror.port), TIMEOUT)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connect_udp(mirror: Mirror) -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(TIMEOUT)
    sock.connect((HOST, mirror.port))
    return sock


def exchange(sock: socket.socket, data: bytes) -> bytes:
    """Send ``data`` and FIN; return what is received until EOF."""
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
    """Send ``data``, check the echo, and return the round-trip time in seconds."""
    begun = time.monotonic()
    sock.sendall(data)
    received = (
        exactly(sock, len(data)) if sock.type == socket.SOCK_STREAM else sock.recv(MAX_QUEUED)
    )
    assert received == data
    return time.monotonic() - begun


def flips(data: bytes, first: int, every: int) -> bytes:
    """Flip a bit in every N-th byte of ``data``, whose first byte has the number ``first``."""
    return bytes(byte ^ (number % every == 0) for number, byte in enumerate(data, start=first))


@pytest.mark.parametrize("options", STREAMS)
def test_echo_streams(options: str) -> None:
    """All bytes are echoed in order, also after a half-close."""
    with Mirror(*options.split()) as mirror, connect(mirror) as one, connect(mirror) as other:
        assert exchange(one, TEXT) == TEXT
        assert exchange(other, b"") == b""
        counts = mirror.stop()
    if options == "plain":
        assert counts == {"bytes": len(TEXT), "connections": 2}


def test_peer_does_not_read() -> None:
    """While the peer does not read, the service stops reading; later it echoes all bytes."""
    with Mirror("plain") as mirror, connect(mirror) as sock:
        sock.settimeout(0.05)
        sent = 0
        with suppress(TimeoutError):
            while sent < 100 * MAX_QUEUED:
                sent += sock.send(bytes(MAX_QUEUED))
        assert sent < 100 * MAX_QUEUED
        sock.settimeout(TIMEOUT)
        assert len(exchange(sock, b"")) == sent
        assert mirror.stop() == {"bytes": sent, "connections": 1}


def test_silent() -> None:
    """It echoes nothing, and finishes after its peer. Bytes before the end are counted."""
    with Mirror("silent") as mirror:
        with connect(mirror) as sock:
            assert exchange(sock, TEXT) == b""
        for _ in range(50):
            with connect(mirror) as sock:
                sock.sendall(TEXT)
        assert mirror.stop() == {"connections": 51, "bytes": 51 * len(TEXT)}


def test_damage() -> None:
    """Every N-th byte of all connections together is damaged, in chunks of any size."""
    with Mirror("damage", "--every", 7) as mirror, connect(mirror) as one, connect(mirror) as other:
        one.sendall(TEXT[:10])
        assert exactly(one, 10) == flips(TEXT[:10], 1, 7)
        assert exchange(other, TEXT) == flips(TEXT, 11, 7)
        assert exchange(one, b"abcde") == flips(b"abcde", 11 + len(TEXT), 7)
        total = 15 + len(TEXT)
        assert mirror.stop() == {"bytes": total, "damaged": total // 7}


def test_damage_in_partial_sends() -> None:
    """A partial send does not shift the damage."""
    data = bytes(3 * MAX_QUEUED)
    with Mirror("damage", "--every", 1000) as mirror, connect(mirror) as sock:
        expected = bytearray(data)
        expected[999::1000] = b"\1" * (len(data) // 1000)
        assert exchange(sock, data) == expected
        assert mirror.stop() == {"bytes": len(data), "damaged": len(data) // 1000}


@pytest.mark.parametrize("open_socket", [connect, connect_udp])
def test_delay(open_socket: Callable[[Mirror], socket.socket]) -> None:
    """No echo is early, and the fastest is less than a millisecond late."""
    udp = ["--udp"] if open_socket == connect_udp else []
    with Mirror("delay", "--seconds", 0.02, *udp) as mirror, open_socket(mirror) as sock:
        took = [ask(sock, b"first")]
        while min(took) >= 0.021 and len(took) < 50:  # the machine may be busy
            took.append(ask(sock, b"again"))
        assert 0.02 <= min(took) < 0.021
        begun = time.monotonic()
        for _ in range(50):
            sock.send(b"many")
        for _ in range(50):
            assert exactly(sock, 4) == b"many"
        assert 0.02 <= time.monotonic() - begun < 0.5  # in flight together
        mirror.stop()


def test_late() -> None:
    """Every N-th message of a connection is late, and the others are not."""
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
    """Each part of a message is late; a pause that is due during another one follows it."""
    with Mirror("late", "--every", 1, "--size", 5, "--seconds", 0.05) as mirror:
        with connect(mirror) as sock:
            assert ask(sock, b"on") >= 0.05
            begun = time.monotonic()
            assert ask(sock, b"es?") >= 0.05
            sock.sendall(b"twice" * 2)
            exactly(sock, 10)
            assert time.monotonic() - begun >= 0.15
        assert mirror.stop() == {"messages": 3, "paused": 3}


@pytest.mark.parametrize("open_socket", [connect, connect_udp])
def test_freeze(open_socket: Callable[[Mirror], socket.socket]) -> None:
    """It freezes at the first byte, and again after the period."""
    udp = ["--udp"] if open_socket == connect_udp else []
    with Mirror("freeze", "--every", 0.3, "--seconds", 0.1, *udp) as mirror:
        with open_socket(mirror) as sock:
            begun = time.monotonic()
            assert ask(sock, b"first") >= 0.1
            prompt = 0
            while ask(sock, b"again") < 0.05 or time.monotonic() < begun + 0.3:
                prompt += 1
            assert prompt > 1
            assert 0.4 <= time.monotonic() - begun < 0.7
        assert mirror.stop() == {"freezes": 2}


def test_stop_in_a_freeze() -> None:
    """EOF ends a freeze, and nothing is echoed after it."""
    with Mirror("freeze", "--every", 99, "--seconds", 98) as mirror, connect(mirror) as sock:
        sock.sendall(b"first")
        assert mirror.stop() == {"freezes": 1}
        assert sock.recv(9) == b""


def test_receive_queue_full() -> None:
    """Datagrams that the kernel drops during a freeze are counted."""
    sent = 15_000
    with Mirror("freeze", "--every", 9, "--seconds", 0.2, "--udp") as mirror:
        with connect_udp(mirror) as sock:
            for _ in range(sent):
                sock.send(b"much")
            sock.recv(9)
        counts = mirror.stop()
    assert counts["freezes"] == 1
    assert 0 < counts["missed"] < sent


@pytest.mark.parametrize("after", [0, 10, 3 * MAX_QUEUED])
def test_close(after: int) -> None:
    """It sends FIN after the given number of bytes, and does not reset for later ones."""
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


@pytest.mark.parametrize("after", [10, MAX_QUEUED])
def test_reset(after: int) -> None:
    """It resets after the given number of bytes, all of which are echoed before."""
    data = bytes(after)
    with Mirror("reset", "--after", after) as mirror:
        with connect(mirror) as sock:
            sender = threading.Thread(target=sock.sendall, args=(data,))
            sender.start()
            sender.join()
            if after > MAX_QUEUED // 2:  # more than fits in the send queue
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
    """With 0 bytes it resets at once, maybe before connect(2) returns."""
    with Mirror("reset", "--after", 0) as mirror:
        with pytest.raises(ConnectionResetError), connect(mirror) as sock:
            sock.recv(1)
        assert mirror.stop() == {"reset": 1}


@pytest.mark.parametrize("after", [MAX_QUEUED, 20 * MAX_QUEUED])
def test_reset_after_the_send_queue(after: int) -> None:
    """It resets only after the kernel has sent everything; a peer that left is not counted."""
    with Mirror("reset", "--after", after) as mirror:
        with connect(mirror) as sock:
            sock.settimeout(0.05)
            with suppress(TimeoutError):
                sock.sendall(bytes(after))
            with pytest.raises(TimeoutError):
                sock.sendall(bytes(20 * MAX_QUEUED))  # not read any more
        assert mirror.stop() == {"reset": 0}


@pytest.mark.parametrize("after", [0, 5, len(TEXT)])
def test_extra(after: int) -> None:
    """One byte is inserted per connection, in chunks of any size."""
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
    """One byte per connection is missing, in chunks of any size."""
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
    """The port refuses, and is taken."""
    with Mirror("refuse") as mirror:
        with pytest.raises(ConnectionRefusedError):
            connect(mirror)
        with socket.socket() as sock, pytest.raises(OSError, match="in use"):
            sock.bind((HOST, mirror.port))
        assert mirror.stop() == {}


def test_refuse_datagrams() -> None:
    """The port refuses, and is taken."""
    with Mirror("refuse", "--udp") as mirror, connect_udp(mirror) as sock:
        sock.send(b"anybody?")
        with pytest.raises(ConnectionRefusedError):
            sock.recv(9)
        other = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with other, pytest.raises(OSError, match="in use"):
            other.bind((HOST, mirror.port))
        assert mirror.stop() == {}


def answers(sock: socket.socket, mirror: Mirror, expected: int) -> tuple[str, dict[str, int]]:
    """Send ten digits; return the ``expected`` number of replies, joined, and the counts."""
    for digit in b"1234567890":
        sock.send(bytes([digit]))
    received = b"".join(sock.recv(99) for _ in range(expected))
    counts = mirror.stop()
    sock.setblocking(False)
    with pytest.raises(BlockingIOError):
        sock.recv(99)
    return received.decode(), counts


def test_plain_datagrams() -> None:
    """Datagrams of any length are echoed."""
    with Mirror("plain", "--udp") as mirror, connect_udp(mirror) as sock:
        for size in (0, 1, 65_507):
            ask(sock, bytes(size))
        assert mirror.stop() == {"datagrams": 3, "bytes": 65_508}


def test_damaged_datagrams() -> None:
    """Every N-th byte of all datagrams together is damaged."""
    with Mirror("damage", "--every", 5, "--udp") as mirror, connect_udp(mirror) as sock:
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
        ("reorder --every 5", "1234657890", {"reordered": 1}),  # no datagram follows the last one
        ("late --every 4 --seconds 0.05", "1235679048", {"late": 2}),
        ("delay --seconds 0.05", "1234567890", {"bytes": 10}),
        ("silent", "", {"bytes": 10}),
    ],
)
def test_datagrams(options: str, expected: str, counts: dict[str, int]) -> None:
    """Each kind has its order of replies, and its counts."""
    with Mirror(*options.split(), "--udp") as mirror, connect_udp(mirror) as sock:
        assert answers(sock, mirror, len(expected)) == (expected, {"datagrams": 10} | counts)


def test_reorder_keeps_addresses_apart() -> None:
    """Datagrams are reordered within one address, and echoed to their own address."""
    with Mirror("reorder", "--every", 2, "--udp") as mirror:
        with connect_udp(mirror) as one, connect_udp(mirror) as other:
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
    """Each kind needs its options, and accepts no others."""
    with pytest.raises(AssertionError, match=r"mirrors\.py"), Mirror(*options.split()):
        pass
    assert "error: " in capfd.readouterr().err


def test_ends_with_its_context() -> None:
    """The context manager kills the process; EOF ends it with its counts."""
    with Mirror("plain") as mirror, connect(mirror) as sock:
        ask(sock, b"there?")
    assert mirror.process.returncode == -9
    ended = subprocess.run(
        mirror.command, stdin=subprocess.DEVNULL, capture_output=True, check=True
    )
    first, last = ended.stdout.decode().splitlines()
    assert first.startswith("listening on 127.0.0.1:")
    assert last == '{"bytes": 0, "connections": 0}'
