"""The output of a command: lines, errors, and in a terminal progress and a histogram."""

from __future__ import annotations

import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from math import exp, floor, inf, log
from textwrap import fill
from typing import Final, NoReturn, TextIO

from tqdm import tqdm

from echod.client.errors import os_error_line
from echod.client.histogram import Histogram
from echod.client.output import discard, printable
from echod.client.report import in_ms
from echod.client.statistics import Interval

ROWS: Final = 12
"""Maximum number of bars of a histogram."""

RATIO: Final = 1.02
"""Minimum ratio between the limits of two bars: closer values share a bar."""

MIN_COLUMNS: Final = 30
"""Minimum width of a drawing, also in a narrower terminal."""

tqdm.monitor_interval = 0  # tqdm would start a thread, to refresh bars that are not updated


class Console:
    """Prints lines until standard output can no longer be written.

    :param command: of ``echod-client``, for error messages.
    :param out: standard output.
    :param err: standard error.
    :ivar is_broken: whether one of them can no longer be written.
    :ivar on_broken: called when ``out`` can no longer be written.
    """

    def __init__(self, command: str, out: TextIO, err: TextIO) -> None:
        self.name = f"echod-client {command}"
        self.out, self.err = out, err
        self.is_broken = False
        self.on_broken: Callable[[], object] = lambda: None

    def print(self, *lines: str) -> None:
        """Print lines to standard output, each flushed; in a terminal, long ones are wrapped."""
        if self.is_broken:
            return
        try:
            for line in lines:
                print(self._wrapped(line), file=self.out, flush=True)
        except OSError as error:
            self.is_broken = True
            discard(self.out)
            self.print_error(f"standard output: {os_error_line(error)}")
            self.on_broken()

    def _wrapped(self, line: str) -> str:
        if not self.out.isatty():
            return line
        return fill(line, columns(), break_long_words=False, break_on_hyphens=False)

    def print_error(self, message: str) -> None:
        """Print an error message to standard error."""
        self.print_to_error(f"{self.name}: {printable(message)}")

    def print_to_error(self, *lines: str) -> None:
        """Print lines to standard error, if that can be written."""
        try:
            print(*lines, sep="\n", file=self.err, flush=True)
        except OSError:  # as in «2>&1 | head»: no output is left to report it
            self.is_broken = True
            discard(self.err)

    def draw(self, times: Histogram) -> None:
        """Draw a histogram if standard output is a terminal."""
        if times.count and self.out.isatty():
            encoding = (self.out.encoding or "").lower()
            self.print(*histogram(times.buckets(), columns(), is_ascii="utf" not in encoding))


def columns() -> int:
    """Return the width of the terminal."""
    return max(MIN_COLUMNS, shutil.get_terminal_size().columns)


def bytes_left(descriptor: int) -> int | None:
    """Return how many bytes of a regular file are left to read; ``None`` for other files."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return None
    return max(0, status.st_size - os.lseek(descriptor, 0, os.SEEK_CUR))


def progress_bar(file: TextIO, total: int | None) -> tqdm[NoReturn]:
    """Return a progress bar that counts bytes.

    :param total: bytes; ``None`` if it is not known.
    """
    bar: tqdm[NoReturn] = tqdm(
        total=total, unit="B", unit_scale=True, file=file, dynamic_ncols=True
    )
    # tqdm uses the time of day: if that is set back, the bar would stop.
    bar._time = time.monotonic  # type: ignore[attr-defined]
    bar.reset()
    return bar


def rate_line(file: TextIO, duration: float) -> tqdm[NoReturn]:
    """Return a line for the rate and the p99 of each second of a load.

    :param duration: seconds of the load; infinity: without a bar.
    """
    shape = "{n:.0f}/{total:.0f} s {desc} |{bar}|" if duration < inf else "{n:.0f} s {desc}"
    return tqdm(total=duration, file=file, dynamic_ncols=True, leave=False, bar_format=shape)


def show_interval(line: tqdm[NoReturn], interval: Interval) -> None:
    """Show one second in a line of :func:`rate_line`."""
    rate = interval.messages / interval.seconds if interval.seconds else 0.0
    line.n = min(interval.start_seconds + interval.seconds, line.total or inf)
    line.set_description_str(f"{rate:,.0f}/s, p99 {in_ms(interval.p99_seconds or 0)} ms")


def histogram(buckets: Sequence[tuple[float, int]], width: int, is_ascii: bool) -> Iterator[str]:
    """Yield the bars of a histogram, whose limits grow by a constant ratio.

    :param buckets: values in seconds, in order, and the count of each.
    :param width: columns.
    :param is_ascii: draw with ``#``.
    """
    least, most = max(buckets[0][0], 1e-7), max(buckets[-1][0], 1e-7)
    samples = sum(count for _, count in buckets)
    rows = min(ROWS, samples, 1 + floor(log(most / least) / log(RATIO)))
    step = log(most / least) / rows or 1.0
    counts = [0] * rows
    for seconds, count in buckets:
        counts[min(rows - 1, floor(log(max(seconds, least) / least) / step))] += count
    labels = [f"{in_ms(least * exp(step * (row + 1)))}" for row in range(rows)]
    labels[-1] = in_ms(most)
    label_width = max(map(len, labels))
    count_width = max(len(f"{count:,}") for count in counts)
    longest = max(1, width - label_width - count_width - len("<=  ms  ") - 1)
    for label, count in zip(labels, counts, strict=True):
        bar = ("#" if is_ascii else "█") * round(longest * count / max(counts))
        yield f"<= {label:>{label_width}} ms {count:>{count_width},} {bar}".rstrip()
