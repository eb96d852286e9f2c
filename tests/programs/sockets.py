"""Read from blocking sockets."""

from __future__ import annotations

import socket


def receive_all(sock: socket.socket) -> bytes:
    """Receive until EOF; a reset raises ConnectionResetError."""
    received = bytearray()
    while part := sock.recv(1 << 20):
        received += part
    return bytes(received)
