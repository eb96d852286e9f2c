import asyncio

import pytest
from client import get


def test_slow_reply(echo_peer):
    echo_peer.first(1).delay(30)
    assert asyncio.run(get(echo_peer.host, echo_peer.port, b"hello")) == b"hello"


def test_short_reply(echo_peer):
    echo_peer.first(1).from_byte(3).close()
    assert asyncio.run(get(echo_peer.host, echo_peer.port, b"hello")) == b"hello"


def test_silence(echo_peer):
    echo_peer.silent()
    with pytest.raises(asyncio.TimeoutError):
        asyncio.run(get(echo_peer.host, echo_peer.port, b"hello"))
    assert echo_peer.counts["silent"] == 3


def test_peer_sees_the_end(echo_peer):
    async def run():
        await get(echo_peer.host, echo_peer.port, b"hello")
        # wait_for() blocks: an asynchronous test calls it in a thread.
        await asyncio.to_thread(echo_peer.wait_for, "finished")

    asyncio.run(run())
    assert echo_peer.endings == ["finished"]
