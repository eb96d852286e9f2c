"""IP addresses to listen on: validation and conflicts."""

from __future__ import annotations

import pytest
from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress

from echod.daemon.listeners.interfaces import check_interface, is_loopback, overlap


def tcp(host: str, port: int = 7) -> IPv4Address | IPv6Address:
    return (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)


@pytest.mark.parametrize(
    ("one", "other", "clash"),
    [
        (tcp("127.0.0.1"), tcp("127.0.0.1"), True),
        (tcp("127.0.0.1"), tcp("127.0.0.1", 8), False),
        (tcp("127.0.0.1"), IPv4Address("UDP", "127.0.0.1", 7), False),
        (tcp("127.0.0.1"), tcp("127.0.0.2"), False),
        (tcp("127.0.0.1"), tcp("0.0.0.0"), True),
        (tcp("127.0.0.1"), tcp("::1"), False),
        (tcp("0.0.0.0"), tcp("::"), True),
        (tcp("0.0.0.0"), tcp("::1"), False),
        (tcp("127.0.0.1"), tcp("::"), True),
        (tcp("::1"), tcp("::"), True),
        (UNIXAddress(b"/run/x"), UNIXAddress(b"/run/x"), True),
        (UNIXAddress(b"/run/x"), UNIXAddress(b"/run/y"), False),
        (UNIXAddress(b"/run/x"), tcp("127.0.0.1"), False),
        (object(), tcp("127.0.0.1"), False),
        (tcp("127.0.0.1"), object(), False),
    ],
)
def test_overlap(one: object, other: object, clash: bool) -> None:
    """A wildcard conflicts with each address of its family; IPv6's also with IPv4 (ipv6(7))."""
    assert overlap(one, other) is clash  # type: ignore[arg-type]
    assert overlap(other, one) is clash  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["127.0.0.1", "::", "::1", "fe80::1%lo", "fe80::1%1"])
def test_interface(text: str) -> None:
    """A valid address is returned unchanged, including its zone."""
    assert check_interface(text) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "lo", "1.2.3", "fe80::1", "fe80::1%", "fe80::1%nolink"),
        *("fe80::1%0", "fe80::1%99999", "fe80::1%" + "9" * 20, "fe80::1%" + "9" * 5000),
        *("::1%lo", "::%lo", "2001:db8::1%lo"),
        *("224.0.0.1", "ff02::1", "ff02::1%lo", "255.255.255.255"),
    ],
)
def test_no_interface(text: str) -> None:
    """Any other text is refused, and the message says what is allowed."""
    with pytest.raises(ValueError, match=r"^takes a.*, not '"):
        check_interface(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("::ffff:127.0.0.1", True)),
        *(("0.0.0.0", False), ("192.0.2.1", False), ("::", False), ("fe80::1%lo", False)),
        ("::ffff:192.0.2.1", False),
    ],
)
def test_loopback(host: str, loopback: bool) -> None:
    """An IPv4-mapped address counts as IPv4."""
    assert is_loopback(host) is loopback
