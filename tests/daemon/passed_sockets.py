"""Sockets passed by a service manager, in process."""

from __future__ import annotations

import os
import socket

from echod.daemon.listeners.systemd import PassedSocket


def passed_socket(sock: socket.socket, name: str = "echod.socket") -> PassedSocket:
    """Pass a duplicate of a socket's descriptor; the receiver owns it."""
    descriptor = os.dup(sock.fileno())
    os.set_inheritable(descriptor, True)
    return PassedSocket(descriptor, name)
