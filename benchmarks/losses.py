"""Bytes that echo servers lose: ``python benchmarks/losses.py``.

Each server runs in its own process on 127.0.0.1. Four clients use it in ways that TCP permits, and
compare every byte that comes back. The output is a table in reST, and the versions of the software.

The servers other than echod are the examples of their manuals, with one change: an example that
closes after one reply here goes on until the peer has half-closed, as RFC 862 requires. Like the
examples, they do not handle SIGTERM.
"""

from __future__ import annotations

import argparse
import asyncio
import platform
import random
import select
import signal
import socket
import socketserver
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Final, NamedTuple

HOST: Final = "127.0.0.1"
MIB: Final = 1 << 20
CHUNK: Final = 64 * 1024
LIMIT: Final = 10.0  # seconds for steps that should take almost no time
WHOLE: Final = 55  # seconds after which the benchmark gives up
PUSH: Final = 3.0  # seconds for which a peer sends and does not read
STALL: Final = 0.2  # seconds without progress after which the other side counts as stalled
READY: Final = f"listening on tcp {HOST}:"  # from echod's log; the other servers print the same


# The servers.


def serve_wire_echo() -> None:
    """Twisted's own echo protocol, with nothing added."""
    from twisted.internet import reactor  # noqa: PLC0415 - only in this process
    from twisted.internet.protocol import Factory  # noqa: PLC0415
    from twisted.protocols.wire import Echo  # noqa: PLC0415

    announce(reactor.listenTCP(0, Factory.forProtocol(Echo), interface=HOST).getHost().port)
    reactor.run()


class EchoServerProtocol(asyncio.Protocol):
    """The "TCP Echo Server" of asyncio's manual, "Transports and Protocols"."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def handle_echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Echo as in the "TCP echo server using streams" of asyncio's manual."""
    while data := await reader.read(CHUNK):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


class TCPHandler(socketserver.BaseRequestHandler):
    """The example of ``socketserver.TCPServer``'s manual, as an echo."""

    def handle(self) -> None:
        while data := self.request.recv(CHUNK):
            self.request.sendall(data)


async def serve_asyncio(streams: bool) -> None:
    if streams:
        server = await asyncio.start_server(handle_echo, HOST, 0)
    else:
        server = await asyncio.get_running_loop().create_server(EchoServerProtocol, HOST, 0)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_threads() -> None:
    with socketserver.ThreadingTCPServer((HOST, 0), TCPHandler) as server:
        announce(server.server_address[1])
        server.serve_forever()


def announce(port: int) -> None:
    print(f"{READY}{port}", flush=True)


SERVERS: Final[dict[str, Callable[[], None]]] = {
    "wire.Echo": serve_wire_echo,
    "asyncio Protocol": lambda: asyncio.run(serve_asyncio(streams=False)),
    "asyncio streams": lambda: asyncio.run(serve_asyncio(streams=True)),
    "ThreadingTCPServer": serve_threads,
}
ECHOD: Final = "echod"


class Server(NamedTuple):
    process: subprocess.Popen[str]
    port: int

    def rss(self) -> int:
        """Return the resident memory in bytes (proc(5))."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(
            int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmRSS")
        )


@contextmanager
def running(name: str) -> Iterator[Server]:
    """Run a server in its own process, and kill it at the end of the context."""
    if name == ECHOD:
        command = [str(Path(sys.executable).with_name("twistd")), "-n", "echod", "--port", "0"]
    else:
        command = [sys.executable, str(Path(__file__).resolve()), "--serve", name]
    with (
        tempfile.TemporaryDirectory() as directory,  # for twistd's pid file
        subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=directory, text=True
        ) as process,
    ):
        assert process.stdout is not None
        # Read the log, because a full pipe would stop the server.
        reader = threading.Thread(target=process.stdout.read, daemon=True)
        try:
            line = "no output"
            for line in process.stdout:
                if READY in line:
                    break
            else:
                raise RuntimeError(f"{name} does not listen: {line.rstrip()}")
            reader.start()
            yield Server(process, int(line.rpartition(":")[2]))
        finally:
            process.kill()
            if reader.is_alive():
                reader.join()


class Peer:
    """A client that sends ``data``, and reads only in :meth:`finish`.

    :ivar lost: bytes of ``data`` that have not come back.
    """

    def __init__(self, port: int, data: bytes, half_close: bool) -> None:
        self._data = data
        self._sent = 0
        self._received = 0
        self._sending = True
        self._half_close = half_close
        self._reset = False
        self._socket = socket.create_connection((HOST, port), LIMIT)
        self._socket.setblocking(False)

    def __enter__(self) -> Peer:
        return self

    def __exit__(self, *_: object) -> None:
        # Reset a connection that is still open, so that the server is not left with it.
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._socket.close()

    @property
    def lost(self) -> int:
        return len(self._data) - self._received

    def push(self) -> None:
        """Send without reading until all is sent, or the server accepts no more."""
        deadline = time.monotonic() + PUSH
        while self._sending and time.monotonic() < deadline:
            if not select.select([], [self._socket], [], STALL)[1]:
                return
            self._send()
        time.sleep(STALL)  # let the server process what it has received

    def finish(self) -> str:
        """Read to the end, and send the rest meanwhile; return "FIN" or "RST"."""
        deadline = time.monotonic() + LIMIT
        while time.monotonic() < deadline:
            wanted = [self._socket] if self._sending else []
            readable, writable, _ = select.select([self._socket], wanted, [], LIMIT)
            if writable:
                self._send()
            if readable:
                try:
                    part = self._socket.recv(MIB)
                except ConnectionResetError:
                    return "RST"
                if not part:
                    return "RST" if self._reset else "FIN"
                if part != self._data[self._received : self._received + len(part)]:
                    raise RuntimeError(f"a wrong byte after byte {self._received}")
                self._received += len(part)
        raise RuntimeError(f"a connection does not end within {LIMIT:g} s")

    def _send(self) -> None:
        try:
            part = memoryview(self._data)[self._sent : self._sent + MIB]
            self._sent += self._socket.send(part)
        except BlockingIOError:
            return
        except (ConnectionResetError, BrokenPipeError) as error:
            # The kernel reports a reset once: to this send, and not to the next receive.
            self._reset = isinstance(error, ConnectionResetError)
            self._sending = False
            return
        if self._sent == len(self._data):
            self._sending = False
            if self._half_close:
                self._socket.shutdown(socket.SHUT_WR)


# The cases. Each returns the text of its column.


def half_close(server: Server, count: int) -> str:
    """Send one line, half-close at once, and wait for the reply.

    The end of one direction is not the end of the other: after CLOSE, a TCP user continues to
    receive until the other side closes, too (RFC 9293 section 3.6; shutdown(2)).
    """
    lost, lies = 0, False
    for _ in range(count):
        with Peer(server.port, b"hello\n", half_close=True) as peer:
            ending = peer.finish()
            lost += peer.lost > 0
            lies = lies or is_lie(peer.lost, ending)
    return f"{lost} of {count}{' (!)' if lies else ''}"


def half_close_large(server: Server, data: bytes) -> str:
    """Half-close while the server still has much of the reply to send.

    The reply does not fit into the kernel's buffers (tcp(7): tcp_wmem of one end, tcp_rmem of the
    other), so that the server itself must buffer the rest.
    """
    with Peer(server.port, data, half_close=True) as peer:
        peer.push()
        ending = peer.finish()
        return loss(peer.lost, ending)


def never_reads(server: Server, size: int) -> str:
    """Send and never read.

    TCP's window stops a sender whose receiver does not read (RFC 9293 section 3.8.6). This works
    from end to end only if the server stops reading when it cannot send. Otherwise a peer can make
    it use any amount of memory.
    """
    before = server.rss()
    with Peer(server.port, bytes(size), half_close=False) as peer:
        peer.push()
        return f"{(server.rss() - before) / MIB:.1f} MiB"


def sigterm(server: Server, data: bytes) -> str:
    """Stop the server while it has a reply to send, and begin to read a moment later.

    A close with unread bytes sends RST (RFC 2525 section 2.17): a loss that the peer notices. A
    server that has read the bytes, and drops its buffer, ends with FIN: the peer takes a part of
    the reply for the whole. 8 MiB, because Linux buffers up to 4 MiB (tcp(7): tcp_wmem), and still
    sends them after the process has ended. echod waits for the reader, by default for 10 s
    (``--drain-timeout``), and then resets.
    """
    with Peer(server.port, data, half_close=False) as peer:
        peer.push()
        server.process.terminate()
        time.sleep(STALL)
        ending = peer.finish()
        return loss(peer.lost, ending)


def is_lie(lost: int, ending: str) -> bool:
    return lost > 0 and ending == "FIN"


def loss(lost: int, ending: str) -> str:
    amount = f"{lost / MIB:.1f} MiB" if lost > MIB / 10 else f"{lost} B" if lost else "0"
    return f"{amount}, {ending}{' (!)' if is_lie(lost, ending) else ''}"


def measure(name: str, count: int, unread_mib: int) -> list[str]:
    """Return the row of one server."""
    data = random.Random(862).randbytes(8 * MIB)
    with running(name) as server:
        # Memory first, because a process does not always return memory; SIGTERM last.
        memory = never_reads(server, unread_mib * MIB)
        small = half_close(server, count)
        large = half_close_large(server, data)
        return [name, small, large, memory, sigterm(server, data)]


def table(head: Sequence[Sequence[str]], rows: Sequence[Sequence[str]]) -> str:
    """Return a reST simple table."""
    widths = [max(map(len, column)) for column in zip(*head, *rows, strict=True)]
    rule = "  ".join("=" * width for width in widths)

    def line(cells: Sequence[str]) -> str:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        return "  ".join(padded).rstrip()

    return "\n".join([rule, *map(line, head), rule, *map(line, rows), rule])


def give_up_after(seconds: int) -> None:
    """End the process with one line after ``seconds``, or at SIGTERM; its servers are killed."""

    def give_up(number: int, _: object) -> None:
        sys.exit(f"{Path(sys.argv[0]).name}: given up: {signal.strsignal(number)}")

    for number in (signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, give_up)
    signal.alarm(seconds)


@contextmanager
def exit_in_one_line() -> Iterator[None]:
    """End the process with one line if the body of the context fails or is interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
    except (OSError, RuntimeError) as error:
        sys.exit(f"{Path(sys.argv[0]).name}: {error}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure what echo servers lose on 127.0.0.1, print a reST table."
    )
    parser.add_argument("--short", action="store_true", help="less of each case, for CI")
    parser.add_argument("--serve", choices=SERVERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        SERVERS[arguments.serve]()
        return
    give_up_after(WHOLE)
    count, unread_mib = (20, 32) if arguments.short else (200, 128)
    head = [
        [
            "server",
            "half-close",
            "8 MiB, half-close",
            f"{unread_mib} MiB, never reads",
            "8 MiB, SIGTERM",
        ],
        ["", "replies lost", "lost of 8 MiB", "kept in memory", "lost of 8 MiB"],
    ]
    with exit_in_one_line():
        rows = [measure(name, count, unread_mib) for name in (*SERVERS, ECHOD)]
    print(table(head, rows))
    print(
        "\n(!) The connection ended with FIN: the peer takes a part for the whole reply.\n"
        f"{platform.python_implementation()} {platform.python_version()}, "
        f"Twisted {version('twisted')}, {platform.system()} {platform.release()}."
    )


if __name__ == "__main__":
    main()
