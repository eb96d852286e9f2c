"""The commands pipe, ping and load: from the options to the output."""

from __future__ import annotations

import os
import resource
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from echod.client import report, text
from echod.client.connector import Connector
from echod.client.console import Console
from echod.client.errors import os_error_line
from echod.client.events import Connected, Event, Moved, Unanswered
from echod.client.findrate import FindRate, find_rate_result
from echod.client.load import Load
from echod.client.options import JSON_LINES
from echod.client.ping import Ping
from echod.client.pipe import Pipe
from echod.client.search import FIRST, RateSearch
from echod.client.statistics import Interval
from echod.client.terminal import RateLine, bytes_left, progress_bar

SPARE: Final = 64
"""File descriptors needed in addition to those of connections."""


class Unusable(Exception):
    """The options cannot be carried out: one line that says why. The exit status is 2."""


class ClientCommand:
    """One command: its run, the output during the run, and the result.

    :ivar run: measures.
    :ivar bar: a progress bar in a terminal, made at the first progress. Ctrl-C before that prints
        nothing.
    """

    run: Any
    result: Callable[[Any], report.Result]
    lines: Callable[[report.Result], Iterable[str]]
    bar: Any = None

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        self.connector, self.options, self.console = connector, options, console

    def finish(self) -> bool:
        """Print the result, and return whether everything came back right."""
        result = self.result(self.run)
        if self.bar is not None:
            self.bar.close()
        self.show(result)
        if self.run.failure:
            where = self.connector.address or self.connector.target.name
            self.console.print_error(f"{where}: {self.failure(result)}")
        return bool(result["ok"])

    def emit(self, event: str, values: report.Result) -> None:
        """Print an event as a line of JSON, with the time and the target, if these are wanted."""
        if self.options.json == JSON_LINES:
            record = {"event": event, "time": time.time(), "target": self.connector.target.text}
            self.console.print(report.to_json({**record, **values}))

    def show(self, result: report.Result) -> None:
        """Print the result to standard output."""
        if self.options.json == JSON_LINES:
            self.emit("summary", result)
        elif self.options.json:
            self.console.print(report.to_json(result))
        elif result["sent"]:
            self.console.print(*self.lines(result))
            self.console.draw(self.run.tally.times)

    def failure(self, result: report.Result) -> str:
        """Return the line that says why the run failed."""
        return str(result["failure"])


class PingCommand(ClientCommand):
    """The command ``ping``."""

    result = staticmethod(report.ping_result)
    lines = staticmethod(text.ping_lines)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        self.run = Ping(
            connector,
            options.size,
            interval=options.interval,
            count=options.count,
            notify=self._notify,
            deadline=options.deadline,
        )
        connector.on_address_change = lambda *addresses: self._notify(Moved(*addresses))

    def _notify(self, event: Event) -> None:
        options = self.options
        self.emit(type(event).__name__.lower(), event._asdict())
        if options.json:
            return
        if isinstance(event, Connected):
            self._print(*self._connected_lines(event))
        elif not options.quiet and (options.outstanding or not isinstance(event, Unanswered)):
            self._print(text.EVENT_LINES[type(event)](event))

    def _print(self, *lines: str) -> None:
        stamp = f"[{time.time():.6f}] " if self.options.timestamps else ""
        self.console.print(*(f"{stamp}{line}" for line in lines))

    def _connected_lines(self, event: Connected) -> Iterator[str]:
        connector = self.connector
        over = text.over(connector.protocol, self.run.size)
        yield f"echo of {connector.target.name} ({event.address}) {over}"
        if event.connect_seconds is not None:
            line = f"connected in {report.in_ms(event.connect_seconds)} ms"
            if connector.includes_lookup:
                line += " with the name lookup"
            if event.tls_handshake_seconds is not None:
                line += f", TLS handshake {report.in_ms(event.tls_handshake_seconds)} ms"
            yield line


class LoadCommand(ClientCommand):
    """The command ``load``."""

    result: Any = staticmethod(report.load_result)
    lines = staticmethod(text.load_lines)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        if options.plot:
            self._draw, self._earlier = prepare_plot(options.plot, options.compare)
        raise_descriptor_limit(options.connections)
        self._is_live = console.err.isatty() and not options.json
        self.run = self._make_run()

    def _make_run(self) -> Any:
        return self._load(self.options.rate)

    def _load(self, rate: float | None) -> Load:
        options = self.options
        return Load(
            self.connector,
            options.size,
            connections=options.connections,
            duration=options.duration,
            rate=rate,
            on_interval=self._on_interval,
        )

    def failure(self, result: report.Result) -> str:
        """Return how many connections are missing, and why."""
        missing = result["connections"] - result["connections_made"]
        return f"{text.plural(missing, 'connection')} could not be made: {result['failure']}"

    def finish(self) -> bool:
        """Print the result, draw the plot, and return whether everything came back right."""
        is_ok = super().finish()
        if self.options.plot and self.run.tally.sent:
            try:
                self._draw([*self._earlier, self.result(self.run)], self.options.plot)
            except OSError as error:
                self.console.print_error(f"--plot {self.options.plot}: {os_error_line(error)}")
                return False
        return is_ok

    def _on_interval(self, interval: Interval) -> None:
        self.emit("interval", interval._asdict())
        if self._is_live:
            self.bar = self.bar or RateLine(self.console.err, self.options.duration)
            self.bar.show(interval)


class FindRateCommand(LoadCommand):
    """The command ``load`` with ``--find-rate``."""

    result = staticmethod(find_rate_result)
    lines = staticmethod(text.find_rate_lines)

    def _make_run(self) -> FindRate:
        search = RateSearch(self.options.rate or FIRST)
        return FindRate(self._load, search, self.options.latency, self._on_step)

    def failure(self, result: report.Result) -> str:
        """Return why a step could not be run."""
        return str(result["failure"])

    def show(self, result: report.Result) -> None:
        """Print the result to standard output."""
        if self.options.json:
            self.console.print(report.to_json(result))
        elif result["steps"]:
            self.console.print(*self.lines(result))

    def _on_step(self, step: report.Result) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        if not self.options.json:
            self.console.print(text.step_line(step))


class PipeCommand(ClientCommand):
    """The command ``pipe``."""

    result = staticmethod(report.pipe_result)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        source, sink = 0, 1
        self._has_bar = console.err.isatty() and not os.isatty(sink) and not options.json
        self._total = bytes_left(source) if self._has_bar else None
        self.run = Pipe(connector, source, sink, self._on_progress)

    def failure(self, result: report.Result) -> str:
        """Return why the pipe ended, and how much of the input it has written."""
        sent = result["sent_bytes"]
        written = f"; wrote {self.run.written:,} of {text.plural(sent, 'byte')}" if sent else ""
        return f"{result['failure']}{written}"

    def show(self, result: report.Result) -> None:
        """Print JSON to standard error: standard output has the bytes."""
        if self.options.json:
            self.console.print_to_error(report.to_json(result))

    def _on_progress(self, count: int) -> None:
        if self._has_bar:
            if self.bar is None:
                self.bar = progress_bar(self.console.err, self._total)
            self.bar.update(count)


def load_command(connector: Connector, options: Namespace, console: Console) -> LoadCommand:
    """Return the command ``load``."""
    kind = FindRateCommand if options.find_rate else LoadCommand
    return kind(connector, options, console)


COMMANDS: Final = {"ping": PingCommand, "load": load_command, "pipe": PipeCommand}


def prepare_plot(name: str, compare: Iterable[str]) -> tuple[Callable[..., None], list[Any]]:
    """Return the function that draws, and the earlier runs.

    Call this before the run: if its plot cannot be drawn, the run is wasted.

    :raises Unusable: if matplotlib is not installed, a file to compare with is not the output of
        ``load --json``, or the plot cannot be written.
    """
    try:
        from echod.client.plot import draw, load_run  # noqa: PLC0415 - needs the extra plot
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing != "matplotlib":
            raise
        raise Unusable(
            f"--plot needs {missing}, which is not installed: install echod with its extra plot"
        ) from error
    earlier = []
    for file in compare:
        try:
            earlier.append(load_run(file))
        except (OSError, ValueError) as error:
            why = os_error_line(error) if isinstance(error, OSError) else error
            raise Unusable(f"--compare {file}: {why}") from error
    place = name if os.path.exists(name) else os.path.dirname(os.path.abspath(name))
    if os.path.isdir(name) or not os.access(place, os.W_OK):
        raise Unusable(f"--plot {name}: no file can be written there")
    return draw, earlier


def raise_descriptor_limit(connections: int) -> None:
    """Raise the soft RLIMIT_NOFILE to the hard one if the connections need it (getrlimit(2)).

    :raises Unusable: if the hard limit is too low.
    """
    needed = connections + SPARE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if needed > soft and hard != resource.RLIM_INFINITY:
        if needed > hard:
            raise Unusable(
                f"--connections {connections} is more than RLIMIT_NOFILE allows here: "
                f"{max(0, hard - SPARE)}"
            )
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
