"""``merge``: the sum of runs equals one run with all messages."""

from __future__ import annotations

import io
import json
import random
from math import nan
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.task import Clock

from echod.client.connector import Connector
from echod.client.load import Load
from echod.client.main import main
from echod.client.merge import merge, merge_files, read_runs
from echod.client.ping import Ping
from echod.client.report import load_result, ping_result, to_json
from echod.client.target import parse_target
from echod.client.terminal import Console

RANDOM = random.Random(862)


def a_load(times: list[float], *, lost: int = 0, target: str = "h:7") -> Load:
    connector = Connector(Clock(), parse_target(target), 10.0)
    workload = {"connections": 2, "duration": 2.0, "rate": 100.0}
    run = Load(connector, 64, on_interval=lambda _: None, **workload)
    for each in times:
        run.tally.count(each)
    run.tally.sum_up()
    run.tally.sent = len(times) + lost
    run.statistics.sending_seconds = 2.0
    run.statistics.sent = run.statistics.replies = len(times)
    return run


def a_ping(times: list[float]) -> Ping:
    run = Ping(
        Connector(Clock(), parse_target("h:7"), 10.0),
        64,
        interval=1.0,
        count=None,
        notify=lambda _: None,
    )
    for each in times:
        run.tally.count(each)
    run.tally.sum_up()
    run.tally.sent = len(times)
    return run


def written(tmp_path: Path, name: str, result: dict[str, Any]) -> str:
    file = tmp_path / name
    file.write_text(f"{to_json(result)}\n")
    return str(file)


def merged(*files: str, is_json: bool = True) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    status = merge_files(files, is_json, Console("merge", out, err))
    return status, out.getvalue(), err.getvalue()


def test_pooled(tmp_path: Path) -> None:
    """Two merged runs have the figures of one run with the messages of both."""
    fast = [RANDOM.expovariate(1000) for _ in range(20_000)]
    slow = [RANDOM.paretovariate(1.2) / 1000 for _ in range(10_000)]
    files = [
        written(tmp_path, "a.json", load_result(a_load(fast, lost=3))),
        written(tmp_path, "b.json", load_result(a_load(slow, lost=1, target="other:7"))),
    ]
    status, out, err = merged(*files)
    assert (status, err) == (1, "")  # messages are lost
    found, pooled = json.loads(out), json.loads(to_json(load_result(a_load(fast + slow, lost=4))))
    exact = {"mean", "stdev"}
    for name, value in pooled["latency_seconds"].items():
        if name in exact:
            assert found["latency_seconds"][name] == pytest.approx(value, abs=2e-9)
        else:
            assert found["latency_seconds"][name] == value, name
    assert found["latency_hdrhistogram"] == pooled["latency_hdrhistogram"]
    for name in ("sent", "received", "lost", "late", "lost_fraction"):
        assert found[name] == pooled[name], name
    assert (found["command"], found["merged_command"], found["runs"]) == ("merge", "load", 2)
    assert (found["target"], found["connections"]) == ("h:7, other:7", 4)
    assert found["asked_messages_per_second"] == 200
    assert found["messages_per_second"] == 15_000
    assert (found["client_was_bottleneck"], found["client_bottleneck"]) == (False, None)


def test_merged_again(tmp_path: Path) -> None:
    """A merged run can be merged again, in any order."""
    names = [
        written(tmp_path, f"{number}.json", load_result(a_load([0.001 * number] * 10)))
        for number in range(1, 4)
    ]
    _, out, _ = merged(*names)
    (tmp_path / "two.json").write_text(merged(*names[:2])[1])
    again = json.loads(merged(str(tmp_path / "two.json"), names[2])[1])
    expected = json.loads(out)
    assert again["runs"] == expected["runs"] == 3
    assert again["latency_hdrhistogram"] == expected["latency_hdrhistogram"]
    assert again["latency_seconds"] == pytest.approx(expected["latency_seconds"], abs=2e-9)


def test_pings(tmp_path: Path) -> None:
    """Pings can be merged; a file may hold the results of several targets, and events."""
    first, second = (ping_result(a_ping([each])) for each in (0.001, 0.003))
    events = {"event": "reply", "number": 0}
    file = tmp_path / "a.json"
    lines = (events, {**first, "event": "summary"}, second)
    file.write_text("\n".join(to_json(each) for each in lines))
    status, out, _ = merged(str(file), is_json=False)
    assert status == 0
    assert out.splitlines() == [
        "2 runs of ping on h:7 over TCP, 64 bytes a message",
        "2 sent, 2 received, 0 lost, 0 late, 0 damaged",
        "round trip: min 1.000, mean 2.000, stdev 1.000, p50 1.001, p90 3.000, p99 3.000, "
        "max 3.000 ms; user clock",
    ]


def test_text_of_loads(tmp_path: Path) -> None:
    """The text of merged loads has the sum of the rates, and the errors."""
    run = a_load([0.001])
    run.errors["reset"] += 1
    run.statistics.sent = 100
    names = [written(tmp_path, name, load_result(run)) for name in ("a", "b")]
    status, out, _ = merged(*names, is_json=False)
    assert status == 1
    assert "errors: reset 2\n" in out
    why = "only 50.0 of 100.0 messages a second could be sent"
    assert f"limited by the client: {names[0]}: {why}; {names[1]}: {why}\n" in out
    assert "throughput, if at the same time: 1.0 messages a second, 0.000 MB/s each way\n" in out


def test_without_replies(tmp_path: Path) -> None:
    """Runs without a reply can be added."""
    names = [written(tmp_path, name, ping_result(a_ping([]))) for name in ("a", "b")]
    _, out, _ = merged(*names)
    result = json.loads(out)
    assert (result["lost_fraction"], result["round_trip_seconds"]["max"]) == (None, None)
    assert merged(*names, is_json=False)[0] == 1


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"size_bytes": 65}, "size bytes is 65 and 64"),
        ({"protocol": "udp"}, "protocol is udp and tcp"),
        ({"timeout_seconds": 1.0}, "timeout seconds is 1.0 and 10.0"),
        ({"clock": "kernel"}, "clock is kernel and user"),
        ({"loop": "closed"}, "loop is closed and open"),
    ],
)
def test_different_runs(tmp_path: Path, change: dict[str, Any], why: str) -> None:
    """Runs whose times cannot be compared are refused in one line."""
    record = load_result(a_load([0.001]))
    names = [
        written(tmp_path, "a.json", record),
        written(tmp_path, "b.json", {**record, **change}),
    ]
    status, out, err = merged(*names)
    assert (status, out) == (2, "")
    assert err == f"echod-client merge: {names[1]} and {names[0]} cannot be added: {why}\n"


def test_ping_and_load(tmp_path: Path) -> None:
    """A ping cannot be added to a load."""
    runs = [
        {**load_result(a_load([0.001])), "merged_command": "load", "file": "a"},
        {**ping_result(a_ping([0.001])), "merged_command": "ping", "file": "b"},
    ]
    with pytest.raises(ValueError, match="b and a cannot be added: merged command is ping and"):
        merge(runs)


@pytest.mark.parametrize(
    "text",
    [
        *("", "{}", "[]", "3", "null", "{", '{"command": "pipe"}', '{"command": []}'),
        '{"command": "ping", "round_trip_hdrhistogram": "", "round_trip_seconds": {}}',
        json.dumps({**ping_result(a_ping([0.1])), "round_trip_hdrhistogram": "HISTFAAA"}),
        json.dumps({**ping_result(a_ping([0.1])), "round_trip_seconds": {}}),
        json.dumps({**ping_result(a_ping([0.1])), "errors": 3}),
        json.dumps({**ping_result(a_ping([0.1])), "sent": "x"}),
        "\n".join(json.dumps({**ping_result(a_ping([0.1])), "sent": each}) for each in (1, "x")),
        json.dumps({**ping_result(a_ping([0.1])), "sent": nan}),
        json.dumps({**ping_result(a_ping([0.1])), "errors": {"reset": "x"}}),
        json.dumps({**ping_result(a_ping([0.1])), "started_at": 3}),
        "[" * 100_000,
    ],
)
def test_other_files(tmp_path: Path, text: str) -> None:
    """Files with other contents are named."""
    file = tmp_path / "a.json"
    file.write_text(text)
    with pytest.raises(ValueError, match="not the output of ping --json or load --json"):
        read_runs(str(file))
    status, _, err = merged(str(file))
    assert status == 2
    assert err == f"echod-client merge: {file}: not the output of ping --json or load --json\n"


def test_unreadable_files(tmp_path: Path) -> None:
    """A missing file, and one that is given twice, are named."""
    missing = str(tmp_path / "none")
    _, _, err = merged(missing)
    assert err == f"echod-client merge: {missing}: no such file or directory\n"
    name = written(tmp_path, "a.json", ping_result(a_ping([0.1])))
    assert merged(name, name)[2] == (
        f"echod-client merge: {name}: is given twice: name each run once\n"
    )


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """``echod-client merge`` needs no target and no reactor."""
    name = written(tmp_path, "a.json", ping_result(a_ping([0.1])))
    assert main(["merge", "--json", name]) == 0
    assert json.loads(capsys.readouterr().out)["runs"] == 1
    with pytest.raises(SystemExit, match="2"):
        main(["merge"])
    assert "FILE" in capsys.readouterr().err
