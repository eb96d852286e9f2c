"""The client's counts compared with those of peers that have one known fault each."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest

from echod.peer import EchoPeer
from tests.client.memory import Outcome, echod_client, target_of

COUNTS = ("lost", "late", "damaged", "duplicated", "reordered", "unexpected", "under_way")


def wrong(result: dict[str, Any]) -> dict[str, int]:
    """Return the counts of faults that are not 0."""
    return {name: result[name] for name in COUNTS if result[name]}


def measured(peer: EchoPeer, command: str) -> Outcome:
    """Run ``echod-client`` with the ``command``, in which ``TARGET`` stands for the peer."""
    return echod_client(*command.replace("TARGET", target_of(peer)).split(), "--json")


@pytest.mark.parametrize("transport", ["tcp", "udp"])
@pytest.mark.parametrize(
    "command",
    [
        "ping TARGET -c 5 -i 0.001",
        "load TARGET -d 0.2 -C 3",
        "load TARGET -d 0.2 -C 3 -r 200",
    ],
)
def test_no_fault(command: str, transport: str, echo_peer: EchoPeer) -> None:
    """A correct service has all messages received, and the exit status is 0."""
    outcome = measured(echo_peer(transport), command)
    result = outcome.result
    assert (outcome.status, outcome.err, wrong(result), result["errors"]) == (0, "", {}, {})
    assert result["sent"] == result["received"] > 0
    assert result["protocol"] == transport


@pytest.mark.parametrize(
    ("transport", "plan"), [("tcp", "every 1000th byte: damage"), ("udp", "every 3rd: damage")]
)
def test_damage(transport: str, plan: str, echo_peer: EchoPeer) -> None:
    """Each damaged byte is counted, and each message with a damaged byte."""
    peer = echo_peer(transport)
    peer.plan(plan)
    outcome = measured(peer, "load TARGET -d 0.3 -C 2 -s 300")
    result = outcome.result
    assert outcome.status == 1
    assert result["damaged_bytes"] == peer.counts["damage"] > 10
    # No two of a message's 300 bytes are a thousand apart.
    assert wrong(result) == {"damaged": peer.counts["damage"]}


@pytest.mark.parametrize(
    ("fault", "name"), [("drop", "lost"), ("duplicate", "duplicated"), ("reorder", "reordered")]
)
def test_datagrams(fault: str, name: str, echo_peer_udp: EchoPeer) -> None:
    """Lost, duplicated and reordered datagrams are counted exactly."""
    echo_peer_udp.plan(f"every 100th: {fault}")
    # Slow enough for the receive queue to hold all datagrams on a busy machine.
    outcome = measured(echo_peer_udp, "load TARGET -d 2.08 -r 500 -W 1")
    assert outcome.result["sent"] == 1040
    assert echo_peer_udp.counts == {fault: 10}
    assert wrong(outcome.result) == {name: 10}
    assert outcome.status == (0 if name == "reordered" else 1)


def test_late_datagrams(echo_peer_udp: EchoPeer) -> None:
    """Late datagrams are not lost; those that others overtake are also reordered."""
    echo_peer_udp.every(5).delay(1.1)
    # A busy machine delays the other replies, too: by less than a second.
    outcome = measured(echo_peer_udp, "ping TARGET -c 19 -i 0.15 -W 1")
    result = outcome.result
    assert outcome.status == 1
    assert wrong(result) == {"late": 3, "reordered": result["reordered"]}
    assert echo_peer_udp.counts == {"delay": 3}
    assert 1.1 <= result["round_trip_seconds"]["max"] < 1.6


def test_late_messages(echo_peer: EchoPeer) -> None:
    """Late messages on a connection are counted, though later ones wait for them."""
    echo_peer.every(2, "message", 64).delay(1)
    outcome = measured(echo_peer, "ping TARGET -c 3 -i 1.2 -W 0.6")
    assert outcome.status == 1
    assert wrong(outcome.result) == {"late": 1}
    assert echo_peer.counts == {"delay": 1}


@pytest.mark.parametrize(("fault", "word"), [("close", "closed"), ("reset", "reset")])
def test_ended_early(fault: str, word: str, echo_peer: EchoPeer) -> None:
    """Connections that the service ends are counted by how they ended."""
    echo_peer.plan(f"after 640 bytes: {fault}")
    outcome = measured(echo_peer, "load TARGET -d 10 -C 7")
    result = outcome.result
    assert outcome.status == 1
    assert echo_peer.counts == {fault: 7}
    assert result["errors"] == {word: 7}
    # Ten replies were received on each, unless a reset has discarded some.
    assert result["received"] == 70 or fault == "reset"
    assert result["sent"] == result["received"] + result["lost"]


def test_silent(echo_peer: EchoPeer) -> None:
    """A service that accepts and sends nothing is awaited for the timeout, and counted."""
    echo_peer.silent()
    outcome = measured(echo_peer, "load TARGET -d 0.1 -C 3 -W 0.3")
    result = outcome.result
    assert outcome.status == 1
    assert echo_peer.counts == {"silent": 3}
    assert wrong(result) == {"lost": 3}
    assert result["connections_silent"] == 3


def test_silent_over_udp(echo_peer_udp: EchoPeer) -> None:
    """Over UDP a closed loop continues after a datagram is given up."""
    echo_peer_udp.drop()
    outcome = measured(echo_peer_udp, "load TARGET -d 0.8 -W 0.1")
    assert outcome.status == 1
    assert echo_peer_udp.counts["drop"] == outcome.result["lost"] == outcome.result["sent"] >= 3


def test_extra(echo_peer: EchoPeer) -> None:
    """An inserted byte is unexpected when no reply is outstanding."""
    echo_peer.from_byte(64 * 3).insert(b"!")
    outcome = measured(echo_peer, "ping TARGET -c 5 -i 0.01")
    assert echo_peer.counts == {"insert": 1}
    assert outcome.status == 1
    assert outcome.result["received"] == 5
    assert wrong(outcome.result) == {"unexpected": 1}


def test_swallow(echo_peer: EchoPeer) -> None:
    """A missing byte damages the replies after it, and the last one stays incomplete."""
    echo_peer.from_byte(64 * 3).swallow()
    outcome = measured(echo_peer, "ping TARGET -c 5 -i 0.01 -W 1")
    assert echo_peer.counts == {"swallow": 1}
    assert outcome.status == 1
    assert outcome.result["received"] == 3
    assert wrong(outcome.result) == {"damaged": 1, "lost": 1}


@pytest.mark.parametrize("command", ["ping TARGET -c 2", "load TARGET -d 1", "pipe TARGET"])
def test_refuse(command: str, echo_peer: EchoPeer) -> None:
    """A connection that the kernel refuses is reported in one line, and the exit status is 1."""
    echo_peer.stop()
    target = target_of(echo_peer)
    status, out, err = echod_client(*command.replace("TARGET", target).split())
    assert (status, out) == (1, "")
    assert err.startswith(f"echod-client {command.split(maxsplit=1)[0]}: {target}: ")
    assert err.endswith("connection refused\n")
    assert err.count("\n") == 1


def test_refuse_over_udp(echo_peer_udp: EchoPeer) -> None:
    """Over UDP each refused datagram is counted."""
    echo_peer_udp.stop()
    outcome = measured(echo_peer_udp, "ping TARGET -c 5 -i 0.01 -W 0.1")
    assert outcome.status == 1
    assert outcome.result["errors"] == {"refused": 5}
    assert wrong(outcome.result) == {"lost": 5}


def test_name(echo_peer: EchoPeer) -> None:
    """A name is resolved, and the address that answers is reported."""
    outcome = echod_client("ping", f"localhost:{echo_peer.port}", "-c", 1, "--json")
    assert outcome.status == 0
    assert outcome.result["address"] == f"127.0.0.1:{echo_peer.port}"
    assert outcome.result["errors"] == {}


def test_unix() -> None:
    """A UNIX socket that does not exist is reported in one line."""
    with tempfile.TemporaryDirectory() as directory:
        path = str(Path(directory) / "none")
        status, _, err = echod_client("ping", f"unix:{path}", "-c", 1)
    assert status == 1
    assert err == f"echod-client ping: unix:{path}: no such file or directory\n"
