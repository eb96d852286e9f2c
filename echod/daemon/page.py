"""The status page: the same facts for a browser and for a terminal."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Final, NamedTuple

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
    """Some facts under one title."""

    title: str
    rows: list[tuple[str, str]]


def facts(
    *,
    factory: EchoFactory,
    datagrams: EchoDatagrams,
    tally: Tally,
    listening: Sequence[str],
    since: datetime,
    uptime: float,
) -> list[Section]:
    """Return what the page tells, in either view.

    :param since: when the daemon was started, in UTC; a time stamp for people.
    :param uptime: seconds since then, by a monotonic clock.
    """
    received, sent = transferred(tally, factory)
    limit = factory.max_connections
    state = "draining: nothing new is served" if factory.draining else "serving"
    return [
        Section(
            "Service",
            [
                ("state", state),
                *(("listening on", each) for each in listening),
                ("since", f"{since:%Y-%m-%dT%H:%M:%SZ}"),
                ("up for", str(timedelta(seconds=int(uptime)))),
            ],
        ),
        Section(
            "Connections",
            [
                ("open", f"{len(factory.connections):,}"),
                ("at most", f"{limit:,}" if limit < sys.maxsize else "no limit"),
                ("accepted", f"{tally.accepted:,}"),
                ("bytes received", readable(received)),
                ("bytes sent", readable(sent)),
            ],
        ),
        Section("Closed", [(end.value, f"{count:,}") for end, count in tally.closed.items()]),
        Section("Refused", [(why.value, f"{count:,}") for why, count in tally.refused.items()]),
        *(of_datagrams(datagrams, tally) if datagrams.ports else []),
    ]


def of_datagrams(datagrams: EchoDatagrams, tally: Tally) -> list[Section]:
    """Return what there is to tell where UDP is served."""
    return [
        Section(
            "Datagrams",
            [
                ("answered", f"{datagrams.answered:,}"),
                ("bytes", readable(datagrams.bytes)),
                ("dropped by the kernel", f"{datagrams.kernel_dropped():,}"),
            ],
        ),
        Section(
            "Not answered", [(why.value, f"{count:,}") for why, count in tally.dropped.items()]
        ),
    ]


def text(sections: Sequence[Section]) -> bytes:
    """Return ``sections`` as plain text, the values in one column."""
    width = max(len(name) for section in sections for name, _ in section.rows)
    blocks = [
        "\n".join([title, *(f"  {name:{width}}  {value}" for name, value in rows)])
        for title, rows in sections
    ]
    return ("\n\n".join([TITLE, *blocks]) + "\n").encode()


def html(sections: Sequence[Section]) -> bytes:
    """Return ``sections`` as HTML that needs nothing else; whatever they say is escaped."""

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
    """Return a number of bytes exactly and, where that is long, roughly too."""
    power = (len(str(count)) - 1) // 3
    rough = f" ({count / 1000**power:.1f} {UNITS[power]})" if power else ""
    return f"{count:,}{rough}"
