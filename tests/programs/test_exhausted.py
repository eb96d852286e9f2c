"""Real daemons at their limits: few descriptors, select(2), descriptors that clients pass."""

from __future__ import annotations

import contextlib
import socket

import pytest

from tests import TIMEOUT
from tests.programs.daemon import Daemon

PORTS = [f"--listen=tcp:0:interface=127.0.0.{host}" for host in range(1, 21)]
FEW = ("prlimit", "--nofile=128:128")


def ending(port: int, stack: contextlib.ExitStack) -> str:
    """Return how a new client that sends a byte is treated: "served", "RST" or "FIN"."""
    try:
        client = stack.enter_context(socket.create_connection(("127.0.0.1", port), TIMEOUT))
        client.sendall(b"x")
        return "served" if client.recv(1) else "FIN"
    except (ConnectionResetError, BrokenPipeError):
        return "RST"


@pytest.mark.parametrize(
    ("prefix", "twistd", "options", "clients"),
    [
        (FEW, ("-n", "echod"), PORTS, 150),
        ((), ("-n", "--reactor", "select", "echod"), ["--port=0", "--quiet"], 1100),
    ],
    ids=["20 ports, 128 descriptors", "select"],
)
def test_limit(
    prefix: tuple[str, ...], twistd: tuple[str, ...], options: list[str], clients: int
) -> None:
    """Connections beyond the descriptors are refused with RST, and counted; none with FIN."""
    with (
        Daemon(*options, prefix=prefix, twistd=twistd) as daemon,
        contextlib.ExitStack() as stack,
    ):
        port = daemon.port
        endings = [ending(port, stack) for _ in range(clients)]
        served = endings.count("served")
        assert endings == ["served"] * served + ["RST"] * (clients - served)
        assert 50 < served < clients
        daemon.wait_for(": max-connections ")
        for line in daemon.lines:
            assert "Traceback" not in line
            assert "accept" not in line
