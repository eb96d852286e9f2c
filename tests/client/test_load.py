"""``load`` over an in-memory network, on a fake clock, compared with results computed on paper."""

from __future__ import annotations

import errno
import gc
import json
import re
import tracemalloc
from collections.abc import Iterator
from math import ceil, inf
from typing import Any

import pytest
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock, deferLater

from echod.client.connector import Connector
from echod.client.epoll import EpollReader
from echod.client.histogram import BATCH
from echod.client.load import Load
from echod.client.report import load_result, to_json
from echod.client.statistics import Interval, Usage, process_usage
from echod.client.streams import StreamChannel
from echod.client.text import summary_lines
from echod.factory import EchoFactory
from echod.testing import MemoryNetwork
from tests.client.memory import MemoryTarget, Services
from tests.streams.server import Peers


class SlowConnector(Connector):
    """A connector whose second connection takes a second."""

    made = 0

    async def channel(self, sockets: EpollReader) -> StreamChannel:
        self.made += 1
        if self.made == 2:
            await deferLater(self.reactor, 1.0)
        return await super().channel(sockets)


class RefusedConnector(Connector):
    """A connector whose second connection is refused."""

    made = 0

    async def channel(self, sockets: EpollReader) -> StreamChannel:
        self.made += 1
        if self.made == 2:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "")
        return await super().channel(sockets)


class Run:
    """A load over an in-memory network."""

    def __init__(
        self,
        network: MemoryNetwork,
        kind: type[Connector] = Connector,
        timeout: float = 10.0,
        **options: Any,
    ) -> None:
        self.network = network
        self.intervals: list[Interval] = []
        options = {"size": 64, "connections": 1, "duration": 10.0, "rate": None, **options}
        usage = options.pop("usage", [Usage(0.0, 0.0), Usage(0.0, 0.0)])
        self.load = Load(
            kind(network, MemoryTarget("memory:"), timeout),
            on_interval=self.intervals.append,
            usage=iter(usage).__next__,
            **options,
        )
        self.done = False
        Deferred.fromCoroutine(self._run())
        network.settle()

    async def _run(self) -> None:
        await self.load.run()
        self.done = True

    @property
    def counts(self) -> dict[str, int]:
        """The counts that are not 0."""
        names = ("received", "lost", "late", "damaged", "unexpected", "under_way")
        result = load_result(self.load)
        assert result["sent"] == sum(result[each] for each in names if each != "unexpected")
        return {name: result[name] for name in ("sent", *names) if result[name]}

    @property
    def values(self) -> dict[str, Any]:
        return json.loads(to_json(load_result(self.load)))  # type: ignore[no-any-return]

    @property
    def lines(self) -> str:
        return "\n".join(summary_lines(load_result(self.load)))


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


def frozen(now: float) -> float:
    """Return when a service replies that freezes for 1 s in every 10 s."""
    return now if now % 10 >= 1 else now - now % 10 + 1


def exact(values: list[float], percent: float) -> float:
    return sorted(values)[ceil(percent * len(values) / 100) - 1]


@pytest.mark.parametrize("percent", [50, 90, 95, 99, 99.9])
def test_freeze_in_an_open_loop(network: MemoryNetwork, percent: float) -> None:
    """In an open loop, the latency of a message due during the freeze includes its wait."""
    Services(network, frozen)
    run = Run(network, duration=11.0, rate=100.0, connections=4)
    network.advance(12)
    on_paper = [frozen(number / 100) - number / 100 for number in range(1100)]
    assert run.counts == {"sent": 1100, "received": 1100}
    assert run.load.tally.times.percentile(percent) == pytest.approx(
        exact(on_paper, percent), rel=0.01, abs=1e-6
    )
    assert run.values["loop"] == "open"
    assert "open loop: 100.0 messages a second sent, of 100.0 requested" in run.lines


def test_freeze_in_a_closed_loop(network: MemoryNetwork) -> None:
    """A closed loop sends nothing during the freeze, so that its p99 does not show it."""
    Services(network, lambda now: frozen(now + 0.01))
    run = Run(network, duration=11.0, connections=4)
    network.advance(13)
    assert run.load.tally.times.percentile(99) == pytest.approx(0.01, rel=0.01)
    assert run.values["latency_seconds"]["max"] == pytest.approx(1.0, rel=0.02)
    assert run.values["loop"] == "closed"
    assert "closed loop" in run.lines


def test_rate(network: MemoryNetwork) -> None:
    """The result has the requested rate, the rates of messages and replies, and the delays."""
    EchoFactoryAt(network)
    run = Run(network, duration=2.0, rate=50.0, connections=3)
    network.advance(3)
    result = run.values
    assert run.done
    assert result["sent"] == result["received"] == 100
    assert result["asked_messages_per_second"] == result["sent_messages_per_second"] == 50.0
    assert result["messages_per_second"] == 50.0
    assert result["bytes_per_second"] == 50.0 * 64
    assert result["scheduling_error_seconds"]["max"] == pytest.approx(0, abs=1e-9)
    assert result["connections_made"] == 3
    assert result["ok"]
    assert [channel.sent for channel in run.load.channels] == [34, 33, 33]


class EchoFactoryAt:
    """A real echo service."""

    def __init__(self, network: MemoryNetwork, **options: Any) -> None:
        network.server_endpoint().listen(EchoFactory(clock=network, **options))


def test_closed_loop(network: MemoryNetwork) -> None:
    """Each connection sends when the reply to its last message has come."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=1.05, connections=2)
    network.advance(2)
    assert run.counts == {"sent": 22, "received": 22}
    # Ten replies on each connection came while messages were sent.
    assert run.values["messages_per_second"] == pytest.approx(20 / 1.05, rel=1e-4)
    assert run.values["asked_messages_per_second"] is None


@pytest.mark.parametrize("rate", [None, 10.0])
def test_warm_up(network: MemoryNetwork, rate: float | None) -> None:
    """Messages of the warm-up and their times do not count, even if the replies come after it."""
    Services(network, lambda now: max(now + 0.1, 0.95))
    run = Run(network, duration=2.0, rate=rate, warm_up=1.0)
    network.advance(0.5)
    assert run.counts == {}
    network.advance(4)
    assert run.done
    result = run.values
    assert result["ok"]
    assert (result["warm_up_seconds"], result["warm_up_messages"]) == (1.0, 10 if rate else 2)
    assert result["sent"] == 20
    assert result["latency_seconds"]["max"] == pytest.approx(0.1)
    assert result["duration_seconds"] == pytest.approx(2.0)
    assert result["sent_messages_per_second"] == pytest.approx(10)
    assert result["intervals"][0]["start_seconds"] == 0
    assert sum(each["messages"] for each in result["intervals"]) == result["received"]
    assert f"warm-up: 1 s, {result['warm_up_messages']} messages, not counted" in run.lines


@pytest.mark.parametrize("warm_up", [0.0, 1.0])
def test_unexpected_while_connecting(network: MemoryNetwork, warm_up: float) -> None:
    """Bytes that come before the first message count as unexpected, but not before a warm-up."""
    services = Services(network)
    run = Run(network, SlowConnector, connections=2, rate=10.0, duration=1.0, warm_up=warm_up)
    services.made[0].transport.write(b"!")
    network.advance(4)
    assert run.done
    assert run.counts == {"sent": 10, "received": 10, **({} if warm_up else {"unexpected": 1})}
    assert run.values["ok"] == bool(warm_up)


def test_count_after_the_warm_up(network: MemoryNetwork) -> None:
    """``-n`` counts only messages that are sent after the warm-up."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=inf, warm_up=1.05, count=5)
    network.advance(3)
    assert run.counts == {"sent": 5, "received": 5}


def test_stop_in_the_warm_up(network: MemoryNetwork) -> None:
    """A run that is stopped in the warm-up has counted nothing."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, warm_up=1.0)
    network.advance(0.55)
    run.load.summarize()
    run.load.stop()
    network.settle()
    assert run.done
    assert run.counts == {}
    assert run.values["failure"] is None


def test_end_in_the_warm_up(network: MemoryNetwork) -> None:
    """A service that closes all connections in the warm-up is an error."""
    services = Services(network, lambda now: now + 0.1)
    run = Run(network, warm_up=1.0, connections=1)
    network.advance(0.55)
    services.made[0].transport.loseConnection()
    network.advance(1)
    assert run.done
    assert run.values["failure"] == "all connections ended before messages counted"
    assert run.values["errors"] == {"closed": 1}


def test_start(network: MemoryNetwork) -> None:
    """With ``--start-at``, connections are made at once, and messages are sent from then on."""
    services = Services(network)
    run = Run(network, rate=10.0, duration=1.0, start_at=1003.0, wall_clock=lambda: 1000.5)
    network.advance(2.45)
    assert len(services.made) == 1
    assert run.load.sent == 0
    network.advance(0.1)
    assert run.load.sent == 1
    network.advance(2)
    assert run.counts == {"sent": 10, "received": 10}
    assert run.values["latency_seconds"]["max"] == 0


def test_missed_start(network: MemoryNetwork) -> None:
    """A load whose connections are made after the time of the start sends nothing."""
    Services(network)
    run = Run(network, start_at=1000.0, wall_clock=lambda: 1000.5)
    assert run.done
    assert run.counts == {}
    assert run.values["failure"] == "connecting took until 0.500 s after --start-at"


def test_stop_before_the_start(network: MemoryNetwork) -> None:
    """A load that is stopped before its start ends at once."""
    Services(network)
    run = Run(network, start_at=1003.0, wall_clock=lambda: 1000.0)
    run.load.stop()
    network.settle()
    assert run.done
    assert run.values["failure"] is None


def test_ramp(network: MemoryNetwork) -> None:
    """A ramp sends at a rate that grows evenly; its mean is the requested rate."""
    Services(network, lambda now: now + 0.01)
    run = Run(network, duration=4.0, ramp=(10.0, 50.0), warm_up=0.95)
    network.advance(6)
    result = run.values
    assert result["warm_up_messages"] == 10
    assert [each["messages"] for each in result["intervals"]] == [15, 25, 35, 45]
    assert result["asked_messages_per_second"] == result["sent_messages_per_second"] == 30.0
    assert result["ramp_messages_per_second"] == [10.0, 50.0]
    assert "of 30.0 requested (a ramp from 10.0 to 50.0); late by" in run.lines


def test_stop_in_a_ramp(network: MemoryNetwork) -> None:
    """A ramp that is stopped was asked for the lower part of its rates."""
    Services(network, lambda now: now + 0.01)
    run = Run(network, duration=4.0, ramp=(10.0, 50.0))
    network.advance(1.99)
    run.load.stop()
    network.advance(1)
    result = run.values
    assert result["sent"] == 40
    assert result["asked_messages_per_second"] == pytest.approx(20, rel=0.01)
    assert result["client_bottleneck"] is None


@pytest.mark.parametrize("rate", [None, 20.0])
def test_per_connection(network: MemoryNetwork, rate: float | None) -> None:
    """Each connection is closed after its last reply, and another one takes the next messages."""
    services = Services(network, lambda now: now + 0.1)
    run = Run(network, duration=2.0, rate=rate, connections=2, per_connection=5, warm_up=0.95)
    network.advance(5)
    assert run.done
    result = run.values
    assert result["ok"]
    assert result["received"] == result["sent"] == 40
    assert result["connections_made"] == len(services.made) == (13 if rate else 12)
    assert (result["messages_per_connection"], result["connections_silent"]) == (5, 0)
    assert result["connections_per_second"] == pytest.approx(4, abs=1)
    assert re.search(r"connected: 1\d, [345]\.\d a second, 5 messages each: min 0.000", run.lines)


def test_latency_includes_connecting(network: MemoryNetwork) -> None:
    """In an open loop, the latency of a message includes its wait for a new connection."""
    Services(network)
    run = Run(network, SlowConnector, duration=2.0, rate=10.0, per_connection=3)
    network.advance(5)
    result = run.values
    assert result["received"] == result["sent"] == 20
    assert result["latency_seconds"]["max"] == pytest.approx(0.9)  # the fourth, after 1.2 s


def test_due_in_the_warm_up(network: MemoryNetwork) -> None:
    """A message of the warm-up that waits for a new connection is not sent after it."""
    Services(network)
    run = Run(network, SlowConnector, duration=2.0, rate=10.0, per_connection=3, warm_up=0.75)
    network.advance(5)
    assert run.done
    assert run.counts == {"sent": 20, "received": 20}


def test_lost_in_the_warm_up(network: MemoryNetwork) -> None:
    """A message of the warm-up that is lost counts in no interval."""
    Services(network, lambda now: now + 1000)
    run = Run(network, duration=2.0, rate=10.0, warm_up=1.0, timeout=1.0)
    network.advance(5)
    assert run.done
    assert run.counts == {"sent": 20, "lost": 20}
    assert sum(each["lost"] for each in run.values["intervals"]) == 20


def test_replaced_connection_that_does_not_close(network: MemoryNetwork) -> None:
    """A replaced connection that the service does not close is reset, also during the run."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, duration=5.0, per_connection=1)
    [peer] = peers.peers
    peer.send(bytes(peer.received))
    peer.stall()  # so that it does not see the client's half-close
    network.settle()
    assert len(run.load.channels) == len(peers.peers) == 2
    network.advance(1.1)
    assert len(run.load.channels) == 1
    run.load.stop()
    network.advance(1.1)
    assert run.counts == {"sent": 2, "received": 1, "under_way": 1}
    assert not network.calls


@pytest.mark.parametrize("rate", [None, 10.0])
def test_no_further_connection(network: MemoryNetwork, rate: float | None) -> None:
    """A connection that cannot be made is an error; the run ends when none is left."""
    EchoFactoryAt(network, max_connections=1)
    run = Run(network, RefusedConnector, rate=rate, per_connection=3)
    network.advance(5)
    assert run.done
    assert run.counts == {"sent": 3, "received": 3}
    assert run.values["errors"] == {"refused": 1}
    assert run.values["failure"] == "connection refused"


def test_end_while_connecting(network: MemoryNetwork) -> None:
    """A connection that is being made at the end is given up, and is no error."""
    Services(network)
    run = Run(network, SlowConnector, duration=0.95, rate=10.0, per_connection=3)
    network.advance(3)
    assert run.done
    assert run.counts == {"sent": 3, "received": 3}
    assert run.values["errors"] == {}


@pytest.mark.parametrize("rate", [None, 10.0])
def test_count(network: MemoryNetwork, rate: float | None) -> None:
    """With ``-n``, a load ends when that number of messages is sent and the replies have come."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=inf, connections=2, rate=rate, count=15)
    network.advance(4)
    assert run.done
    assert run.counts == {"sent": 15, "received": 15}
    assert run.values["duration_seconds"] == pytest.approx(1.5 if rate else 0.7)


def test_count_of_a_late_client(network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ``-n``, an open loop also sends the messages that are overdue at its end."""
    monkeypatch.setattr("echod.client.pacing.TURN", -1.0)  # one message in each turn
    Services(network)
    run = Run(network, duration=inf, rate=10.0, count=15)
    Clock.advance(network, 2)  # at once: the timers of 1.5 s run before the overdue messages
    network.advance(1)
    assert run.done
    assert run.counts == {"sent": 15, "received": 15}


def test_count_beyond_the_duration(network: MemoryNetwork) -> None:
    """The duration ends a load that has not sent its number of messages."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=0.95, count=15)
    network.advance(4)
    assert run.counts == {"sent": 10, "received": 10}


def test_count_of_a_silent_service(network: MemoryNetwork) -> None:
    """A load of a number of messages ends after a timeout if no connection has a reply."""
    Services(network, lambda now: now + 0.1 if now < 0.95 else now + 1000)
    run = Run(network, duration=inf, connections=2, count=100, timeout=2.0)
    network.advance(6)
    assert run.done
    assert run.counts == {"sent": 22, "received": 20, "lost": 2}


@pytest.mark.parametrize("rate", [None, 10.0])
def test_without_an_end(network: MemoryNetwork, rate: float | None) -> None:
    """A load without an end sends until it is stopped."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=inf, rate=rate)
    network.advance(99.95)
    run.load.stop()
    network.settle()
    assert run.counts == {"sent": 1000, "received": 999, "under_way": 1}


def test_intervals(network: MemoryNetwork) -> None:
    """Each second is reported with its replies; a short remainder extends the last second."""
    Services(network, lambda now: now + 0.25)
    run = Run(network, duration=2.0, rate=4.0)
    network.advance(5)
    result = run.values["intervals"]
    assert [(each["start_seconds"], each["seconds"]) for each in result] == [(0, 1), (1, 1)]
    assert [each["messages"] for each in result] == [3, 5]
    assert result[0]["p50_seconds"] == result[0]["max_seconds"] == 0.25


def test_many_intervals(network: MemoryNetwork) -> None:
    """A long run takes no more memory than a short one: little of each second is kept."""
    Services(network)
    run = Run(network, duration=300.0, rate=1.0)
    network.advance(100)
    tracemalloc.start()
    network.advance(198)
    gc.collect()
    grown, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(run.load.statistics.intervals) == 298
    assert grown < 1_000_000


def test_a_second_without_a_reply(network: MemoryNetwork) -> None:
    """A second without a reply has no times."""
    Services(network, lambda now: max(now, 2.5))
    run = Run(network, duration=1.0, rate=4.0)
    network.advance(5)
    assert [each["messages"] for each in run.values["intervals"]] == [0, 0, 4]
    assert run.values["intervals"][0]["p99_seconds"] is None
    assert run.values["latency_seconds"]["max"] == 2.5


def test_late(network: MemoryNetwork) -> None:
    """A reply after the timeout is late; its latency counts."""
    Services(network, lambda now: max(now, 2.0))
    run = Run(network, duration=1.0, rate=2.0, timeout=1.75)
    network.advance(5)
    assert run.counts == {"sent": 2, "received": 1, "late": 1}
    assert not run.values["ok"]


def test_reply_while_closing(network: MemoryNetwork) -> None:
    """A reply that arrives while the connections are being closed is not counted."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, duration=0.1, rate=10.0, timeout=0.5)
    [peer] = peers.peers
    peer.stall()  # so that it does not see the client's half-close
    network.advance(0.7)
    peer.send(bytes(peer.received))
    network.advance(1.1)
    assert run.done
    assert run.counts == {"sent": 1, "lost": 1}


def test_replies_to_a_stopped_closed_loop(network: MemoryNetwork) -> None:
    """Replies that arrive while the connections are being closed change no count."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, connections=BATCH)
    network.advance(0.5)
    for peer in peers.peers:
        peer.stall()
    run.load.stop()
    network.settle()
    for peer in peers.peers:
        peer.send(bytes(peer.received))
    network.advance(2)
    assert run.done
    assert run.counts == {"sent": BATCH, "under_way": BATCH}


def test_silent(network: MemoryNetwork) -> None:
    """The wait for a silent service ends after a timeout; its connections are counted as silent."""
    Services(network, lambda now: now + 1000)
    run = Run(network, duration=1.0, connections=3, timeout=2.0)
    network.advance(2.9)
    assert not run.done
    network.advance(0.2)
    assert run.done
    assert run.counts == {"sent": 3, "lost": 3}
    assert run.values["connections_silent"] == 3
    assert "silent: 3 connections without any reply" in run.lines
    assert "latency" not in run.lines


def test_refused(network: MemoryNetwork) -> None:
    """Each connection that is refused is counted, and nothing is sent."""
    run = Run(network, connections=3)
    assert run.done
    assert run.values["errors"] == {"refused": 3}
    assert run.values["failure"] == "connection refused"
    assert run.values["connections_made"] == 0
    assert run.values["messages_per_second"] == 0
    assert run.values["intervals"] == run.intervals == []
    assert not run.values["ok"]


def test_some_refused(network: MemoryNetwork) -> None:
    """If some connections are refused, the run uses the others."""
    EchoFactoryAt(network, max_connections=2)
    run = Run(network, connections=3, duration=1.0, rate=10.0)
    network.advance(2)
    result = run.values
    assert result["received"] == result["sent"] == 10
    assert result["errors"] == {"reset": 1}
    assert not result["ok"]
    assert "errors: reset 1" in run.lines


@pytest.mark.parametrize("rate", [None, 10.0])
def test_all_end(network: MemoryNetwork, rate: float | None) -> None:
    """The run ends when the service has ended all connections."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, connections=2, rate=rate)
    network.advance(0.05)
    for peer in peers.peers:
        peer.abort()
    network.settle()
    assert run.done
    assert run.values["errors"] == {"reset": 2}
    assert run.counts["lost"] == run.counts["sent"]
    assert run.load.statistics.sending_seconds < 1


def test_one_of_two_ends(network: MemoryNetwork) -> None:
    """When the service ends one connection, the others take its messages."""
    services = Services(network)
    run = Run(network, connections=2, rate=10.0, duration=2.0)
    network.advance(0.95)
    services.made[0].transport.abortConnection()
    network.advance(3)
    assert run.counts == {"sent": 20, "received": 20}
    assert run.values["errors"] == {"reset": 1}


def test_connection_that_ends_early(network: MemoryNetwork) -> None:
    """A connection that ended while the others were made is not used."""
    services = Services(network, lambda now: now + 0.1)
    connector = SlowConnector(network, MemoryTarget("memory:"), 10.0)
    load = Load(connector, 64, connections=2, duration=0.95, rate=None, on_interval=lambda _: None)
    Deferred.fromCoroutine(load.run())
    network.advance(0.5)
    services.made[0].transport.abortConnection()
    network.advance(3)
    result = load_result(load)
    assert result["sent"] == result["received"] == 10
    assert result["errors"] == {"reset": 1}


def test_damaged(network: MemoryNetwork) -> None:
    """A damaged reply does not keep the next message from being sent."""
    Services(network, lambda now: now + 0.1, change=lambda data: bytes([data[0] ^ 1]) + data[1:])
    run = Run(network, duration=0.95)
    network.advance(2)
    assert run.counts["damaged"] == run.values["damaged_bytes"] == 10


def test_stop(network: MemoryNetwork) -> None:
    """Ctrl-C prints a complete summary of the run so far."""
    Services(network, lambda now: now + 0.3)
    run = Run(network, duration=100.0, rate=10.0)
    network.advance(2.05)
    run.load.stop()
    network.settle()
    assert run.done
    assert run.counts == {"sent": 21, "received": 18, "under_way": 3}
    assert run.values["duration_seconds"] == pytest.approx(2.05)
    assert run.values["ok"]


def test_stop_while_connecting(network: MemoryNetwork) -> None:
    """Ctrl-C before the first message ends the run at once, with nothing sent."""
    connector = SlowConnector(network, MemoryTarget("memory:"), 10.0)
    load = Load(connector, 64, connections=2, duration=1.0, rate=None, on_interval=lambda _: None)
    done: list[None] = []
    Deferred.fromCoroutine(load.run()).addCallback(done.append)
    assert not done
    load.stop()
    network.settle()
    assert done
    assert load_result(load)["sent"] == load_result(load)["connections_made"] == 0
    assert load_result(load)["errors"] == {"refused": 1}  # the first connection


def busy(cpu: float, waited: float) -> Iterator[Usage]:
    yield Usage(1.0, 1.0)
    yield Usage(1.0 + cpu, 1.0 + waited)


def test_bottleneck_in_a_closed_loop(network: MemoryNetwork) -> None:
    """A client that ran, or waited for a processor, nearly all the time may be the bottleneck."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=2.0, usage=busy(1.5, 0.4))
    network.advance(3)
    assert run.values["client_processor_fraction"] == 0.75
    assert run.values["client_waited_fraction"] == 0.2
    assert run.values["client_was_bottleneck"]
    assert (
        "limited by the client: it ran for 75% of the time, and waited for a processor for 20%"
        in run.lines
    )


def test_no_bottleneck(network: MemoryNetwork) -> None:
    """A client that was idle for some of the time was not the bottleneck."""
    Services(network, lambda now: now + 0.1)
    run = Run(network, duration=2.0, usage=busy(1.0, 0.4))
    network.advance(3)
    assert not run.values["client_was_bottleneck"]
    assert "bottleneck" not in run.lines


class SlowClock(MemoryNetwork):
    """A clock whose timers are late."""

    def __init__(self, late: float) -> None:
        super().__init__()
        self.late = late

    def callLater(self, delay: float, *arguments: Any, **more: Any) -> Any:
        return super().callLater(delay + self.late * bool(delay), *arguments, **more)


def test_bottleneck_in_an_open_loop() -> None:
    """A client that sends late is reported as the bottleneck."""
    network = SlowClock(0.002)
    Services(network)
    run = Run(network, duration=2.0, rate=10.0)
    network.advance(3)
    assert run.values["scheduling_error_seconds"]["p50"] == pytest.approx(0.002, rel=0.01)
    # Each message counts from its time.
    assert run.values["latency_seconds"]["p50"] >= 0.002
    assert run.values["client_was_bottleneck"]
    assert "one message in a hundred was sent 2.0" in run.lines


def test_too_slow_for_its_rate() -> None:
    """A client that cannot send at the requested rate reports the rate that it reached."""
    network = SlowClock(0.6)
    Services(network)
    run = Run(network, duration=2.0, rate=3.0)
    network.advance(5)
    assert run.values["sent_messages_per_second"] < 3
    assert "of 3.0 messages a second could be sent" in run.lines


def test_usage() -> None:
    """The processor time of this process only grows."""
    before = process_usage()
    assert sum(range(100_000))
    after = process_usage()
    assert after.cpu > before.cpu
    assert after.waited >= before.waited >= 0


def test_usage_without_schedstat(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time spent waiting for a processor is 0 where the kernel does not report it."""
    monkeypatch.setattr("echod.client.statistics.SCHEDSTAT", "/nonexistent")
    assert process_usage().waited == 0.0
