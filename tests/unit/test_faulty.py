"""An echo that misbehaves as a plan says, in memory."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

from twisted.internet.protocol import Factory
from twisted.trial.unittest import SynchronousTestCase

from echod.events import Ending, Event, Fired, Reason
from echod.factory import EchoFactory
from echod.faults import Plan, Rule, when
from echod.faulty import MAX_QUEUED, OVERHEAD, FaultyEchoFactory
from echod.testing import MemoryNetwork, Peer
from echod.turns import TURN
from tests.recorder import Recorder

TEXT = bytes(range(256)) * 4

SEED_862 = [
    *((1, 7), (1, 350), (4, 98), (4, 479), (4, 621), (10, 358), (10, 602), (11, 70), (11, 280)),
    *(
        (11, 390),
        (11, 541),
        (11, 639),
        (16, 528),
        (17, 230),
        (17, 285),
        (17, 421),
        (18, 39),
        (18, 234),
    ),
    *(
        (18, 553),
        (19, 288),
        (19, 399),
        (19, 477),
        (23, 153),
        (23, 548),
        (26, 81),
        (26, 192),
        (26, 399),
    ),
]


class Bench(SynchronousTestCase):
    """A network with one faulty port."""

    def setUp(self) -> None:
        self.network = MemoryNetwork(capacity=4096)
        self.events = Recorder()

    def listen(self, *rules: Rule, seed: int = 0, **options: Any) -> FaultyEchoFactory:
        factory = FaultyEchoFactory(Plan(rules, seed), observer=self.events, **options)
        self.successResultOf(self.network.server_endpoint().listen(factory))
        return factory

    def connect(self) -> Peer:
        endpoint = self.network.client_endpoint()
        peer = self.successResultOf(endpoint.connect(Factory.forProtocol(Peer)))
        assert isinstance(peer, Peer)
        self.network.settle()
        return peer

    def echo(self, data: bytes = TEXT, *, seconds: float = 0.0, size: int = 0) -> bytes:
        """Return the reply to ``data``, sent in pieces of ``size`` bytes, after ``seconds``."""
        peer = self.connect()
        for at in range(0, len(data), size or len(data)):
            if peer.ended is None:
                peer.send(data[at : at + (size or len(data))])
            self.network.settle()
        if peer.ended is None:
            peer.finish()
        self.network.advance(seconds)
        self.peer = peer
        return bytes(peer.received)

    @property
    def fired(self) -> list[tuple[int, int]]:
        return [
            (event.connection, event.offset) for event in self.events if isinstance(event, Fired)
        ]


class ConnectionFaultTests(Bench):
    """Faults of whole connections."""

    def test_refuse(self) -> None:
        """The first two connections are reset before any byte, and the third one is served."""
        factory = self.listen(when.first(2).refuse())
        for _ in range(2):
            self.assertEqual((self.echo(), self.peer.ended), (b"", "RST"))
        self.assertEqual((self.echo(), self.peer.ended), (TEXT, "FIN"))
        self.assertEqual([each.reason for each in self.events.refused], [Reason.FAULT] * 2)
        self.assertEqual(factory.faults.counts, {"refuse": 2})
        self.assertEqual(self.fired, [(1, 0), (2, 0)])

    def test_reset(self) -> None:
        """A connection is reset after exactly as many bytes as the rule says."""
        self.listen(when.from_byte(640).reset())
        peer = self.connect()
        peer.send(TEXT)
        self.network.settle()
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT[:640], None))
        self.network.advance(1)
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT[:640], "RST"))
        self.assertEqual(self.events.endings, [Ending.FAULT])
        self.assertEqual(self.events.closed[0].unsent, len(TEXT) - 640)

    def test_reset_waits(self) -> None:
        """The bytes before a reset are delivered first, however slow the peer reads."""
        data = TEXT * 100
        self.listen(when.from_byte(len(data)).reset())
        peer = self.connect()
        peer.stall()
        peer.send(data)
        self.network.advance(30)
        self.assertIsNone(peer.ended)
        peer.resume()
        self.network.advance(6)
        self.assertEqual((bytes(peer.received), peer.ended), (data, "RST"))

    def test_end_before_the_time(self) -> None:
        """A fault whose time comes after the end of the reply does not fire."""
        self.listen(when.delay(10), when.from_time(5).insert(b"!"))
        self.assertEqual(self.echo(seconds=20), TEXT)
        self.assertEqual(self.events.endings, [Ending.FINISHED])
        self.assertEqual(self.fired, [(1, 0)])

    def test_observer_that_ends_the_connection(self) -> None:
        """An observer can abort the connection of a fault: nothing fires after it."""
        factory = self.listen(when.from_byte(3).damage(), when.from_time(5).insert(b"!"))
        factory.faults.observer = lambda _: [each.abort() for each in factory.connections]
        self.echo(seconds=20)
        self.assertEqual((self.peer.ended, factory.faults.counts["insert"]), ("RST", 0))

    def test_close(self) -> None:
        """A connection is closed with FIN, after the bytes before the place."""
        self.listen(when.from_byte(640).close())
        peer = self.connect()
        peer.send(TEXT)
        self.network.advance(1)
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT[:640], "FIN"))
        self.assertEqual(self.events.endings, [Ending.FAULT])

    def test_half_close(self) -> None:
        """After a half-close the port goes on reading."""
        self.listen(when.from_byte(3).half_close())
        peer = self.connect()
        peer.readConnectionLost = lambda: None  # type: ignore[method-assign]
        peer.send(b"12345")
        self.network.advance(1)
        self.assertEqual(bytes(peer.received), b"123")
        self.assertEqual(self.events.endings, [])
        peer.send(TEXT)
        peer.finish()
        self.network.advance(1)
        self.assertEqual(self.events.endings, [Ending.FAULT])
        self.assertEqual(self.events.closed[0].bytes, len(TEXT) + 5)

    def test_silent(self) -> None:
        """A silent port reads, and does not answer; at the end it closes as usual."""
        self.listen(when.numbers(2, 2).silent())
        self.assertEqual(self.echo(), TEXT)
        self.assertEqual((self.echo(), self.peer.ended), (b"", "FIN"))
        self.assertEqual(self.events.endings, [Ending.FINISHED] * 2)
        self.assertEqual([each.unsent for each in self.events.closed], [0, len(TEXT)])

    def test_deaf(self) -> None:
        """A deaf port stops reading, for a while or for ever."""
        self.listen(when.numbers(1, 1).lasts(2).deaf(), when.numbers(2, 2).deaf())
        self.assertEqual(self.echo(seconds=1.9), b"")
        self.network.advance(0.2)
        self.assertEqual(bytes(self.peer.received), TEXT)
        self.assertEqual(self.echo(seconds=50), b"")

    def test_greet(self) -> None:
        """A greeting comes before the peer has sent a byte."""
        self.listen(when.greet(b"220 hello\r\n"))
        peer = self.connect()
        self.assertEqual(bytes(peer.received), b"220 hello\r\n")
        self.assertEqual(self.echo(b"EHLO"), b"220 hello\r\nEHLO")
        self.assertEqual(self.events.closed[0].unsent, -11)


class ByteFaultTests(Bench):
    """Faults of bytes and messages: the same in pieces of any size."""

    def check(self, rule: Rule, expected: bytes, fired: list[int]) -> None:
        self.listen(rule)
        for size in (0, 1, 7, 64, 500):
            self.events.clear()
            self.assertEqual(self.echo(size=size), expected, size)
            self.assertEqual([offset for _, offset in self.fired], fired, size)

    def test_damage(self) -> None:
        """A bit of every 100th byte is flipped."""
        expected = bytearray(TEXT)
        for at in range(99, len(TEXT), 100):
            expected[at] ^= 1
        self.check(
            when.every(100, "byte").damage(), bytes(expected), list(range(99, len(TEXT), 100))
        )

    def test_swallow(self) -> None:
        """A byte is left out."""
        self.check(when.from_byte(5).swallow(), TEXT[:5] + TEXT[6:], [5])

    def test_swallow_messages(self) -> None:
        """Whole messages are left out."""
        self.check(when.numbers(2, 3, "message", 64).swallow(), TEXT[:64] + TEXT[192:], [64, 128])

    def test_insert(self) -> None:
        """Bytes are inserted, also after the last byte."""
        self.check(when.from_byte(len(TEXT)).insert(b"!"), TEXT + b"!", [len(TEXT)])

    def test_truncate(self) -> None:
        """A reply is cut, and ends as usual."""
        self.check(when.truncate(100), TEXT[:100], [100])

    def test_truncate_messages(self) -> None:
        """Messages are cut; those that are not longer are left as they are."""
        expected = b"".join(TEXT[at : at + 10] for at in range(0, len(TEXT), 64))
        self.check(
            when.every(1, "message", 64).truncate(10), expected, list(range(10, len(TEXT), 64))
        )

    def test_throttle(self) -> None:
        """At most this many bytes a second are sent."""
        self.listen(when.throttle(100))
        self.echo(seconds=5)
        self.assertEqual(len(self.peer.received), 502)

    def test_slice(self) -> None:
        """The reply comes in segments with a gap between them."""
        self.listen(when.slice(10, 1))
        self.echo(seconds=5)
        self.assertEqual(len(self.peer.received), 60)

    def test_delay(self) -> None:
        """The reply is late, and so is its end."""
        self.listen(when.delay(0.2))
        self.assertEqual((self.echo(seconds=0.19), self.peer.ended), (b"", None))
        self.network.advance(0.02)
        self.assertEqual((bytes(self.peer.received), self.peer.ended), (TEXT, "FIN"))

    def test_deaf(self) -> None:
        """Nothing is answered from the place on, even if it was read at once with earlier bytes."""
        self.check(when.numbers(2, 2, "message", 64).deaf(), TEXT[:64], [64])

    def test_deaf_for_a_while(self) -> None:
        """After the fault has ended, the whole reply comes."""
        self.listen(when.from_byte(64).lasts(2).deaf())
        for size in (0, 7, 500):
            self.assertEqual(self.echo(size=size, seconds=1.9), TEXT[:64])
            self.network.advance(0.2)
            self.assertEqual((bytes(self.peer.received), self.peer.ended), (TEXT, "FIN"))

    def test_same_on_every_python(self) -> None:
        """A seed chooses the same places on every Python, however the bytes are cut."""
        damage = when.chance(0.3).chance(0.2, "message", 64).damage()
        self.listen(damage, seed=862)
        for number in range(26):
            self.echo(TEXT[:640], size=1 + 31 * number)
        self.assertEqual(self.fired, SEED_862)

    def test_random_delay(self) -> None:
        """Which messages are late, and by how much, does not depend on how the bytes are cut."""
        found = []
        for size in (0, 1, 7, 500):
            self.setUp()
            self.listen(when.chance(0.5, "message", 64).delay(1, 0.5), seed=3)
            self.echo(size=size)
            arrivals = [len(self.peer.received)]
            for _ in range(200):
                self.network.advance(0.05)
                arrivals.append(len(self.peer.received))
            self.assertEqual(arrivals[-1], len(TEXT))
            found.append((self.fired, arrivals))
        self.assertGreater(len(self.fired), 3)
        self.assertEqual(found, [found[0]] * 4)

    def test_freeze(self) -> None:
        """Nothing is read or sent during a freeze."""
        self.listen(when.every(2, "message", 64).at_most(1).freeze(2))
        self.assertEqual(self.echo(seconds=1.9), TEXT[:64])
        self.network.advance(0.2)
        self.assertEqual(bytes(self.peer.received), TEXT)

    def test_back_pressure(self) -> None:
        """A peer that sends more than may wait is not read."""
        factory = self.listen(when.delay(100))
        peer = self.connect()
        peer.send(bytes(3 * MAX_QUEUED))
        self.network.settle()
        [connection] = factory.connections
        self.assertLess(connection.received, MAX_QUEUED + 70_000)
        self.network.advance(400)
        self.assertEqual(len(peer.received), 3 * MAX_QUEUED)

    def test_deaf_and_back_pressure(self) -> None:
        """A peer that reads again is not read before the fault has ended."""
        factory = self.listen(when.delay(1), when.from_byte(100_000).lasts(20).deaf())
        peer = self.connect()
        peer.stall()
        peer.send(bytes(500_000))
        self.network.advance(5)
        peer.resume()
        self.network.advance(5)
        [connection] = factory.connections
        self.assertLess(connection.received, 200_000)
        self.network.advance(20)
        self.assertEqual(len(peer.received), 500_000)

    def test_memory_of_items(self) -> None:
        """A rule that lets each byte wait for its own time limits the bytes that are read."""
        factory = self.listen(when.slice(1, 3600))
        peer = self.connect()
        peer.send(bytes(2 * MAX_QUEUED))
        self.network.settle()
        [connection] = factory.connections
        self.assertLess(connection.received, MAX_QUEUED // OVERHEAD + 70_000)

    def test_turns(self) -> None:
        """The work of a rule for every byte is shared out among many turns of the reactor."""
        factory = self.listen(when.every(1, "byte").damage())

        def take_time(event: Event) -> None:
            self.network.rightNow += TURN / 5
            self.events(event)

        factory.observer = take_time
        peer = self.connect()
        peer.send(TEXT)
        with patch.object(self.network, "callLater", wraps=self.network.callLater) as later:
            self.network.settle()
        self.assertGreater(sum(call.args[0] == 0 for call in later.mock_calls), 50)
        self.assertEqual(bytes(peer.received), bytes(byte ^ 1 for byte in TEXT))


class LimitTests(Bench):
    """A faulty port has the limits, the timeouts and the drain of any other."""

    def test_unread_input(self) -> None:
        """The idle timeout and a drain reset a connection that has input which is never read."""
        factory = self.listen(when.deaf(), idle_timeout=2.0)
        for drains in (False, True):
            peer = self.connect()
            peer.send(TEXT)
            self.network.settle()
            if drains:
                factory.drain(60)
            self.network.advance(3)
            self.assertEqual(peer.ended, "RST")
        self.assertEqual(self.events.endings, [Ending.FAULT] * 2)

    def test_reset_while_not_read(self) -> None:
        """A connection that a fault does not read ends soon after its peer has reset it."""
        factory = self.listen(when.number(1).deaf(), when.number(2).freeze(3600))
        for _ in range(2):
            peer = self.connect()
            peer.send(TEXT)
            self.network.settle()
            peer.abort()
            self.network.advance(6)
            self.assertEqual(list(factory.connections), [])

    def test_slow_reader(self) -> None:
        """A peer that has finished, and reads its late reply slowly, receives all of it."""
        self.listen(when.delay(1))
        peer = self.connect()
        peer.stall()
        peer.send(TEXT * 300)
        peer.finish()
        self.network.advance(2)
        peer.resume()
        self.network.advance(1)
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT * 300, "FIN"))

    def test_slow_reader_of_a_deaf_port(self) -> None:
        """A peer that reads its reply during a fault that stops reading does not end the fault."""
        factory = self.listen(when.from_time(2).lasts(10).deaf())
        peer = self.connect()
        peer.stall()
        peer.send(TEXT * 300)
        self.network.advance(4)
        [connection] = factory.connections
        received = connection.received
        self.assertLess(received, len(TEXT) * 300)
        peer.resume()
        self.network.advance(2)
        self.assertEqual(connection.received, received)
        self.network.advance(8)
        self.assertEqual(bytes(peer.received), TEXT * 300)

    def test_end_twice(self) -> None:
        """Over TLS, FIN follows the closing alert: the reply that waits is sent all the same."""
        factory = self.listen(when.delay(1))
        peer = self.connect()
        peer.send(TEXT)
        peer.finish()
        self.network.settle()
        [connection] = factory.connections
        connection.truncated()
        self.network.advance(1)
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT, "FIN"))
        self.assertEqual(self.events.endings, [Ending.FINISHED])

    def test_idle_timeout(self) -> None:
        """A connection is not idle while bytes wait for their time."""
        self.listen(when.delay(5), idle_timeout=1)
        peer = self.connect()
        peer.send(TEXT)
        self.network.advance(5)
        self.assertEqual((bytes(peer.received), peer.ended), (TEXT, None))
        self.network.advance(2)
        self.assertEqual((peer.ended, self.events.endings), ("FIN", [Ending.IDLE]))

    def test_stall_timeout(self) -> None:
        """A peer that does not read is stalled, whatever waits for its time."""
        self.listen(when.every(2, "message", 300_000).delay(1000), stall_timeout=4)
        peer = self.connect()
        peer.stall()
        peer.send(bytes(600_000))
        self.network.advance(6)
        self.assertEqual(self.events.endings, [Ending.STALLED])

    def test_drain(self) -> None:
        """A drain waits for a reply that is late, until its deadline."""
        factory = self.listen(when.numbers(1, 1).delay(2), when.numbers(2, 2).delay(20))
        late, too_late = self.connect(), self.connect()
        for peer in (late, too_late):
            peer.send(TEXT)
        self.network.settle()
        drained = factory.drain(10)
        self.network.advance(3)
        self.assertEqual((bytes(late.received), late.ended), (TEXT, "FIN"))
        self.network.advance(7)
        self.successResultOf(drained)
        self.assertEqual((bytes(too_late.received), too_late.ended), (b"", "RST"))
        self.assertEqual(self.events.endings, [Ending.DRAINED, Ending.ABORTED])

    def test_beside(self) -> None:
        """A factory beside another one shares its limits and its drain."""
        plain = EchoFactory(clock=self.network, max_connections=1, observer=self.events)
        factory = FaultyEchoFactory(Plan((when.silent(),)), beside=plain)
        self.successResultOf(self.network.server_endpoint().listen(factory))
        self.successResultOf(self.network.server_endpoint(8).listen(plain))
        self.connect()
        self.assertEqual(len(plain.connections), 1)
        self.assertEqual(self.connect().ended, "RST")
        self.assertEqual(plain.draining, factory.draining)
        plain.drain(0)
        self.network.advance(1)
        self.assertTrue(factory.draining)
        self.assertEqual(self.events.endings, [Ending.ABORTED])

    def test_no_clock(self) -> None:
        """Without a clock, the life of the port begins with its reactor."""
        self.network.advance(100)
        factory = self.listen(when.between(10, 20).refuse())
        self.assertEqual(self.echo(), TEXT)
        self.network.advance(10)
        self.assertEqual((self.echo(), self.peer.ended), (b"", "RST"))
        self.assertEqual([each.seconds for each in factory.faults.firings], [10])

    def test_reset_of_counts(self) -> None:
        """The counts can begin again."""
        factory = self.listen(when.refuse())
        self.connect()
        factory.faults.reset()
        self.assertEqual((factory.faults.counts, [*factory.faults.firings]), ({"refuse": 0}, []))
