"""Lint: names that echod does not use, in code and in ``literals`` of the documents.

usage: python .ci/names.py [ROOT]

One thing has one name, and it is the field's term where there is one. The command prints
``file:line: name: use X`` for each use of a name below, and exits with status 1 if there is one.
"""

from __future__ import annotations

import ast
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

IDENTIFIERS = {
    "Arrival": "PendingConnection",
    "LOOKS": "CHECKS_PER_TIMEOUT",
    "Passed": "PassedSocket",
    "Probe": "a name with client",
    "Sockets": "EpollReader",
    "Sum": "RateLimitedSummary",
    "Times": "Histogram",
    "Way": "Connector",
    "arrival": "pending, or handshake",
    "arrived": "handshake_done, or received",
    "arriving": "pending",
    "leaving": "draining",
    "look": "check_timeouts",
    "owed": "buffered, or unsent_plaintext over TLS",
    "probe": "client",
    "room": "connection_limit",
    "said": "option",
    "shaken": "handshake_done",
    "sight": "progress",
    "take": "pop_environment, or what it does",
    "tell": "notify",
    "tell_each": "broadcast",
    "told": "notified",
    "unacknowledged": "kernel_send_queue",
    "unread": "has_unread_input",
    "way": "connector",
}

# Names of files and packages. As identifiers most of these are good.
MODULES = {
    "arrival": "handshake",
    "connecting": "tcp",
    "datagram": "udp",
    "endpoints": "listeners",
    "kernel": "transport",
    "listening": "listeners.tcp",
    "messages": "payloads",
    "notify": "sdnotify",
    "passed": "listeners.systemd",
    "ports": "listeners",
    "probe": "client",
    "schedule": "pacing",
    "secure": "listeners.tls",
    "times": "histogram",
    "unixsockets": "listeners.unix",
    "way": "connector",
    "wiring": "tap",
}

CODE = ("echod", "tests", "benchmarks", "twisted")


def wrong_identifiers(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the line, the name and its better name for each identifier of a Python file."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                better = IDENTIFIERS.get(token.string.strip("_"))
                if better:
                    yield token.start[0], token.string, better


def repeated_classes(paths: list[Path]) -> Iterator[tuple[Path, int, str, str]]:
    """Yield the file, the line, the name and what to do for each class whose name is taken."""
    first: dict[str, Path] = {}
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and first.setdefault(node.name, path) != path:
                yield path, node.lineno, node.name, f"another name: {first[node.name].name} has it"


def wrong_imports(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the same for each module of echod that an import or a dotted name in a text names."""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        for dotted in re.findall(r"\bechod(?:[./]\w+)+", line):
            for name in re.split("[./]", dotted):
                if name in MODULES:
                    yield number, dotted, MODULES[name]


def wrong_literals(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield the same for each name or call in double backquotes of a document."""
    text = path.read_text()
    for literal in re.finditer(r"``([\w.]+(?:\([^`]*\))?)``", text):
        for name in re.findall(r"\w+", literal[1]):
            better = IDENTIFIERS.get(name.strip("_"))
            if better:
                yield text.count("\n", 0, literal.start()) + 1, name, better


def wrong_names(root: Path) -> Iterator[str]:
    """Yield one message for each wrong name in the repository at ``root``."""
    sources = [path for room in CODE for path in sorted((root / room).rglob("*.py"))]
    documents = [*sorted(root.glob("docs/*.rst")), root / "README.rst", root / "CONTRIBUTING.rst"]
    for path in [*sources, *documents]:
        shown = path.relative_to(root)
        found = [*wrong_imports(path)]
        if path.suffix == ".py":
            found += wrong_identifiers(path)
            for part in shown.with_suffix("").parts:
                name = part.removeprefix("test_")
                if name in MODULES:
                    found.append((1, part, MODULES[name]))
        else:
            found += wrong_literals(path)
        for line, name, better in sorted(found):
            yield f"{shown}:{line}: {name}: use {better}"
    for path, line, name, better in repeated_classes(sorted(root.glob("echod/**/*.py"))):
        yield f"{path.relative_to(root)}:{line}: {name}: use {better}"


def main() -> int:
    """Print the wrong names, and return the exit status."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).resolve().parent.parent)
    messages = list(wrong_names(root))
    print(*messages, sep="\n", end="\n" if messages else "")
    return 1 if messages else 0


if __name__ == "__main__":
    sys.exit(main())
