"""The import graph, read from the source: imports under TYPE_CHECKING are included."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import ROOT

PACKAGE = ROOT / "echod"
SOURCES = sorted(PACKAGE.rglob("*.py"))

# Inside each part a file imports only those before it.
CORE = [
    "arguments",
    "addresses",
    "numbers",
    "durations",
    "clock",
    "turns",
    "events",
    "transport",
    "socketoptions",
    "closing",
    "limits",
    "timeouts",
    "drain",
    "registry",
    "linger",
    "fastset",
    "splice",
    "fastpath",
    "fastprotocol",
    "handshake",
    "protocol",
    "factory",
    "deferred",
    "certificates",
    "tlsrecords",
    "tlstransport",
    "tls",
    "proxy",
    "udprules",
    "udporigin",
    "udpsocket",
    "udp",
    "faulterrors",
    "faultplan",
    "faultgrammar",
    "faults",
    "faultstream",
    "faulty",
    "faultdatagrams",
    "faultytls",
    "testing",
    "peer",
    "pytest_plugin",
]

CLIENT = [
    "protocol",
    "payloads",
    "histogram",
    "replies",
    "pacing",
    "search",
    "errors",
    "output",
    "endpoint",
    "target",
    "sockets",
    "stamps",
    "epoll",
    "streams",
    "datagrams",
    "connector",
    "measurement",
    "events",
    "statistics",
    "ping",
    "load",
    "stdio",
    "pipe",
    "report",
    "findrate",
    "text",
    "plot",
    "terminal",
    "parser",
    "values",
    "options",
    "merge",
    "commands",
    "runner",
    "main",
]

DAEMON = [
    "listeners.interfaces",
    "summary",
    "faultlog",
    "logs",
    "errors",
    "faultfile",
    "logfile",
    "optiontable",
    "options",
    "chroot",
    "command",
    "signals",
    "sdnotify",
    "metrics",
    "page",
    "webguard",
    "web",
    "control",
    "listeners.accepting",
    "listeners.base",
    "listeners.deferring",
    "listeners.group",
    "listeners.tcp",
    "listeners.udp",
    "listeners.unix",
    "listeners.systemd",
    "listeners.tls",
    "listeners.description",
    "listeners.kinds",
    "service",
    "tap",
]

PARTS = {"": CORE, "client.": CLIENT, "daemon.": DAEMON}
ORDER = [f"echod.{part}{name}" for part, names in PARTS.items() for name in names]

# Twisted's idiom: a protocol knows its factory, for type checkers alone.
CIRCLES = {("protocol", "factory")}

# Packages, and the files that start the two commands, which import the rest when called.
STARTS = {"echod", "echod.__main__", "echod.client", "echod.daemon", "echod.daemon.listeners"}

# The packages of each extra, and the files that may import them.
EXTRAS = {
    "OpenSSL": {"certificates", "faultytls", "tls", "tlstransport"},
    "cryptography": {"certificates", "faultytls"},
    "pytest": {"pytest_plugin"},
    "prometheus_client": {"daemon.metrics", "daemon.web"},
    "hdrh": {"client.histogram"},
    "matplotlib": {"client.plot"},
    "tqdm": {"client.terminal"},
}

# Files of the client that work without an extra.
PLAIN = {
    "protocol",
    "payloads",
    "search",
    "errors",
    "output",
    "endpoint",
    "target",
    "sockets",
    "stamps",
    "epoll",
    "parser",
    "values",
    "events",
    "options",
    "main",
}

# Files that need an extra, or import one that does: others import them only inside a function.
NEED_AN_EXTRA = {
    *(f"echod.{name}" for names in EXTRAS.values() for name in names),
    "echod.daemon.page",
    "echod.daemon.listeners.tls",
    *(f"echod.client.{name}" for name in CLIENT if name not in PLAIN),
}

# The outermost functions, which alone may name the global reactor.
OUTERMOST = {"makeService"}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of each import, those under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def modules_imported(tree: ast.AST) -> set[str]:
    """Return the modules of echod that a file imports."""
    modules = set()
    for name in imports(tree):
        if name.startswith("echod."):
            modules.add(name if name in ORDER else name.rpartition(".")[0])
    return modules - {"echod"}  # the package itself is imported for its version


def outside_functions(tree: ast.Module) -> ast.Module:
    """Return the code that runs when the module is imported."""
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return ast.Module(body=body, type_ignores=[])


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def test_each_file_has_its_place() -> None:
    """Each file is in the list of its part: core, client or daemon."""
    assert {name_of(path) for path in SOURCES} == {*ORDER, *STARTS}


@pytest.mark.parametrize("name", ORDER)
def test_imports_run_one_way(name: str) -> None:
    """The daemon and the client import the core, and inside each part imports run one way."""
    part = next(part for part in ("client.", "daemon.", "") if name.startswith(f"echod.{part}"))
    before = set(ORDER[: ORDER.index(name)])
    if part == "daemon.":
        before -= {other for other in before if other.startswith("echod.client.")}
    allowed = {f"echod.{after}" for before_, after in CIRCLES if f"echod.{before_}" == name}
    path = ROOT / (name.replace(".", "/") + ".py")
    assert modules_imported(parsed(path)) <= before | allowed


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_core_needs_twisted_alone(path: Path) -> None:
    """A file imports the standard library, Twisted, zope.interface, and packages of its extra."""
    packages = {name.partition(".")[0] for name in imports(parsed(path))}
    name = name_of(path).removeprefix("echod.")
    extras = {package for package, files in EXTRAS.items() if name in files}
    assert packages <= set(sys.stdlib_module_names) | {"echod", "twisted", "zope"} | extras


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_extras_on_demand(path: Path) -> None:
    """A file that works without an extra imports files that need one inside a function."""
    if name_of(path) not in NEED_AN_EXTRA and name_of(path) != "echod.daemon.tap":
        assert not modules_imported(outside_functions(parsed(path))) & NEED_AN_EXTRA


def test_plot_on_demand() -> None:
    """The client works without the extra ``plot``."""
    for name in ORDER:
        path = ROOT / (name.replace(".", "/") + ".py")
        assert "echod.client.plot" not in modules_imported(outside_functions(parsed(path)))


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_global_reactor(path: Path) -> None:
    """Only the outermost functions name the global reactor, and inside the function body."""
    for node in parsed(path).body:
        if "twisted.internet.reactor" in imports(node):
            assert isinstance(node, ast.FunctionDef)
            assert node.name in OUTERMOST
