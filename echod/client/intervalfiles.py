"""Files of the intervals of a load: HdrHistogram's log, and CSV."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from datetime import datetime

from echod.client.histogram import Histogram
from echod.client.report import rounded
from echod.client.statistics import Interval


class HistogramLog:
    """HdrHistogram's log, format 1.3: a line for each interval, with all its times.

    Times are in steps of 0.1 microseconds, and ``Interval_Max`` is in milliseconds.

    :param started_at: the time of day from which the intervals count.
    """

    def __init__(self, started_at: datetime) -> None:
        self._lines = [
            "#[Histogram log format version 1.3]",
            f"#[StartTime: {started_at.timestamp():.3f} (seconds since epoch), {started_at}]",
            '"StartTimestamp","Interval_Length","Interval_Max","Interval_Compressed_Histogram"',
        ]

    def add(self, start: float, seconds: float, times: Histogram) -> None:
        """Add an interval.

        :param start: in seconds since the beginning of the run.
        :param seconds: its length.
        """
        self._lines.append(f"{start:.3f},{seconds:.3f},{times.most * 1000:.3f},{times.encode()}")

    def write(self, name: str) -> None:
        """Write the log to a file.

        :raises OSError: if it cannot be written.
        """
        with open(name, "w") as file:
            file.writelines(f"{line}\n" for line in self._lines)


def write_csv(intervals: Iterable[Interval], name: str) -> None:
    """Write intervals to a file of comma-separated values, with the names of the JSON output.

    :raises OSError: if it cannot be written.
    """
    with open(name, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Interval._fields)
        writer.writerows(rounded(tuple(each)) for each in intervals)
