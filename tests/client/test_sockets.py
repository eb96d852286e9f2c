"""Sockets to the service, and the options of the command line that apply to them."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

import pytest

from echod.client.sockets import (
    DEFAULTS,
    IP_OPTIONS,
    PMTUDISC_DO,
    RECEIVE_BUFFER,
    SO_RCVBUFFORCE,
    SocketOptions,
)

FAMILIES = {socket.AF_INET: "127.0.0.1", socket.AF_INET6: "::1"}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dont_fragment", [False, True])
def test_udp_socket(family: int, dont_fragment: bool) -> None:
    """A UDP socket is connected and non-blocking; fragmentation is optional."""
    options = SocketOptions(dont_fragment=dont_fragment)
    with socket.socket(family, socket.SOCK_DGRAM) as service:
        service.bind((FAMILIES[family], 0))
        with contextlib.closing(
            options.open(family, socket.SOCK_DGRAM, service.getsockname())
        ) as sock:
            assert sock.getpeername() == service.getsockname()
            with pytest.raises(BlockingIOError):
                sock.recv(1)
            level, *_, option = IP_OPTIONS[family]
            assert (sock.getsockopt(level, option) == PMTUDISC_DO) is dont_fragment


@pytest.mark.parametrize("dont_fragment", [False, True])
def test_larger_than_the_interface(dont_fragment: bool) -> None:
    """Without fragmentation, a datagram above the MTU (65,536 on loopback) is refused."""
    options = SocketOptions(dont_fragment=dont_fragment)
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as service:
        service.bind(("::1", 0))
        with contextlib.closing(
            options.open(socket.AF_INET6, socket.SOCK_DGRAM, service.getsockname())
        ) as sock:
            data = bytes(65_527)  # 65,575 with its headers
            if dont_fragment:
                with pytest.raises(OSError, match="too long"):
                    sock.send(data)
            else:
                assert sock.send(data) == len(data)


@pytest.mark.parametrize("allowed", [False, True])
def test_receive_buffer(allowed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receive buffer is as large as the kernel gives, with CAP_NET_ADMIN or without."""
    forced: list[int] = []

    class Socket(socket.socket):
        def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
            if option == SO_RCVBUFFORCE:
                forced.append(value)
                if not allowed:
                    raise PermissionError
            else:
                super().setsockopt(level, option, value)

    monkeypatch.setattr("echod.client.sockets.socket.socket", Socket)
    with Socket(socket.AF_INET, socket.SOCK_DGRAM) as usual:
        size = usual.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
    with DEFAULTS.open(socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 7)) as sock:
        assert forced == [RECEIVE_BUFFER]
        assert (sock.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) > size) is not allowed


def test_no_route() -> None:
    """A failed connect raises its error, and closes the socket (else ResourceWarning)."""
    with pytest.raises(OSError, match=r"denied|not permitted|unreachable"):
        DEFAULTS.open(
            socket.AF_INET, socket.SOCK_DGRAM, ("255.255.255.255", 7)
        )  # without SO_BROADCAST


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
@pytest.mark.parametrize("family", FAMILIES)
def test_options(family: int, kind: int) -> None:
    """Source address, interface, type of service and hop limit are set."""
    options = SocketOptions(family, FAMILIES[family], "lo", tos=0xB8, ttl=9)
    with options.open(family, kind) as sock:
        assert sock.getsockname()[0] == FAMILIES[family]
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, 16).startswith(b"lo")
        level, tos, ttl, _ = IP_OPTIONS[family]
        assert (sock.getsockopt(level, tos), sock.getsockopt(level, ttl)) == (0xB8, 9)


def test_refused_option() -> None:
    """A refused option raises its error, and closes the socket (else ResourceWarning)."""
    with pytest.raises(OSError, match="No such device"):
        SocketOptions(interface="none").open(socket.AF_INET, socket.SOCK_DGRAM)
    with pytest.raises(OSError, match="assign"):
        SocketOptions(source="192.0.2.1").open(socket.AF_INET, socket.SOCK_STREAM)
