"""TLS faults, as the clients of Python and openssl see them over kernel sockets."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Callable
from typing import Any

import pytest

from echod.faults import When
from echod.peer import EchoPeer
from tests import TIMEOUT
from tests.programs.test_tls import S_CLIENT, needs

FAULTS: dict[str, tuple[Callable[[When], object], str]] = {
    "stall": (lambda when: when.stall(), "Connection reset by peer"),
    "abort": (lambda when: when.abort(), "Connection reset by peer"),
    "wrong-name": (lambda when: when.certificate("wrong-name"), "Hostname mismatch"),
    "expired": (lambda when: when.certificate("expired"), "certificate has expired"),
    "self-signed": (lambda when: when.certificate("self-signed"), "self-signed certificate"),
    "old-version": (lambda when: when.old_version(), "tlsv1 alert protocol version"),
    "no-close-notify": (lambda when: when.no_close_notify(), "violation of protocol"),
}


def exchange(peer: EchoPeer) -> str:
    """Send bytes and close as TLS demands; return an empty text, or the error."""
    context = ssl.create_default_context(cafile=peer.ca)
    with socket.create_connection((peer.host, peer.port), TIMEOUT) as sock:
        try:
            with context.wrap_socket(sock, server_hostname="localhost") as client:
                client.sendall(b"hello")
                received = b""
                while len(received) < 5:
                    received += client.recv(5)
                assert received == b"hello"
                client.unwrap().close()
        except OSError as error:
            return str(error)
    return ""


@pytest.mark.parametrize("name", FAULTS)
def test_python(name: str) -> None:
    """The clients that the rule chooses get one error, the others none, and the counts agree."""
    add, error = FAULTS[name]
    with EchoPeer("tls", handshake_timeout=0.2) as peer:
        add(peer.numbers(2, 3))
        errors = [exchange(peer) for _ in range(4)]
        assert [bool(each) for each in errors] == [False, True, True, False]
        assert all(error in each for each in errors[1:3])
        assert peer.counts == {name: 2}
        assert [each.connection for each in peer.firings] == [2, 3]


def s_client(peer: EchoPeer, *options: str) -> Any:
    needs("openssl")
    command = S_CLIENT.format(ca=peer.ca, port=peer.port).split()
    return subprocess.run(
        [*command, "-verify_hostname", "localhost", *options],
        input=b"hello",
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )


@pytest.mark.parametrize(
    ("name", "error", "options"),
    [
        ("stall", b"errno=104", []),
        ("abort", b"errno=104", []),
        ("wrong-name", b"num=62:", []),
        ("expired", b"num=10:certificate has expired", []),
        ("self-signed", b"num=18:self", []),
        ("old-version", b"unsupported protocol", ["-tls1_2"]),
    ],
)
def test_openssl(name: str, error: bytes, options: list[str]) -> None:
    """Openssl s_client fails in the handshake, by the numbers of openssl-verify(1)."""
    with EchoPeer("tls", handshake_timeout=0.2) as peer:
        FAULTS[name][0](peer)
        done = s_client(peer, *options)
        assert done.returncode == 1
        assert error in done.stderr
        assert done.stdout == b""
        assert peer.counts == {name: 1}


def test_openssl_no_close_notify() -> None:
    """Openssl s_client gets the bytes before the end, and sees the alert or misses it."""
    for faults, alert in [(["close"], True), (["no_close_notify", "close"], False)]:
        with EchoPeer("tls") as peer:
            for fault in faults:
                getattr(peer.from_byte(3) if fault == "close" else peer, fault)()
            done = s_client(peer, "-trace", "-tls1_2")
            assert b"hel" in done.stdout
            assert (b"close notify" in done.stdout.lower()) == alert
            assert peer.counts == {fault.replace("_", "-"): 1 for fault in faults}
            peer.wait_for("fault")
            assert peer.endings == ["fault"]
