"""The start of ``echod-client``: SIGINT, and modules that are not installed."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from echod.client import runner
from echod.client.main import main
from tests import ROOT, TIMEOUT


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Restore this process's handler of SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.modules[sys.argv.pop(1)] = None\n"
        "from echod.client.main import main; sys.exit(main())"
    )
    return subprocess.run(
        [sys.executable, "-c", program, missing, *arguments],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
        cwd=ROOT,
    )


@pytest.mark.parametrize(("missing", "package"), [("hdrh", "hdrhistogram"), ("tqdm", "tqdm")])
def test_without_the_extra(missing: str, package: str) -> None:
    """Without its extra, the command names the extra to install, with status 2."""
    ended = without(missing, "ping", "h:7")
    line = (
        f"echod-client ping needs {package}, which is not installed: "
        "install echod with its extra client\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


@pytest.mark.parametrize("missing", ["hdrh", "tqdm", "matplotlib", "OpenSSL"])
@pytest.mark.parametrize("option", ["--version", "--help"])
def test_without_any_extra(missing: str, option: str) -> None:
    """``--help``, ``--version`` and error messages need no extra."""
    ended = without(missing, option)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.startswith(("echod-client ", "usage: echod-client "))
    ended = without(missing, "ping", "h:0")
    assert ended.returncode == 2
    assert ended.stderr.startswith("echod-client ping: TARGET 'h:0': a port is from 1 to 65535")


@pytest.mark.parametrize(
    ("before", "after"),
    [(signal.default_int_handler, signal.SIG_DFL), (signal.SIG_IGN, signal.SIG_IGN)],
)
def test_interrupt(before: Any, after: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """SIGINT has its default action, unless it is ignored already (sh: ``&``)."""
    monkeypatch.setattr(runner, "run", lambda _: signal.getsignal(signal.SIGINT))
    signal.signal(signal.SIGINT, before)
    assert main(["ping", "h:7"]) == after


class Finder:
    """An importer of one module, which lacks another."""

    def __init__(self, name: str, missing: str) -> None:
        self._name, self._missing = name, missing

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {self._missing!r}", name=self._missing)


@pytest.mark.parametrize("missing", ["hdrh.histogram", "echod.client.protocol"])
def test_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A module that is missing, and belongs to no extra, is reported as it is."""
    monkeypatch.delitem(sys.modules, "echod.client.runner")
    monkeypatch.setattr(sys, "meta_path", [Finder("echod.client.runner", missing), *sys.meta_path])
    if missing.startswith("hdrh"):
        assert main(["ping", "h:7"]) == 2
        assert capsys.readouterr().err.startswith("echod-client ping needs hdrhistogram, which")
    else:
        with pytest.raises(ModuleNotFoundError, match=missing):
            main(["ping", "h:7"])


def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is that of the command."""
    monkeypatch.setattr(runner, "run", lambda options: options.count)
    assert main(["ping", "h:7", "-c", "3"]) == 3
