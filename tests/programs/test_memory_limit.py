"""A daemon that runs out of memory (RLIMIT_AS in getrlimit(2))."""

from __future__ import annotations

import resource
import signal
import time
from contextlib import suppress

from tests import TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

PEERS = 300


def test_drain_without_memory() -> None:
    """The drain ends at its deadline, and a short reply ends with RST, never with FIN."""
    options = ("--port", "0", "--interface", "127.0.0.1", "--drain-timeout", "1", "--quiet")
    with Daemon(*options) as daemon:
        clients = [daemon.connect() for _ in range(PEERS)]
        buffered = bytes(1 << 20)
        for client in clients:
            client.setblocking(False)
        sent = dict.fromkeys(clients, 0)
        until = time.monotonic() + 2
        while time.monotonic() < until:
            for client in clients:
                with suppress(BlockingIOError):
                    sent[client] += client.send(buffered)
        resource.prlimit(daemon.process.pid, resource.RLIMIT_AS, (1 << 20, 1 << 20))
        daemon.terminate(signal.SIGTERM)
        assert daemon.process.wait(TIMEOUT) is not None
        resets = 0
        for client in clients:
            client.settimeout(TIMEOUT)
            with client:
                try:
                    received = len(receive_all(client))
                except ConnectionResetError:
                    resets += 1
                else:  # on a busy machine, little is sent, and the kernel accepts all of it
                    assert received == sent[client]
        assert resets
