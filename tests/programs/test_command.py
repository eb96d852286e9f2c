"""The command ``echod``: the daemon in the foreground, without twistd's command line."""

from __future__ import annotations

import functools
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from twisted.internet.error import ReactorAlreadyInstalledError
from twisted.logger import ILogObserver

import echod
from echod.__main__ import main
from echod.daemon import command, makeService
from echod.daemon.errors import CannotServe
from echod.daemon.logs import json_line, text_line
from tests import ROOT, TIMEOUT
from tests.programs.activation import socket_activation
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

MAIN = ROOT / "echod" / "__main__.py"

ECHOD = (sys.executable, "-m", "echod")


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGPIPE)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def started(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Any:
    """Return the configuration with which ``echod ARGUMENTS`` calls twistd's runner."""
    configs: list[Any] = []
    monkeypatch.setattr(command, "runApp", configs.append)
    command.run(arguments)
    [config] = configs
    return config


def test_runs_twistd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twistd's runner stays in the foreground, writes no pid file, and makes the service."""
    config = started(monkeypatch, "--port", "7", "--quiet")
    assert (config["nodaemon"], config["pidfile"]) == (True, "")
    assert config.loadedPlugins[config.subCommand].makeService is makeService
    assert (config.subOptions["port"], config.subOptions["quiet"]) == (7, True)


def test_logger(monkeypatch: pytest.MonkeyPatch) -> None:
    """--logger names a function, whose log observer is used; by default, it writes text."""
    for arguments, line in (
        (("--logger", "echod.daemon.logs.json_lines"), json_line),
        ((), text_line),
    ):
        observer = started(monkeypatch, *arguments)["logger"]()
        assert ILogObserver.providedBy(observer)
        assert observer.formatEvent is line


def test_reactor(monkeypatch: pytest.MonkeyPatch) -> None:
    """--reactor is installed before the service is made."""
    installed: list[str] = []
    monkeypatch.setattr(command, "installReactor", installed.append)
    started(monkeypatch, "--reactor", "asyncio")
    assert installed == ["asyncio"]


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[object, str]:
    """Run a command line that is refused; return the exit status and the error."""
    with pytest.raises(SystemExit) as ended:
        command.run(words)
    return ended.value.code, capsys.readouterr().err


def fail(_: object) -> None:
    raise ReactorAlreadyInstalledError


@pytest.mark.parametrize("install", [command.installReactor, fail])
def test_no_such_reactor(
    install: Callable[[str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An event loop that Twisted does not have, or cannot use, is refused in one line."""
    monkeypatch.setattr(command, "installReactor", install)
    status, line = run(capsys, "--reactor", "nonsense")
    assert status == 2
    assert re.fullmatch("echod: --reactor takes .*, not 'nonsense'\n", line)


@pytest.mark.parametrize("name", ["nonsense", "os", "os.getcwd", "os.kill", "a..b", ""])
def test_no_such_logger(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A name that makes no log observer is refused in one line."""
    status, line = run(capsys, "--logger", name)
    assert status == 2
    assert re.fullmatch(f"echod: --logger takes .*, not '{name}'\n", line)


def test_cannot_serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An error of the service maker is one line with the name of this command."""

    def cannot_serve(_: object) -> None:
        raise CannotServe("no luck")

    monkeypatch.setattr(command, "runApp", cannot_serve)
    assert run(capsys) == (1, "echod: no luck\n")
    wrong = "echod: there is no option --prot; see echod --help\n"
    assert run(capsys, "--prot") == (2, wrong)


@pytest.mark.parametrize(
    ("before", "start"),
    [
        (signal.default_int_handler, main),
        (signal.SIG_IGN, functools.partial(runpy.run_path, str(MAIN), run_name="__main__")),
    ],
)
def test_main(
    before: Any,
    start: Callable[[], object],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``python -m echod`` reads the command line; Ctrl-C ends it silently, or stays ignored."""
    signal.signal(signal.SIGINT, before)
    monkeypatch.setattr(sys, "argv", ["echod", "--version"])
    with pytest.raises(SystemExit) as ended:
        start()
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"echod {echod.__version__}\n"
    after = signal.SIG_DFL if before is signal.default_int_handler else before
    assert signal.getsignal(signal.SIGINT) is after


@pytest.mark.parametrize("module", ["echod.__main__", "echod.daemon.command"])
def test_import_installs_no_reactor(module: str) -> None:
    """The event loop is chosen when the command line is read, not when modules are imported."""
    code = f"import sys, {module}; assert 'twisted.internet.reactor' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], timeout=TIMEOUT, check=True, cwd=ROOT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serves(number: int) -> None:
    """It serves in the foreground, writes no file, and exits with status 0."""
    with Daemon("--port", "0", command=ECHOD) as daemon:
        with daemon.connect() as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"
        assert list(Path(daemon.directory.name).iterdir()) == []
        daemon.terminate(number)
        assert daemon.wait() == 0
        assert "Traceback" not in daemon.log


def test_socket_activation() -> None:
    """It serves sockets that systemd passes, without a process between."""
    with socket.create_server(("127.0.0.1", 0)) as passed:
        options = socket_activation(passed, names="a")
        with (
            Daemon(command=ECHOD, **options),
            socket.create_connection(passed.getsockname(), TIMEOUT) as client,
        ):
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_into_head(option: str) -> None:
    """If the pipe of the help or the version is closed early, there is no traceback."""
    reads, writes = os.pipe()
    os.close(reads)
    with os.fdopen(writes, "w") as pipe:
        done = subprocess.run(
            [*ECHOD, option], stdout=pipe, stderr=subprocess.PIPE, timeout=TIMEOUT, check=False
        )
    assert (done.returncode, done.stderr) == (-signal.SIGPIPE, b"")


@pytest.mark.parametrize("option", ["--help", "--version"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_help_on_a_full_disk(option: str, unbuffered: str) -> None:
    """If the help or the version cannot be written, the error is one line."""
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*ECHOD, option],
            stdout=full,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            timeout=TIMEOUT,
            check=False,
        )
    error = b"echod: standard output: no space left on device\n"
    assert (done.returncode, done.stderr) == (1, error)
