"""Import the benchmarks, and run their short forms."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from types import ModuleType
from typing import Any

import pytest

from tests import ROOT

needs_cc = pytest.mark.skipif(not shutil.which("cc"), reason="needs a C compiler")


def benchmark(name: str) -> Any:
    """Return a fixture for a module of the benchmarks, which import each other by plain name."""

    @pytest.fixture(name=name)
    def imported(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        return import_module(name)

    return imported


def short_run(benchmark: str, *arguments: str, **environment: str) -> str:
    """Run the short form of a benchmark, and return its output."""
    with subprocess.Popen(
        [sys.executable, str(ROOT / "benchmarks" / benchmark), "--short", *arguments],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=60)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # the servers too
            raise
    assert (process.returncode, errors) == (0, "")
    return output
