"""``load --find-rate``: over an in-memory network, and as a command."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Callable
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from echod.client.findrate import FindRate, find_rate_result
from echod.client.load import Load
from echod.client.report import to_json
from echod.client.search import Bound, RateSearch
from echod.client.statistics import Usage
from echod.client.text import step_line, summary_lines
from echod.peer import EchoPeer
from echod.testing import MemoryNetwork
from tests.client.memory import (
    MS,
    Services,
    Terminal,
    echod_client,
    memory_connector,
    target_of,
)
from tests.client.test_load import SlowClock


class Queue:
    """The reply times of a service that takes one message after the other."""

    def __init__(self, rate: float) -> None:
        self.rate = rate
        self.free = 0.0

    def __call__(self, now: float) -> float:
        self.free = max(self.free, now) + 1 / self.rate
        return self.free

    def clear(self) -> None:
        """Forget the messages of connections that have ended."""
        self.free = 0.0


class Search:
    """A search over an in-memory network."""

    def __init__(self, network: MemoryNetwork, first: float, bound: Bound) -> None:
        self.lines: list[str] = []
        connector = memory_connector(network, 1.0)

        def load(rate: float) -> Load:
            return Load(
                connector,
                64,
                connections=2,
                duration=10.0,
                rate=rate,
                on_interval=lambda _: None,
                usage=lambda: Usage(0.0, 0.0),
            )

        self.on_step: Callable[[], None] = lambda: None
        self.run = FindRate(load, RateSearch(first), bound, self._on_step)
        self.done = False
        Deferred.fromCoroutine(self.run.run()).addCallback(self._finish)
        network.settle()

    def _on_step(self, step: dict[str, Any]) -> None:
        self.lines.append(step_line(step))
        self.on_step()

    def _finish(self, _: None) -> None:
        self.done = True
        self.lines += summary_lines(find_rate_result(self.run))

    @property
    def result(self) -> dict[str, Any]:
        return json.loads(to_json(find_rate_result(self.run)))  # type: ignore[no-any-return]


def test_capacity() -> None:
    """The capacity of a queue is found; steps, confidence and the boundary are reported."""
    network = MemoryNetwork()
    queue = Queue(10.0)
    Services(network, queue)
    search = Search(network, 2.0, Bound("p99", 0.2))
    search.on_step = queue.clear
    network.advance(400)
    assert search.done
    result = search.result
    assert result["ok"]
    assert result["highest"]["messages_per_second"] == pytest.approx(10, rel=0.03)
    assert (result["highest"]["runs"], result["highest"]["held"]) == (5, 5)
    assert result["failing"]["held"] == 0
    assert (result["bound_percentile"], result["bound_seconds"]) == ("p99", 0.2)
    assert (result["client_was_bottleneck"], result["client_bottleneck"]) == (False, None)
    assert [step["asked_messages_per_second"] for step in result["steps"][:4]] == [2, 4, 8, 16]
    assert [step["holds"] for step in result["steps"][:4]] == [True, True, True, False]
    assert result["steps"][3]["excess"] == "51 lost, 85 late"
    assert search.run.sent == sum(step["sent"] for step in result["steps"])
    assert search.lines[0] == "2.0 messages a second: holds; p99 100.000 ms"
    assert "highest rate that holds, with p99 up to 200.000 ms: 10." in "\n".join(search.lines)
    assert search.lines[-1].startswith("lowest rate that fails: 10.")
    assert search.lines[-1].endswith(" messages a second; held in 0 of 2 runs")


def test_limited_by_the_client() -> None:
    """The search ends at a rate that the client cannot send, and says so."""
    network = SlowClock(0.6)
    Services(network)
    search = Search(network, 1.0, Bound("p99", 0.01))
    network.advance(400)
    assert search.done
    assert not search.result["ok"]
    assert search.result["client_was_bottleneck"]
    assert search.lines[-1].startswith("limited by the client: ")
    assert search.lines[-2] == "no rate holds, with p99 up to 10.000 ms"


def test_errors_of_each_step() -> None:
    """Errors count for the step in which they happen, and in the result for all."""
    network = MemoryNetwork()
    services = Services(network)
    search = Search(network, 10.0, Bound("p99", 0.1))
    network.advance(5)
    services.made[0].transport.abortConnection()
    network.advance(10)
    search.run.stop()
    network.settle()
    assert search.done
    assert [step["errors"] for step in search.result["steps"]] == [{"reset": 1}]
    assert search.result["errors"] == {"reset": 1}
    assert search.lines[0].startswith("10.0 messages a second: fails: 1 reset")
    assert "errors: reset 1" in search.lines


def test_refused_after_a_step() -> None:
    """A search that cannot go on has not found the highest rate."""
    network = MemoryNetwork()
    services = Services(network)
    search = Search(network, 10.0, Bound("p99", 0.1))
    search.on_step = services.stop
    network.advance(15)
    assert search.done
    assert search.result["highest"]["messages_per_second"] == 10.0
    assert search.result["failure"] == "connection refused"
    assert not search.result["ok"]


def test_refused() -> None:
    """Without a connection there is no step."""
    search = Search(MemoryNetwork(), 10.0, Bound("p99", 0.1))
    assert search.done
    assert search.result["steps"] == []
    assert search.result["failure"] == "connection refused"
    assert search.result["highest"] is None
    assert not search.result["ok"]


def test_command(monkeypatch: pytest.MonkeyPatch, echo_peer: EchoPeer) -> None:
    """Each step is a line of the output; in a terminal, the live line is removed before it."""
    # A busy machine must not end the search.
    monkeypatch.setattr("echod.client.report.LATE", 60.0)
    target = target_of(echo_peer)
    arguments = ("load", target, "--find-rate", "--latency", "max=0.001ms", "-d", 0.1, "-r", 2)
    outcome = echod_client(*arguments, err=Terminal())
    assert outcome.status == 1
    assert re.fullmatch(
        rf"2.0 messages a second: fails: max {MS} ms; p99 {MS} ms", outcome.out.splitlines()[0]
    )
    assert "no rate holds" in outcome.out
    found = echod_client(*arguments, "--json").result
    assert found["command"] == "find-rate"
    assert found["failing"] == {"messages_per_second": 1.0, "runs": 1, "held": 0}


def test_command_without_a_connection() -> None:
    """A search that cannot connect names the reason, and prints nothing else."""
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        port = bound.getsockname()[1]
        arguments = ("load", f"127.0.0.1:{port}", "--find-rate", "--latency", "p99=1ms")
        outcome = echod_client(*arguments)
    assert outcome == (1, "", f"echod-client load: 127.0.0.1:{port}: connection refused\n")
