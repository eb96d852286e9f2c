"""Echo servers in Python: ``python benchmarks/echoes.py NAME``.

Each is as its manual shows, or as who knows it writes it (:class:`BufferedEcho`).
All of them send small replies at once (TCP_NODELAY): asyncio and uvloop by themselves,
the others where it says so. All take as many connections at once as the kernel lets them
(listen(2)). They say where they listen, as echod's log does.
"""

from __future__ import annotations

import argparse
import asyncio
import socket
from collections.abc import Callable
from typing import Any, Final

from losses import HOST, announce

BACKLOG: Final = 4096
CHUNK: Final = 64 * 1024

# Whole segments of loopback, as echod's: with 256 KiB each send ends in a tiny one, and 1 MB
# messages take a third longer.
BUFFER: Final = 196_449


class EchoServerProtocol(asyncio.Protocol):
    """Echo as the manual's "TCP Echo Server" of asyncio's transports and protocols."""

    def connection_made(self, transport: Any) -> None:  # uvloop's is no asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Echo as who knows asyncio writes it: it allocates 256 KiB for each receive otherwise.

    What is sent is copied, so that one buffer is enough for all.
    """

    buffer = memoryview(bytearray(BUFFER))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


def listen_with_twisted(factory: Any) -> None:
    from twisted.internet import epollreactor  # noqa: PLC0415 - for this process alone

    epollreactor.install()
    from twisted.internet import reactor  # noqa: PLC0415 - once it is chosen

    announce(reactor.listenTCP(0, factory, backlog=BACKLOG, interface=HOST).getHost().port)
    reactor.run()


def serve_twisted() -> None:
    from twisted.internet.protocol import Factory  # noqa: PLC0415 - for this process alone
    from twisted.protocols.wire import Echo  # noqa: PLC0415

    class NoDelay(Echo):
        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)

    listen_with_twisted(Factory.forProtocol(NoDelay))


def serve_without_fast_path() -> None:
    from echod import EchoFactory  # noqa: PLC0415 - for this process alone

    listen_with_twisted(EchoFactory(fast_path=False))


async def serve_protocol(protocol: Callable[[], asyncio.BaseProtocol]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(protocol, HOST, 0, backlog=BACKLOG)
    announce(server.sockets[0].getsockname()[1])
    await server.serve_forever()


def serve_asyncio() -> None:
    asyncio.run(serve_protocol(EchoServerProtocol))


def serve_asyncio_buffered() -> None:
    asyncio.run(serve_protocol(BufferedEcho))


def serve_uvloop() -> None:
    import uvloop  # noqa: PLC0415 - where it is installed

    uvloop.run(serve_protocol(EchoServerProtocol))


class DatagramEcho(asyncio.DatagramProtocol):
    """Echo as the manual's "UDP Echo Server" of asyncio's transports and protocols."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


def serve_asyncio_udp() -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(DatagramEcho, local_addr=(HOST, 0))
        announce(transport.get_extra_info("sockname")[1])
        await loop.create_future()  # for ever

    asyncio.run(serve())


def serve_gevent() -> None:
    from gevent.server import StreamServer  # noqa: PLC0415 - where it is installed

    def echo(peer: Any, _: object) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := peer.recv(CHUNK):
            peer.sendall(data)

    server = StreamServer((HOST, 0), echo, backlog=BACKLOG)
    server.start()
    announce(server.server_port)
    server.serve_forever()


class Liar(EchoServerProtocol):
    """Changes a byte, long after any test by hand would have stopped."""

    passed = 0  # bytes of all its connections

    def data_received(self, data: bytes) -> None:
        at = 10_000 - Liar.passed
        Liar.passed += len(data)
        if 0 <= at < len(data):
            data = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        super().data_received(data)


def serve_liar() -> None:
    asyncio.run(serve_protocol(Liar))


SERVERS: Final[dict[str, Callable[[], None]]] = {
    "echod-slow": serve_without_fast_path,
    "twisted": serve_twisted,
    "asyncio": serve_asyncio,
    "asyncio-buffered": serve_asyncio_buffered,
    "asyncio-udp": serve_asyncio_udp,
    "uvloop": serve_uvloop,
    "gevent": serve_gevent,
    "liar": serve_liar,
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Echo on a port of 127.0.0.1 until killed.")
    parser.add_argument("server", choices=SERVERS)
    SERVERS[parser.parse_args().server]()
