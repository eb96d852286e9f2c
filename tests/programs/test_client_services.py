"""The client's counts compared with those of services that have one known fault each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.client.memory import echod_client
from tests.programs.mirrors import Mirror

COUNTS = ("lost", "late", "damaged", "duplicated", "reordered", "unexpected", "under_way")


def wrong(result: dict[str, Any]) -> dict[str, int]:
    """Return the counts of faults that are not 0."""
    return {name: result[name] for name in COUNTS if result[name]}


def target_of(mirror: Mirror, udp: bool = False) -> str:
    return f"{'udp:' if udp else ''}127.0.0.1:{mirror.port}"


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize(
    "command",
    [
        ("ping", "-c", 5, "-i", 0.001),
        ("load", "-d", 0.2, "-C", 3),
        ("load", "-d", 0.2, "-C", 3, "-r", 200),
    ],
)
def test_no_fault(command: tuple[Any, ...], udp: bool) -> None:
    """A correct service has all messages received, and the exit status is 0."""
    with Mirror("plain", *["--udp"] * udp) as mirror:
        outcome = echod_client(*command, target_of(mirror, udp), "--json")
        counted = mirror.stop()
    result = outcome.result
    assert (outcome.status, outcome.err, wrong(result), result["errors"]) == (0, "", {}, {})
    assert result["sent"] == result["received"] > 0
    assert result["protocol"] == ("udp" if udp else "tcp")
    assert counted["bytes"] == result["sent"] * 64


@pytest.mark.parametrize("udp", [False, True])
def test_damage(udp: bool) -> None:
    """Each damaged byte is counted, and each message with a damaged byte."""
    with Mirror("damage", "--every", 1000, *["--udp"] * udp) as mirror:
        outcome = echod_client(
            "load", target_of(mirror, udp), "-d", 0.3, "-C", 2, "-s", 300, "--json"
        )
        counted = mirror.stop()
    result = outcome.result
    assert outcome.status == 1
    assert counted["bytes"] == result["sent"] * 300
    assert result["damaged_bytes"] == counted["damaged"] > 10
    # No two of a message's 300 bytes are a thousand apart.
    assert wrong(result) == {"damaged": counted["damaged"]}


@pytest.mark.parametrize(
    ("kind", "name", "count"),
    [
        ("drop", "lost", "dropped"),
        ("duplicate", "duplicated", "duplicated"),
        ("reorder", "reordered", "reordered"),
    ],
)
def test_datagrams(kind: str, name: str, count: str) -> None:
    """Lost, duplicated and reordered datagrams are counted exactly."""
    with Mirror(kind, "--udp", "--every", 100) as mirror:
        outcome = echod_client(
            # Slow enough for the receive queue to hold all datagrams on a busy machine.
            *("load", target_of(mirror, udp=True), "-d", 2.08, "-r", 500, "-W", 1, "--json")
        )
        counted = mirror.stop()
    result = outcome.result
    assert counted["datagrams"] == result["sent"] == 1040
    assert counted[count] == 10
    assert wrong(result) == {name: 10}
    assert outcome.status == (0 if name == "reordered" else 1)


def test_late_datagrams() -> None:
    """Late datagrams are not lost; those that others overtake are also reordered."""
    with Mirror("late", "--udp", "--every", 5, "--seconds", 1.1) as mirror:
        outcome = echod_client(
            # A busy machine delays the other replies, too: by less than a second.
            *("ping", target_of(mirror, udp=True), "-c", 19, "-i", 0.15, "-W", 1, "--json")
        )
        counted = mirror.stop()
    result = outcome.result
    assert outcome.status == 1
    assert wrong(result) == {"late": 3, "reordered": result["reordered"]}
    assert counted["late"] == 3
    assert 1.1 <= result["round_trip_seconds"]["max"] < 1.6


def test_late_messages() -> None:
    """Late messages on a connection are counted, though later ones wait for them."""
    with Mirror("late", "--every", 2, "--size", 64, "--seconds", 1) as mirror:
        outcome = echod_client("ping", target_of(mirror), "-c", 3, "-i", 1.2, "-W", 0.6, "--json")
        counted = mirror.stop()
    assert outcome.status == 1
    assert wrong(outcome.result) == {"late": 1}
    assert counted["paused"] == 1


@pytest.mark.parametrize(
    ("kind", "count", "word"), [("close", "closed", "closed"), ("reset", "reset", "reset")]
)
def test_ended_early(kind: str, count: str, word: str) -> None:
    """Connections that the service ends are counted by how they ended."""
    with Mirror(kind, "--after", 640) as mirror:
        outcome = echod_client("load", target_of(mirror), "-d", 10, "-C", 7, "--json")
        counted = mirror.stop()
    result = outcome.result
    assert outcome.status == 1
    assert counted[count] == 7
    assert result["errors"] == {word: 7}
    # Ten replies were received on each, unless a reset has discarded some.
    assert result["received"] == 70 or kind == "reset"
    assert result["sent"] == result["received"] + result["lost"]


def test_silent() -> None:
    """A service that accepts and sends nothing is awaited for the timeout, and counted."""
    with Mirror("silent") as mirror:
        outcome = echod_client("load", target_of(mirror), "-d", 0.1, "-C", 3, "-W", 0.3, "--json")
        counted = mirror.stop()
    result = outcome.result
    assert outcome.status == 1
    assert counted == {"connections": 3, "bytes": 3 * 64}
    assert wrong(result) == {"lost": 3}
    assert result["connections_silent"] == 3


def test_silent_over_udp() -> None:
    """Over UDP a closed loop continues after a datagram is given up."""
    with Mirror("silent", "--udp") as mirror:
        outcome = echod_client("load", target_of(mirror, udp=True), "-d", 0.8, "-W", 0.1, "--json")
        counted = mirror.stop()
    assert outcome.status == 1
    assert counted["datagrams"] == outcome.result["lost"] == outcome.result["sent"] >= 3


def test_extra() -> None:
    """An inserted byte is unexpected when no reply is outstanding."""
    with Mirror("extra", "--after", 64 * 3) as mirror:
        outcome = echod_client("ping", target_of(mirror), "-c", 5, "-i", 0.01, "--json")
        assert mirror.stop() == {"extra": 1}
    assert outcome.status == 1
    assert outcome.result["received"] == 5
    assert wrong(outcome.result) == {"unexpected": 1}


def test_swallow() -> None:
    """A missing byte damages the replies after it, and the last one stays incomplete."""
    with Mirror("swallow", "--after", 64 * 3) as mirror:
        outcome = echod_client("ping", target_of(mirror), "-c", 5, "-i", 0.01, "-W", 1, "--json")
        assert mirror.stop() == {"swallowed": 1}
    assert outcome.status == 1
    assert outcome.result["received"] == 3
    assert wrong(outcome.result) == {"damaged": 1, "lost": 1}


@pytest.mark.parametrize("command", [("ping", "-c", 2), ("load", "-d", 1), ("pipe",)])
def test_refuse(command: tuple[Any, ...]) -> None:
    """A refused connection is reported in one line, and the exit status is 1."""
    with Mirror("refuse") as mirror:
        status, out, err = echod_client(*command, target_of(mirror))
        target = target_of(mirror)
    assert (status, out) == (1, "")
    assert err.startswith(f"echod-client {command[0]}: {target}: ")
    assert err.endswith("connection refused\n")
    assert err.count("\n") == 1


def test_refuse_over_udp() -> None:
    """Over UDP each refused datagram is counted."""
    with Mirror("refuse", "--udp") as mirror:
        outcome = echod_client(
            "ping", target_of(mirror, udp=True), "-c", 5, "-i", 0.01, "-W", 0.1, "--json"
        )
    assert outcome.status == 1
    assert outcome.result["errors"] == {"refused": 5}
    assert wrong(outcome.result) == {"lost": 5}


def test_name() -> None:
    """A name is resolved, and the address that answers is reported."""
    with Mirror("plain") as mirror:
        outcome = echod_client("ping", f"localhost:{mirror.port}", "-c", 1, "--json")
    assert outcome.status == 0
    assert outcome.result["address"] == f"127.0.0.1:{mirror.port}"
    assert outcome.result["errors"] == {}


def test_unix() -> None:
    """A UNIX socket that does not exist is reported in one line."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "none")
        status, _, err = echod_client("ping", f"unix:{path}", "-c", 1)
    assert status == 1
    assert err == f"echod-client ping: unix:{path}: no such file or directory\n"
