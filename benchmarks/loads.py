"""The loads of the benchmarks: processes of ``load.c`` and ``records.py``, and their figures."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from servers import HERE, Server, waited
from units import Figures


@dataclass(frozen=True)
class Scenario:
    """A kind of load, and its amount."""

    how: str  # argument HOW of load.c
    connections: int
    size: int = 64  # bytes of a message
    milliseconds: int = 250  # of a run
    most: int = 0  # messages or connections of a run; 0: any number
    runs: int = 3  # of each server in a round; the servers take turns
    records: bool = False  # beside the peers of records.py


class Load:
    """A process of ``load.c``, connected to a server and warmed up. :meth:`close` ends it."""

    def __init__(self, tools: str, server: Server, scenario: Scenario, connections: int) -> None:
        numbers = (connections, scenario.size, scenario.milliseconds, scenario.most)
        self._server = server
        self.process = subprocess.Popen(
            [f"{tools}/load", str(server.port), scenario.how, *map(str, numbers)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        self._line()

    def run(self) -> list[int]:
        """Run once, and return the numbers that ``load.c`` prints."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return [int(word) for word in self._line().split()]

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()

    def _line(self) -> str:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        line = self.process.stdout.readline()
        if not line:
            error = self.process.stderr.read().strip()
            raise RuntimeError(f"{self._server.name}: {error or 'the load has died'}")
        return line


class Records:
    """A process of ``records.py``, connected to the second port of a server."""

    def __init__(self, tools: str, server: Server) -> None:
        self.process = subprocess.Popen(
            [sys.executable, HERE / "records.py", str(server.ports[1]), f"{tools}/certificate.pem"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def ready(self) -> None:
        """Wait until all its peers send."""
        assert self.process.stdout is not None
        if not self.process.stdout.readline():
            self.process.wait()

    def close(self) -> None:
        """End it. Raise its error if it has ended before: a wrong byte, or a lost connection."""
        ended = self.process.poll() is not None
        self.process.kill()
        _, errors = self.process.communicate()
        if ended:
            raise RuntimeError(errors.strip())


def measured(load: Load, server: Server, scenario: Scenario) -> Figures:
    """Return the raw figures of one run, in nanoseconds and bytes."""

    def until_now() -> dict[str, float]:
        return {
            "memory": server.memory() if scenario.how == "idle" else 0,
            "waited": waited(load.process.pid) + server.waited(),
            "cpu": server.cpu(),
        }

    before = until_now()
    numbers = load.run()
    spent = {name: value - before[name] for name, value in until_now().items()}
    return spent | dict(zip(("done", "wall", "own", "p50", "p99"), numbers, strict=True))


def figures(scenario: Scenario, runs: Sequence[Figures]) -> Figures:
    """Return the figures of all runs of a server, in the units of the tables."""
    total = {name: sum(run[name] for run in runs) for name in runs[0]}
    done, wall = total["done"], total["wall"]
    if not done:
        raise RuntimeError("nothing was done in the time of a run")
    if scenario.how == "idle":
        return {"kib": total["memory"] / 1024 / done}
    return {
        "cpu": total["cpu"] / 1000 / done,
        "rate": done / wall * 1e9,
        "mb": done * scenario.size / wall * 1e3,
        # The percentiles of the last run include all runs before it.
        "p50": runs[-1]["p50"] / 1000,
        "p99": runs[-1]["p99"] / 1000,
        "busy": total["cpu"] / wall,
        "load": total["own"] / wall,
        # Divided by two cores; several threads can wait for one core at the same time.
        "waited": min(1, total["waited"] / wall / 2),
    }
