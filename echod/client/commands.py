"""The commands of ``echod-client``, from the options to the output."""

from __future__ import annotations

import os
import resource
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from math import inf
from typing import Any, Final

from echod.client import report, text
from echod.client.connector import Connector
from echod.client.errors import os_error_line
from echod.client.events import Connected, Event, Moved, Unanswered
from echod.client.findrate import FindRate, find_rate_result
from echod.client.load import Load
from echod.client.options import JSON_LINES
from echod.client.pacing import Workload
from echod.client.ping import Ping
from echod.client.pipe import Pipe
from echod.client.search import FIRST, RateSearch
from echod.client.statistics import Interval
from echod.client.terminal import Console, bytes_left, progress_bar, rate_line, show_interval
from echod.durations import LONGEST

SPARE: Final = 64
"""File descriptors needed in addition to those of connections."""


class Unusable(Exception):
    """The options cannot be carried out: one line that says why. The exit status is 2."""


class ClientCommand:
    """One command: its run, the output during the run, and the result.

    :ivar run: the measurement.
    :ivar bar: a progress bar in a terminal. It is made at the first progress, so that Ctrl-C before
        that prints nothing.
    """

    run: Any
    result: Callable[[Any], report.Result]
    bar: Any = None

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        self.connector, self.options, self.console = connector, options, console

    def finish(self) -> bool:
        """Print the result, and return whether everything came back right."""
        result = self.result(self.run)
        self.remove_bar()
        self.show(result)
        if self.run.failure:
            where = self.connector.address or self.connector.target.name
            local = self.options.interface  # the service is not to blame for -I
            where += f" from {local}" if local else ""
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
        elif result.get("sent", result.get("steps")):
            self.console.print(*text.summary_lines(result))
            if "sent" in result:
                self.console.draw(self.run.tally.times)

    def failure(self, result: report.Result) -> str:
        """Return why the run failed, and for how many connections."""
        missing = result.get("connections", 0) - result.get("connections_made", inf)
        some = f"{text.plural(missing, 'connection')} could not be made: " if missing > 0 else ""
        return f"{some}{result['failure']}"

    def remove_bar(self) -> None:
        """Remove the progress bar; the next progress makes another."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def show_so_far(self) -> None:
        """Print the summary so far to standard error: standard output has the result alone."""
        self.remove_bar()
        self.run.summarize_so_far()
        self.console.print_to_error(*text.summary_lines(self.result(self.run)))


class PingCommand(ClientCommand):
    """The command ``ping``."""

    result = staticmethod(report.ping_result)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        self._prefix = f"{connector.target.name}: " if len(options.targets) > 1 else ""
        self.run = Ping(
            connector,
            options.size,
            interval=options.interval,
            count=options.count,
            notify=self._notify,
            deadline=options.deadline or LONGEST,
            payload=options.payload,
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
            self._print(self._prefix + text.EVENT_LINES[type(event)](event))

    def _print(self, *lines: str) -> None:
        stamp = f"[{time.time():.6f}] " if self.options.timestamps else ""
        self.console.print(*(f"{stamp}{line}" for line in lines))

    def _connected_lines(self, event: Connected) -> Iterator[str]:
        connector = self.connector
        over = text.over(connector.protocol, self.run.size)
        yield f"echo of {connector.target.name} ({event.address}) {over}"
        if event.connect_seconds is not None:
            line = f"{self._prefix}connected in {report.in_ms(event.connect_seconds)} ms"
            if connector.includes_lookup:
                line += " with the name lookup"
            if event.tls_handshake_seconds is not None:
                line += f", TLS handshake {report.in_ms(event.tls_handshake_seconds)} ms"
            yield line


class LoadCommand(ClientCommand):
    """The command ``load``."""

    result: Any = staticmethod(report.load_result)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        self._files: dict[str, Callable[[str], None]] = {}
        if options.plot:
            draw, earlier = prepare_plot(options.compare)
            self._files["plot"] = lambda name: draw([*earlier, self.result(self.run)], name)
        if options.hdr:
            self._files["hdr"] = (log := report.HistogramLog()).write
        if options.csv:
            self._files["csv"] = lambda name: report.write_csv(self.run.statistics.intervals, name)
        for option in self._files:  # if one cannot be written, the run is wasted
            name = getattr(options, option)
            place = name if os.path.exists(name) else os.path.dirname(os.path.abspath(name))
            if os.path.isdir(name) or not os.access(place, os.W_OK):
                raise Unusable(f"--{option} {name}: no file can be written there")
        # A connection that is replaced ends after the next one is made.
        raise_descriptor_limit(options.connections * (2 if options.per_connection else 1))
        self._is_live = console.err.isatty() and not options.json
        self.run = self._make_run()
        if options.hdr:
            self.run.statistics.on_times = log.add

    def _make_run(self) -> Any:
        return self._load(self.options.rate)

    def _load(self, rate: float | None) -> Load:
        options = self.options
        workload = {name: getattr(options, name) for name in Workload.__dataclass_fields__}
        workload.update(rate=rate, on_interval=self._on_interval, payload=options.payload)
        return Load(self.connector, options.size, **workload)

    def finish(self) -> bool:
        """Print the result, write the files, and return whether everything came back right."""
        is_ok = super().finish()
        for option, write in self._files.items() if self.run.sent else ():
            name = getattr(self.options, option)
            try:
                write(name)
            except OSError as error:
                self.console.print_error(f"--{option} {name}: {os_error_line(error)}")
                is_ok = False
        return is_ok

    def _on_interval(self, interval: Interval) -> None:
        self.emit("interval", interval._asdict())
        if self._is_live:
            self.bar = self.bar or rate_line(self.console.err, self.options.duration)
            show_interval(self.bar, interval)


class FindRateCommand(LoadCommand):
    """The command ``load`` with ``--find-rate``."""

    result = staticmethod(find_rate_result)

    def _make_run(self) -> FindRate:
        search = RateSearch(self.options.rate or FIRST)
        return FindRate(self._load, search, self.options.latency, self._on_step)

    def show_so_far(self) -> None:
        """Print the summary of the present step so far to standard error."""
        self.remove_bar()
        load = self.run.load
        load.summarize_so_far()
        self.console.print_to_error(*text.summary_lines(report.load_result(load)))

    def _on_step(self, step: report.Result) -> None:
        self.emit("step", step)
        self.remove_bar()
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


COMMANDS: Final = {
    "ping": PingCommand,
    "load": LoadCommand,
    "find-rate": FindRateCommand,
    "pipe": PipeCommand,
}


def prepare_plot(compare: Iterable[str]) -> tuple[Callable[..., None], list[Any]]:
    """Return the function that draws, and the earlier runs.

    :raises Unusable: if matplotlib is not installed, or a file to compare with is not the output of
        ``load --json``.
    """
    if find_spec("matplotlib") is None:
        raise Unusable(
            "--plot needs matplotlib, which is not installed: install echod with its extra plot"
        )
    from echod.client.plot import draw, load_run  # noqa: PLC0415 - needs the extra plot

    earlier = []
    for file in compare:
        try:
            earlier.append(load_run(file))
        except (OSError, ValueError) as error:
            why = os_error_line(error) if isinstance(error, OSError) else error
            raise Unusable(f"--compare {file}: {why}") from error
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
