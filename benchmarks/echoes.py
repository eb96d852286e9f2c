"""Echo servers in Python: ``python benchmarks/echoes.py NAME``.

Each follows the example of its manual, or usual practice (:class:`BufferedEcho`). All of them send
small replies at once (TCP_NODELAY): asyncio and uvloop by default, the others because this file
sets it. All use a large backlog (listen(2)), and print their address in the words of echod's log.
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

# Whole segments of loopback, as in echod: with 256 KiB each send ends in a tiny segment, and 1 MB
# messages take a third longer.
BUFFER: Final = 196_449


class EchoServerProtocol(asyncio.Protocol):
    """The "TCP Echo Server" of asyncio's manual, "Transports and Protocols"."""

    def connection_made(self, transport: Any) -> None:  # uvloop's is not an asyncio.Transport
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class BufferedEcho(asyncio.BufferedProtocol):
    """Echo with a buffer of its own: asyncio otherwise allocates 256 KiB for each receive.

    Sent bytes are copied, so that all connections can share one buffer.
    """

    buffer = memoryview(bytearray(BUFFER))

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002 - asyncio's signature
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.transport.write(bytes(self.buffer[:nbytes]))


def listen_with_twisted(factory: Any) -> None:
    from twisted.internet import epollreactor  # noqa: PLC0415 - only in this process

    epollreactor.install()
    from twisted.internet import reactor  # noqa: PLC0415 - after its installation

    announce(reactor.listenTCP(0, factory, backlog=BACKLOG, interface=HOST).getHost().port)
    reactor.run()


def serve_twisted() -> None:
    from twisted.internet.protocol import Factory  # noqa: PLC0415 - only in this process
    from twisted.protocols.wire import Echo  # noqa: PLC0415

    class NoDelay(Echo):
        def connectionMade(self) -> None:
            self.transport.setTcpNoDelay(True)

    listen_with_twisted(Factory.forProtocol(NoDelay))


def serve_without_fast_path() -> None:
    from echod import EchoFactory  # noqa: PLC0415 - only in this process

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
    import uvloop  # noqa: PLC0415 - may be missing

    uvloop.run(serve_protocol(EchoServerProtocol))


class DatagramEcho(asyncio.DatagramProtocol):
    """The "UDP Echo Server" of asyncio's manual, "Transports and Protocols"."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.transport.sendto(data, addr)


def serve_asyncio_udp() -> None:
    async def serve() -> None:
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(DatagramEcho, local_addr=(HOST, 0))
        announce(transport.get_extra_info("sockname")[1])
        await loop.create_future()  # never ends

    asyncio.run(serve())


def serve_gevent() -> None:
    from gevent.server import StreamServer  # noqa: PLC0415 - may be missing

    def echo(peer: Any, _: object) -> None:
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := peer.recv(CHUNK):
            peer.sendall(data)

    server = StreamServer((HOST, 0), echo, backlog=BACKLOG)
    server.start()
    announce(server.server_port)
    server.serve_forever()


class Liar(EchoServerProtocol):
    """An echo that changes one byte, later than a manual test would notice."""

    passed = 0  # bytes of all connections

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
