"""``ping`` over an in-memory network, on a fake clock."""

from __future__ import annotations

from typing import Any

import pytest
from twisted.internet.defer import Deferred

from echod.client.events import Disconnected, Event, Reconnected, Reply, Unanswered
from echod.client.ping import RETRY, Ping
from echod.client.report import is_ok, ping_result
from echod.client.statistics import Usage
from echod.client.text import summary_lines
from echod.testing import MemoryNetwork, Peer
from echod.transport import unsent
from tests.client.memory import Services, memory_connector
from tests.streams.server import Peers


class Run:
    """A ping over an in-memory network."""

    def __init__(self, network: MemoryNetwork, timeout: float = 10.0, **options: Any) -> None:
        self.network = network
        self.events: list[Event] = []
        options = {"size": 64, "interval": 1.0, "count": 3, **options}
        options.setdefault("usage", lambda: Usage(0.0, 0.0))
        self.ping = Ping(memory_connector(network, timeout), notify=self.events.append, **options)
        self.done = False
        Deferred.fromCoroutine(self._run())
        network.settle()

    async def _run(self) -> None:
        await self.ping.run()
        self.done = True

    @property
    def replies(self) -> list[Reply]:
        return [event for event in self.events if isinstance(event, Reply)]

    @property
    def unanswered(self) -> list[tuple[int, str]]:
        return [(*event,) for event in self.events if isinstance(event, Unanswered)]

    @property
    def outages(self) -> list[Event]:
        """The events of outages."""
        return [each for each in self.events if isinstance(each, (Disconnected, Reconnected))]

    @property
    def counts(self) -> dict[str, int]:
        """The counts that are not 0."""
        names = ("received", "lost", "late", "damaged", "damaged_bytes", "unexpected", "under_way")
        result = ping_result(self.ping)
        assert result["sent"] == sum(
            result[each] for each in names if each[-5:] not in ("bytes", "ected")
        )
        return {name: result[name] for name in names if result[name]}


@pytest.fixture
def network() -> MemoryNetwork:
    return MemoryNetwork()


def test_all_right(network: MemoryNetwork) -> None:
    """Each message is sent at its time and comes back; then the connection is closed in order."""
    services = Services(network, lambda now: now + 0.25)
    run = Run(network)
    network.advance(2.2)
    assert [reply.number for reply in run.replies] == [0, 1]
    assert not run.done
    network.advance(0.1)
    assert run.replies == [Reply(number, 0.25, 0, late=False) for number in range(3)]
    assert run.done
    assert run.counts == {"received": 3}
    assert is_ok(run.ping)
    assert ping_result(run.ping)["round_trip_seconds"] == {
        **dict.fromkeys(("min", "mean", "p50", "p90", "p99", "max"), 0.25),
        "stdev": 0.0,
        "jitter": 0.0,
    }
    assert not services.made[0].transport.connected


def test_at_their_times(network: MemoryNetwork) -> None:
    """A message is sent at its time, whether or not the last one has come back."""
    Services(network, lambda now: 5.0)
    run = Run(network, count=4)
    network.advance(10)
    assert [round(reply.seconds, 6) for reply in run.replies] == [5.0, 4.0, 3.0, 2.0]
    assert ping_result(run.ping)["round_trip_seconds"]["jitter"] == 1.0
    assert is_ok(run.ping)


def test_late(network: MemoryNetwork) -> None:
    """A reply after the timeout is late; its round-trip time counts."""
    Services(network, lambda now: max(4.0, now))
    run = Run(network, timeout=3.0)
    network.advance(10)
    assert [reply.late for reply in run.replies] == [True, False, False]
    assert run.counts == {"received": 2, "late": 1}
    assert not is_ok(run.ping)
    assert ping_result(run.ping)["round_trip_seconds"]["max"] == 4.0


def test_lost(network: MemoryNetwork) -> None:
    """A message without a reply is lost. The wait ends a timeout after the last message."""
    Services(network, lambda now: now + 1000)
    run = Run(network, timeout=2.0)
    network.advance(3.9)
    assert not run.done
    network.advance(1.2)
    assert run.done
    assert run.counts == {"lost": 3}
    assert run.unanswered == [(0, "pending"), (1, "pending"), (2, "lost")]
    assert ping_result(run.ping)["round_trip_seconds"]["min"] is None
    assert list(summary_lines(ping_result(run.ping))) == [
        "",
        "--- memory: ---",
        "3 sent, 0 received, 3 lost (100 %), 0 late, 0 damaged",
    ]


def test_damaged(network: MemoryNetwork) -> None:
    """A wrong byte damages its message, and no other."""
    Services(network, change=lambda data: bytes([data[0] ^ 1]) + data[1:-1] + bytes([data[-1] ^ 1]))
    run = Run(network)
    network.advance(3)
    assert run.counts == {"damaged": 3, "damaged_bytes": 6}
    assert [reply.damaged_bytes for reply in run.replies] == [2, 2, 2]
    assert "3 damaged (6 bytes)" in list(summary_lines(ping_result(run.ping)))[2]


def test_unexpected(network: MemoryNetwork) -> None:
    """Bytes that this client did not send are counted as unexpected."""
    services = Services(network)
    run = Run(network, count=2)
    services.made[0].transport.write(b"!")
    network.settle()
    assert run.ping.tally.unexpected == 1
    network.advance(3)
    assert run.counts == {"received": 2, "unexpected": 1}
    assert "1 byte unexpected" in list(summary_lines(ping_result(run.ping)))[2]
    assert not is_ok(run.ping)


@pytest.fixture
def service(network: MemoryNetwork) -> Services:
    return Services(network)


@pytest.mark.parametrize(
    ("end", "word"), [("loseConnection", "closed"), ("abortConnection", "reset")]
)
def test_restart(network: MemoryNetwork, service: Services, end: str, word: str) -> None:
    """After a restart of the service, the run goes on; messages that were due in it are lost."""
    run = Run(network, count=7)
    network.advance(1.5)
    service.stop(end)
    network.advance(2.55)
    service.start()
    network.advance(10)
    assert run.done
    assert [reply.number for reply in run.replies] == [0, 1, 5, 6]
    assert run.counts == {"received": 4, "lost": 3}
    assert run.unanswered == [(number, "not_sent") for number in (2, 3, 4)]
    outage, not_sent = pytest.approx(2.6), 3
    assert run.outages == [Disconnected(word), Reconnected(outage, not_sent)]
    result = ping_result(run.ping)
    assert result["outages"] == [
        {
            "start_seconds": 1.5,
            "seconds": outage,
            "not_sent": not_sent,
            "error": word,
            "ended": True,
        }
    ]
    assert result["errors"] == {word: 1, "refused": 13}  # one attempt each RETRY seconds
    assert result["connect_seconds"] == 0
    assert not result["ok"]
    printed = list(summary_lines(result))
    assert "outages: 1, 2.600 s in all, the longest 2.600 s" in printed
    assert f"errors: {word} 1, refused 13" in printed


def test_reconnected_at_once(network: MemoryNetwork, service: Services) -> None:
    """If the service accepts the next connection at once, no message is lost."""
    run = Run(network)
    network.advance(1.5)
    service.end()
    network.advance(10)
    assert run.outages == [Disconnected("closed"), Reconnected(0.0, 0)]
    assert run.counts == {"received": 3}
    assert not is_ok(run.ping)


def test_in_flight_at_the_end_of_the_connection(network: MemoryNetwork) -> None:
    """Messages in flight on a connection that ends are lost, and keep their numbers."""
    services = Services(network, lambda now: now if now > 1.9 else now + 1000)
    run = Run(network, count=4)
    network.advance(1.5)
    services.made[0].transport.abortConnection()
    network.advance(10)
    assert [reply.number for reply in run.replies] == [2, 3]
    assert run.counts == {"received": 2, "lost": 2}
    assert run.unanswered == [(0, "pending"), (1, "lost")]


def test_closed_without_a_reply(network: MemoryNetwork) -> None:
    """A service that closes each connection without a reply prolongs the outage."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, count=3)
    for _ in range(5):
        peers.peers[-1].finish()
        network.advance(RETRY)
    assert len(peers.peers) == 6
    assert len(run.outages) == 1
    network.advance(20)
    assert run.done
    [outage] = ping_result(run.ping)["outages"]
    assert not outage["ended"]
    assert (
        "the longest 12.000 s; the last one is not over"
        in list(summary_lines(ping_result(run.ping)))[3]
    )


def test_outage_until_the_end(network: MemoryNetwork, service: Services) -> None:
    """Messages due in an outage count towards the number to send: the run ends in time."""
    run = Run(network, count=5)
    network.advance(1.5)
    service.stop()
    network.advance(2.4)
    assert not run.done
    network.advance(0.1)
    assert run.done
    assert run.counts == {"received": 2, "lost": 3}
    [outage] = ping_result(run.ping)["outages"]
    assert (outage["seconds"], outage["not_sent"], outage["ended"]) == (2.5, 3, False)
    assert not network.calls


def test_stop_in_an_outage(network: MemoryNetwork, service: Services) -> None:
    """Ctrl-C ends a run that has no connection."""
    run = Run(network, count=None)
    network.advance(1.5)
    service.stop()
    network.advance(3)
    run.ping.stop()
    network.settle()
    assert run.done
    assert run.counts == {"received": 2, "lost": 3}
    assert not network.calls


def test_ended_after_the_last(network: MemoryNetwork) -> None:
    """Messages are lost where the connection ends during the wait for the last replies."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, count=1)
    peers.peers[0].abort()
    network.settle()
    assert run.done
    assert run.counts == {"lost": 1}


def test_stop(network: MemoryNetwork) -> None:
    """Messages in flight at Ctrl-C are not lost, and the run ends without a wait."""
    Services(network, lambda now: now + 1.5)
    run = Run(network, count=None, timeout=5.0)
    network.advance(4)
    run.ping.stop()
    network.settle()
    assert run.done
    assert run.counts == {"received": 3, "under_way": 2}
    assert run.unanswered == [(number, "pending") for number in range(4)]
    assert is_ok(run.ping)
    assert "2 in flight" in list(summary_lines(ping_result(run.ping)))[2]


def test_damaged_after_the_end(network: MemoryNetwork) -> None:
    """A reply that arrives while the connection is being closed is not counted."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, count=1)
    run.ping.stop()
    peers.peers[0].send(bytes(64))
    network.settle()
    network.advance(2)
    assert run.done
    assert run.counts == {"under_way": 1}
    assert run.replies == []


def test_deadline(network: MemoryNetwork) -> None:
    """The deadline ends a run as Ctrl-C does."""
    Services(network, lambda now: now + 1.5)
    run = Run(network, count=None, deadline=4.25)
    network.advance(4.125)
    assert not run.done
    network.advance(0.125)
    assert run.done
    assert run.counts == {"received": 3, "under_way": 2}


def test_end_before_the_deadline(network: MemoryNetwork) -> None:
    """A run that ends before its deadline leaves no timer."""
    Services(network)
    run = Run(network, count=1, deadline=4.2)
    assert run.done
    assert not network.calls


def test_deadline_while_connecting(network: MemoryNetwork, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deadline that passes before the connection is made is reported as a timeout."""
    monkeypatch.setattr("echod.client.connector.connectProtocol", lambda *_: Deferred())
    run = Run(network, deadline=1.5)
    network.advance(1.5)
    assert run.done
    assert run.ping.failure == "no answer in time"
    assert run.ping.errors == {"timed_out": 1}


def test_summary_so_far(network: MemoryNetwork) -> None:
    """The figures can be read during the run, which then goes on."""
    Services(network, lambda now: now + 1.5 if now < 5 else now + 1000)
    run = Run(network, count=6, timeout=3.0)
    network.advance(4)
    run.ping.summarize()
    assert run.counts == {"received": 3, "under_way": 2}
    assert run.unanswered == [(number, "pending") for number in range(4)]
    network.advance(20)
    assert run.done
    assert run.counts == {"received": 5, "lost": 1}


def test_summary_after_the_end(network: MemoryNetwork) -> None:
    """SIGQUIT after the end of a run, while connections close, does not change its figures."""
    Services(network, lambda now: now + 1000)
    run = Run(network, count=None, timeout=1.5)
    network.advance(4)
    run.ping.stop()
    network.settle()
    assert run.counts == {"lost": 3, "under_way": 2}
    for _ in range(2):
        run.ping.summarize_so_far()
        assert run.counts == {"lost": 3, "under_way": 2}
        network.advance(2)
    assert run.done


def test_stop_with_lost(network: MemoryNetwork) -> None:
    """Messages older than the timeout at Ctrl-C are lost."""
    Services(network, lambda now: now + 1000)
    run = Run(network, count=None, timeout=1.5)
    network.advance(4)
    run.ping.stop()
    run.ping.stop()
    network.settle()
    assert run.counts == {"lost": 3, "under_way": 2}


def test_stop_at_the_end(network: MemoryNetwork) -> None:
    """Ctrl-C ends the wait for the last reply."""
    Services(network, lambda now: now + 1000)
    run = Run(network, count=1)
    run.ping.stop()
    network.settle()
    assert run.done
    assert run.counts == {"under_way": 1}


def test_refused(network: MemoryNetwork) -> None:
    """The failure names the refused connection."""
    run = Run(network)
    assert run.done
    assert run.ping.errors == {"refused": 1}
    assert run.ping.failure == "connection refused"
    assert not is_ok(run.ping)


def test_service_that_does_not_close(network: MemoryNetwork) -> None:
    """A connection that the service does not close is reset after a second."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, count=1)
    peer: Peer = peers.peers[0]
    peer.send(bytes(peer.received))
    peer.stall()  # so that it does not see the client's half-close
    network.settle()
    assert not run.done
    network.advance(1.1)
    assert run.done
    assert run.counts == {"received": 1}
    assert run.ping.errors == {}


def test_full_connection(network: MemoryNetwork) -> None:
    """Messages queued for a full connection count from the time at which they were due."""
    peers = Peers()
    network.server_endpoint().listen(peers)
    run = Run(network, count=20, size=100_000, interval=0.1)
    peer: Peer = peers.peers[0]
    peer.stall()
    network.advance(5)
    assert run.ping.sent == 20
    assert unsent(run.ping.channels[0].transport) < 300_000
    seen = 0
    peer.resume()
    for _ in range(1000):
        network.settle()
        peer.send(bytes(peer.received[seen:]))
        seen = len(peer.received)
        if run.done:
            break
    assert run.counts == {"received": 20}
    assert run.replies[0].seconds == pytest.approx(5.0)
    assert run.replies[-1].seconds == pytest.approx(5.0 - 1.9)


def test_stopped_process(network: MemoryNetwork) -> None:
    """After a stop of the process, the messages that were due meanwhile are skipped."""
    Services(network)
    run = Run(network, count=100)
    network.advance(5.5)
    network.rightNow += 60
    network.advance(92)
    assert not run.done
    network.advance(1)
    assert run.done
    # Six messages were sent before; the last of the sixty is late by half a second only.
    assert run.counts == {"received": 100}
    assert ping_result(run.ping)["skipped"] == 59
    assert "skipped: 59 messages, due while this process was stopped" in summary_lines(
        ping_result(run.ping)
    )
    assert is_ok(run.ping)


def test_times_are_summarized(network: MemoryNetwork) -> None:
    """The times of the replies are recorded 128 at a time: a ping may run for days."""
    Services(network)
    run = Run(network, count=5000, interval=0.001)
    network.advance(4.5)
    assert run.ping.tally.received == 4480
    network.advance(1)
    assert run.counts == {"received": 5000}


def test_stop_at_the_beginning(network: MemoryNetwork) -> None:
    """A run that is stopped when it has just connected sends nothing."""
    Services(network)
    ping = Ping(
        memory_connector(network),
        64,
        interval=1.0,
        count=3,
        notify=lambda _: ping.stop(),
    )
    done: list[None] = []
    Deferred.fromCoroutine(ping.run()).addCallback(done.append)
    network.settle()
    assert done
    assert ping_result(ping)["sent"] == 0
    assert ping_result(ping)["failure"] is None


def test_waited(network: MemoryNetwork) -> None:
    """A ping measures how long its process waited for a processor."""
    Services(network)
    usages = iter([Usage(1.0, 2.0), Usage(1.5, 2.25)])
    run = Run(network, usage=usages.__next__)
    network.advance(10)
    assert run.done
    assert run.ping.waited == 0.25
    why = "it waited for a processor for 83.333 ms a message"
    assert ping_result(run.ping)["client_bottleneck"] == why
