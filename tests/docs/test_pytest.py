"""The documentation of the pytest plugin: its examples run, and it names each part."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from docutils import nodes

from echod.faultgrammar import parse_plan
from echod.faultplan import When, when
from echod.peer import DRAIN, EchoPeer
from tests import ROOT
from tests.docs.test_all import blocks, literals, tree

EXAMPLES = ROOT / "docs" / "examples"
PAGE = tree(ROOT / "docs" / "pytest.rst")
TIMEOUT = 60.0
"""Seconds: each example imports Twisted in a process of its own."""


def run_pytest(directory: Path, *options: str) -> str:
    """Run the tests in ``directory`` as its reader does, and return the output."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-m", "pytest", "-p", "no:cacheprovider", *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=directory,
    )
    return ended.stdout + ended.stderr


@pytest.mark.parametrize("style", ["sync", "asyncio", "trio", "twisted"])
def test_example(style: str, tmp_path: Path) -> None:
    """All tests of an example pass, in a directory of their own."""
    directory = tmp_path / style
    shutil.copytree(EXAMPLES / style, directory)
    required = (directory / "requirements.txt").read_text()
    options = [] if "pytest-twisted" in required else ["-p", "no:twisted"]
    output = run_pytest(directory, *options)
    assert re.search(r"=+ \d+ passed in", output), output


def test_first_example(tmp_path: Path) -> None:
    """The example on the page passes, and fails if its rule never fires."""
    [example, *_] = blocks(PAGE, "python")
    (tmp_path / "test_client.py").write_text(example)
    shutil.copy(EXAMPLES / "sync" / "client.py", tmp_path)
    assert "1 passed" in run_pytest(tmp_path, "-p", "no:twisted")
    example, _, count = example.replace("first(2)", "number(9)").rpartition("    assert")
    assert "counts" in count
    (tmp_path / "test_client.py").write_text(example)
    output = run_pytest(tmp_path, "-p", "no:twisted")
    assert "never fired:" in output
    assert ": number 9: refuse" in output


def test_names_each_part() -> None:
    """The page names each fixture, and each public attribute of a peer."""
    named = " ".join(literals(PAGE))
    fixtures = {"echo_peer", "echo_peer_tls", "echo_peer_udp", "echo_peer_unix"}
    attributes = {name for name in dir(EchoPeer) if not name.startswith("_")}
    for name in fixtures | attributes | {"port", "path", "ca"}:
        assert name in named
    assert f"{DRAIN} s" in PAGE.astext()


def test_conditions() -> None:
    """Each condition in the table is what its method makes, and no method is missing."""
    [table] = PAGE.findall(nodes.tbody)
    pairs = [[entry.astext() for entry in row] for row in table]
    for condition, method in pairs:
        made = eval(f"when.{method}.damage()", {"when": when})
        assert parse_plan(f"{condition}: damage").rules == (made,)
    conditions = {
        name
        for name, method in vars(When).items()
        if not name.startswith("_")
        and getattr(method, "__annotations__", {}).get("return") == "When"
    }
    assert conditions == {method.split("(")[0] for _, method in pairs}
