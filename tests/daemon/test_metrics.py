"""Metrics for Prometheus: counts of events, and the state of connections."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.exposition import choose_encoder
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import CollectorRegistry
from twisted.internet.address import IPv4Address
from twisted.trial.unittest import SynchronousTestCase

from echod.daemon.metrics import Tally, registry, transferred
from echod.events import (
    Accepted,
    Closed,
    Drop,
    Ending,
    HalfClosed,
    HeaderRead,
    Opened,
    Reason,
    Refused,
)
from echod.factory import EchoFactory
from echod.faultplan import Plan, when
from echod.faults import Faults
from echod.testing import MemoryNetwork, Peer
from echod.udp import DatagramEcho, EchoDatagrams
from tests.streams.server import Peers
from tests.unit.test_udp import FakeTransport

PEER = IPv4Address("TCP", "192.0.2.1", 40000)


class Counted:
    """An EchoFactory in memory whose events are counted, and peers that connect to it."""

    def __init__(self, **options: Any) -> None:
        self.network = MemoryNetwork()
        self.tally = Tally()
        self.factory = EchoFactory(clock=self.network, observer=self.tally, **options)
        self.datagrams = EchoDatagrams(self.network, self.tally)
        self.registry: CollectorRegistry = registry(self.tally, self.factory, self.datagrams)
        self.network.server_endpoint().listen(self.factory)
        self.peers = Peers()

    def connect(self) -> Peer:
        self.network.client_endpoint().connect(self.peers)
        return self.peers.peers[-1]

    def get(self, name: str, **labels: str) -> float:
        value = self.registry.get_sample_value(name, labels)
        assert value is not None, f"there is no {name} {labels}"
        return value


class MetricsTests(SynchronousTestCase):
    def test_a_clean_run(self) -> None:
        """After a clean run, the bytes received and sent are those that the clients count."""
        served = Counted(max_connections=100)
        for count in range(10):
            peer = served.connect()
            peer.send(b"x" * 1000 * (count + 1))
            peer.finish()
        served.network.settle()
        returned = sum(len(peer.received) for peer in served.peers.peers)
        self.assertEqual(returned, 55_000)
        for name, value in (
            ("echod_received_bytes_total", returned),
            ("echod_sent_bytes_total", returned),
            ("echod_connections_accepted_total", 10),
            ("echod_connections_open", 0),
            ("echod_connections_max", 100),
            ("echod_connection_duration_seconds_count", 10),
        ):
            self.assertEqual(served.get(name), value, name)
        self.assertEqual(served.get("echod_connections_closed_total", ending="finished"), 10)

    def test_open_connections(self) -> None:
        """Bytes of open connections are included."""
        served = Counted()
        for _ in range(3):
            served.connect().send(b"x" * 700)
        served.network.settle()
        self.assertEqual(served.get("echod_connections_open"), 3)
        self.assertEqual(served.get("echod_received_bytes_total"), 2100)
        self.assertEqual(served.get("echod_sent_bytes_total"), 2100)
        self.assertEqual(served.get("echod_connection_duration_seconds_count"), 0)

    def test_unsent(self) -> None:
        """Bytes that the kernel has not accepted count as received and never as sent."""
        served = Counted(stall_timeout=10)
        peer = served.connect()
        peer.stall()
        peer.send(b"x" * 1_000_000)
        served.network.settle()
        received = served.get("echod_received_bytes_total")
        self.assertGreater(received, 64 * 1024)
        self.assertEqual(served.get("echod_sent_bytes_total"), 64 * 1024)
        served.network.advance(20)
        self.assertEqual(served.get("echod_connections_closed_total", ending="stalled"), 1)
        self.assertEqual(served.get("echod_received_bytes_total"), received)
        self.assertEqual(served.get("echod_sent_bytes_total"), 64 * 1024)

    def test_series_from_the_start(self) -> None:
        """Each ending and reason is a series at 0 from the start: rate() misses no event."""
        served = Counted()
        for ending in Ending:
            self.assertEqual(served.get("echod_connections_closed_total", ending=ending.value), 0)
        for reason in Reason:
            self.assertEqual(served.get("echod_connections_refused_total", reason=reason.value), 0)
        for drop in Drop:
            self.assertEqual(served.get("echod_datagrams_dropped_total", reason=drop.value), 0)

    def test_faults(self) -> None:
        """The firings of each rule are counted, from 0 on, and those of the same rule together."""
        served = Counted()
        self.assertEqual(served.get("echod_faulty_ports"), 0)
        faults = Faults(
            Plan((when.first(2).refuse(), when.close(), when.close())), 0, port="unix /x"
        )
        collected = registry(served.tally, served.factory, served.datagrams, [faults])

        def fired(index: int, fault: str) -> float | None:
            labels = {"port": "unix /x", "rule": faults.rules[index].text, "fault": fault}
            return collected.get_sample_value("echod_faults_fired_total", labels)

        self.assertEqual(collected.get_sample_value("echod_faulty_ports"), 1)
        self.assertEqual((fired(0, "refuse"), fired(1, "close")), (0, 0))
        for each in faults.rules:
            faults.fire(each, 1, 0, 0)
        self.assertEqual((fired(0, "refuse"), fired(1, "close")), (1, 2))

    def test_datagrams(self) -> None:
        """Datagrams are counted, answered ones and dropped ones."""
        served = Counted()
        protocol = DatagramEcho(served.datagrams)
        transport: Any = FakeTransport()
        protocol.makeConnection(transport)
        for port in (50000, 50000, 7):
            protocol.datagramReceived(b"hello", ("192.0.2.1", port))
        for name, value in (
            ("echod_datagrams_answered_total", 2),
            ("echod_datagrams_answered_bytes_total", 10),
            ("echod_datagrams_kernel_dropped_total", 0),
        ):
            self.assertEqual(served.get(name), value, name)
        self.assertEqual(served.get("echod_datagrams_dropped_total", reason="low-port"), 1)

    def test_refused(self) -> None:
        """A refused connection is counted by its reason, and not as accepted."""
        served = Counted(max_connections=1)
        for _ in range(3):
            served.connect()
        served.network.settle()
        self.assertEqual(served.get("echod_connections_refused_total", reason="max-connections"), 2)
        self.assertEqual(served.get("echod_connections_accepted_total"), 1)

    def test_durations(self) -> None:
        """Durations are counted in buckets, which include their upper bounds."""
        served = Counted()
        for seconds in (0.0005, 0.001, 0.5, 3600.0, 1e9):
            served.tally(Opened(PEER))
            served.tally(Closed(Ending.FINISHED, 0, seconds, 0, PEER))
        name = "echod_connection_duration_seconds"
        for bound, count in (
            ("0.001", 2),
            ("0.1", 2),
            ("1.0", 3),
            ("600.0", 3),
            ("3600.0", 4),
            ("604800.0", 4),
            ("+Inf", 5),
        ):
            self.assertEqual(served.get(f"{name}_bucket", le=bound), count, bound)
        self.assertEqual(served.get(f"{name}_count"), 5)
        self.assertEqual(served.get(f"{name}_sum"), 0.0005 + 0.001 + 0.5 + 3600.0 + 1e9)

    def test_health_checks(self) -> None:
        """Health checks are counted as unused, and not in the durations."""
        served = Counted()
        for leave in (Peer.finish, Peer.abort, Peer.finish):
            leave(served.connect())
        served.network.settle()
        closed = "echod_connections_closed_total"
        self.assertEqual(served.get(closed, ending="unused"), 3)
        self.assertEqual(sum(served.tally.closed.values()), 3)
        self.assertEqual(served.get("echod_connections_accepted_total"), 3)
        self.assertEqual(served.get("echod_connection_duration_seconds_count"), 0)
        self.assertEqual(served.get("echod_connection_duration_seconds_sum"), 0)

    def test_steps(self) -> None:
        """The steps of a connection, which a verbose factory reports, are not counted."""
        served = Counted()
        before = vars(served.tally).copy()
        for event in (Accepted(PEER), HalfClosed(5, PEER), HeaderRead(PEER, PEER)):
            served.tally(event)
        self.assertEqual(vars(served.tally), before)

    def test_no_series_per_peer(self) -> None:
        """The number of series does not grow with the number of peers."""
        served = Counted()
        before = {sample_key(sample) for sample in samples(served)}
        for number in range(100):
            peer = IPv4Address("TCP", f"198.51.100.{number}", 1000 + number)
            served.tally(Opened(peer))
            served.tally(Refused(Reason.DRAINING, peer))
            served.tally(Closed(Ending.LOST, 5, 1.0, 0, peer))
        self.assertEqual({sample_key(sample) for sample in samples(served)}, before)

    def test_names(self) -> None:
        """The metrics are those of echod, its process and Python, without _created series."""
        families = text_string_to_metric_families(exposition(Counted()))
        names = {family.name for family in families}
        ours = {name for name in names if name.startswith("echod_")}
        self.assertEqual(
            ours,
            {
                "echod_build_info",
                "echod_connection_duration_seconds",
                "echod_connections_accepted",
                "echod_connections_closed",
                "echod_connections_max",
                "echod_connections_open",
                "echod_connections_refused",
                "echod_datagrams_answered",
                "echod_datagrams_answered_bytes",
                "echod_datagrams_dropped",
                "echod_datagrams_kernel_dropped",
                "echod_faults_fired",
                "echod_faulty_ports",
                "echod_received_bytes",
                "echod_sent_bytes",
            },
        )
        self.assertEqual({name.partition("_")[0] for name in names - ours}, {"process", "python"})


def exposition(served: Counted) -> str:
    encode, _ = choose_encoder("")
    return encode(served.registry).decode()


def samples(served: Counted) -> list[Any]:
    return [sample for metric in served.registry.collect() for sample in metric.samples]


def sample_key(sample: Any) -> tuple[Any, ...]:
    return (sample.name, *sorted(sample.labels.items()))


ACTIONS = st.one_of(
    st.just(("connect", 0)),
    st.tuples(st.just("send"), st.integers(0, 100_000)),
    st.tuples(st.sampled_from(["stall", "resume", "finish", "abort"]), st.just(0)),
    st.tuples(st.just("wait"), st.integers(0, 20)),
    st.tuples(st.just("drain"), st.integers(0, 5)),
)


@given(st.lists(st.tuples(ACTIONS, st.integers(0, 3)), max_size=40))
def test_counters_never_decrease(actions: list[tuple[tuple[str, int], int]]) -> None:
    """In any sequence of events, counters never decrease, no more bytes are sent than received,
    and all bytes that peers have received count as sent.
    """
    served = Counted(max_connections=3, idle_timeout=15, stall_timeout=10)
    sent_by_peers, before = 0, (0, 0)
    for (action, number), which in actions:
        peer = served.peers.peers[-1 - which] if which < len(served.peers.peers) else None
        if action == "connect":
            served.connect()
        elif action == "wait":
            served.network.advance(number)
        elif action == "drain":
            served.factory.drain(number)
        elif peer is not None and peer.ended is None and peer.transport.connected:
            if action == "send":
                peer.send(b"x" * number)
                sent_by_peers += number
            else:
                getattr(peer, action)()
        served.network.settle()
        received, sent = now = transferred(served.tally, served.factory)
        assert before[0] <= received <= sent_by_peers
        assert before[1] <= sent <= received
        assert sum(len(peer.received) for peer in served.peers.peers) <= sent
        before = now
    for peer in served.peers.peers:
        peer.resume()
    served.network.settle()
    tally = served.tally
    assert tally.accepted == sum(tally.closed.values()) + len(served.factory.connections)
    assert tally.accepted + sum(tally.refused.values()) == len(served.peers.peers)
