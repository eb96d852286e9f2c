"""Echo services with one known fault each, which they count: to test clients that measure echo.

``python tests/programs/mirrors.py KIND [--udp] [options]`` prints the port of 127.0.0.1 on which
it listens. At EOF of standard input, it prints its counts as a line of JSON, including data that
was received before. Apart from its fault, each kind is correct. ``--help`` and ``--udp --help``
list the kinds. A test compares what a client reports with the counts.
"""

from __future__ import annotations

import argparse
import fcntl
import heapq
import itertools
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from selectors import EVENT_READ, EVENT_WRITE, EpollSelector
from time import monotonic
from typing import Any, ClassVar

HOST = "127.0.0.1"
MAX_RUNTIME = 300  # seconds
PROCESS_TIMEOUT = 20.0  # seconds for a process to start or to stop
FINAL_READS = 1.0  # seconds to read what was received before EOF of standard input
OVERTAKE_TIMEOUT = 0.2  # seconds that a datagram is held back for the next one

CHUNK = 1 << 16
MAX_QUEUED = 1 << 20  # bytes to send, above which a connection is not read
RECEIVE_BUFFER = 1 << 22  # bytes for the datagrams that are received during a freeze

SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes not sent yet
SO_RCVBUFFORCE, SO_MEMINFO = 33, 55  # asm-generic/socket.h
STDIN = 0
FLIPPED = bytes(byte ^ 1 for byte in range(256))


def size(text: str, least: int = 0) -> int:
    if int(text) < least:
        raise ValueError
    return int(text)


def count(text: str) -> int:
    return size(text, least=1)


def seconds(text: str) -> float:
    if not 0 < float(text) <= MAX_RUNTIME:
        raise ValueError
    return float(text)


def flipped(data: bytes | memoryview, passed: int, every: int) -> bytes:
    """Flip a bit in every ``every``-th byte of ``data``, after ``passed`` bytes of the stream."""
    changed = bytearray(data)
    marked = slice(every - 1 - passed % every, None, every)
    changed[marked] = changed[marked].translate(FLIPPED)
    return bytes(changed)


class EchoService:
    """The event loop of streams and datagrams. The method with the kind's name answers."""

    transport: ClassVar[socket.SocketKind]
    kinds: ClassVar[dict[str, tuple[dict[str, Callable[[str], float]], str]]]
    """The options of each kind, and the names of its counts."""

    every: Any  # seconds for freeze, otherwise a number
    size: int
    after: int
    seconds: float

    def __init__(self, kind: str, **options: Any) -> None:
        vars(self).update(options)
        self.kind, self.respond = kind, getattr(self, kind)
        self.counts: Counter[str] = Counter()
        self.selector = EpollSelector()
        self.timers: list[tuple[float, int, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.sock = socket.socket(socket.AF_INET, self.transport)
        self.sock.bind((HOST, 0))

    def report(self) -> dict[str, int]:
        return {name: self.counts[name] for name in self.kinds[self.kind][1].split()}

    def run(self) -> None:
        """Serve until EOF of standard input."""
        until = None
        while until is None or monotonic() < until:
            # epoll_wait(2) has a resolution of milliseconds, select(2) of microseconds. select(2)
            # is limited to 1,024 descriptors, so it waits for the epoll set.
            left = max(0, self.timers[0][0] - monotonic()) if self.timers else None
            descriptors: list[Any] = [self.selector, STDIN]
            ready, _, _ = select.select(descriptors, [], [], 0 if until else left)
            if STDIN in ready and not os.read(STDIN, CHUNK):
                until = until or monotonic() + FINAL_READS
                if self.selector not in ready:
                    return
            for key, events in self.selector.select(0):
                self.run_due_timers()
                key.data(events)
            self.run_due_timers()

    def at(self, due: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (due, next(self.numbers), call))

    def run_due_timers(self) -> None:
        while self.timers and self.timers[0][0] <= monotonic():
            heapq.heappop(self.timers)[2]()

    def refuse(self, *_: Any) -> None:
        """Occupy a port without listening on it."""

    def hold(self, begun: float) -> None:
        """Handle no event until the freeze is over, except EOF of standard input."""
        self.counts["freezes"] += 1
        while (left := begun + self.seconds - monotonic()) > 0:
            if select.select([STDIN], [], [], left)[0] and not os.read(STDIN, CHUNK):
                raise EOFError
        self.at(begun + self.every, partial(self.hold, begun + self.every))


class Connection:
    """One connection, and the data to send on it with the times when it is due."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = 0  # registered with the selector
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.queued = self.received = self.sent = 0  # bytes
        self.ended = False  # by the peer, or because no more is read
        self.over = False  # received data is not echoed any more
        self.finished = False  # FIN is sent
        self.paused = 0.0  # until this time
        self.before = 0.0  # end of the pause before the current message


class Stream(EchoService):
    """Echo of streams."""

    transport = socket.SOCK_STREAM
    kinds: ClassVar = {
        "plain": ({}, "bytes connections"),
        "damage": ({"every": count}, "bytes damaged"),
        "delay": ({"seconds": seconds}, "bytes connections"),
        "late": ({"every": count, "size": count, "seconds": seconds}, "messages paused"),
        "freeze": ({"every": seconds, "seconds": seconds}, "freezes"),
        "close": ({"after": size}, "closed"),
        "reset": ({"after": size}, "reset"),
        "silent": ({}, "connections bytes"),
        "extra": ({"after": size}, "extra"),
        "swallow": ({"after": size}, "swallowed"),
        "refuse": ({}, ""),
    }

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(kind, **options)
        if kind != "refuse":  # only bound
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
            self.sock.listen(4096)
            self.selector.register(self.sock, EVENT_READ, self.accept)

    def plain(self, connection: Connection, data: bytes, now: float) -> None:
        """Echo correctly."""
        self.answer(connection, data)

    def freeze(self, connection: Connection, data: bytes, now: float) -> None:
        """Freeze for SECONDS at the first byte, and again every EVERY seconds."""
        if data and not self.counts["freezes"]:
            self.hold(now)
        self.answer(connection, data)

    def damage(self, connection: Connection, data: bytes, now: float) -> None:
        """Flip a bit in every EVERY-th byte that is sent."""
        self.answer(connection, data)  # send() flips the bits: it knows the order of all bytes

    def delay(self, connection: Connection, data: bytes, now: float) -> None:
        """Echo each chunk SECONDS after it was received."""
        self.answer(connection, data, now + self.seconds)

    def late(self, connection: Connection, data: bytes, now: float) -> None:
        """Pause for SECONDS before every EVERY-th message of SIZE bytes of a connection.

        Each of its bytes is late by SECONDS, and later messages wait for it. A pause that is due
        during another one follows it.
        """
        end = self.every * self.size
        late = end - self.size
        at = 0
        while at < len(data):
            place = (connection.received + at) % end
            part = data[at : at + (late if place < late else end) - place]
            if place == late:
                self.counts["paused"] += 1
                connection.before = connection.paused
            if place >= late:
                connection.paused = max(now, connection.before) + self.seconds
            self.answer(connection, part, connection.paused)
            at += len(part)
        received = connection.received
        self.counts["messages"] += (received + at) // self.size - received // self.size

    def close(self, connection: Connection, data: bytes, now: float) -> None:
        """Send FIN after AFTER bytes of a connection."""
        self.answer(connection, data[: self.after - connection.received])
        connection.over = connection.received + len(data) >= self.after

    def reset(self, connection: Connection, data: bytes, now: float) -> None:
        """Reset a connection after AFTER bytes."""
        self.close(connection, data, now)
        connection.ended = connection.over

    def silent(self, connection: Connection, data: bytes, now: float) -> None:
        """Read, and never echo."""
        self.counts["bytes"] += len(data)

    def extra(self, connection: Connection, data: bytes, now: float) -> None:
        """Insert one byte after AFTER bytes of a connection."""
        left = self.after - connection.received
        if 0 < left <= len(data) or not (self.after or data):
            data = data[:left] + b"!" + data[left:]
        self.answer(connection, data)

    def swallow(self, connection: Connection, data: bytes, now: float) -> None:
        """Drop the byte after AFTER bytes of a connection."""
        left = self.after - connection.received
        if 0 <= left < len(data):
            data = data[:left] + data[left + 1 :]
            self.counts["swallowed"] += 1
        self.answer(connection, data)

    def accept(self, _: int) -> None:
        connection = Connection(self.sock.accept()[0])
        connection.sock.setblocking(False)
        self.counts["connections"] += 1
        self.respond(connection, b"", monotonic())  # with AFTER 0, it ends at once
        self.flush(connection)

    def ready(self, connection: Connection, events: int) -> None:
        if events & connection.events & EVENT_READ:
            try:
                data = connection.sock.recv(CHUNK)
            except ConnectionError:
                return self.drop(connection)
            now = monotonic()
            connection.ended = not data
            if data and not connection.over:
                self.respond(connection, data, now)
                connection.received += len(data)
        return self.flush(connection)

    def answer(self, connection: Connection, data: bytes, due: float = 0.0) -> None:
        if data:
            connection.queue.append((due, memoryview(data)))
            connection.queued += len(data)
            if due > monotonic():
                self.at(due, partial(self.flush, connection))

    def flush(self, connection: Connection) -> None:
        """Send what is due, and register the events to wait for."""
        if connection.sock.fileno() < 0:  # dropped before this timer or event
            return
        queue, blocked = connection.queue, False
        try:
            while queue and queue[0][0] <= monotonic():
                due, data = queue[0]
                sent = self.send(connection, data)
                connection.sent += sent
                connection.queued -= sent
                if sent < len(data):
                    queue[0] = (due, data[sent:])
                else:
                    queue.popleft()
            if not queue:
                self.finish(connection)
        except BlockingIOError:
            blocked = True
        except OSError:  # the peer has reset it
            self.drop(connection)
        if connection.sock.fileno() >= 0:
            reads = not connection.ended and connection.queued <= MAX_QUEUED
            self.register(connection, EVENT_READ * reads | EVENT_WRITE * blocked)

    def send(self, connection: Connection, data: memoryview) -> int:
        passed = self.counts["bytes"]
        damages = self.kind == "damage"
        sent = connection.sock.send(flipped(data, passed, self.every) if damages else data)
        self.counts["bytes"] += sent
        if damages:
            self.counts["damaged"] += (passed + sent) // self.every - passed // self.every
        if self.kind == "extra":
            before = connection.sent
            self.counts["extra"] += before <= self.after < before + sent
        return sent

    def finish(self, connection: Connection) -> None:
        """End the connection if that is due: everything is sent."""
        sock = connection.sock
        if connection.over and self.kind == "reset":
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            # A reset discards what the kernel has not sent.
            if fcntl.ioctl(sock, SIOCOUTQNSD, bytes(4)) != bytes(4):
                self.at(monotonic() + 0.001, partial(self.flush, connection))
                return
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.counts["reset"] += 1
        elif connection.over and not connection.finished:
            # Keep reading: closing with unread bytes would reset the connection.
            sock.shutdown(socket.SHUT_WR)
            connection.finished = True
            self.counts["closed"] += 1
        if connection.ended:
            self.drop(connection)

    def register(self, connection: Connection, events: int) -> None:
        if connection.events and events != connection.events:
            self.selector.unregister(connection.sock)
        if events and events != connection.events:
            self.selector.register(connection.sock, events, partial(self.ready, connection))
        connection.events = events

    def drop(self, connection: Connection) -> None:
        self.register(connection, 0)
        connection.sock.close()


class Datagram(EchoService):
    """Echo of datagrams."""

    transport = socket.SOCK_DGRAM
    kinds: ClassVar = {
        "plain": ({}, "datagrams bytes"),
        "damage": ({"every": count}, "bytes damaged datagrams_damaged"),
        "drop": ({"every": count}, "datagrams dropped"),
        "duplicate": ({"every": count}, "datagrams duplicated"),
        "reorder": ({"every": count}, "datagrams reordered"),
        "late": ({"every": count, "seconds": seconds}, "datagrams late"),
        "delay": ({"seconds": seconds}, "datagrams bytes"),
        "freeze": ({"every": seconds, "seconds": seconds}, "freezes"),
        "silent": ({}, "datagrams bytes"),
        "refuse": ({}, ""),
    }

    def __init__(self, kind: str, **options: Any) -> None:
        super().__init__(kind, **options)
        self.held: dict[Any, tuple[int, bytes]] = {}
        if kind == "refuse":
            # Connected to itself: datagrams of others are refused, and the port is taken.
            self.sock.connect(self.sock.getsockname())
            return
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER)
        with suppress(PermissionError):  # root may exceed net.core.rmem_max
            self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, RECEIVE_BUFFER)
        self.selector.register(self.sock, EVENT_READ, self.ready)

    def report(self) -> dict[str, int]:
        """Return the counts, with the datagrams that the kernel has dropped, if any."""
        missed = struct.unpack("9I", self.sock.getsockopt(socket.SOL_SOCKET, SO_MEMINFO, 36))[8]
        return super().report() | ({"missed": missed} if missed else {})

    def ready(self, _: int) -> None:
        data, address = self.sock.recvfrom(CHUNK)
        now = monotonic()
        self.counts["datagrams"] += 1
        self.respond(data, address, now)

    def answer(self, data: bytes, address: Any, counted: str = "answered") -> None:
        self.sock.sendto(data, address)
        self.counts["bytes"] += len(data)
        self.counts[counted] += 1

    def nth(self) -> bool:
        return bool(self.counts["datagrams"] % self.every == 0)

    def plain(self, data: bytes, address: Any, now: float) -> None:
        """Echo correctly."""
        self.answer(data, address)

    def freeze(self, data: bytes, address: Any, now: float) -> None:
        """Freeze for SECONDS at the first datagram, and again every EVERY seconds."""
        if not self.counts["freezes"]:
            self.hold(now)
        self.answer(data, address)

    def damage(self, data: bytes, address: Any, now: float) -> None:
        """Flip a bit in every EVERY-th byte that is sent."""
        passed = self.counts["bytes"]
        damaged = (passed + len(data)) // self.every - passed // self.every
        self.answer(flipped(data, passed, self.every), address)
        self.counts["damaged"] += damaged
        self.counts["datagrams_damaged"] += damaged > 0

    def drop(self, data: bytes, address: Any, now: float) -> None:
        """Drop every EVERY-th datagram."""
        if self.nth():
            self.counts["dropped"] += 1
        else:
            self.answer(data, address)

    def duplicate(self, data: bytes, address: Any, now: float) -> None:
        """Echo every EVERY-th datagram twice."""
        self.answer(data, address)
        if self.nth():
            self.answer(data, address, "duplicated")

    def reorder(self, data: bytes, address: Any, now: float) -> None:
        """Echo every EVERY-th datagram after the next one of the same address, if that is soon."""
        number = self.counts["datagrams"]
        if self.nth() and address not in self.held:
            self.held[address] = (number, data)
            self.at(now + OVERTAKE_TIMEOUT, partial(self.give_up, number, address))
        else:
            self.answer(data, address)
            if address in self.held:
                self.answer(self.held.pop(address)[1], address, "reordered")

    def give_up(self, number: int, address: Any) -> None:
        if self.held.get(address, (0,))[0] == number:
            self.answer(self.held.pop(address)[1], address)

    def late(self, data: bytes, address: Any, now: float) -> None:
        """Echo every EVERY-th datagram SECONDS after it was received."""
        if self.nth():
            self.at(now + self.seconds, partial(self.answer, data, address, "late"))
        else:
            self.answer(data, address)

    def delay(self, data: bytes, address: Any, now: float) -> None:
        """Echo each datagram SECONDS after it was received."""
        self.at(now + self.seconds, partial(self.answer, data, address))

    def silent(self, data: bytes, address: Any, now: float) -> None:
        """Read, and never echo."""
        self.counts["bytes"] += len(data)


class Mirror:
    """A context manager: a service in a process of its own, killed at exit."""

    port: int

    def __init__(self, kind: str, *options: object) -> None:
        # -IS: it needs no installed packages, and starts faster without them.
        self.command = [sys.executable, "-IS", __file__, kind, *map(str, options)]

    def __enter__(self) -> Mirror:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True)
        try:
            assert self.process.stdout is not None
            select.select([self.process.stdout], [], [], PROCESS_TIMEOUT)
            announced, _, port = self.process.stdout.readline().partition(f"on {HOST}:")
            assert announced == "listening ", self.command
            self.port = int(port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:  # closes the pipes, and waits
            pass

    def stop(self) -> dict[str, int]:
        """End the process, and return its counts."""
        output, _ = self.process.communicate(timeout=PROCESS_TIMEOUT)
        assert self.process.returncode == 0, self.process.returncode
        counts: dict[str, int] = json.loads(output)
        return counts


def main() -> None:
    signal.alarm(MAX_RUNTIME)
    # timer slack in proc(5): by default, waits are up to 50 microseconds too long
    with suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1")
    parser = argparse.ArgumentParser(description="Echo with one fault, until EOF of stdin.")
    parser.add_argument("--udp", action="store_true", help="echo datagrams, not streams")
    service: type[EchoService] = Datagram if "--udp" in sys.argv else Stream
    commands = parser.add_subparsers(dest="kind", required=True)
    for name, (options, _) in service.kinds.items():
        does = str(getattr(service, name).__doc__).partition("\n")[0]
        command = commands.add_parser(name, help=does, description=does, allow_abbrev=False)
        command.add_argument("--udp", action="store_true", help=argparse.SUPPRESS)
        for option, convert in options.items():
            command.add_argument(f"--{option}", type=convert, required=True)
    chosen = vars(parser.parse_args())
    if chosen["kind"] == "freeze" and chosen["seconds"] >= chosen["every"]:
        parser.error("it would stay frozen: --seconds has to be less than --every")
    serving = service(**chosen)
    print(f"listening on {HOST}:{serving.sock.getsockname()[1]}", flush=True)
    with suppress(EOFError):
        serving.run()
    print(json.dumps(serving.report()))


if __name__ == "__main__":
    main()
