"""Fixtures of the client's tests."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from echod.client.stamps import RECEIVE_SPACE, SO_TIMESTAMPNS, enable_stamps
from tests import TIMEOUT
from tests.client.bench import Bench


@pytest.fixture
def bench() -> Bench:
    """A reactor, and the replies that a channel reports."""
    return Bench()


@pytest.fixture(scope="session", autouse=True)
def _stamping() -> Iterator[None]:
    """Have the kernel stamp packets from the first test on: it begins some time after a request."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(TIMEOUT)
        sock.bind(("127.0.0.1", 0))
        is_stamped = not enable_stamps(sock, SO_TIMESTAMPNS)
        while not is_stamped:
            sock.sendto(b"", sock.getsockname())
            is_stamped = bool(sock.recvmsg(1, RECEIVE_SPACE)[1])
        yield
