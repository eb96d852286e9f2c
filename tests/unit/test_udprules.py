"""Which datagrams get a reply: source addresses, rates, loops."""

from __future__ import annotations

import heapq
import random
import socket

from twisted.trial.unittest import SynchronousTestCase

from echod import udprules
from echod.events import Drop
from echod.udprules import Rules, sender_of

CLIENT = "192.0.2.1"
HOUR = 3600.0

# One row a rule: the datagram's source, what becomes of it, and the rule's origin.
SOURCE_RULES = [
    ("an ephemeral port", CLIENT, 50000, None),  # RFC 862
    ("the lowest safe port", CLIENT, 1024, None),  # RFC 6335 6: below are System Ports
    ("the highest port", CLIENT, 65535, None),  # RFC 768
    ("no source port: no reply wanted", CLIENT, 0, Drop.NO_PORT),  # RFC 768
    ("an echo service", CLIENT, 7, Drop.LOW_PORT),  # CVE-1999-0103
    ("a chargen service", CLIENT, 19, Drop.LOW_PORT),  # CVE-1999-0103
    ("the last of the System Ports", CLIENT, 1023, Drop.LOW_PORT),  # RFC 6335 6
    ("below NFS", CLIENT, 2048, None),
    ("NFS", CLIENT, 2049, Drop.NFS_PORT),  # inetd(8) of OpenBSD
    ("above NFS", CLIENT, 2050, None),
    ("another echod, or this one", CLIENT, 65432, Drop.OWN_PORT),  # CVE-2024-2169
    ("multicast", "224.0.0.1", 50000, Drop.MULTICAST),  # RFC 1122 3.2.1.3
    ("the last multicast address", "239.255.255.255", 50000, Drop.MULTICAST),
    ("multicast, IPv6", "ff02::1", 50000, Drop.MULTICAST),  # RFC 4291 2.7
    ("multicast, IPv6, with a scope", "ff02::1%lo", 50000, Drop.MULTICAST),
    ("limited broadcast", "255.255.255.255", 50000, Drop.BROADCAST),  # RFC 1122 3.2.1.3
    ("unspecified", "0.0.0.0", 50000, Drop.UNSPECIFIED),  # RFC 1122 3.2.1.3
    ("unspecified, IPv6", "::", 50000, Drop.UNSPECIFIED),  # RFC 4291 2.5.2
    ("loopback, IPv6", "::1", 50000, None),
    ("link-local, IPv6", "fe80::1%lo", 50000, None),
    ("multicast, on a dual-stack socket", "::ffff:224.0.0.1", 50000, Drop.MULTICAST),
    ("IPv4, on a dual-stack socket", "::ffff:192.0.2.1", 50000, None),  # RFC 4291 2.5.5.2
]


def replies(rules: Rules, seconds: float, interval: float) -> list[Drop | None]:
    """Return what becomes of datagrams that arrive at that interval, for that many seconds."""
    count = int(seconds / interval)
    return [rules.drop(CLIENT, 50000, number * interval) for number in range(count)]


def any_ipv4(chance: random.Random) -> str:
    return socket.inet_ntoa(bytes([chance.randrange(1, 224), *chance.randbytes(3)]))


class SourceTests(SynchronousTestCase):
    def test_source(self) -> None:
        """A source that could reply in turn, or that is many hosts, gets no reply."""
        for name, host, port, drop in SOURCE_RULES:
            rules = Rules()
            rules.own_ports[65432] += 1
            self.assertIs(rules.drop(host, port, 0.0), drop, name)

    def test_one_source(self) -> None:
        """One source is an IPv4 address, or an IPv6 /64, the network of one site."""
        for one, other, same in [
            ("192.0.2.1", "192.0.2.2", False),
            ("2001:db8::1", "2001:db8::2", True),
            ("2001:db8::1", "2001:db8:0:1::1", False),
            ("::ffff:192.0.2.1", "192.0.2.1", True),
            ("fe80::1%lo", "fe80::2%lo", True),
        ]:
            rules = Rules(rate=1)
            self.assertIsNone(rules.drop(one, 50000, 0.0))
            expected = Drop.SOURCE_RATE if same else None
            self.assertIs(rules.drop(other, 50000, 0.0), expected, other)

    def test_bounds(self) -> None:
        """A rate or a time out of bounds raises ValueError."""
        for name in ("rate", "total_rate", "longest"):
            for value in (0, -1, 1e-320, 1e300, float("inf"), float("nan")):
                error = self.assertRaises(ValueError, Rules, **{name: value})
                self.assertRegex(
                    str(error), rf"^{name} takes a number of .*, 0\.001 to \d+, not .+$"
                )


class RateTests(SynchronousTestCase):
    def test_rate(self) -> None:
        """A source gets replies at its rate, after a burst of a second's worth."""
        for rate in (0.2, 1, 100, 1234.5):
            interval = 1 / (rate * 8)
            seconds = max(1000 / rate, 2)
            found = replies(Rules(rate=rate, total_rate=1e9), seconds, interval)
            expected = rate * len(found) * interval + max(rate, 1)
            self.assertApproximates(found.count(None), expected, max(1, expected / 50))
            self.assertEqual(set(found), {None, Drop.SOURCE_RATE})

    def test_at_the_rate(self) -> None:
        """A source that sends at exactly its rate always gets a reply."""
        self.assertEqual(set(replies(Rules(rate=100), 60, 1 / 100)), {None})

    def test_burst_again(self) -> None:
        """After a second of silence a source has its whole burst again, and no more."""
        rules = Rules(rate=100)
        for start in (0.0, 1.0, 3600.0):
            found = [rules.drop(CLIENT, 50000, start) for _ in range(150)]
            self.assertEqual(found, [None] * 100 + [Drop.SOURCE_RATE] * 50)

    def test_total_rate(self) -> None:
        """All sources together get replies at the total rate."""
        rules = Rules(rate=100, total_rate=1000)
        found = [
            rules.drop(f"192.0.2.{number}", 50000, moment / 100)
            for moment in range(1000)
            for number in range(100)
        ]
        self.assertApproximates(found.count(None), 1000 * 11, 110)
        self.assertEqual(set(found), {None, Drop.TOTAL_RATE})

    def test_known_source_in_a_flood(self) -> None:
        """A client that sends at least once a second gets its replies, however many are forged."""
        for forged, interval in ((50, 0.1), (15, 1.0)):
            rules = Rules()
            chance = random.Random(862)
            self.assertIsNone(rules.drop(CLIENT, 50000, 0.0))
            for moment in range(1, int(interval * 4_000) + 1):
                now = moment / 1000
                for _ in range(forged):
                    rules.drop(any_ipv4(chance), 50000, now)
                if moment % int(interval * 1000) == 0:
                    self.assertIsNone(rules.drop(CLIENT, 50000, now))

    def test_bounded_state(self) -> None:
        """The number of remembered sources is bounded, and the latest are kept."""
        self.assertEqual(sender_of.cache_info().maxsize, udprules.MAX_SOURCES)
        self.patch(udprules, "MAX_SOURCES", 100)
        rules = Rules(rate=1, total_rate=1e6)
        for number in range(200):
            self.assertIsNone(rules.drop(f"2001:db8:0:{number:x}::1", 50000, 0.0))
        self.assertEqual((len(rules._due), len(rules._flows)), (100, 100))
        self.assertIs(rules.drop(f"2001:db8:0:{number:x}::1", 50000, 0.0), Drop.SOURCE_RATE)


class LoopTests(SynchronousTestCase):
    def test_no_pause(self) -> None:
        """A source that never pauses, as a loop does, gets no more replies after an hour."""
        for interval, longest in ((0.01, 60), (0.2, HOUR), (0.4, HOUR)):
            rules = Rules(longest=longest)
            found = replies(rules, longest + 60, interval)
            first = found.index(Drop.NO_PAUSE)
            self.assertApproximates(first * interval, longest, 1)
            self.assertEqual(set(found[first:]), {Drop.NO_PAUSE})
            self.assertIsNone(rules.drop(CLIENT, 50000, longest + 60 + 0.6))

    def test_pauses(self) -> None:
        """A client that sends once a second gets replies for ever."""
        self.assertEqual(set(replies(Rules(), 3 * HOUR, 1.0)), {None})

    def test_shared_address(self) -> None:
        """Ports of one address have separate pauses: only the port that never pauses is refused."""
        rules = Rules()
        found: dict[int, set[Drop | None]] = {port: set() for port in (50000, 50001, 50002, 60000)}
        for moment in range(int(2 * HOUR)):
            for number, port in enumerate(found):
                for part in (0, 0.4, 0.8) if port == 60000 else (number / 3,):
                    found[port].add(rules.drop(CLIENT, port, moment + part))
        self.assertEqual(found.pop(60000), {None, Drop.NO_PAUSE})
        self.assertEqual(set.union(*found.values()), {None})

    def test_loop_over_a_path(self) -> None:
        """A loop between two services never exceeds the rate, and ends unless it is very slow.

        Each datagram takes ``delay`` seconds in each direction. A loop that sends less than twice
        a second looks like a client that sends sometimes.
        """
        for delay, forged, ends in [
            *((0.001, 1, True), (0.01, 10, True), (0.2, 1, True), (0.4, 10, True)),
            (0.4, 1, False),
        ]:
            services = {host: Rules(longest=360) for host in ("192.0.2.1", "192.0.2.2")}
            one, other = services
            # When each datagram arrives, at which service, and from which.
            on_the_path = [(number * delay / forged, one, other) for number in range(forged)]
            answered: list[float] = []
            dropped: set[Drop] = set()
            while on_the_path and on_the_path[0][0] < 720:
                now, here, there = heapq.heappop(on_the_path)
                drop = services[here].drop(there, 50000, now)
                if drop is None:
                    answered.append(now)
                    heapq.heappush(on_the_path, (now + delay, there, here))
                else:
                    dropped.add(drop)
            self.assertTrue(dropped <= {Drop.SOURCE_RATE, Drop.NO_PAUSE})
            self.assertIs(bool(on_the_path), not ends)
            self.assertIs(answered[-1] <= 361, ends)
            for start in (0, 1, 10, 100, 300):
                within = [moment for moment in answered if start <= moment < start + 10]
                self.assertTrue(len(within) <= (2 * (100 * 10 + 100) if ends else 26))
