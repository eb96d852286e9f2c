"""The command ``ping``, from the options to the output."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Iterator

from echod.client import report, text
from echod.client.command import ClientCommand
from echod.client.connector import Connector
from echod.client.console import Console
from echod.client.events import Connected, Event, Moved, Unanswered
from echod.client.ping import Ping


class PingCommand(ClientCommand):
    """The command ``ping``."""

    result = staticmethod(report.ping_result)
    lines = staticmethod(text.ping_lines)

    def __init__(self, connector: Connector, options: Namespace, console: Console) -> None:
        super().__init__(connector, options, console)
        self._prefix = f"{connector.target.name}: " if len(options.targets) > 1 else ""
        self.run = Ping(
            connector,
            options.size,
            interval=options.interval,
            count=options.count,
            notify=self._notify,
            deadline=options.deadline,
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
