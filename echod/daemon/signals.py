"""Signal handlers: the first SIGTERM, SIGINT or SIGHUP drains, a second one ends the drain."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

from twisted.internet.error import ReactorNotRunning
from twisted.logger import Logger

STOP: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = Logger(namespace="echod")


class Signals:
    """The handlers of the signals that stop the service, installed until the process ends.

    A signal that the process ignores from the start stays ignored, for nohup(1). A signal that
    arrives before the reactor runs stops the service as soon as the reactor runs. A second one ends
    the process at once, because the start may hang.

    Twisted's own handlers raise ReactorNotRunning when two signals arrive in one reactor
    iteration.

    :param reactor: the reactor to stop.
    :ivar hasten: called once, by the second signal.
    """

    def __init__(self, reactor: Any) -> None:
        self.hasten: Callable[[], object] = lambda: None
        self._reactor = reactor
        self._reload: Callable[[], object] | None = None
        self._received = self._running = self._hastened = False
        self._handlers = {
            number: signal.SIG_IGN if signal.getsignal(number) is signal.SIG_IGN else self._handle
            for number in STOP
        }
        self._install()
        # The reactor installs its own handlers when it starts: signals are blocked until they are
        # replaced.
        reactor.addSystemEventTrigger("before", "startup", self._block)
        reactor.addSystemEventTrigger("after", "startup", self._unblock)
        reactor.addSystemEventTrigger("after", "shutdown", self._ignore)

    def reload_on_hangup(self, reload: Callable[[], object]) -> None:
        """Let SIGHUP call ``reload`` and not stop the service, even if it was ignored."""
        self._reload = reload
        self._handlers[signal.SIGHUP] = self._handle
        self._install()

    def reopen_log(self, reopen: Callable[[], object]) -> None:
        """Let SIGUSR1 call ``reopen`` from the reactor, between two lines of the log."""
        signal.signal(signal.SIGUSR1, lambda *_: self._reactor.callFromThread(reopen))

    def _install(self) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _block(self) -> None:
        self._mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)

    def _unblock(self) -> None:
        self._running = True
        self._install()
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)

    def _ignore(self) -> None:
        """Ignore further signals: the service has stopped.

        Python restores the default actions as it ends, up to 70 ms before the process does: a
        second signal in this time would kill it, and the exit status would not be 0.
        """
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)

    def _handle(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGHUP and self._reload is not None:
            self._reactor.callFromThread(self._reload)
            return
        if self._received and not self._running:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._received = True
        self._reactor.callFromThread(self._stop, signal.Signals(number).name)

    def _stop(self, name: str) -> None:
        try:
            self._reactor.stop()
        except ReactorNotRunning:
            if not self._hastened:
                self._hastened = True
                log.info("received {signal}, not waiting any longer", event="signal", signal=name)
                self.hasten()
        else:
            log.info("received {signal}, shutting down", event="signal", signal=name)
