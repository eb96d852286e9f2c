import pytest
from client import get


def test_two_refusals(echo_peer):
    echo_peer.first(2).refuse()
    assert get(echo_peer.host, echo_peer.port, b"hello") == b"hello"
    assert echo_peer.counts["refuse"] == 2


def test_three_refusals(echo_peer):
    echo_peer.refuse()
    with pytest.raises(OSError):  # ECONNRESET, EPIPE or ENOTCONN: it depends on the moment
        get(echo_peer.host, echo_peer.port, b"hello")
    assert echo_peer.counts["refuse"] == 3


def test_no_reply(echo_peer):
    echo_peer.first(1).close()
    assert get(echo_peer.host, echo_peer.port, b"hello") == b"hello"


def test_restart(echo_peer):
    echo_peer.stop()
    with pytest.raises(ConnectionRefusedError):
        get(echo_peer.host, echo_peer.port, b"hello")
    echo_peer.start()
    assert get(echo_peer.host, echo_peer.port, b"hello") == b"hello"
