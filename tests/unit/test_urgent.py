"""Urgent data that arrives before a connection is accepted."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

import pytest
import pytest_twisted

from echod.daemon.listeners.accepting import log_not_accepted
from echod.daemon.listeners.group import Ports
from echod.daemon.summary import RateLimitedSummary
from echod.factory import EchoFactory
from echod.proxy import ProxyFactory
from echod.socketoptions import receive_urgent_inline
from tests.streams.proxy import proxy_header
from tests.streams.sockets import SocketEndpoints, TCP4Endpoints, TCP6Endpoints, UNIXEndpoints

run = pytest_twisted.ensureDeferred


class Listener:
    """The part of a listener that Ports uses."""

    held_by_systemd = tls = faults = False

    def __init__(self, ends: SocketEndpoints) -> None:
        self.ends = ends

    async def listen(self, factory: Any) -> list[Any]:
        await self.ends.listen(factory)
        return self.ends.ports


async def echoed(
    ends: SocketEndpoints, wrap: Callable[..., Any], *sent: tuple[bytes, int]
) -> bytes:
    """Send everything before the reactor accepts, then half-close, and return the reply."""
    factory = wrap(EchoFactory(clock=ends.clock, **ends.options))
    failures = RateLimitedSummary(ends.clock, log_not_accepted)
    ports = Ports(factory, [Listener(ends)], failures)
    await ports.open()
    [port] = ends.ports
    with socket.socket(port.addressFamily) as client:
        client.connect(port.socket.getsockname())
        for data, flags in sent:
            client.send(data, flags)
        client.shutdown(socket.SHUT_WR)
        client.setblocking(False)
        received = b""
        while True:
            await ends.turn()
            try:
                part = client.recv(1000)
            except BlockingIOError:
                continue
            if not part:
                break
            received += part
    await ends.stop()
    return received


@run
@pytest.mark.parametrize("fast_path", [True, False])
@pytest.mark.parametrize("kind", [TCP4Endpoints, TCP6Endpoints, UNIXEndpoints])
async def test_before_accept(kind: Callable[[], SocketEndpoints], fast_path: bool) -> None:
    """Urgent data that arrived before the accept is echoed, also if it is sent repeatedly."""
    ends = kind()
    ends.options["fast_path"] = fast_path
    sent = [(b"a", socket.MSG_OOB), (b"b", socket.MSG_OOB), (b"c", 0), (b"def", socket.MSG_OOB)]
    assert await echoed(ends, lambda factory: factory, *sent) == b"abcdef"


@run
async def test_behind_a_proxy() -> None:
    """Urgent data in a PROXY header, or right after it, stays at its place in the stream."""
    header = proxy_header(1, "192.0.2.1", 49152)
    sent = [(header[:9], socket.MSG_OOB), (header[9:], 0), (b"abc", socket.MSG_OOB)]
    assert await echoed(TCP4Endpoints(), ProxyFactory, *sent) == b"abc"


def test_no_such_option() -> None:
    """A kernel without the option for a kind of socket causes no error."""

    class Port:
        socket = socket.socket()

    Port.socket.close()
    receive_urgent_inline(Port())
