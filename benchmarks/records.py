"""The TLS peers of ``speed.py``: ``python benchmarks/records.py PORT CERTIFICATE``.

Each peer sends records of one byte, hundreds of them at once, and compares what comes back. That
is the most work that a peer can give a server for a byte. The program prints a line when all peers
have sent, and runs until it is killed. It has a low priority, so that it does not delay the load on
the same core.
"""

from __future__ import annotations

import argparse
import os
import selectors
import socket
import ssl
import sys
from contextlib import suppress
from typing import Final

from losses import CHUNK, HOST

PEERS: Final = 40
BATCH: Final = 500  # records encrypted at once; a peer has one or two batches in flight
NICE: Final = 10  # nice(2)
PATTERN: Final = bytes(range(251)) * (CHUNK // 251 + 2)


class Peer:
    """A TLS connection to the server."""

    def __init__(self, port: int, context: ssl.SSLContext) -> None:
        self.socket = socket.create_connection((HOST, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._sent = self._received = 0
        self._unsent = b""
        self._handshake()
        self.socket.setblocking(False)

    def _handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                self.socket.sendall(self._outgoing.read())
                self._incoming.write(self.socket.recv(CHUNK))
            else:
                break

    def send(self) -> None:
        """Encrypt a batch if less than one is in flight, and send as much as the kernel accepts.

        The rest follows after the next receive: unsent bytes mean that replies are in flight.
        """
        if self._sent - self._received < BATCH:
            for number in range(self._sent, self._sent + BATCH):
                self._tls.write(PATTERN[number % 251 : number % 251 + 1])
            self._sent += BATCH
        self._unsent += self._outgoing.read()
        with suppress(BlockingIOError):
            self._unsent = self._unsent[self.socket.send(self._unsent) :]

    def receive(self) -> None:
        self._incoming.write(self.socket.recv(CHUNK))
        with suppress(ssl.SSLWantReadError):
            while part := self._tls.read(CHUNK):
                start = self._received % 251
                if part != PATTERN[start : start + len(part)]:
                    raise RuntimeError("a wrong byte came back over TLS")
                self._received += len(part)
            raise RuntimeError("a TLS connection has ended")


def run(port: int, certificate: str) -> None:
    """Connect, and send without end."""
    context = ssl.create_default_context(cafile=certificate)
    selector = selectors.DefaultSelector()
    for _ in range(PEERS):
        peer = Peer(port, context)
        selector.register(peer.socket, selectors.EVENT_READ, peer)
        peer.send()
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            key.data.receive()
            key.data.send()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Send 1-byte records over TLS until killed.")
    parser.add_argument("port", type=int)
    parser.add_argument("certificate")
    arguments = parser.parse_args()
    os.nice(NICE)
    try:
        run(arguments.port, arguments.certificate)
    except (OSError, RuntimeError) as error:
        sys.exit(f"records.py: {error}")
