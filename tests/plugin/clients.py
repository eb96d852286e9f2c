"""Synchronous clients of a peer, one for each transport."""

from __future__ import annotations

import os
import socket
import ssl
import threading

from echod.peer import EchoPeer
from tests import TIMEOUT

TRANSPORTS = ("tcp", "tls", "unix", "udp")


def connect(peer: EchoPeer, transport: str = "tcp") -> socket.socket:
    """Return a socket that is connected to ``peer``."""
    family = socket.AF_UNIX if transport == "unix" else socket.AF_INET
    kind = socket.SOCK_DGRAM if transport == "udp" else socket.SOCK_STREAM
    sock = socket.socket(family, kind)
    if transport == "tls":  # before connect: after a reset, wrap_socket leaves an open socket
        context = ssl.create_default_context(cafile=peer.ca)
        sock = context.wrap_socket(sock, server_hostname="localhost")
    sock.settimeout(TIMEOUT)
    try:
        sock.connect(peer.path if transport == "unix" else (peer.host, peer.port))
    except BaseException:
        sock.close()
        raise
    return sock


def echo(peer: EchoPeer, transport: str = "tcp", data: bytes = b"hello") -> bytes:
    """Send ``data`` on a connection of its own, and return the reply: as many bytes, or EOF."""
    with connect(peer, transport) as sock:
        sock.sendall(data)
        if transport == "udp":
            return sock.recv(65536)
        reply = b""
        while len(reply) < len(data) and (part := sock.recv(65536)):
            reply += part
        if transport != "tls":
            sock.shutdown(socket.SHUT_WR)
            assert sock.recv(1) == b""
        return reply


def resources() -> tuple[list[str], list[str]]:
    """Return the open descriptors of this process, and the names of its threads."""
    descriptors = []
    for name in os.listdir("/proc/self/fd"):
        try:
            descriptors.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # that of the listing itself
            continue
    return sorted(descriptors), sorted(thread.name for thread in threading.enumerate())
