import ssl

import pytest
import trio
from client import DamagedReply, get


@pytest.mark.parametrize("place", [1, 4, 9])
def test_damaged_byte(echo_peer, place):
    echo_peer.number(place, "byte").damage()
    with pytest.raises(DamagedReply):
        trio.run(get, echo_peer.host, echo_peer.port, b"hello")


def test_missing_byte(echo_peer):
    echo_peer.plan("first 1, byte 5: swallow; first 1, after 8 bytes: close")
    with pytest.raises(DamagedReply):
        trio.run(get, echo_peer.host, echo_peer.port, b"hello")


def test_expired_certificate(echo_peer_tls):
    echo_peer_tls.first(1).certificate("expired")
    context = ssl.create_default_context(cafile=echo_peer_tls.ca)
    with pytest.raises(trio.BrokenResourceError) as raised:
        trio.run(get, echo_peer_tls.host, echo_peer_tls.port, b"hello", context)
    assert "expired" in str(raised.value.__cause__)
    assert trio.run(get, echo_peer_tls.host, echo_peer_tls.port, b"hello", context) == b"hello"
