"""What systemd is told: ready, how many are connected, still alive, stopping (sd_notify(3))."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Mapping
from typing import Final

from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger

from echod.daemon.errors import CannotServe
from echod.daemon.logs import on_one_line
from echod.events import Event

EVERY: Final = 1.0
"""Seconds between two words about the connections, at least; and until what systemd
was too busy to hear is said again."""

ENVIRONMENT: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

log = Logger(namespace="echod")


class Notifier:
    """Tell systemd; or, without an address, nobody. An observer, to know what is new.

    :param clock: tells when to speak again.
    :param connections: returns how many are open.
    :param address: path of systemd's socket; with a leading ``@``, a name in the abstract
        namespace (unix(7)).
    :param watchdog: seconds of silence after which systemd restarts the process; ``None``:
        it does not.
    """

    def __init__(
        self,
        clock: IReactorTime,
        connections: Callable[[], int],
        address: str | None = None,
        watchdog: float | None = None,
    ) -> None:
        self._clock = clock
        self._connections = connections
        self.address = address
        self._watchdog = watchdog
        self._alive: LoopingCall | None = None
        self._stopping = False
        self._status = ""
        self._next_look: IDelayedCall | None = None
        self._untold: dict[str, str] = {}
        self._unheard = False

    def __call__(self, _: Event) -> None:
        """Tell how many connections are open, if that has changed and is due."""
        if self._next_look is None:
            self._tell()

    def ready(self) -> None:
        """Tell that every listener listens; and from now on, that the reactor turns."""
        self._stopping = False
        self._tell(READY="1")
        if self._watchdog is not None and self._alive is None:
            self._alive = LoopingCall(self._tell, WATCHDOG="1")
            self._alive.clock = self._clock
            self._alive.start(self._watchdog / 2)

    def stopping(self) -> None:
        """Tell that the drain begins."""
        self._stopping = True
        self._tell(STOPPING="1")

    def _tell(self, **assignments: str) -> None:
        """Tell systemd that, what it was too busy to hear, and the status if that is due."""
        if self.address is None:
            return
        self._untold |= assignments
        if self._next_look is None and self._status != self._describe():
            self._status = self._untold["STATUS"] = self._describe()
            self._look_again()
        if not self._untold:
            return
        message = "\n".join(f"{name}={value}" for name, value in self._untold.items())
        try:
            send(message.encode(), self.address)
        except BlockingIOError:  # its queue is full
            self._look_again()
            return
        except OSError as error:  # no reason to stop serving, and none to complain twice
            if not self._unheard:
                log.warn(
                    "NOTIFY_SOCKET={address}: {why}", address=on_one_line(self.address), why=error
                )
            self._unheard = True
        else:
            self._unheard = False
        self._untold.clear()

    def _describe(self) -> str:
        count = self._connections()
        draining = "draining, " if self._stopping else ""
        return f"{draining}{count} {'connection' if count == 1 else 'connections'} open"

    def _look_again(self) -> None:
        if self._next_look is None:
            self._next_look = self._clock.callLater(EVERY, self._look)

    def _look(self) -> None:
        self._next_look = None
        self._tell()


def send(message: bytes, address: str) -> None:
    """Send one datagram to the UNIX socket at ``address``, without waiting.

    :raises BlockingIOError: where its queue is full.
    :raises OSError: where it cannot be reached.
    """
    where = f"\0{address[1:]}" if address.startswith("@") else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.sendto(message, where)


def notifier(
    clock: IReactorTime, connections: Callable[[], int], environ: Mapping[str, str], pid: int
) -> Notifier:
    """Return the notifier that ``environ`` asks for in process ``pid``.

    :raises CannotServe: where WATCHDOG_USEC is not a number of microseconds.
    """
    address = environ.get("NOTIFY_SOCKET")
    microseconds = environ.get("WATCHDOG_USEC")
    if not address or microseconds is None or environ.get("WATCHDOG_PID", str(pid)) != str(pid):
        return Notifier(clock, connections, address or None)
    if not re.fullmatch("[1-9][0-9]{0,18}", microseconds):
        raise CannotServe(
            f"WATCHDOG_USEC={microseconds}: it is a whole number of microseconds, 1 or more "
            "(sd_watchdog_enabled(3))"
        )
    return Notifier(clock, connections, address, int(microseconds) / 1e6)
