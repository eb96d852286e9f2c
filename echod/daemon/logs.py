"""The log that people read: a line for each connection that ended, refusals summed."""

from __future__ import annotations

import os
from collections import Counter
from typing import Final

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IAddress, IReactorTime
from twisted.logger import Logger

from echod.events import Closed, Event, Reason, Refused

SUM_UP: Final = 1.0
"""Seconds between two lines about refusals, at least: a flood of clients must not
become a flood of lines."""

log = Logger(namespace="echod")


class ConnectionLog:
    """An observer that logs.

    :param clock: tells when a second is over.
    :param quiet: log no line for each connection, but still the refusals.
    """

    def __init__(self, clock: IReactorTime, quiet: bool = False) -> None:
        self._clock = clock
        self._quiet = quiet
        self._refused: Counter[Reason] = Counter()
        self._holding = False

    def __call__(self, event: Event) -> None:
        """Log ``event``, or count it for the next line."""
        if isinstance(event, Closed):
            if not self._quiet:
                log.info(
                    "closed {peer}: {ending}, {bytes} bytes in {seconds:.3f} s{unsent}",
                    peer=name_of(event.peer),
                    ending=event.ending.value,
                    bytes=event.bytes,
                    seconds=event.seconds,
                    unsent=f", {event.unsent} of them not sent back" if event.unsent else "",
                )
        elif isinstance(event, Refused):
            self._refused[event.reason] += 1
            if not self._holding:
                self.sum_up()

    def sum_up(self) -> None:
        """Log what was refused since the last line, and hold the next one back for a while.

        To be called once more at the end of the log's life.
        """
        self._holding = bool(self._refused)
        if not self._refused:
            return
        refused, self._refused = self._refused, Counter()
        log.warn(
            "refused {total} {noun}: {reasons}",
            total=refused.total(),
            noun="connection" if refused.total() == 1 else "connections",
            reasons=", ".join(f"{reason.value} {count}" for reason, count in refused.items()),
        )
        self._clock.callLater(SUM_UP, self.sum_up)


def name_of(address: IAddress | None) -> str:
    """Return ``address`` as people write it, in printable ASCII on one line."""
    if isinstance(address, IPv4Address):
        name = f"tcp {address.host}:{address.port}"
    elif isinstance(address, IPv6Address):
        name = f"tcp [{address.host}]:{address.port}"
    elif isinstance(address, UNIXAddress):
        name = "unix " + os.fsdecode(address.name or b"(unnamed)")
    else:
        name = repr(address)
    return name if name.isascii() and name.isprintable() else ascii(name)[1:-1]
