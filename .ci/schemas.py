"""Write the JSON Schema files in docs/schemas from the tables of docs/measuring-json.rst.

usage: python .ci/schemas.py [DIRECTORY]

The tables are for readers, and the files are for programs. tests/docs/test_schemas.py compares the
files with the tables, and validates the output of each command.
"""

from __future__ import annotations

import json
import sys
import types
import typing
from pathlib import Path
from typing import Any, Final

from docutils import nodes
from docutils.core import publish_doctree

from echod.client import events
from echod.client.merge import SAME, SUMS
from echod.client.statistics import Interval

ROOT: Final = Path(__file__).resolve().parent.parent

TABLES: Final = {
    "ping": ("Names of all", "Names of ping and load", "Names of ping"),
    "load": ("Names of all", "Names of ping and load", "Names of load"),
    "find-rate": ("Names of all", "Names of load --find-rate"),
    "pipe": ("Names of all", "Names of pipe"),
    "merge": ("Names of merge",),
}
"""The sections that have the names of each command."""

KINDS: Final = {str: "string", int: "integer", float: "number", bool: "boolean"}

COUNTS: Final = {"type": "object", "additionalProperties": {"type": "integer"}}
"""A count for each word."""

RATE: Final = {
    "type": ["object", "null"],
    "properties": {
        "messages_per_second": {"type": "number"},
        "runs": {"type": "integer"},
        "held": {"type": "integer"},
    },
    "required": ["messages_per_second", "runs", "held"],
    "additionalProperties": False,
}
"""A rate of a search."""

NAMED: Final[dict[str, Any]] = {
    "highest": RATE,
    "failing": RATE,
    "errors": COUNTS,
    "error": {"type": "string"},
    "excess": {"type": ["string", "null"]},
    "ended": {"type": "boolean"},
    "holds": {"type": "boolean"},
    "latency_histogram": {
        "type": "array",
        "items": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "integer"}]},
    },
    "ramp_messages_per_second": {"type": ["array", "null"], "items": {"type": "number"}},
}
"""The values of names that a table describes in words."""

Schema = dict[str, Any]


def table(document: nodes.document, title: str) -> list[tuple[str, str, nodes.Element]]:
    """Return name, type and meaning of each row of the tables in a section."""
    [section] = [
        each for each in document.findall(nodes.section) if each.next_node().astext() == title
    ]
    rows = [row for body in section.findall(nodes.tbody) for row in body.findall(nodes.row)]
    cells = [[child for child in row.children if isinstance(child, nodes.entry)] for row in rows]
    return [(name.astext(), kind.astext(), meaning) for name, kind, meaning in cells]


def fields(record: Any) -> Schema:
    """Return the schema of a named tuple."""
    found = {}
    for name, hint in typing.get_type_hints(record).items():
        hints = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
        kinds = [KINDS.get(each, "null") for each in hints]
        found[name] = {"type": kinds if len(kinds) > 1 else kinds[0]}
    return closed(found)


def closed(properties: Schema) -> Schema:
    """Return the schema of an object that has these names, and no other."""
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def value(name: str, kind: str, meaning: nodes.Element, known: Schema) -> Schema:
    """Return the schema of the value of a row.

    :param known: the schemas of other rows, to which a list of names may refer.
    """
    if name in NAMED:
        return dict(NAMED[name])
    names = [each.astext() for each in meaning.findall(nodes.literal)]
    types_ = kind.split(" or ")
    if name == "intervals":
        return {"type": "array", "items": fields(Interval)}
    if types_[0] == "object":
        inner = {each: {"type": ["number", "null"]} for each in names}
        return {**closed(inner), "type": types_ if len(types_) > 1 else "object"}
    if types_[0] == "array":
        return {"type": "array", "items": closed({each: nested(each, known) for each in names})}
    return {"type": types_ if len(types_) > 1 else kind}


def nested(name: str, known: Schema) -> Schema:
    """Return the schema of a name in a list of names."""
    if name in NAMED:
        return dict(NAMED[name])
    described = known.get(name, {"type": "number" if "seconds" in name else "integer"})
    return {key: each for key, each in described.items() if key != "description"}


def schemas() -> dict[str, Schema]:
    """Return the schema of each file, by its name."""
    document = publish_doctree(
        (ROOT / "docs" / "measuring-json.rst").read_text(), settings_overrides={"report_level": 4}
    )
    known: Schema = {}
    found = {}
    for command, titles in TABLES.items():
        properties = {}
        for title in titles:
            for name, kind, meaning in table(document, title):
                described = {"description": " ".join(meaning.astext().split())}
                properties[name] = {**value(name, kind, meaning, known), **described}
        properties["command"] = {"const": command}
        known.update(properties)
        found[command] = closed(properties)
    ends = ("seconds", "hdrhistogram")
    times = [f"{name}_{end}" for name in ("latency", "round_trip") for end in ends]
    for name in (*SAME, *SUMS, "lost_fraction", *times):  # of the command, if it has them
        found["merge"]["properties"].setdefault(name, known[name])
    round_trip = dict(known["round_trip_seconds"])
    round_trip["required"] = [each for each in round_trip["required"] if each != "jitter"]
    found["merge"]["properties"]["round_trip_seconds"] = round_trip
    found["event"] = event_lines()
    return {
        f"{name}.json": {
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "a line of --json-lines, except the summary"
            if name == "event"
            else f"echod-client {name.replace('find-rate', 'load --find-rate')} --json",
            **schema,
        }
        for name, schema in found.items()
    }


def event_lines() -> Schema:
    """Return the schema of the lines of ``--json-lines``, except the summary."""
    kinds = {each.__name__.lower(): each for each in typing.get_args(events.Event)}
    line = {"time": {"type": "number"}, "target": {"type": "string"}}
    return {
        "oneOf": [
            closed({"event": {"const": name}, **line, **fields(kind)["properties"]})
            for name, kind in {**kinds, "interval": Interval}.items()
        ]
    }


def main(directory: Path) -> None:
    """Write all files."""
    directory.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (directory / name).write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "docs" / "schemas")
