"""The output of a command: lines to standard output, errors to standard error."""

from __future__ import annotations

from collections.abc import Callable
from textwrap import fill
from typing import TextIO

from echod.client.errors import os_error_line
from echod.client.histogram import Histogram
from echod.client.output import discard, printable
from echod.client.terminal import columns, histogram


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
