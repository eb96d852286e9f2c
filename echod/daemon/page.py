"""The status page: the state of the service, as HTML for a browser and as text for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Final, TypeAlias

from twisted.internet.interfaces import IReactorTime
from twisted.web.template import Tag, flattenString, tags

from echod import __version__
from echod.daemon.metrics import Tally, transferred
from echod.factory import EchoFactory
from echod.faults import Faults
from echod.udp import EchoDatagrams

Rows: TypeAlias = list[tuple[str, str]]
"""Names and values."""

Sections: TypeAlias = dict[str, Rows]
"""Rows by the title of their section."""

TITLE: Final = f"echod {__version__}"

UNITS: Final = ("", "kB", "MB", "GB", "TB", "PB", "EB")

STYLE: Final = """
:root { color-scheme: light dark; --page: #f4f5f7; --card: #fff; --line: #e3e6ea;
  --text: #1c2024; --soft: #5b636b }
@media (prefers-color-scheme: dark) { :root { --page: #131619; --card: #1c2024;
  --line: #30363c; --text: #e6e9ec; --soft: #9aa3ab } }
body { margin: 0 auto; padding: 1.5rem 1rem; max-width: 52rem; background: var(--page);
  color: var(--text); font: 1rem/1.5 system-ui, sans-serif }
h1 { margin: 0 0 1rem; font-size: 1.5rem }
main { display: grid; gap: 1rem; align-items: start;
  grid-template-columns: repeat(auto-fit, minmax(min(21rem, 100%), 1fr)) }
section { padding: .75rem 1rem; background: var(--card); border: 1px solid var(--line);
  border-radius: .5rem }
table { width: 100%; border-collapse: collapse }
caption { padding-bottom: .25rem; font-weight: 600; text-align: left }
tr + tr { border-top: 1px solid var(--line) }
th, td { padding: .3rem 0; vertical-align: top }
th { padding-right: 1rem; color: var(--soft); font-weight: 400; text-align: left;
  white-space: nowrap }
td { font-variant-numeric: tabular-nums; overflow-wrap: anywhere; text-align: right }
"""


@dataclass
class StatusPage:
    """The facts of the status page.

    :ivar clock: the clock of the uptime.
    :ivar factory: serves the connections.
    :ivar datagrams: answers the datagrams.
    :ivar tally: observes both.
    :ivar listening: returns the names of the echo listeners.
    :ivar faults: the faults of each faulty port.
    :ivar since: the start of the daemon, as a UTC time stamp.
    """

    clock: IReactorTime
    factory: EchoFactory
    datagrams: EchoDatagrams
    tally: Tally
    listening: Callable[[], Sequence[str]]
    faults: Sequence[Faults] = ()

    def __post_init__(self) -> None:
        self.since = datetime.now(timezone.utc)
        self._start = self.clock.seconds()

    def sections(self) -> Sections:
        """Return the facts, which are the same as text and as HTML."""
        factory, datagrams, tally = self.factory, self.datagrams, self.tally
        received, sent = transferred(tally, factory)
        limit = factory.limits.total
        uptime = timedelta(seconds=int(self.clock.seconds() - self._start))
        sections = {
            "Service": [
                ("state", "draining: nothing new is served" if factory.draining else "serving"),
                *(("listening on", each) for each in self.listening()),
                ("since", f"{self.since:%Y-%m-%dT%H:%M:%SZ}"),
                ("up for", str(uptime)),
            ],
            "Connections": [
                ("open", f"{len(factory.connections):,}"),
                ("at most", f"{limit:,}" if limit < sys.maxsize else "no limit"),
                ("accepted", f"{tally.accepted:,}"),
                ("bytes received", readable(received)),
                ("bytes sent", readable(sent)),
            ],
            "Closed": counts(tally.closed),
            "Refused": counts(tally.refused),
        }
        if datagrams.ports:
            sections["Datagrams"] = [
                ("answered", f"{datagrams.answered:,}"),
                ("bytes", readable(datagrams.bytes)),
                ("dropped by the kernel", f"{datagrams.kernel_dropped():,}"),
            ]
            sections["Not answered"] = counts(tally.dropped)
        if self.faults:
            sections["Faults"] = [row for each in self.faults for row in faults_of(each)]
        return sections


def counts(by_member: Mapping[Any, int]) -> Rows:
    """Return a row for each member of an enum."""
    return [(member.value, f"{count:,}") for member, count in by_member.items()]


def faults_of(faults: Faults) -> Rows:
    """Return the rows of a faulty port: its seed, and how often each rule has fired."""
    fired = [f"{each.text}: {each.fired:,}" for each in faults.rules]
    return [(faults.port, line) for line in (f"seed {faults.plan.seed}", *fired)]


def text(sections: Sections) -> bytes:
    """Return ``sections`` as plain text, with all values in one column."""
    width = max(len(name) for rows in sections.values() for name, _ in rows)
    blocks = [
        "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)])
        for title, rows in sections.items()
    ]
    return ("\n\n".join([TITLE, *blocks]) + "\n").encode()


def html(sections: Sections) -> bytes:
    """Return ``sections`` as one HTML document that loads no other file. All text is escaped."""

    def card(title: str, rows: Rows) -> Tag:
        lines = [tags.tr(tags.th(name, scope="row"), tags.td(value)) for name, value in rows]
        return tags.section(tags.table(tags.caption(title), tags.tbody(*lines)))

    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title(TITLE),
        tags.style(STYLE),
    )
    body = tags.body(tags.h1(TITLE), Tag("main")(*(card(*section) for section in sections.items())))
    written: list[bytes] = []
    flattenString(None, tags.html(head, body, lang="en")).addCallback(written.append)
    return b"<!DOCTYPE html>\n" + written[0]


def readable(count: int) -> str:
    """Return a number of bytes as text; from 1,000 on, add the rounded number with a unit."""
    power = (len(str(count)) - 1) // 3
    rounded = f" ({count / 1000**power:.1f} {UNITS[power]})" if power else ""
    return f"{count:,}{rounded}"
