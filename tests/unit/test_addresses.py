"""Addresses as text, and what counts as one peer."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from echod.addresses import name_of, peer_key

PEER = IPv4Address("TCP", "192.0.2.1", 40000)


class NameOfTests(SynchronousTestCase):
    def test_names(self) -> None:
        """Addresses have their usual notation."""
        for address, name in (
            (PEER, "tcp 192.0.2.1:40000"),
            (IPv6Address("TCP", "::1", 7), "tcp [::1]:7"),
            (UNIXAddress(b"/run/echod/socket"), "unix /run/echod/socket"),
            (UNIXAddress(b"\0abstract"), "unix @abstract"),
            (
                UNIXAddress("/run/\N{LATIN SMALL LETTER U WITH DIAERESIS}".encode()),
                r"unix /run/\xfc",
            ),
            # IPv4-mapped addresses, and addresses that only look mapped
            (IPv6Address("TCP", "::ffff:192.0.2.1", 7), "tcp 192.0.2.1:7"),
            (IPv6Address("TCP", "::ffff:1", 7), "tcp [::ffff:1]:7"),
            (IPv6Address("TCP", "::192.0.2.1", 7), "tcp [::192.0.2.1]:7"),
            (IPv6Address("TCP", "fe80::1%eth0.7", 7), "tcp [fe80::1%eth0.7]:7"),
            (UNIXAddress(None), "unix (unnamed)"),
            (None, "None"),
        ):
            self.assertEqual(name_of(address), name)

    def test_tls_names(self) -> None:
        """With TLS, «tls» replaces «tcp», and a UNIX path stays as it is."""
        for address, name in (
            (PEER, "tls 192.0.2.1:40000"),
            (IPv6Address("TCP", "::1", 7), "tls [::1]:7"),
            (UNIXAddress(b"/run/tcp"), "unix /run/tcp"),
        ):
            self.assertEqual(name_of(address, tls=True), name)

    def test_forged_line(self) -> None:
        """A UNIX peer chooses its path, and cannot forge a log line with it."""
        name = name_of(UNIXAddress(b"/x\n2026 [echod#info] all is well\x1b[2J\xff\r"))
        self.assertTrue(name.isprintable(), name)


class PeerKeyTests(SynchronousTestCase):
    def test_ipv4(self) -> None:
        """An IPv4 address is one peer, whatever its port."""
        one, other = (peer_key(IPv4Address("TCP", "192.0.2.1", port)) for port in (1, 2))
        self.assertEqual(one, other)
        self.assertNotEqual(one, peer_key(IPv4Address("TCP", "192.0.2.2", 1)))

    def test_ipv6(self) -> None:
        """An IPv6 /64 is one peer, with a zone or without."""

        def key(host: str) -> str | None:
            return peer_key(IPv6Address("TCP", host, 1))

        self.assertEqual(key("2001:db8::1"), key("2001:db8::ffff:1"))
        self.assertNotEqual(key("2001:db8::1"), key("2001:db8:0:1::1"))
        self.assertEqual(key("fe80::1%lo"), key("fe80::2%lo"))

    def test_ipv4_mapped(self) -> None:
        """An IPv4 peer counts as itself through a dual-stack socket."""
        mapped = IPv6Address("TCP", "::ffff:192.0.2.1", 1)
        self.assertEqual(peer_key(mapped), peer_key(IPv4Address("TCP", "192.0.2.1", 1)))

    def test_invalid_address_of_a_proxy(self) -> None:
        """A proxy may state an invalid address, which counts as one peer."""
        self.assertEqual(peer_key(IPv6Address("TCP", "zz::q", 1)), "zz::q")

    def test_without_an_address(self) -> None:
        """A peer without an IP address has no key, and so no limit."""
        self.assertIsNone(peer_key(UNIXAddress(b"/run/x")))
        self.assertIsNone(peer_key(None))
