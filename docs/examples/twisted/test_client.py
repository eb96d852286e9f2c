import pytest_twisted
from client import ask


@pytest_twisted.ensureDeferred
async def test_lost_datagrams(echo_peer_udp):
    from twisted.internet import reactor

    echo_peer_udp.first(2).drop()
    assert await ask(reactor, echo_peer_udp.host, echo_peer_udp.port, b"hello") == (b"hello", 3)
    assert echo_peer_udp.counts["drop"] == 2


@pytest_twisted.ensureDeferred
async def test_repeated_datagrams(echo_peer_udp):
    from twisted.internet import reactor

    echo_peer_udp.duplicate()
    assert await ask(reactor, echo_peer_udp.host, echo_peer_udp.port, b"hello") == (b"hello", 1)
