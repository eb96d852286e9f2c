"""Echo services that misbehave in one known way, and count how often they did.

``python tests/programs/mirrors.py KIND [--udp] [options]`` prints the port of 127.0.0.1 on which
it listens. When its standard input ends, it prints its counts as a line of JSON; what came before
is counted still. But for its one fault, each kind is correct. ``--help`` and ``--udp --help`` name
the kinds. Who measures echo is tested with them: what it reports can be compared with what has
happened.
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
LIFE = 300  # seconds
PATIENCE = 20.0  # seconds for a process to start or to stop
LAST = 1.0  # seconds at most to look at what came before standard input ended
ALONE = 0.2  # seconds for which a datagram waits for one that overtakes it

CHUNK = 1 << 16
LIMIT = 1 << 20  # bytes: with more to send, a connection is not read
BUFFER = 1 << 22  # bytes for the datagrams that come in a freeze

SIOCOUTQNSD = 0x894B  # linux/sockios.h: bytes that the kernel has not sent
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
    if not 0 < float(text) <= LIFE:
        raise ValueError
    return float(text)


def flipped(data: bytes | memoryview, passed: int, every: int) -> bytes:
    """Return ``data`` with a bit flipped in one byte of ``every``; ``passed`` went before."""
    changed = bytearray(data)
    marked = slice(every - 1 - passed % every, None, every)
    changed[marked] = changed[marked].translate(FLIPPED)
    return bytes(changed)


class Service:
    """What streams and datagrams share: the loop. A method of the kind's name answers."""

    transport: ClassVar[socket.SocketKind]
    kinds: ClassVar[dict[str, tuple[dict[str, Callable[[str], float]], str]]]
    """The options of each, and what it counts."""

    every: Any  # seconds for who freezes, and else a number
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
        """Serve until standard input ends."""
        until = None
        while until is None or monotonic() < until:
            # To wait for an epoll takes whole milliseconds. select(2) waits for microseconds, but
            # not for any number of connections: it waits for the epoll.
            left = max(0, self.timers[0][0] - monotonic()) if self.timers else None
            watched: list[Any] = [self.selector, STDIN]
            ready, _, _ = select.select(watched, [], [], 0 if until else left)
            if STDIN in ready and not os.read(STDIN, CHUNK):
                until = until or monotonic() + LAST
                if self.selector not in ready:
                    return
            for key, events in self.selector.select(0):
                self.do_due()
                key.data(events)
            self.do_due()

    def at(self, due: float, call: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (due, next(self.numbers), call))

    def do_due(self) -> None:
        while self.timers and self.timers[0][0] <= monotonic():
            heapq.heappop(self.timers)[2]()

    def refuse(self, *_: Any) -> None:
        """Have a port on which nobody is, and nobody else can be."""

    def hold(self, begun: float) -> None:
        """Do nothing at all until the freeze is over, but for an end of standard input."""
        self.counts["freezes"] += 1
        while (left := begun + self.seconds - monotonic()) > 0:
            if select.select([STDIN], [], [], left)[0] and not os.read(STDIN, CHUNK):
                raise EOFError
        self.at(begun + self.every, partial(self.hold, begun + self.every))


class Connection:
    """What is to go back on one connection, and when."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.events = 0  # which the selector looks for
        self.queue: deque[tuple[float, memoryview]] = deque()
        self.queued = self.came = self.sent = 0  # bytes
        self.ended = False  # by the peer; or no more is read
        self.over = False  # what comes now is not echoed
        self.finished = False  # by us
        self.paused = 0.0  # until when
        self.before = 0.0  # until when it was before the message that comes now


class Stream(Service):
    """Echo on connections."""

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
        if kind != "refuse":  # which is bound alone
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited
            self.sock.listen(4096)
            self.selector.register(self.sock, EVENT_READ, self.accept)

    def plain(self, connection: Connection, data: bytes, now: float) -> None:
        """Do nothing wrong."""
        self.answer(connection, data)

    def freeze(self, connection: Connection, data: bytes, now: float) -> None:
        """Freeze for so many seconds, when the first byte comes and every so many seconds."""
        if data and not self.counts["freezes"]:
            self.hold(now)
        self.answer(connection, data)

    def damage(self, connection: Connection, data: bytes, now: float) -> None:
        """Flip a bit of byte number N, 2N, ... of all that are sent."""
        self.answer(connection, data)  # see send(), which knows what comes after what

    def delay(self, connection: Connection, data: bytes, now: float) -> None:
        """Answer each chunk so many seconds after it came."""
        self.answer(connection, data, now + self.seconds)

    def late(self, connection: Connection, data: bytes, now: float) -> None:
        """Pause for so many seconds before each N-th message of a connection.

        It is so much late to its last byte, and what follows waits for it. A pause that is due
        within another comes after it.
        """
        end = self.every * self.size
        late = end - self.size
        at = 0
        while at < len(data):
            place = (connection.came + at) % end
            part = data[at : at + (late if place < late else end) - place]
            if place == late:
                self.counts["paused"] += 1
                connection.before = connection.paused
            if place >= late:
                connection.paused = max(now, connection.before) + self.seconds
            self.answer(connection, part, connection.paused)
            at += len(part)
        came = connection.came
        self.counts["messages"] += (came + at) // self.size - came // self.size

    def close(self, connection: Connection, data: bytes, now: float) -> None:
        """Finish after so many bytes of a connection."""
        self.answer(connection, data[: self.after - connection.came])
        connection.over = connection.came + len(data) >= self.after

    def reset(self, connection: Connection, data: bytes, now: float) -> None:
        """Reset a connection after so many bytes."""
        self.close(connection, data, now)
        connection.ended = connection.over

    def silent(self, connection: Connection, data: bytes, now: float) -> None:
        """Read, and never answer."""
        self.counts["bytes"] += len(data)

    def extra(self, connection: Connection, data: bytes, now: float) -> None:
        """Send a byte that nobody sent, after so many bytes of a connection."""
        left = self.after - connection.came
        if 0 < left <= len(data) or not (self.after or data):
            data = data[:left] + b"!" + data[left:]
        self.answer(connection, data)

    def swallow(self, connection: Connection, data: bytes, now: float) -> None:
        """Drop the byte that comes after so many of a connection."""
        left = self.after - connection.came
        if 0 <= left < len(data):
            data = data[:left] + data[left + 1 :]
            self.counts["swallowed"] += 1
        self.answer(connection, data)

    def accept(self, _: int) -> None:
        connection = Connection(self.sock.accept()[0])
        connection.sock.setblocking(False)
        self.counts["connections"] += 1
        self.respond(connection, b"", monotonic())  # to end it after no byte at all
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
                connection.came += len(data)
        return self.flush(connection)

    def answer(self, connection: Connection, data: bytes, due: float = 0.0) -> None:
        if data:
            connection.queue.append((due, memoryview(data)))
            connection.queued += len(data)
            if due > monotonic():
                self.at(due, partial(self.flush, connection))

    def flush(self, connection: Connection) -> None:
        """Send what is due, and look for what there is to wait for."""
        if connection.sock.fileno() < 0:  # dropped; a timer's or an event's of before
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
            reads = not connection.ended and connection.queued <= LIMIT
            self.look_for(connection, EVENT_READ * reads | EVENT_WRITE * blocked)

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
        """Go on where everything is sent."""
        sock = connection.sock
        if connection.over and self.kind == "reset":
            if error := sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                raise OSError(error, os.strerror(error))
            # A reset takes with it what the kernel has not sent.
            if fcntl.ioctl(sock, SIOCOUTQNSD, bytes(4)) != bytes(4):
                self.at(monotonic() + 0.001, partial(self.flush, connection))
                return
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.counts["reset"] += 1
        elif connection.over and not connection.finished:
            # What still comes is read: to close with bytes unread would be a reset.
            sock.shutdown(socket.SHUT_WR)
            connection.finished = True
            self.counts["closed"] += 1
        if connection.ended:
            self.drop(connection)

    def look_for(self, connection: Connection, events: int) -> None:
        if connection.events and events != connection.events:
            self.selector.unregister(connection.sock)
        if events and events != connection.events:
            self.selector.register(connection.sock, events, partial(self.ready, connection))
        connection.events = events

    def drop(self, connection: Connection) -> None:
        self.look_for(connection, 0)
        connection.sock.close()


class Datagram(Service):
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
            # Who is connected hears its peer alone, here itself. So nobody else gets the port.
            self.sock.connect(self.sock.getsockname())
            return
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER)
        with suppress(PermissionError):  # root may have more than net.core.rmem_max
            self.sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
        self.selector.register(self.sock, EVENT_READ, self.ready)

    def report(self) -> dict[str, int]:
        """Return what is counted, and how many datagrams the kernel had no room for, if any."""
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
        """Do nothing wrong."""
        self.answer(data, address)

    def freeze(self, data: bytes, address: Any, now: float) -> None:
        """Freeze for so many seconds, when the first datagram comes and every so many seconds."""
        if not self.counts["freezes"]:
            self.hold(now)
        self.answer(data, address)

    def damage(self, data: bytes, address: Any, now: float) -> None:
        """Flip a bit of byte number N, 2N, ... of all that are sent."""
        passed = self.counts["bytes"]
        damaged = (passed + len(data)) // self.every - passed // self.every
        self.answer(flipped(data, passed, self.every), address)
        self.counts["damaged"] += damaged
        self.counts["datagrams_damaged"] += damaged > 0

    def drop(self, data: bytes, address: Any, now: float) -> None:
        """Leave each N-th datagram without an answer."""
        if self.nth():
            self.counts["dropped"] += 1
        else:
            self.answer(data, address)

    def duplicate(self, data: bytes, address: Any, now: float) -> None:
        """Answer each N-th datagram twice."""
        self.answer(data, address)
        if self.nth():
            self.answer(data, address, "duplicated")

    def reorder(self, data: bytes, address: Any, now: float) -> None:
        """Answer each N-th datagram after the next of the same address, if one comes soon."""
        number = self.counts["datagrams"]
        if self.nth() and address not in self.held:
            self.held[address] = (number, data)
            self.at(now + ALONE, partial(self.give_up, number, address))
        else:
            self.answer(data, address)
            if address in self.held:
                self.answer(self.held.pop(address)[1], address, "reordered")

    def give_up(self, number: int, address: Any) -> None:
        if self.held.get(address, (0,))[0] == number:
            self.answer(self.held.pop(address)[1], address)

    def late(self, data: bytes, address: Any, now: float) -> None:
        """Answer each N-th datagram so many seconds after it came."""
        if self.nth():
            self.at(now + self.seconds, partial(self.answer, data, address, "late"))
        else:
            self.answer(data, address)

    def delay(self, data: bytes, address: Any, now: float) -> None:
        """Answer each datagram so many seconds after it came."""
        self.at(now + self.seconds, partial(self.answer, data, address))

    def silent(self, data: bytes, address: Any, now: float) -> None:
        """Read, and never answer."""
        self.counts["bytes"] += len(data)


class Mirror:
    """A service in a process of its own: there within the context, and gone after."""

    port: int

    def __init__(self, kind: str, *options: object) -> None:
        # -IS: it starts sooner without what is installed, which it does not need.
        self.command = [sys.executable, "-IS", __file__, kind, *map(str, options)]

    def __enter__(self) -> Mirror:
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(self.command, stdin=pipe, stdout=pipe, text=True)
        try:
            assert self.process.stdout is not None
            select.select([self.process.stdout], [], [], PATIENCE)
            said, _, port = self.process.stdout.readline().partition(f"on {HOST}:")
            assert said == "listening ", self.command
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
        """Have it end, and return what it has counted."""
        output, _ = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, self.process.returncode
        counts: dict[str, int] = json.loads(output)
        return counts


def main() -> None:
    signal.alarm(LIFE)
    # proc(5): else a wait may take 50 microseconds longer than asked
    with suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
        slack.write("1")
    parser = argparse.ArgumentParser(description="Echo with one fault, until standard input ends.")
    parser.add_argument("--udp", action="store_true", help="datagrams, and not connections")
    service: type[Service] = Datagram if "--udp" in sys.argv else Stream
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
