"""What is drawn in a terminal: progress, a line that lives, a histogram."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from math import exp, floor, log
from typing import Final, NoReturn, TextIO

from tqdm import tqdm

from echod.client.report import in_ms
from echod.client.statistics import Interval

ROWS: Final = 12
"""Bars of a histogram, at the most."""

PART: Final = 1.02
"""Values that differ by less are one bar: there is nothing to see between them."""

NARROW: Final = 30
"""Columns that are drawn in at the least."""

tqdm.monitor_interval = 0  # it would be a thread, for loops that stand still


def is_terminal(file: TextIO) -> bool:
    """Tell whether ``file`` is shown to somebody."""
    return file.isatty()


def columns() -> int:
    """Return how many columns there are."""
    return max(NARROW, shutil.get_terminal_size().columns)


def bytes_left(descriptor: int) -> int | None:
    """Return how many bytes there are still to be read, where a file knows."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def progress_bar(file: TextIO, total: int | None) -> tqdm[NoReturn]:
    """Return a bar that counts bytes."""
    bar: tqdm[NoReturn] = tqdm(
        total=total, unit="B", unit_scale=True, file=file, dynamic_ncols=True
    )
    # By default tqdm follows the time of day: when that is set back, the bar stands still.
    bar._time = time.monotonic  # type: ignore[attr-defined]
    bar.reset()
    return bar


class RateLine:
    """A line that shows the rate and the p99 of each second of a load.

    :param duration: seconds of the load.
    """

    def __init__(self, file: TextIO, duration: float) -> None:
        self._duration = duration
        self._bar: tqdm[NoReturn] = tqdm(
            total=duration,
            file=file,
            dynamic_ncols=True,
            leave=False,
            bar_format="{n:.0f}/{total:.0f} s {desc} |{bar}|",
        )

    def show(self, interval: Interval) -> None:
        """Show one second."""
        rate = interval.messages / interval.seconds if interval.seconds else 0.0
        self._bar.n = min(interval.start_seconds + interval.seconds, self._duration)
        self._bar.set_description_str(f"{rate:,.0f}/s, p99 {in_ms(interval.p99_seconds or 0)} ms")

    def close(self) -> None:
        """Remove the line."""
        self._bar.close()


def histogram(buckets: Sequence[tuple[float, int]], width: int, is_ascii: bool) -> Iterator[str]:
    """Yield a bar for each range of values, each as much wider than the one before.

    :param buckets: values in seconds, in order, and how many there are of each.
    :param width: columns.
    """
    least, most = max(buckets[0][0], 1e-7), max(buckets[-1][0], 1e-7)
    samples = sum(count for _, count in buckets)
    rows = min(ROWS, samples, 1 + floor(log(most / least) / log(PART)))
    step = log(most / least) / rows or 1.0
    counts = [0] * rows
    for seconds, count in buckets:
        counts[min(rows - 1, floor(log(max(seconds, least) / least) / step))] += count
    labels = [f"{in_ms(least * exp(step * (row + 1)))}" for row in range(rows)]
    labels[-1] = in_ms(most)
    room = max(map(len, labels))
    figures = max(len(f"{count:,}") for count in counts)
    longest = max(1, width - room - figures - len("<=  ms  ") - 1)
    for label, count in zip(labels, counts, strict=True):
        bar = ("#" if is_ascii else "█") * round(longest * count / max(counts))
        yield f"<= {label:>{room}} ms {count:>{figures},} {bar}".rstrip()
