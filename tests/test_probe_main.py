"""The command echod-client, where what it needs is not installed."""

from __future__ import annotations

import subprocess
import sys

import pytest

from echod.probe import commands
from echod.probe.main import main
from tests.support import ROOT, TIMEOUT


def without(missing: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    program = (
        "import sys; sys.modules[sys.argv.pop(1)] = None\n"
        "from echod.probe.main import main; sys.exit(main())"
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
    """Without the extra it says in one line how to get it, and the exit status is 2."""
    ended = without(missing, "ping", "h:7")
    line = (
        f"echod-client needs {package}, which is not installed: "
        "install echod with its extra client\n"
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", line)


@pytest.mark.parametrize("missing", ["matplotlib", "OpenSSL"])
def test_other_extras(missing: str) -> None:
    """What only some options need is not asked for before."""
    ended = without(missing, "--version")
    assert (ended.returncode, ended.stderr) == (0, "")


class Finder:
    """Finds one module, which needs another."""

    def __init__(self, name: str, missing: str) -> None:
        self._name, self._missing = name, missing

    def find_spec(self, name: str, path: object, target: object = None) -> None:
        if name == self._name:
            raise ModuleNotFoundError(f"No module named {self._missing!r}", name=self._missing)


@pytest.mark.parametrize("missing", ["hdrh.histogram", "echod.client"])
def test_missing(
    missing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is missing and of no extra is a mistake in the installation, and not hidden."""
    monkeypatch.delitem(sys.modules, "echod.probe.commands")
    monkeypatch.setattr(sys, "meta_path", [Finder("echod.probe.commands", missing), *sys.meta_path])
    if missing.startswith("hdrh"):
        assert main(["ping", "h:7"]) == 2
        assert capsys.readouterr().err.startswith("echod-client needs hdrhistogram, which")
    else:
        with pytest.raises(ModuleNotFoundError, match=missing):
            main(["ping", "h:7"])


def test_status(monkeypatch: pytest.MonkeyPatch) -> None:
    """The exit status is that of the command, which has the arguments as they are."""
    monkeypatch.setattr(commands, "run", len)
    assert main(["a", "b", "c"]) == 3
