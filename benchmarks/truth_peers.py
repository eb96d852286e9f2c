"""The peers of ``truth.py``: irtt, sockperf and a client in C, and their figures."""

from __future__ import annotations

import json
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

from client import output_of
from losses import HOST
from truth_runs import (
    IRTT,
    PERCENTILES,
    SIZE,
    SOCKPERF,
    WAIT,
    Figures,
    Traffic,
    free_port,
    running,
    wait_until_bound,
)


@contextmanager
def peers_server(name: str, protocol: str = "udp") -> Iterator[int]:
    """Run the server of irtt or sockperf, and yield its port."""
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    port = free_port(kind)
    command = {
        IRTT: ["irtt", "server", "-b", f"{HOST}:{port}", "-i", "0"],
        SOCKPERF: ["sockperf", "server", "-i", HOST, "-p", str(port)],
    }[name]
    with running([*command, *(["--tcp"] if protocol == "tcp" else [])]):
        wait_until_bound(port, kind)
        yield port


def percentiles(times: list[float]) -> Figures:
    """Return the nearest-rank percentiles."""
    times = sorted(times) or [0.0]
    return {name: times[ceil(part * len(times)) - 1] for name, part in PERCENTILES.items()}


def irtt(port: int, traffic: Traffic) -> Figures:
    """Return the figures of irtt, whose times exclude those of its server."""
    pace = ("-i", f"{round(traffic.interval * 1e6)}us", "-d", f"{traffic.seconds}s")
    rest = ("-l", SIZE, "--fill=rand", f"--wait={WAIT}s", f"{HOST}:{port}")
    output = output_of(["irtt", "client", "-Q", "-o", "-", *pace, *rest])
    return figures_of_irtt(json.loads(output), traffic.interval)


def figures_of_irtt(result: dict[str, Any], interval: float) -> Figures:
    """Return the figures in the JSON of irtt."""
    stats, trips = result["stats"], result["round_trips"]
    sent = [each["timestamps"]["client"]["send"]["monotonic"] / 1e9 for each in trips]
    late = [moment - sent[0] - number * interval for number, moment in enumerate(sent)]
    return {
        **percentiles([each["delay"]["rtt"] / 1e9 for each in trips if each["lost"] == "false"]),
        "lost": sum(each["lost"] != "false" for each in trips),
        "duplicated": stats["duplicates"],
        "reordered": stats["late_packets"],
        "lateness": percentiles(late)["p99"],
    }


def sockperf(port: int, traffic: Traffic, protocol: str = "udp") -> Figures:
    """Return the figures of sockperf, which leaves out 0.4 s at the beginning of a run."""
    words: list[object] = ["ping-pong"]
    if traffic.interval:
        words = ["under-load", "--reply-every", 1, "--mps", round(1 / traffic.interval)]
    words += ["-i", HOST, "-p", port, "-m", SIZE, "-t", ceil(traffic.seconds)]
    words += ["--full-rtt", "--dontwarmup", *(["--tcp"] if protocol == "tcp" else [])]
    output = output_of(["sockperf", *words])
    return figures_of_sockperf(output)


def figures_of_sockperf(output: str) -> Figures:
    """Return the figures in the text of sockperf."""

    def number(pattern: str) -> float:
        found = re.search(pattern + r" *= *([\d.]+)", output)
        if not found:
            raise RuntimeError(f"sockperf: no {pattern!r} in its output")
        return float(found[1])

    ranks = {name: f"percentile {100 * part:.3f}" for name, part in PERCENTILES.items()}
    ranks["max"] = "<MAX> observation"
    return {
        **{name: number(rank) / 1e6 for name, rank in ranks.items()},
        "lost": number("# dropped messages"),
    }


def c_client(tools: str, protocol: str, port: int, traffic: Traffic) -> Figures:
    """Return the percentiles of ``client.c``; without an interval, of 10,000 messages."""
    count = round(traffic.seconds / traffic.interval) if traffic.interval else 10_000
    words = [f"{tools}/client", protocol, port, count, round(traffic.interval * 1e6), SIZE]
    p50, p99 = output_of(words).split()
    return {"p50": int(p50) / 1e9, "p99": int(p99) / 1e9}
