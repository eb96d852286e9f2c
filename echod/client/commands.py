"""What the command line asks for, from the first line that it prints to the exit status."""

from __future__ import annotations

import json
import os
import resource
import sys
from argparse import Namespace
from collections.abc import Callable, Iterable
from textwrap import fill
from typing import Any, Final, TextIO

from twisted.internet.defer import Deferred
from twisted.internet.main import installReactor
from twisted.logger import Logger

from echod.client import report
from echod.client.connector import Connector
from echod.client.endpoint import BadTarget
from echod.client.errors import of_file
from echod.client.histogram import Histogram
from echod.client.interrupts import handled
from echod.client.load import Interval, Load
from echod.client.measurement import Channel
from echod.client.options import WRONG
from echod.client.output import discard, printable
from echod.client.ping import Ping, Probe
from echod.client.pipe import Pipe
from echod.client.reactor import PreciseReactor
from echod.client.streams import StreamChannel
from echod.client.terminal import Live, columns, histogram, is_terminal, left_of, progress

RIGHT: Final = 0
NOT_RIGHT: Final = 1
"""Exit status; :data:`~echod.client.options.WRONG` is the third."""

SPARE: Final = 64
"""Descriptors besides those of connections."""

log = Logger(namespace="echod")


class Unusable(Exception):
    """What was asked for cannot be done: one line that says why. The exit status is 2."""


class Console:
    """Where lines are printed, for as long as somebody takes them.

    :param out: for what was asked for.
    :param err: for what went wrong.
    :ivar gone: is called when ``out`` cannot be written any more.
    """

    def __init__(self, command: str, out: TextIO, err: TextIO) -> None:
        self.name = f"echod-client {command}"
        self.out, self.err = out, err
        self.is_broken = False
        self.gone: Callable[[], None] = lambda: None

    def say(self, *lines: str) -> None:
        """Print lines, each at once."""
        if self.is_broken:
            return
        try:
            for line in lines:
                print(self._fit(line), file=self.out, flush=True)
        except OSError as error:
            self.is_broken = True
            discard(self.out)
            self.complain(f"standard output: {of_file(error)}")
            self.gone()

    def _fit(self, line: str) -> str:
        if not is_terminal(self.out):
            return line
        return fill(line, columns(), break_long_words=False, break_on_hyphens=False)

    def complain(self, why: str) -> None:
        """Print what went wrong."""
        self.note(f"{self.name}: {printable(why)}")

    def note(self, line: str) -> None:
        """Print a line to ``err``, if anybody takes it there."""
        try:
            print(line, file=self.err, flush=True)
        except OSError:  # as in «2>&1 | head»: there is nobody left to be told
            self.is_broken = True
            discard(self.err)

    def draw(self, times: Histogram) -> None:
        """Draw a histogram, in a terminal."""
        if times.count and is_terminal(self.out):
            encoding = (self.out.encoding or "").lower()
            self.say(*histogram(times.buckets(), columns(), is_ascii="utf" not in encoding))


class PingCommand:
    """``ping``, from its options to what it says."""

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        self._json = options.json
        self._console = console
        self.run = Ping(
            connector,
            options.size,
            interval=options.interval,
            count=options.count,
            tell=self._tell,
            dont_fragment=options.dont_fragment,
        )
        self.run.began = self._began
        connector.on_address_change = self._moved

    def _began(self, channel: Channel) -> None:
        if self._json:
            return
        connector = self.run.connector
        self._console.say(
            f"echo of {connector.target.name} ({connector.address}) by {connector.protocol}, "
            f"{report.plural(self.run.size, 'byte')} a message"
        )
        if isinstance(channel, StreamChannel):
            line = f"connected in {report.in_ms(channel.connect_seconds)} ms"
            if connector.includes_lookup:
                line += ", name and all"
            if channel.handshake_seconds is not None:
                line += f", TLS handshake {report.in_ms(channel.handshake_seconds)} ms"
            self._console.say(line)

    def _moved(self, refusing: str, following: str) -> None:
        if not self._json:
            self._console.say(f"{refusing} refuses, going on to {following}")

    def _tell(self, probe: Probe) -> None:
        if not self._json:
            self._console.say(report.line_of_probe(probe))

    def finish(self) -> bool:
        """Say how it went, and return whether all came back right."""
        run = self.run
        if self._json:
            self._console.say(json.dumps(report.of_ping(run)))
        elif run.tally.sent:
            self._console.say("", *report.lines_of_ping(run))
            self._console.draw(run.tally.times)
        if run.failure:
            self._console.complain(
                f"{run.connector.address or run.connector.target.name}: {run.failure}"
            )
        return report.is_right(run)


class LoadCommand:
    """``load``, from its options to what it says, and draws."""

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        self._options = options
        self._console = console
        self._live: Live | None = None
        if options.plot:
            self._draw, self._earlier = prepare_plot(options.plot, options.compare)
        make_room(options.connections)
        self.run = Load(
            connector,
            options.size,
            connections=options.connections,
            duration=options.duration,
            rate=options.rate,
            tell=self._tell,
        )

    def _tell(self, interval: Interval) -> None:
        if is_terminal(self._console.err) and not self._options.json:
            if self._live is None:  # not sooner: Ctrl-C before the first message is silent
                self._live = Live(self._console.err, self._options.duration)
            self._live.tell(interval)

    def finish(self) -> bool:
        """Say how it went, and return whether all came back right."""
        run, console = self.run, self._console
        if self._live is not None:
            self._live.close()
        if self._options.json:
            console.say(json.dumps(report.of_load(run)))
        elif run.tally.sent:
            console.say(*report.lines_of_load(run))
            console.draw(run.tally.times)
        if run.failure:
            where = run.connector.address or run.connector.target.name
            missing = run.connections - len(run.channels)
            console.complain(
                f"{where}: {report.plural(missing, 'connection')} could not be made: {run.failure}"
            )
        if self._options.plot and run.tally.sent:
            try:
                self._draw([*self._earlier, report.of_load(run)], self._options.plot)
            except OSError as error:
                console.complain(f"--plot {self._options.plot}: {of_file(error)}")
                return False
        return report.is_right(run)


class PipeCommand:
    """``pipe``, from its options to what it says."""

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        self._json = options.json
        self._console = console
        self._bar: Any = None
        source, sink = 0, 1
        self._has_bar = is_terminal(console.err) and not os.isatty(sink) and not options.json
        self._total = left_of(source) if self._has_bar else None
        self.run = Pipe(connector, source, sink, self._progress)

    def _progress(self, count: int) -> None:
        if self._has_bar:
            if self._bar is None:  # not sooner, as above
                self._bar = progress(self._console.err, self._total)
            self._bar.update(count)

    def finish(self) -> bool:
        """Say what went wrong, and return whether all came back right."""
        run, console = self.run, self._console
        if self._bar is not None:
            self._bar.close()
        if self._json:  # where it does not get in between the bytes
            console.note(json.dumps(report.of_pipe(run)))
        if run.failure:
            counted = f"{run.written:,} of {report.plural(run.sent, 'byte')} came out"
            where = run.connector.address or run.connector.target.name
            console.complain(f"{where}: {run.failure}" + (f"; {counted}" if run.sent else ""))
        return not run.failure


COMMANDS: Final = {"ping": PingCommand, "load": LoadCommand, "pipe": PipeCommand}


def prepare_plot(name: str, compare: Iterable[str]) -> tuple[Callable[..., None], list[Any]]:
    """Return what draws, and the earlier runs: whatever is wrong with them shows before the run.

    :raises Unusable: where there is nothing to draw with, a file to compare with is none, or the
        plot has no place.
    """
    try:
        from echod.client.plot import draw, load_run  # noqa: PLC0415 - of an extra of its own
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
        except OSError as error:
            raise Unusable(f"--compare {file}: {of_file(error)}") from error
        except ValueError as error:
            raise Unusable(f"--compare {file}: {error}") from error
    place = name if os.path.exists(name) else os.path.dirname(os.path.abspath(name))
    if os.path.isdir(name) or not os.access(place, os.W_OK):
        raise Unusable(f"--plot {name}: no file can be written there")
    return draw, earlier


def make_room(connections: int) -> None:
    """Have as many descriptors as so many connections need (RLIMIT_NOFILE in getrlimit(2)).

    :raises Unusable: where that is not allowed.
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


def run(options: Namespace) -> int:
    """Run a command, and return the exit status."""
    console = Console(options.command, sys.stdout, sys.stderr)
    closed = [name for name, file in (("input", sys.stdin), ("output", sys.stdout)) if not file]
    if closed:  # whatever is opened next would be taken for it
        console.complain(f"standard {' and '.join(closed)} is closed")
        return WRONG
    try:
        reactor = PreciseReactor()  # type: ignore[no-untyped-call]
    except OSError as error:  # RLIMIT_NOFILE does not leave the few descriptors that it needs
        console.complain(f"{of_file(error)}: raise the limit (ulimit -n)")
        return WRONG
    installReactor(reactor)  # for the TLS of Twisted, which asks for it by name
    return perform(reactor, options, console)


def perform(reactor: Any, options: Namespace, console: Console) -> int:
    """Run a command in ``reactor``, to its end or until a signal, and return the exit status."""
    try:
        connector = Connector(reactor, options.target, options.timeout)
        command: Any = COMMANDS[options.command](connector, options, console)
    except (BadTarget, Unusable) as error:
        console.complain(str(error))
        return WRONG
    except OSError as error:  # likewise
        console.complain(f"{of_file(error)}: raise the limit (ulimit -n)")
        return WRONG
    measurement: Ping | Load | Pipe = command.run
    console.gone = measurement.stop
    ended: Deferred[None] = Deferred()
    status = NOT_RIGHT

    async def measure() -> None:
        nonlocal status
        try:
            await measurement.run()
            if command.finish() and not console.is_broken:
                status = RIGHT
        except Exception:
            log.failure("echod-client fails")
        ended.callback(None)
        reactor.stop()

    def interrupted() -> Deferred[None]:
        measurement.stop()
        return ended

    reactor.addSystemEventTrigger("before", "shutdown", interrupted)
    reactor.callWhenRunning(Deferred.fromCoroutine, measure())
    with handled(lambda: measurement.sent > 0, lambda: reactor.callFromThread(reactor.stop)):
        reactor.run(installSignalHandlers=False)
    return status
