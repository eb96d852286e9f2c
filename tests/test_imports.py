"""The house: who may import whom (read from the source, not from what happens to run)."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import ROOT

SOURCES = sorted((ROOT / "echod").rglob("*.py"))

# Inside the core imports run one way: a file may import those before it.
CORE = [
    "arguments",
    "durations",
    "clock",
    "turns",
    "events",
    "kernel",
    "fastpath",
    "protocol",
    "arrival",
    "factory",
    "tls",
    "proxy",
    "datagram",
    "client",
    "testing",
]

# So they do inside the measuring client, which uses the core.
PROBE = [
    "messages",
    "times",
    "replies",
    "schedule",
    "failures",
    "output",
    "endpoint",
    "target",
    "channels",
    "connecting",
    "way",
    "measurement",
    "ping",
    "load",
    "pipe",
    "report",
    "plot",
    "terminal",
    "options",
    "interrupts",
    "reactor",
    "commands",
    "main",
]

# What the extras install (client, metrics, plot, tls), and who may use it.
EXTRAS: dict[str, set[str]] = {
    "tls.py": {"OpenSSL"},
    "daemon/certificates.py": {"OpenSSL", "cryptography"},
    "daemon/secure.py": set(),
    "daemon/metrics.py": {"prometheus_client"},
    "daemon/page.py": set(),
    "daemon/web.py": {"prometheus_client"},
    **{f"probe/{name}.py": set() for name in PROBE},
    "probe/plot.py": {"matplotlib"},
    "probe/terminal.py": {"tqdm"},
    "probe/times.py": {"hdrh"},
}

# The command line is read without any extra, and so is --help printed.
for name in ("messages", "failures", "endpoint", "target", "output", "options", "main"):
    del EXTRAS[f"probe/{name}.py"]

# Imports one of these only when it is called, to say what is missing.
ON_DEMAND = {"probe/main.py": "echod.probe.commands.run"}

# The outermost functions, which alone may name the global reactor.
OUTERMOST = {"makeService"}


def imports(tree: ast.AST) -> Iterator[str]:
    """Yield the dotted name of each thing imported, but for what only type checkers see."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        else:
            yield from imports(node)


def at_once(tree: ast.Module) -> set[str]:
    """Return what is imported when the file is, and not by a function when it is called."""
    body = [node for node in tree.body if not isinstance(node, ast.FunctionDef)]
    return set(imports(ast.Module(body=body, type_ignores=[])))


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_core_needs_twisted_alone(path: Path) -> None:
    """Nothing is imported but the standard library, Twisted and its own zope.interface.

    What an extra installs is for the files of that extra.
    """
    packages = {name.partition(".")[0] for name in imports(parsed(path))}
    needed = EXTRAS.get(str(path.relative_to(ROOT / "echod")), set())
    assert packages <= set(sys.stdlib_module_names) | {"echod", "twisted", "zope"} | needed


def test_extras_on_demand() -> None:
    """No file imports one that needs an extra, but for those of the same extra."""
    modules = {f"echod.{name[:-3].replace('/', '.')}" for name in EXTRAS}
    for path in SOURCES:
        if str(path.relative_to(ROOT / "echod")) not in EXTRAS:
            tree = parsed(path)
            for name in imports(tree):
                if name == ON_DEMAND.get(str(path.relative_to(ROOT / "echod"))):
                    assert name not in at_once(tree)
                else:
                    assert not any(name.startswith(module) for module in modules), (path, name)


@pytest.mark.parametrize("name", CORE)
def test_imports_run_one_way(name: str) -> None:
    """The core knows nothing of the daemon, and inside it imports run one way."""
    before = CORE[: CORE.index(name)]
    for imported in imports(parsed(ROOT / "echod" / f"{name}.py")):
        if imported.startswith("echod."):
            assert imported.split(".")[1] in before, imported


def test_all_of_the_probe() -> None:
    """Each file of the measuring client has its place in that order."""
    files = {path.stem for path in (ROOT / "echod" / "probe").glob("*.py")}
    assert files == {"__init__", *PROBE}


@pytest.mark.parametrize("name", PROBE)
def test_probe_uses_the_core(name: str) -> None:
    """The measuring client knows the core and not the daemon, and inside it imports run one way."""
    before = PROBE[: PROBE.index(name)]
    for imported in imports(parsed(ROOT / "echod" / "probe" / f"{name}.py")):
        package, *inside = imported.split(".")
        if package != "echod":
            continue
        if inside[0] == "probe":
            assert inside[1] in before, imported
        else:
            assert inside[0] in CORE or inside == ["__version__"], imported


def test_nobody_uses_the_probe() -> None:
    """Neither the core nor the daemon knows the measuring client."""
    for path in SOURCES:
        if path.parent.name != "probe":
            assert not any(name.startswith("echod.probe") for name in imports(parsed(path))), path


def test_plot_on_demand() -> None:
    """What draws is imported when it is asked for: the client works without that extra."""
    for name in PROBE:
        tree = parsed(ROOT / "echod" / "probe" / f"{name}.py")
        assert not any(each.startswith("echod.probe.plot") for each in at_once(tree)), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_global_reactor(path: Path) -> None:
    """Only the outermost functions name the global reactor, and inside the function body."""
    tree = parsed(path)
    for node in tree.body:
        if "twisted.internet.reactor" in imports(ast.Module(body=[node], type_ignores=[])):
            assert isinstance(node, ast.FunctionDef)
            assert node.name in OUTERMOST
