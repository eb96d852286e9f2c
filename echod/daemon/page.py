"""The status page: the state of the service, as HTML for a browser and as text for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta, timezone
from typing import Any, Final, NamedTuple

from twisted.internet.interfaces import IReactorTime
from twisted.web.template import Tag, flattenString, tags

from echod import __version__
from echod.daemon.metrics import Tally, transferred
from echod.factory import EchoFactory
from echod.udp import EchoDatagrams

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


class Section(NamedTuple):
    """Facts under one title, as rows of a name and a value."""

    title: str
    rows: Sequence[tuple[str, str]]


class StatusPage:
    """The facts of the status page, as plain text or HTML.

    :param clock: the clock of the uptime.
    :param factory: serves the connections.
    :param datagrams: answers the datagrams.
    :param tally: observes both.
    :param listening: returns the names of the echo listeners.

    :ivar since: the start of the daemon, as a UTC time stamp.
    """

    def __init__(
        self,
        clock: IReactorTime,
        factory: EchoFactory,
        datagrams: EchoDatagrams,
        tally: Tally,
        listening: Callable[[], Sequence[str]],
    ) -> None:
        self.since = datetime.now(timezone.utc)
        self._start = clock.seconds()
        self._clock = clock
        self._factory = factory
        self._datagrams = datagrams
        self._tally = tally
        self._listening = listening

    def sections(self) -> list[Section]:
        """Return the facts, which are the same in both formats."""
        factory, datagrams, tally = self._factory, self._datagrams, self._tally
        received, sent = transferred(tally, factory)
        limit = factory.limits.total
        uptime = timedelta(seconds=int(self._clock.seconds() - self._start))
        service = [
            ("state", "draining: nothing new is served" if factory.draining else "serving"),
            *(("listening on", each) for each in self._listening()),
            ("since", f"{self.since:%Y-%m-%dT%H:%M:%SZ}"),
            ("up for", str(uptime)),
        ]
        connections = [
            ("open", f"{len(factory.connections):,}"),
            ("at most", f"{limit:,}" if limit < sys.maxsize else "no limit"),
            ("accepted", f"{tally.accepted:,}"),
            ("bytes received", readable(received)),
            ("bytes sent", readable(sent)),
        ]
        sections = [
            Section("Service", service),
            Section("Connections", connections),
            counted("Closed", tally.closed),
            counted("Refused", tally.refused),
        ]
        if datagrams.ports:
            answered = [
                ("answered", f"{datagrams.answered:,}"),
                ("bytes", readable(datagrams.bytes)),
                ("dropped by the kernel", f"{datagrams.kernel_dropped():,}"),
            ]
            sections += [Section("Datagrams", answered), counted("Not answered", tally.dropped)]
        return sections


def counted(title: str, counts: Mapping[Any, int]) -> Section:
    """Return a section with a row for each member of an enum."""
    return Section(title, [(member.value, f"{count:,}") for member, count in counts.items()])


def text(sections: Sequence[Section]) -> bytes:
    """Return ``sections`` as plain text, with all values in one column."""
    width = max(len(name) for section in sections for name, _ in section.rows)
    blocks = [
        "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)])
        for title, rows in sections
    ]
    return ("\n\n".join([TITLE, *blocks]) + "\n").encode()


def html(sections: Sequence[Section]) -> bytes:
    """Return ``sections`` as one HTML document without references, and with all text escaped."""

    def card(title: str, rows: Sequence[tuple[str, str]]) -> Tag:
        lines = [tags.tr(tags.th(name, scope="row"), tags.td(value)) for name, value in rows]
        return tags.section(tags.table(tags.caption(title), tags.tbody(*lines)))

    head = tags.head(
        tags.meta(charset="utf-8"),
        tags.meta(name="viewport", content="width=device-width, initial-scale=1"),
        tags.title(TITLE),
        tags.style(STYLE),
    )
    body = tags.body(tags.h1(TITLE), Tag("main")(*(card(*section) for section in sections)))
    written: list[bytes] = []
    flattenString(None, tags.html(head, body, lang="en")).addCallback(written.append)
    return b"<!DOCTYPE html>\n" + written[0]


def readable(count: int) -> str:
    """Return a number of bytes, and from 1,000 on rounded with a unit, too."""
    power = (len(str(count)) - 1) // 3
    rounded = f" ({count / 1000**power:.1f} {UNITS[power]})" if power else ""
    return f"{count:,}{rounded}"
