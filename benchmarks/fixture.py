"""Print how long the start and the end of an echo peer take, for each transport.

usage: python benchmarks/fixture.py [RUNS]
"""

from __future__ import annotations

import statistics
import sys
import time

from echod.peer import SERVES, EchoPeer


def measure(transport: str) -> tuple[float, float]:
    """Return the seconds of one start and one end."""
    begin = time.perf_counter()
    with EchoPeer(transport):
        started = time.perf_counter()
    return started - begin, time.perf_counter() - started


def main() -> None:
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    for transport in SERVES:
        measure(transport)  # imports what the transport needs
        starts, ends = zip(*(measure(transport) for _ in range(runs)), strict=True)
        start, longest, end = statistics.median(starts), max(starts), statistics.median(ends)
        print(
            f"{transport}: start {start * 1000:.2f} ms (median of {runs};"
            f" longest {longest * 1000:.2f} ms), end {end * 1000:.2f} ms"
        )


if __name__ == "__main__":
    main()
