"""Run a command in a reactor, until its end or a signal, and return the exit status."""

from __future__ import annotations

import gc
import select
import signal
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Final

from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python.log import callWithLogger

from echod.client.commands import COMMANDS, ClientCommand, Unusable
from echod.client.connector import Connector
from echod.client.endpoint import BadTarget
from echod.client.errors import os_error_line
from echod.client.merge import merge_files
from echod.client.parser import WRONG
from echod.client.terminal import Console

OK: Final = 0
NOT_OK: Final = 1
"""Exit statuses; :data:`~echod.client.parser.WRONG` is the third."""

log = Logger(namespace="echod")


class PreciseReactor(EPollReactor):
    """Twisted's epoll reactor with timers that are late by microseconds, not by a millisecond.

    epoll_wait(2) takes whole milliseconds, select(2) takes microseconds, and select(2) can wait for
    an epoll set. Twisted's own clock is the time of day, which may be set during a run.
    """

    seconds = staticmethod(time.monotonic)
    _is_stopping = False

    def startRunning(self, *arguments: Any, **options: Any) -> None:
        """Start, with the minimum timer slack: the kernel must not delay wakeups (prctl(2))."""
        with suppress(OSError), open("/proc/self/timerslack_ns", "w") as slack:
            slack.write("1")
        super().startRunning(*arguments, **options)

    def stop(self) -> None:
        """Stop; ignore further calls, such as from a second signal."""
        if not self._is_stopping:
            self._is_stopping = True
            super().stop()

    def doPoll(self, timeout: float | None) -> None:
        """Wait for events, and handle them.

        Twisted's own loop gives the event of a descriptor that was closed in the same turn to the
        next connection with this number: if a service refuses some of many connections, others
        would be lost, too.
        """
        wait: float = 0
        if timeout is None or timeout > 0:
            try:
                select.select((self._poller,), (), (), timeout)
            except ValueError:  # a descriptor above 1023: many were inherited
                wait = -1 if timeout is None else timeout
        owners = self._selectables
        events = self._poller.poll(wait, len(owners))
        for owner, number, event in [(owners.get(each), each, event) for each, event in events]:
            if owner is not None and owners.get(number) is owner:
                callWithLogger(owner, self._doReadOrWrite, owner, number, event)

    doIteration = doPoll


def run(options: Namespace) -> int:
    """Run a command in a reactor of its own, and return the exit status."""
    console = Console(options.command, sys.stdout, sys.stderr)
    closed = [name for name, file in (("input", sys.stdin), ("output", sys.stdout)) if not file]
    if closed:  # the next file that is opened would get its descriptor
        console.print_error(f"standard {' and '.join(closed)} is closed")
        return WRONG
    if options.command == "merge":
        return merge_files(options.files, options.json, console)
    try:
        reactor = PreciseReactor()  # type: ignore[no-untyped-call]
        installReactor(reactor)  # Twisted's TLS uses the global reactor
        gc.freeze()  # a full collection with the objects of all modules stops a run for 14 ms
        return perform(reactor, options, console)
    except OSError as error:  # RLIMIT_NOFILE is too low for the first few descriptors
        console.print_error(f"{os_error_line(error)}: raise the limit (ulimit -n)")
        return WRONG
    except MemoryError:  # for the payloads
        console.print_error("out of memory: use a smaller --size, or raise the limit (ulimit -v)")
        return WRONG


def perform(reactor: Any, options: Namespace, console: Console) -> int:
    """Run a command in ``reactor``, until its end or a signal, and return the exit status.

    :raises OSError: if no file descriptor is left.
    """
    commands: list[ClientCommand] = []
    kind = COMMANDS["find-rate" if vars(options).get("find_rate") else options.command]
    try:
        for target in options.targets:
            connector = Connector(reactor, target, options.timeout, options.socket_options)
            commands.append(kind(connector, options, console))
    except (BadTarget, Unusable) as error:
        console.print_error(str(error))
        return WRONG
    runs = [command.run for command in commands]
    ended: Deferred[None] = Deferred()
    status = NOT_OK

    async def measure() -> None:
        nonlocal status
        try:
            await gatherResults([Deferred.fromCoroutine(run.run()) for run in runs])
            are_ok = [command.finish() for command in commands]
            if all(are_ok) and not console.is_broken:
                status = OK
        except Exception:
            log.failure("echod-client fails")
        ended.callback(None)
        reactor.stop()

    def stop() -> Deferred[None]:
        for run in runs:
            run.stop()
        return ended

    def show_so_far() -> None:
        for command in commands:
            command.show_so_far()

    console.on_broken = stop
    reactor.addSystemEventTrigger("before", "shutdown", stop)
    reactor.callWhenRunning(Deferred.fromCoroutine, measure())
    actions = {signal.SIGINT: reactor.stop, signal.SIGTERM: reactor.stop}
    if options.command != "pipe":
        actions[signal.SIGQUIT] = show_so_far
    with handled(lambda: any(run.sent for run in runs), actions, reactor.callFromThread):
        reactor.run(installSignalHandlers=False)
    return status


@contextmanager
def handled(
    has_begun: Callable[[], bool],
    actions: Mapping[signal.Signals, Callable[[], object]],
    call: Callable[[Callable[[], object]], object],
) -> Iterator[None]:
    """Handle signals while the body runs, except those that are ignored already.

    After a stop (Ctrl-Z and fg), Linux lets select(2) wait for the rest of its timeout, as if no
    time had passed. With a handler for SIGCONT, Python computes the rest again from the clock.

    :param has_begun: returns whether there is something to summarize. If not, SIGQUIT is ignored,
        and another signal kills this process: a shell sees why it ended (status 130 or 143).
    :param actions: the action of each signal.
    :param call: arranges for the call of an action; called in a signal handler.
    """

    def handle(number: int, frame: object) -> None:  # noqa: ARG001 - signal's signature
        if has_begun():
            call(actions[signal.Signals(number)])
        elif number != signal.SIGQUIT:
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)

    numbers = [number for number in actions if signal.getsignal(number) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, handle)
    continuing = signal.signal(signal.SIGCONT, lambda *_: None)
    try:
        yield
    finally:
        signal.signal(signal.SIGCONT, continuing)
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
