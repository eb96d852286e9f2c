"""Print how long the start and the end of an echo peer take: ``python benchmarks/fixture.py``."""

from __future__ import annotations

import argparse
import statistics
import time

from echod.peer import SERVES, EchoPeer


def measure(transport: str) -> tuple[float, float]:
    """Return the seconds of one start and one end."""
    begin = time.perf_counter()
    with EchoPeer(transport):
        started = time.perf_counter()
    return started - begin, time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Measure the start and the end of an echo peer, for each transport."
    )
    parser.add_argument("--runs", type=int, default=100, metavar="N", help="100 by default")
    runs = parser.parse_args().runs
    if runs < 1:
        parser.error(f"--runs takes a number from 1, not {runs}")
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
