"""What counts as one peer."""

from __future__ import annotations

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.trial.unittest import SynchronousTestCase

from echod.addresses import peer_key


class PeerKeyTests(SynchronousTestCase):
    def test_ipv4(self) -> None:
        """An IPv4 address is one peer, whatever its port."""
        one, other = (peer_key(IPv4Address("TCP", "192.0.2.1", port)) for port in (1, 2))
        self.assertEqual(one, other)
        self.assertNotEqual(one, peer_key(IPv4Address("TCP", "192.0.2.2", 1)))

    def test_ipv6(self) -> None:
        """An IPv6 /64 is one peer, also where addresses have a zone."""

        def key(host: str) -> str | None:
            return peer_key(IPv6Address("TCP", host, 1))

        self.assertEqual(key("2001:db8::1"), key("2001:db8::ffff:1"))
        self.assertNotEqual(key("2001:db8::1"), key("2001:db8:0:1::1"))
        self.assertEqual(key("fe80::1%lo"), key("fe80::2%lo"))

    def test_ipv4_mapped(self) -> None:
        """An IPv4 peer that came through a dual-stack socket is that IPv4 peer."""
        mapped = IPv6Address("TCP", "::ffff:192.0.2.1", 1)
        self.assertEqual(peer_key(mapped), peer_key(IPv4Address("TCP", "192.0.2.1", 1)))

    def test_word_of_a_proxy(self) -> None:
        """What a proxy says may be no address at all, and is one peer all the same."""
        self.assertEqual(peer_key(IPv6Address("TCP", "zz::q", 1)), "zz::q")

    def test_without_an_address(self) -> None:
        """Who has no IP address counts for no limit by address."""
        self.assertIsNone(peer_key(UNIXAddress(b"/run/x")))
        self.assertIsNone(peer_key(None))
