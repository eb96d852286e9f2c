"""What the commands of ``echod-client`` share: the output of events, and of the result."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable
from math import inf
from typing import Any

from echod.client import report
from echod.client.connector import Connector
from echod.client.options import JSON_LINES
from echod.client.terminal import Console
from echod.client.text import plural, summary_lines


class ClientCommand:
    """One command: its run, the output during the run, and the result.

    :ivar run: measures.
    :ivar bar: a progress bar in a terminal, made at the first progress. Ctrl-C before that prints
        nothing.
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
        elif result["sent"]:
            self.console.print(*summary_lines(result))
            self.console.draw(self.run.tally.times)

    def failure(self, result: report.Result) -> str:
        """Return why the run failed, and for how many connections."""
        missing = result.get("connections", 0) - result.get("connections_made", inf)
        why = str(result["failure"])
        return why if missing <= 0 else f"{plural(missing, 'connection')} could not be made: {why}"

    def remove_bar(self) -> None:
        """Remove the progress bar; the next progress makes another."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def show_so_far(self) -> None:
        """Print the summary so far to standard error: standard output has the result alone."""
        self.remove_bar()
        self.run.summarize_so_far()
        self.console.print_to_error(*summary_lines(self.result(self.run)))
