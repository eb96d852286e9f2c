"""The processes of ``truth.py``: the service in C, the clients, and their figures."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Final, NamedTuple

from client import CLIENT, output_of
from losses import HOST
from servers import LISTENS, LOAD_CORE, SERVER_CORE, TWISTD, build
from tls import CERTIFICATE, KEY, write_files

OURS, IN_C, IRTT, SOCKPERF, STUNNEL = "echod-client", "C", "irtt", "sockperf", "stunnel4"
CLIENTS: Final = (OURS, IN_C, IRTT, SOCKPERF)
SIZE: Final = 64  # bytes of a message
LIMIT: Final = 10.0  # seconds for a process to start
WAIT: Final = 0.5  # seconds for the last replies
RATE: Final = 5000  # messages a second that the service takes
PERCENTILES: Final = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}
COUNTS: Final = ("lost", "damaged", "duplicated", "reordered")

Figures = dict[str, float]
"""Times in seconds, and counts."""


class Traffic(NamedTuple):
    """Messages at a constant rate.

    :ivar command: ``ping`` or ``load``.
    :ivar options: further options of echod-client.
    """

    command: str
    interval: float  # seconds
    seconds: float
    options: tuple[str, ...] = ()


def missing() -> list[str]:
    """Return the programs that are not installed."""
    return [name for name in (IRTT, SOCKPERF, STUNNEL) if not shutil.which(name)]


def build_tools(tools: str) -> None:
    """Compile the service and the client in C; write a certificate for stunnel."""
    build("truth.c", f"{tools}/truth")
    build("client.c", f"{tools}/client")
    write_files(Path(tools))
    Path(tools, "trusted").mkdir()
    shutil.copy(Path(tools, CERTIFICATE), Path(tools, "trusted"))


@contextmanager
def running(
    command: Sequence[str], core: Sequence[int] = SERVER_CORE
) -> Iterator[subprocess.Popen[str]]:
    """Run a process on a core, and kill it at the end of the context."""
    os.sched_setaffinity(0, core)
    try:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    finally:
        os.sched_setaffinity(0, LOAD_CORE)
    with process:
        try:
            yield process
        finally:
            process.kill()


def busy_loop() -> AbstractContextManager[object]:
    """Keep the core of the clients busy."""
    return running(["sh", "-c", "while :; do :; done"], LOAD_CORE)


class Service(NamedTuple):
    """The service in C, while it runs."""

    process: subprocess.Popen[str]
    port: int  # 0 for a UNIX socket
    target: str

    def end(self) -> Figures:
        """End it, and return what it did."""
        self.process.terminate()
        assert self.process.stdout is not None
        log = json.loads(self.process.stdout.read())
        if log["dropped_here"]:
            raise RuntimeError("truth.c has dropped datagrams: this machine is too slow")
        lost = log["dropped_requests"] + log["dropped_replies"]
        return {**log.pop("delay_seconds"), **log, "lost": lost}


@contextmanager
def truth(tools: str, where: str, **options: int) -> Iterator[Service]:
    """Run the service in C on ``tcp``, ``udp``, ``unix`` or ``tls``, with its options."""
    place = {"unix": f"unix:{tools}/socket", "tls": "tcp"}.get(where, where)
    words = (f"{name}={value}" for name, value in options.items())
    with running([f"{tools}/truth", place, *words]) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "listening on" not in line:
            raise RuntimeError(f"truth.c does not listen: {line.rstrip()}")
        found = LISTENS.search(line)
        port = int(found[1]) if found else 0
        target = {"udp": f"udp:{HOST}:{port}", "tcp": f"{HOST}:{port}"}.get(where, place)
        with stunnel(tools, port) if where == "tls" else nullcontext(target) as target:
            yield Service(process, port, target)


def free_port(kind: socket.SocketKind) -> int:
    with socket.socket(socket.AF_INET, kind) as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


def wait_until_bound(port: int, kind: socket.SocketKind) -> None:
    """Return when a process has bound a port: its log is not flushed, or does not say so."""
    deadline = time.monotonic() + LIMIT
    while time.monotonic() < deadline:
        with socket.socket(socket.AF_INET, kind) as sock:
            try:
                sock.bind((HOST, port))
            except OSError:
                return
        time.sleep(0.01)
    raise RuntimeError(f"no process listens on port {port}")


@contextmanager
def stunnel(tools: str, port: int) -> Iterator[str]:
    """Accept TLS before a port with stunnel, and yield the target."""
    accepts = free_port(socket.SOCK_STREAM)
    lines = ("foreground = yes", "pid =", "socket = l:TCP_NODELAY=1", "socket = r:TCP_NODELAY=1")
    service = (f"accept = {HOST}:{accepts}", f"connect = {HOST}:{port}")
    files = (f"cert = {tools}/{CERTIFICATE}", f"key = {tools}/{KEY}")
    configuration = Path(tools, "stunnel.conf")
    configuration.write_text("\n".join([*lines, "[echo]", *service, *files, ""]))
    with running([STUNNEL, str(configuration)]):
        wait_until_bound(accepts, socket.SOCK_STREAM)
        yield f"tls:localhost:{accepts}:trustRoots={tools}/trusted"


# The clients.


def json_of(*arguments: object) -> dict[str, Any]:
    """Run echod-client, and return its JSON; a status of 1 is a result, too."""
    result: dict[str, Any] = json.loads(output_of([CLIENT, *arguments, "--json"], (0, 1)))
    if result["failure"]:
        raise RuntimeError(f"echod-client: {result['failure']}")
    return result


def ours(target: str, traffic: Traffic) -> Figures:
    """Return the figures of echod-client."""
    words: list[object] = [traffic.command, target, "-s", SIZE, "-W", WAIT, *traffic.options]
    if traffic.command == "ping":
        words += ["-i", traffic.interval, "-c", round(traffic.seconds / traffic.interval)]
    else:
        words += ["-d", traffic.seconds]
        if traffic.interval:
            words += ["-r", round(1 / traffic.interval)]
    return figures_of(json_of(*words))


def figures_of(result: dict[str, Any]) -> Figures:
    """Return the figures in the JSON of echod-client."""
    times = result.get("latency_seconds") or result["round_trip_seconds"]
    delays = result["scheduling_error_seconds"]
    connect = result["connect_seconds"]
    limited = result["client_was_bottleneck"]
    return {
        **{name: times[name] or 0.0 for name in PERCENTILES},
        **{name: result[name] for name in COUNTS},
        "unreported": 0 if limited else result["dropped_here"],
        "limited": limited,
        "lateness": (delays and delays["p99"]) or 0.0,
        "connect": (connect["p50"] if isinstance(connect, dict) else connect) or 0.0,
    }


def connect_ratio(tools: str, seconds: float) -> Figures:
    """Return the time to connect to ``tcp:host:port``, divided by that to ``host:port``."""
    with truth(tools, "tcp") as service:
        times = [
            figures_of(json_of("load", each, "-C", 50, "-r", 100, "-d", seconds))["connect"]
            for each in (f"tcp:{service.target}", service.target)
        ]
    return {"ratio": times[0] / times[1]}


def rate_limit(tools: str, seconds: float) -> Figures:  # noqa: ARG001 - as the others
    """Return the rate limit of which the client hints, beside echod's own of 100 a second."""
    command = (*TWISTD, "echod", "--listen", f"udp:0:interface={HOST}")
    with running(command) as process:
        assert process.stdout is not None
        found = next(filter(None, map(LISTENS.search, process.stdout)))
        words = ("load", f"udp:{HOST}:{found[1]}", "-r", 1000, "-d", 3 * seconds, "-W", WAIT)
        limit = json_of(*words)["limit_messages_per_second"]
    return {"off": (limit or 0) - 100}


def false_alarms(tools: str, seconds: float) -> Figures:
    """Return 1 if «limited by the client» is wrong in a run beside a busy loop, otherwise 0.

    It is wrong if p99 is within 2 % of the truth; without it, p99 is within 20 %.
    """
    with truth(tools, "udp", delay=20_000) as service, busy_loop():
        found = ours(service.target, Traffic("load", 0.005, seconds))
        off = abs(found["p99"] / service.end()["p99"] - 1)
    return {"wrong": off < 0.02 if found["limited"] else off > 0.2}


def highest_rate(tools: str, seconds: float) -> Figures:
    """Return the rate that ``--find-rate`` finds, as a part of the rate that the service takes."""
    with truth(tools, "udp", rate=RATE) as service:
        words = ("-d", seconds / 2, "-W", WAIT, "--find-rate", "--latency", "p99=50ms")
        found = json_of("load", service.target, *words)["highest"]
    return {"off": 100 * (found["messages_per_second"] / RATE - 1) if found else -100.0}
