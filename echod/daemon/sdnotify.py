"""Notify systemd: ready, stopping, alive, and how many connections are open (sd_notify(3))."""

from __future__ import annotations

import math
import re
import socket
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.addresses import on_one_line
from echod.daemon.errors import CannotServe
from echod.events import Event

INTERVAL: Final = 1.0
"""Seconds between two messages about connections, and between two attempts to send a message
while systemd's queue is full."""

ENVIRONMENT: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

log = Logger(namespace="echod")


class Notifier:
    """An observer that notifies systemd. Without an address it does nothing.

    A message has all variables that have changed since the last one. One loop sends the messages.
    It ends when nothing has changed for an interval, unless there is a watchdog.

    :param clock: the clock of the loop.
    :param connections: returns the number of open connections.
    :param address: path of systemd's socket, or with a leading ``@`` its name in the abstract
        namespace (unix(7)).
    :param watchdog: seconds without a message after which systemd restarts the process; infinite
        if there is no watchdog.
    :ivar faulty: whether the service has a port with faults: the status begins with it.
    """

    faulty = False

    def __init__(
        self,
        clock: IReactorTime,
        connections: Callable[[], int],
        address: str = "",
        watchdog: float = math.inf,
    ) -> None:
        self.address = address
        self.watchdog = watchdog
        self._clock = clock
        self._connections = connections
        self._interval = min(INTERVAL, watchdog / 2)
        self._watchdog_due = math.inf
        self._stopping = False
        self._status = ""
        self._unsent: dict[str, str] = {}
        self._failing = False
        self._loop = LoopingCall(self._update)
        self._loop.clock = clock

    def __call__(self, _: Event) -> None:
        """Send the number of open connections, if that has changed, within the interval."""
        self._notify()

    def ready(self) -> None:
        """Report that the service is ready, and from now on that the reactor runs."""
        self._stopping = False
        if math.isfinite(self.watchdog):
            self._watchdog_due = self._clock.seconds()
        self._notify(READY="1")

    def stopping(self) -> None:
        """Report that the service stops."""
        self._stopping = True
        self._notify(STOPPING="1")

    def _notify(self, **variables: str) -> None:
        """Send ``variables`` at once. Without any, start the loop unless it runs already."""
        if not self.address:
            return
        self._unsent |= variables
        if not self._loop.running:
            self._loop.start(self._interval)
        elif variables:
            self._update()

    def _update(self) -> None:
        """Send the variables that are due. If there are none and no watchdog, end the loop."""
        with suppress(MemoryError):  # else the loop ends, and then the watchdog ends the process
            count = self._connections()
            state = ("FAULTY, " if self.faulty else "") + ("draining, " if self._stopping else "")
            status = f"{state}{count} {'connection' if count == 1 else 'connections'} open"
            if status != self._status:
                self._status = self._unsent["STATUS"] = status
            # Early rather than late: the next turn of the loop may come after the deadline.
            if self._clock.seconds() + self._interval > self._watchdog_due:
                self._watchdog_due = self._clock.seconds() + self.watchdog / 2
                self._unsent["WATCHDOG"] = "1"
            if self._unsent:
                self._send()
            elif self._watchdog_due == math.inf:
                self._loop.stop()

    def _send(self) -> None:
        message = "\n".join(f"{name}={value}" for name, value in self._unsent.items())
        try:
            send(message.encode(), self.address)
        except BlockingIOError:  # systemd's queue is full: the loop tries again
            return
        except OSError as error:  # logged once; the service does not depend on systemd
            if not self._failing:
                log.warn(
                    "NOTIFY_SOCKET={address}: {why}", address=on_one_line(self.address), why=error
                )
            self._failing = True
        else:
            self._failing = False
        self._unsent.clear()


def send(message: bytes, address: str) -> None:
    """Send one datagram to the UNIX socket at ``address``, without blocking.

    :raises BlockingIOError: if the receiver's queue is full.
    :raises OSError: if the socket cannot be reached.
    """
    name = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(message, name)


def notifier(
    clock: IReactorTime, connections: Callable[[], int], environ: Mapping[str, str], pid: int
) -> Notifier:
    """Return the notifier that ``environ`` configures for the process ``pid``.

    :raises CannotServe: if WATCHDOG_USEC is not a number of microseconds.
    """
    address = environ.get("NOTIFY_SOCKET", "")
    microseconds = environ.get("WATCHDOG_USEC")
    if not address or microseconds is None or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return Notifier(clock, connections, address)
    if not re.fullmatch("[1-9][0-9]{0,18}", microseconds):
        raise CannotServe(
            f"WATCHDOG_USEC={microseconds}: it is a whole number of microseconds, 1 or more "
            "(sd_watchdog_enabled(3))"
        )
    return Notifier(clock, connections, address, int(microseconds) / 1e6)
