"""The result of a run, as a record, as JSON and as text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from twisted.internet.task import Clock

from echod.client.connector import Connector
from echod.client.events import Disconnected, Event, Moved, Reconnected, Reply, Unanswered
from echod.client.histogram import Histogram
from echod.client.load import Load
from echod.client.ping import Ping
from echod.client.pipe import Pipe
from echod.client.report import (
    LATENCY_PERCENTILES,
    PERCENTILES,
    in_ms,
    is_ok,
    latencies,
    load_result,
    ping_result,
    pipe_result,
    summary,
    to_json,
)
from echod.client.statistics import Interval, Usage
from echod.client.target import parse_target
from echod.client.text import (
    EVENT_LINES,
    counts_line,
    plural,
    reply_line,
    summary_lines,
    times_line,
)


def times(*seconds: float) -> Histogram:
    found = Histogram()
    found.record(seconds)
    return found


def connector(target: str) -> Connector:
    return Connector(Clock(), parse_target(target), 10.0)


def a_ping(target: str = "h:7", replies: Sequence[float] = (), **tally: int) -> Ping:
    run = Ping(connector(target), 64, interval=0.5, count=3, notify=lambda _: None)
    return counted(run, tally, replies)


def a_load(rate: float | None = None, replies: Sequence[float] = (0.001,), **tally: int) -> Load:
    run = Load(
        connector("h:7"), 100, connections=1, duration=2.0, rate=rate, on_interval=lambda _: None
    )
    run.connector.address = "192.0.2.1:7"
    run.statistics.sending_seconds = 2.0
    run.statistics.sent = run.statistics.replies = 1000
    return counted(run, tally, replies)


def counted(run: Any, tally: dict[str, int], replies: Sequence[float]) -> Any:
    for each in replies:
        run.tally.count(each)
    run.tally.sum_up()
    for name, value in tally.items():
        setattr(run.tally, name, value)
    return run


def counts(run: Ping) -> str:
    return counts_line(ping_result(run))


def load_text(run: Load) -> list[str]:
    return list(summary_lines(load_result(run)))


def test_units() -> None:
    """Times are in milliseconds; a count of 1 has a singular noun."""
    assert in_ms(0.0012345) == "1.234"
    assert [plural(count, "byte") for count in (0, 1, 2000)] == ["0 bytes", "1 byte", "2,000 bytes"]


def test_json_is_rounded() -> None:
    """JSON rounds times to nanoseconds and rates to thousandths, and nothing else."""
    result = {
        "messages_per_second": 1 / 3,
        "round_trip_seconds": {"min": 0.1 + 0.2, "max": None},
        "latency_histogram": [(0.12345678949, 3)],
        "ok": True,
    }
    assert json.loads(to_json(result)) == {
        "messages_per_second": 0.333,
        "round_trip_seconds": {"min": 0.3, "max": None},
        "latency_histogram": [[0.123456789, 3]],
        "ok": True,
    }


def test_summary() -> None:
    """A summary has minimum, mean, percentiles and maximum in seconds; ``None`` without a time."""
    found = summary(times(0.001, 0.002, 0.006), PERCENTILES)
    assert list(found) == ["min", "mean", "p50", "p90", "p99", "max"]
    assert (found["min"], found["mean"], found["max"]) == (0.001, pytest.approx(0.003), 0.006)
    assert found["p50"] == pytest.approx(0.002, rel=0.001)
    assert summary(Histogram(), LATENCY_PERCENTILES) == dict.fromkeys(
        ["min", "mean", "p50", "p90", "p99", "p99.9", "p99.99", "max"]
    )


def test_latencies() -> None:
    """The summary of round trips has their standard deviation after the mean."""
    found = latencies(times(0.001, 0.003), PERCENTILES)
    assert list(found)[:4] == ["min", "mean", "stdev", "p50"]
    assert found["stdev"] == pytest.approx(0.001)
    assert latencies(Histogram(), PERCENTILES)["stdev"] is None


def test_times_line() -> None:
    """The line of a summary is in milliseconds."""
    assert times_line(summary(times(0.001), PERCENTILES)) == (
        "min 1.000, mean 1.000, p50 1.000, p90 1.000, p99 1.000, max 1.000 ms"
    )


@pytest.mark.parametrize(
    ("reply", "line"),
    [
        (Reply(0, 0.0012345, 0, False), "seq=0 1.234 ms"),
        (Reply(7, 2.0, 1, False), "seq=7 2000.000 ms, 1 byte wrong"),
        (Reply(7, 2.0, 0, True), "seq=7 2000.000 ms, late"),
        (Reply(7, 2.0, 3, True), "seq=7 2000.000 ms, 3 bytes wrong, late"),
    ],
)
def test_reply_line(reply: Reply, line: str) -> None:
    """The line of a reply has its time, its damage, and whether it is late."""
    assert reply_line(reply) == line


@pytest.mark.parametrize(
    ("event", "line"),
    [
        (Unanswered(3, "pending"), "seq=3 no answer yet"),
        (Unanswered(3, "lost"), "seq=3 lost"),
        (Unanswered(3, "not_sent"), "seq=3 not sent: no connection"),
        (Moved("h:1", "h:2"), "h:1 refused, trying h:2"),
        (Disconnected("timed_out"), "connection lost (timed out): connecting again"),
        (Reconnected(1.5, 0), "connected again after an outage of 1.500 s"),
        (
            Reconnected(1.5, 1),
            "connected again after an outage of 1.500 s; 1 message not sent",
        ),
    ],
)
def test_event_lines(event: Event, line: str) -> None:
    """Each event of a ping has its line."""
    assert EVENT_LINES[type(event)](event) == line


def test_counts_line() -> None:
    """The line of counts has each outcome that the protocol allows."""
    assert counts(a_ping(sent=2000, received=1990, late=3)) == (
        "2,000 sent, 1,990 received, 7 lost (0.35 %), 3 late, 0 damaged"
    )
    assert counts(a_ping(sent=3, damaged=2, damaged_bytes=1, under_way=1)) == (
        "3 sent, 0 received, 0 lost, 0 late, 2 damaged (1 byte), 1 in flight"
    )
    assert counts(a_ping(unexpected=2)).endswith("2 bytes unexpected")
    assert counts(a_ping("udp:h:7", duplicated=1, reordered=2, unexpected=1)).endswith(
        "0 damaged, 1 duplicated, 2 reordered, 1 datagram unexpected"
    )


def test_ok() -> None:
    """A run is ok where all messages came back right, in time and once, in whatever order."""
    assert is_ok(a_ping(sent=2, received=2, reordered=1))
    assert is_ok(a_ping(sent=2, received=1, under_way=1))
    assert not is_ok(a_ping())
    assert not is_ok(a_ping(sent=2, under_way=2))  # interrupted before the first reply
    for wrong in ("lost", "late", "damaged", "duplicated", "unexpected"):
        tally = {"sent": 2, "received": 1, "under_way": int(wrong in ("duplicated", "unexpected"))}
        if wrong != "lost":
            tally[wrong] = 1
        assert not is_ok(a_ping(**tally)), wrong
    run = a_ping(sent=2, received=2)
    run.errors["refused"] += 1
    assert not is_ok(run)


def test_ping_without_replies() -> None:
    """A ping without a reply has no times."""
    result = ping_result(a_ping(sent=2))
    assert list(summary_lines(result)) == [
        "",
        "--- h:7 ---",
        "2 sent, 0 received, 2 lost (100 %), 0 late, 0 damaged",
    ]
    assert (result["ok"], result["lost"], result["interval_seconds"]) == (False, 2, 0.5)
    assert (result["connect_seconds"], result["address"], result["failure"]) == (None, None, None)
    assert set(result["round_trip_seconds"].values()) == {None}


def test_ping_with_replies() -> None:
    """The summary of a ping has the round-trip times and the errors."""
    run = a_ping(replies=[0.001], sent=1)
    run.errors.update({"timed_out": 2000, "refused": 1})
    result = ping_result(run)
    *_, errors, round_trip = summary_lines(result)
    assert round_trip.startswith("round trip: min 1.000, mean 1.000, stdev 0.000, p50")
    assert round_trip.endswith("max 1.000 ms; user clock")
    assert errors == "errors: timed out 2,000, refused 1"
    assert (result["round_trip_seconds"]["jitter"], result["errors"]) == (None, run.errors)


def test_closed_loop() -> None:
    """The summary of a closed loop says that it sends nothing while the service stalls."""
    run = a_load(sent=1000, received=1000)
    lines = load_text(run)
    assert lines[0] == "load on h:7 (192.0.2.1:7) over TCP, 100 bytes a message, 1 connection"
    assert "throughput: 500.0 messages a second, 0.050 MB/s each way, for 2.0 s" in lines
    assert lines[-2].startswith("closed loop: each message was sent when the reply to the one")
    assert lines[-1].startswith("latency: min 1.000")
    result = load_result(run)
    assert result["ok"]
    assert (result["loop"], result["asked_messages_per_second"]) == ("closed", None)
    assert (result["messages_per_second"], result["bytes_per_second"]) == (500.0, 50000.0)
    assert result["latency_histogram"] == [(pytest.approx(0.001, rel=0.001), 1)]
    encoded = Histogram.decode(result["latency_hdrhistogram"], result["latency_seconds"])
    assert encoded.buckets() == result["latency_histogram"]


def test_open_loop() -> None:
    """The summary of an open loop has the requested rate, the actual one, and the delays."""
    run = a_load(500.0, (), sent=1000, received=1000)
    run.scheduling.record([0.0001])
    run.statistics.intervals = [
        Interval.of(0.0, 1.0, times(0.001)),
        Interval.of(1.0, 1.0, Histogram()),
    ]
    assert load_text(run)[-1].startswith(
        "open loop: 500.0 messages a second sent, of 500.0 requested; late by min 0.100"
    )
    result = load_result(run)
    assert (result["loop"], result["sent_messages_per_second"]) == ("open", 500.0)
    first, second = result["intervals"]
    assert (first["messages"], first["max_seconds"]) == (1, 0.001)
    assert (second["messages"], second["p50_seconds"]) == (0, None)
    assert (second["p99_seconds"], second["max_seconds"]) == (None, None)


def test_rate_limit() -> None:
    """The summary of a load over UDP names the rate limit that its replies suggest."""
    run = a_load(500.0, sent=1000, received=200)
    seconds = [Interval(float(start), 1.0, 100, lost=400) for start in range(6)]
    result = {
        **load_result(run),
        "protocol": "udp",
        "limit_messages_per_second": 100.0,
        "intervals": [each._asdict() for each in seconds],
    }
    assert "replies stop at 100 a second: the service or a router probably limits the rate" in (
        "\n".join(summary_lines(result))
    )


def test_load_with_errors() -> None:
    """The summary of a load has the errors, and the connections without a reply."""
    run = a_load(sent=2, received=1, late=1)
    run.errors["reset"] += 1
    run.connect_times.record([0.01])
    run.handshake_times.record([0.02])
    run.silent = 1
    lines = load_text(run)
    assert lines[1].startswith("connected: 0 of 1: min 10.000")
    assert lines[2].startswith("TLS handshakes: min 20.000")
    assert lines[4:6] == ["errors: reset 1", "silent: 1 connection without any reply"]
    assert not load_result(run)["ok"]
    assert not load_result(a_load(replies=(), sent=1, received=1))["connections_silent"]


def test_nothing_sent() -> None:
    """A load that has sent nothing has no throughput, and no bottleneck."""
    run = a_load(replies=())
    run.statistics.sending_seconds = 0.0
    assert len(load_text(run)) == 2
    result = load_result(run)
    assert (result["messages_per_second"], result["client_processor_fraction"]) == (0.0, 0.0)
    assert result["client_was_bottleneck"] is False


def reason(run: Load | Ping) -> Any:
    """Return why the client limited a run, which the JSON and the last line of text give."""
    result = load_result(run) if isinstance(run, Load) else ping_result(run)
    lines = list(summary_lines(result))
    why = result["client_bottleneck"]
    assert result["client_was_bottleneck"] is (why is not None)
    assert (lines[-1] == f"limited by the client: {why}") is (why is not None)
    return why


def test_bottleneck_of_a_closed_loop() -> None:
    """A client that ran, or waited for a processor, nearly all the time limits the run."""
    run = a_load()
    run.statistics.used = Usage(1.0, 0.5)
    assert reason(run) is None
    run.statistics.used = Usage(1.5, 0.4)
    assert reason(run) == "it ran for 75% of the time, and waited for a processor for 20%"


def test_bottleneck_of_an_open_loop() -> None:
    """A client that sent late, or too little, limits the run."""
    run = a_load(500.0)
    run.scheduling.record([0.0001] * 99 + [0.5])
    run.statistics.used = Usage(2.0, 0.0)  # busy, but in time
    assert reason(run) is None
    run.scheduling.record([0.5])
    assert reason(run) == "one message in a hundred was sent 500.000 ms late"
    run.statistics.sent = 900
    assert reason(run) == "only 450.0 of 500.0 messages a second could be sent"


def test_late_beside_a_long_latency() -> None:
    """A delay that is a small part of the latency does not limit the run."""
    run = a_load(500.0, [0.05])
    run.scheduling.record([0.004])
    assert reason(run) is None
    run.scheduling.record([0.006] * 99)
    assert reason(run) == "one message in a hundred was sent 6.000 ms late"


def test_bottleneck_of_a_ping() -> None:
    """With the user clock, a ping that waited for a processor is limited by the client."""
    run = a_ping(replies=[0.002, 0.002], sent=2)
    run.answered = 2
    run.scheduling.record([0.003])  # changes no round trip
    run.waited = 0.0004
    assert reason(run) is None
    run.waited = 0.0006
    assert reason(run) == "it waited for a processor for 0.300 ms a message"
    run._reader.stamps.used = True
    assert reason(run) is None
    assert ping_result(run)["clock"] == "kernel"
    assert reason(a_ping(sent=1)) is None


def test_dropped_here() -> None:
    """Messages that this machine dropped do not count as lost; the run has failed."""
    run = a_load(500.0, sent=1000, received=992, dropped_here=5)
    run.scheduling.record([0.0001])
    result = load_result(run)
    assert (result["lost"], result["lost_fraction"], result["dropped_here"]) == (3, 0.003, 5)
    assert reason(run) == "this machine dropped 5 messages or replies (0.50%)"
    assert "992 received, 3 lost (0.3 %), 0 late, 0 damaged, 5 dropped here" in load_text(run)[1]
    assert not is_ok(a_ping(sent=2, received=1, dropped_here=1))
    run.statistics.sent = 900
    assert reason(run) == (
        "this machine dropped 5 messages or replies (0.50%); "
        "only 450.0 of 500.0 messages a second could be sent"
    )


def test_lost_fraction() -> None:
    """Without a message, the lost fraction is ``None``."""
    assert ping_result(a_ping(sent=3, received=2))["lost_fraction"] == pytest.approx(1 / 3)
    assert ping_result(a_ping())["lost_fraction"] is None


def test_pipe() -> None:
    """The result of a pipe has its bytes and its throughput."""
    run = Pipe(connector("h:7"), 0, 1, lambda _: None)
    result = pipe_result(run)
    assert (result["ok"], result["sent_bytes"], result["bytes_per_second"]) == (True, 0, 0.0)
    run.received, run.sent, run.seconds, run.failure = 1000, 2000, 4.0, "no answer in time"
    result = pipe_result(run)
    assert (result["ok"], result["failure"]) == (False, "no answer in time")
    assert (result["received_bytes"], result["bytes_per_second"]) == (1000, 250.0)
