"""The wheel, the sdist and the editable install, each used from another directory."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import Any

import pytest

import tests.programs.daemon
from echod import __version__
from tests import ROOT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

pytestmark = pytest.mark.packaging

MINUTES = 300


def run(*command: object, **more: Any) -> str:
    return subprocess.run(
        [str(word) for word in command],
        capture_output=True,
        text=True,
        timeout=MINUTES,
        check=True,
        **more,
    ).stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the files that git tracks, without leftovers of a build."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in run("git", "ls-files", cwd=ROOT).splitlines():
        if (ROOT / name).exists():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, copy / name)
    return copy


@pytest.fixture(scope="module")
def built(checkout: Path) -> dict[str, Path]:
    """Return the sdist, and the wheel that is built from the sdist."""
    run(sys.executable, "-m", "build", checkout)
    return {
        "sdist": next((checkout / "dist").glob("*.tar.gz")),
        "wheel": next((checkout / "dist").glob("*.whl")),
    }


def test_wheel_holds_the_plugin(built: dict[str, Path]) -> None:
    """The wheel has the plugin and py.typed, and no __init__.py in the package twisted."""
    names = set(zipfile.ZipFile(built["wheel"]).namelist())
    assert {"twisted/plugins/echod_plugin.py", "echod/py.typed", "echod/daemon/service.py"} <= names
    assert {"echod/daemon/openapi.json", "echod/pytest_plugin.py"} <= names
    assert "echod/client/main.py" in names
    assert not {"twisted/__init__.py", "twisted/plugins/__init__.py"} & names
    info = f"twisted_echod-{__version__}.dist-info"
    assert {name.partition("/")[0] for name in names} == {"echod", "twisted", info}


def test_metadata(built: dict[str, Path]) -> None:
    """The wheel has its name, the version of the source, two console scripts and the plugin."""
    wheel = zipfile.ZipFile(built["wheel"])
    info = f"twisted_echod-{__version__}.dist-info"
    lines = wheel.read(f"{info}/METADATA").decode().splitlines()
    assert {"Name: twisted-echod", f"Version: {__version__}"} <= set(lines)
    assert wheel.read(f"{info}/entry_points.txt").decode().split() == [
        *("[console_scripts]", "echod", "=", "echod.__main__:main"),
        *("echod-client", "=", "echod.client.main:main"),
        *("[pytest11]", "echod", "=", "echod.pytest_plugin"),
    ]


def test_client(built: dict[str, Path], tmp_path: Path) -> None:
    """With the extra ``client`` alone, ``echod-client`` works."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{built['wheel']}[client]")
    client = python.with_name("echod-client")
    assert run(client, "--version", cwd=tmp_path) == f"echod-client {__version__}\n"
    with Daemon("--port", "0") as daemon:
        printed = run(client, "ping", f"127.0.0.1:{daemon.port}", "-c", "1", cwd=tmp_path)
    assert "1 sent, 1 received, 0 lost, 0 late, 0 damaged" in printed


def test_pytest_plugin(built: dict[str, Path], tmp_path: Path) -> None:
    """With the extra ``pytest`` alone, pytest has the fixture of a plain peer."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", f"{built['wheel']}[pytest]")
    (tmp_path / "test_client.py").write_text(
        """
import socket

def test_client(echo_peer):
    echo_peer.truncate(3)
    with socket.create_connection((echo_peer.host, echo_peer.port)) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hel"
"""
    )
    assert "1 passed" in run(python, "-m", "pytest", "-W", "error", cwd=tmp_path)


def test_sdist_holds_the_tests(built: dict[str, Path]) -> None:
    """The sdist has the tests, the benchmarks and the documents."""
    with tarfile.open(built["sdist"]) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert {
        "tests/conformance/test_streams.py",
        "benchmarks/losses.py",
        "docs/embedding.rst",
        "tox.ini",
        "LICENSE",
    } <= names


@pytest.mark.parametrize("form", ["wheel", "sdist", "editable"])
def test_install(
    form: str,
    checkout: Path,
    built: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Installed in a new environment, twistd finds echod from an empty directory."""
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    package = ["--editable", checkout] if form == "editable" else [built[form]]
    run(python, "-m", "pip", "install", "--quiet", *package)
    monkeypatch.setattr(tests.programs.daemon, "TWISTD", python.with_name("twistd"))
    with Daemon("--port", "0") as daemon:
        with daemon.connect() as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"
        daemon.terminate()
        assert daemon.wait() == 0
    with Daemon("--port", "0", command=[python.with_name("echod")]) as daemon, daemon.connect():
        daemon.terminate()
        assert daemon.wait() == 0
    client = python.with_name("echod-client")
    assert run(client, "--version") == f"echod-client {__version__}\n"
    bare = subprocess.run([client, "ping", "h:7"], capture_output=True, text=True, check=False)
    assert bare.returncode == 2
    assert bare.stderr.endswith("which is not installed: install echod with its extra client\n")
    where = run(python, "-c", "import echod; print(echod.__file__)", cwd=tmp_path).strip()
    assert Path(where).is_relative_to(checkout if form == "editable" else tmp_path)
