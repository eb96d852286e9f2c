"""Clients of each style, beside the peer's own reactor: each sees exactly two refusals.

The kernel reports a refusal while the client connects, or at its first read.
"""

from __future__ import annotations

import asyncio
from contextlib import closing
from typing import Any

import httpx
import pytest
import pytest_twisted
import trio
import urllib3
from twisted.internet.endpoints import clientFromString
from twisted.internet.error import ConnectError
from urllib3.exceptions import ProtocolError
from urllib3.util.retry import Retry

from echod.client.protocol import EchoClientFactory, EchoIncomplete
from echod.peer import EchoPeer

ATTEMPTS = 5
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nConnection: close\r\n\r\nhello"


class Failures(list[BaseException]):
    """The errors of a client's attempts."""

    def __call__(self, error: BaseException) -> None:
        self.append(error)
        assert len(self) < ATTEMPTS, self


@pytest.fixture
def peer() -> Any:
    with EchoPeer() as peer:
        peer.first(2).refuse()
        yield peer
        refused = [each.connection for each in peer.firings if "refuse" in each.rule]
        assert refused == [1, 2]
        assert peer.counts["refuse"] == 2
        assert peer.unused() == []


@pytest.fixture
def http_peer(peer: EchoPeer) -> EchoPeer:
    """A peer that answers each request in place of its echo."""
    peer.may_not_fire().silent()
    peer.may_not_fire().greet(ANSWER)
    return peer


def test_urllib3(http_peer: EchoPeer) -> None:
    """Urllib3, with its own retries."""
    with urllib3.PoolManager(retries=Retry(ATTEMPTS)) as pool:
        answer = pool.request("GET", f"http://{http_peer.host}:{http_peer.port}/")
    assert (answer.status, answer.data) == (200, b"hello")
    assert answer.retries is not None
    assert [type(each.error) for each in answer.retries.history] == [ProtocolError] * 2


@pytest.mark.parametrize("asynchronous", [False, True])
def test_httpx(http_peer: EchoPeer, asynchronous: bool) -> None:
    """A client of httpx, synchronous or on asyncio, in a loop that retries.

    If the reset comes before the request is sent, httpx takes it for the end of the response.
    """
    failures = Failures()
    url = f"http://{http_peer.host}:{http_peer.port}/"

    def get() -> bytes:
        with httpx.Client() as client:
            while True:
                try:
                    return client.get(url).content
                except httpx.TransportError as error:
                    failures(error)

    async def get_async() -> bytes:
        async with httpx.AsyncClient() as client:
            while True:
                try:
                    return (await client.get(url)).content
                except httpx.TransportError as error:
                    failures(error)

    assert (asyncio.run(get_async()) if asynchronous else get()) == b"hello"
    assert len(failures) == 2


def test_asyncio(peer: EchoPeer) -> None:
    """Streams of asyncio."""
    failures = Failures()

    async def get() -> bytes:
        while True:
            try:
                reader, writer = await asyncio.open_connection(peer.host, peer.port)
                with closing(writer):
                    writer.write(b"hello")
                    return await reader.readexactly(5)
            except ConnectionError as error:
                failures(error)

    assert asyncio.run(get()) == b"hello"
    assert len(failures) == 2


# The global reactor of pytest-twisted has set_wakeup_fd(); trio restores it.
@pytest.mark.filterwarnings("ignore:It looks like Trio:RuntimeWarning")
def test_trio(peer: EchoPeer) -> None:
    """Streams of trio."""
    failures = Failures()

    async def get() -> bytes | bytearray:
        while True:
            try:
                async with await trio.open_tcp_stream(peer.host, peer.port) as stream:
                    await stream.send_all(b"hello")
                    return await stream.receive_some(5)
            except (OSError, trio.BrokenResourceError) as error:
                failures(error)

    assert trio.run(get) == b"hello"
    assert len(failures) == 2


@pytest_twisted.ensureDeferred
async def test_twisted(peer: EchoPeer) -> None:
    """Endpoints of Twisted, on the global reactor."""
    from twisted.internet import reactor  # noqa: PLC0415 - once it is installed

    failures = Failures()
    endpoint = clientFromString(reactor, f"tcp:{peer.host}:{peer.port}")
    while True:
        try:
            client = await endpoint.connect(EchoClientFactory())
            assert await client.echo(b"hello", timeout=5) == b"hello"
            break
        except (ConnectError, EchoIncomplete) as error:
            failures(error)
    await client.close()
    assert len(failures) == 2
