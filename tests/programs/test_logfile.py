"""The log file of twistd, and SIGUSR1: with the real logrotate, under load."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from docutils import nodes
from twisted.logger import LogEvent, Logger
from twisted.scripts.twistd import ServerOptions  # type: ignore[attr-defined]

from echod.daemon import logfile
from echod.daemon.errors import CannotServe
from echod.daemon.logfile import TEXT, LogFile, log_file
from echod.daemon.logs import json_lines
from echod.daemon.options import Options
from tests import ROOT, TIMEOUT
from tests.docs.test_all import tree
from tests.programs.daemon import TWISTD
from tests.programs.sockets import receive_all

JSON = "echod.daemon.logs.json_lines"
JOURNAL = "echod.daemon.logs.journal"


def twistd(*arguments: str) -> Any:
    """Return twistd's own options, as echod's option parser finds them."""
    options: Any = ServerOptions()
    for name, value in zip(arguments[::2], arguments[1::2], strict=True):
        options[name] = value
    return options


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("logger", [None, TEXT, JSON, JOURNAL])
def test_which_file(directory: Path, logger: str | None) -> None:
    """The log file is --logfile, or in the background twistd.log by default."""
    for given, name in (
        ({}, "twistd.log"),
        ({"logfile": "x.log"}, "x.log"),
        ({"logfile": "x.log", "nodaemon": 1}, "x.log"),
        ({"logfile": "x.log", "debug": 1}, "x.log"),
        ({"nodaemon": 1}, None),
        ({"debug": 1}, None),
        ({"nodaemon": 1, "logfile": "-"}, None),
    ):
        options = {**twistd(), "logger": logger, **given}
        file = log_file(options)
        assert [path.name for path in directory.iterdir()] == ([name] if name else [])
        assert (file is None) is (name is None)
        assert options["logger"] == (None if file else logger or TEXT)
        if file is not None:
            Logger("echod", observer=file.observer).info("hello", event="greeting")
            file.file.close()
            text = (directory / str(name)).read_text()
            assert "hello" in text or json.loads(text)["event"] == "greeting"
            (directory / str(name)).unlink()


def test_left_to_twistd(directory: Path) -> None:
    """With another --logger or with syslog, twistd logs on its own."""
    for given in ({"logger": "some.other.logger"}, {"syslog": 1}):
        options = {**twistd(), **given}
        assert log_file(options) is None
        assert options == {**twistd(), **given}
    assert list(directory.iterdir()) == []


def test_cannot_open(directory: Path) -> None:
    """A log file that cannot be opened is refused in one line."""
    for path, why in (
        (f"{directory}/none/log", "no such file or directory: name a file to append to"),
        (f"{directory}", "is a directory: name a file to append to"),
        ("-", "is standard output, which a service in the background does not have"),
    ):
        options = Options()
        options.parent = twistd("logfile", path)
        with pytest.raises(CannotServe, match=f"^twistd echod: --logfile {path}.*{why}"):
            options.parseOptions([])
    options = Options()
    options.parent = twistd("logfile", "log")
    options.parseOptions([])
    assert options.log_file is not None
    options.log_file.file.close()


def test_reopened(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is appended to, and after a rename opened again, if that is possible."""
    path = directory / "log"
    path.write_text("before\n")
    file = LogFile("log", json_lines)
    log = Logger("echod", observer=file.observer)
    monkeypatch.setattr(logfile.log, "observer", file.observer)
    monkeypatch.chdir("/")  # as twistd does
    log.info("\N{SNOWMAN}\ud800", event="message")
    path.rename(directory / "log.1")
    file.reopen()
    log.info("third", event="third")
    path.rename(directory / "log.2")
    path.mkdir()
    file.reopen()
    log.info("fifth", event="fifth")
    file.file.close()
    old, middle = ((directory / f"log.{n}").read_text().splitlines() for n in (1, 2))
    assert old[0] == "before"
    assert len(old) == 2
    events: list[LogEvent] = [json.loads(line) for line in middle]
    assert [event["event"] for event in events] == ["reopened", "third", "not-reopened", "fifth"]
    assert (events[2]["level"], events[2]["why"]) == (
        "error",
        "Is a directory",
    )


def wait_until(happened: Callable[[], object], failure: str = "") -> None:
    """Poll ``happened`` until it is true, for at most the timeout of a test."""
    end = time.monotonic() + TIMEOUT
    while not happened():
        assert time.monotonic() < end, failure
        time.sleep(0.01)


class Background:
    """A ``twistd echod`` in the background that logs to ``name``."""

    def __init__(self, directory: Path, *options: str, name: str = "twistd.log") -> None:
        self.directory, self.log = directory, directory / name
        subprocess.run(
            [TWISTD, *options, "echod", "--port", "0", "--interface", "127.0.0.1"],
            cwd=directory,
            check=True,
            timeout=TIMEOUT,
            capture_output=True,
        )
        self.pid = int((directory / "twistd.pid").read_text())
        found = re.search(r"listening.*127\.0\.0\.1:(\d+)", self.log.read_text())
        assert found, self.log.read_text()
        self.port = int(found[1])

    def echo(self) -> None:
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"

    def stop(self) -> None:
        """Stop the daemon, unless it is stopped, and wait until its pid file is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        wait_until(lambda: not (self.directory / "twistd.pid").exists())


@pytest.fixture
def background(tmp_path: Path) -> Iterator[Callable[..., Background]]:
    started: list[Background] = []

    def start(*options: str, **more: Any) -> Background:
        started.append(Background(tmp_path, *options, **more))
        return started[-1]

    yield start
    for each in started:
        each.stop()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), r"2.* \[echod#info\] closed tcp 127\.0\.0\.1:\d+: finished"),
        (("--logger", JSON), r'\{"time": .*"event": "closed"'),
        (("--logger", JOURNAL), r"<6>closed tcp 127\.0\.0\.1:\d+: finished"),
    ],
)
def test_in_the_background(background: Any, options: tuple[str, ...], line: str) -> None:
    """Without -n, the log is in twistd.log in any format, with its last line."""
    daemon = background(*options)
    daemon.echo()
    daemon.stop()
    text = daemon.log.read_text()
    assert re.search(f"^{line}", text, re.MULTILINE), text
    assert "Server Shut Down." in text.splitlines()[-1]


def test_in_the_foreground(tmp_path: Path) -> None:
    """With -n and --logfile, the log is in the file, and standard output is empty."""
    words = ["-n", "--pidfile=", "--logfile=log", "--logger", JSON, "echod", "--port", "0"]
    with subprocess.Popen(
        [TWISTD, *words], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        log = tmp_path / "log"
        wait_until(lambda: log.exists() and '"event": "listening"' in log.read_text())
        process.terminate()
        out, _ = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (0, b"")
    assert [json.loads(line) for line in log.read_text().splitlines()][-1]["level"] == "info"


@pytest.mark.skipif(
    shutil.which("logrotate") is None and not Path("/usr/sbin/logrotate").exists(),
    reason="logrotate is not installed: it is in Debian's package logrotate",
)
@pytest.mark.parametrize("options", [(), ("--logger", JSON)])
def test_logrotate(background: Any, tmp_path: Path, options: tuple[str, ...]) -> None:
    """The logrotate configuration of the manual loses no line under load."""
    document = tree(ROOT / "docs" / "operating.rst")
    [stanza] = [
        block.astext()
        for block in document.findall(nodes.literal_block)
        if "postrotate" in block.astext()
    ]
    daemon = background("--logfile", "echod.log", *options, name="echod.log")
    config = tmp_path / "logrotate.conf"
    config.write_text(
        stanza.replace("/var/log/echod.log", str(daemon.log)).replace(
            "/run/echod.pid", str(tmp_path / "twistd.pid")
        )
    )
    config.chmod(0o644)
    rotations, echoes, done = 8, [0] * 3, threading.Event()

    def load(number: int) -> None:
        while not done.is_set():
            daemon.echo()
            echoes[number] += 1

    clients = [threading.Thread(target=load, args=(number,)) for number in range(len(echoes))]
    for client in clients:
        client.start()
    try:
        for _ in range(rotations):
            before = sum(echoes)
            wait_until(lambda before=before: sum(echoes) > before + 20)
            rotated = subprocess.run(
                [
                    shutil.which("logrotate") or "/usr/sbin/logrotate",
                    *("--force", "--state", tmp_path / "state", config),
                ],
                capture_output=True,
                text=True,
                timeout=TIMEOUT,
                check=False,
            )
            assert (rotated.returncode, rotated.stderr) == (0, "")
            wait_until(lambda: daemon.log.exists() and "opened" in daemon.log.read_text())
        last = sum(echoes)
        wait_until(lambda: sum(echoes) > last + 20)  # so that the last file has lines, too
    finally:
        done.set()
        for client in clients:
            client.join()
    daemon.stop()
    files = sorted(tmp_path.glob("echod.log*"))
    assert len(files) == rotations + 1
    texts = [
        gzip.decompress(file.read_bytes()).decode() if file.suffix == ".gz" else file.read_text()
        for file in files
    ]
    lines = [line for text in texts for line in text.splitlines()]
    assert sum("finished" in line for line in lines) == sum(echoes)
    assert all("finished" in text for text in texts[:-1])
    if options:
        assert {json.loads(line)["level"] for line in lines} == {"info"}
