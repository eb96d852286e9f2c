"""All benchmarks: the command line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import ROOT

COMMANDS = [
    path
    for path in sorted((ROOT / "benchmarks").glob("*.py"))
    if "def main(" in path.read_text()  # the others are modules of these
]


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_wrong_option(path: Path) -> None:
    """An unknown option gets argparse's error line, and nothing runs."""
    ended = subprocess.run(
        [sys.executable, path, "--long"], capture_output=True, text=True, timeout=30, check=False
    )
    assert ended.returncode == 2
    assert ended.stderr.endswith(f"{path.name}: error: unrecognized arguments: --long\n")
    assert ended.stdout == ""
