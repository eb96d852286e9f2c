"""README.rst: its commands and examples run, and its table has each option."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from echod.daemon.options import Options
from tests import ROOT, TIMEOUT
from tests.docs.test_all import blocks as literal_blocks
from tests.docs.test_all import run_application, tree
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

README = (ROOT / "README.rst").read_text()


def blocks(language: str | None) -> list[str]:
    """Return the literal blocks in ``language``, or, if None, without a language."""
    return literal_blocks(tree(ROOT / "README.rst"), language)


def test_distribution_name() -> None:
    """No text says to install a package called echod, which is another program on PyPI."""
    texts = [*ROOT.glob("*.rst"), *ROOT.glob("docs/*.rst"), *ROOT.glob("systemd/*")]
    for path in [*texts, *ROOT.glob("echod/**/*.py")]:
        assert not re.search(r"pip install [^&`\n]*[ ']echod\b", path.read_text()), path


def hello(daemon: Daemon, port: int | None = None) -> None:
    with socket.create_connection(("127.0.0.1", port or daemon.port), TIMEOUT) as client:
        client.sendall(b"hello")
        client.shutdown(socket.SHUT_WR)
        assert receive_all(client) == b"hello"


@pytest.mark.parametrize("command", blocks("sh")[0].splitlines())
def test_by_hand(command: str) -> None:
    """The commands serve; here they use a free port on loopback."""
    words = shlex.split(command.replace("65432", "0").replace("0.0.0.0", "127.0.0.1"))
    assert words[:3] == ["twistd", "-n", "echod"]
    with Daemon(*words[3:]) as daemon:
        hello(daemon)


def test_pid_file() -> None:
    """The file twistd.pid is in the current directory while twistd runs."""
    with Daemon("--port", "0") as daemon:
        assert os.listdir(daemon.directory.name) == ["twistd.pid"]
        daemon.terminate()
        daemon.wait()
        assert os.listdir(daemon.directory.name) == []


def test_options() -> None:
    """The table has exactly the options of the command line, with their values."""
    named = set(re.findall(r"^(?:``--version``, )?``(--[^`]+)``", README, re.MULTILINE))
    options = [option for topic in Options.topics.values() for option in topic]
    all_named = {f"--{option.name} {option.value}".strip() for option in options}
    assert named == all_named - {"--version"}
    assert "``--version``, ``--help``" in README


def test_in_an_application(tmp_path: Path) -> None:
    """The application runs, prints its address, and exits."""
    [application] = blocks("python")
    done = run_application(application, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("echo at IPv4Address(type='TCP', host='127.0.0.1', port=")
    assert done.stderr == ""


def test_log_lines() -> None:
    """The shown log lines are those of the daemon."""
    [shown] = [block for block in blocks(None) if block.startswith("[echod#info]")]

    def normal(line: str) -> str:
        return re.sub(r"\d\.\d{3} s", "T", re.sub(r":\d{4,5}\b", ":PORT", line))

    with Daemon("--port", "0") as daemon:
        hello(daemon)
        daemon.wait_for("closed")
        logged = [normal(line[line.index("[echod#info]") :]) for line in daemon.wait_for("[echod#")]
    assert [normal(line) for line in shown.splitlines()] == logged


@pytest.mark.packaging
def test_the_command_that_serves(tmp_path: Path) -> None:
    """The first of the two commands, run in a fresh copy, serves port 65432."""
    [command] = [block for block in blocks(None) if block.endswith("twistd -n echod --port 65432")]
    names = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    shell = subprocess.Popen(
        ["sh", "-c", command],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={name: value for name, value in os.environ.items() if name != "VIRTUAL_ENV"},
    )
    try:
        assert shell.stdout is not None
        lines = []
        for line in shell.stdout:
            lines.append(line)
            if "listening on tcp 127.0.0.1:65432" in line:
                break
        else:
            raise AssertionError("".join(lines))
        with socket.create_connection(("127.0.0.1", 65432), TIMEOUT) as client:
            client.sendall(b"hello")
            client.shutdown(socket.SHUT_WR)
            assert receive_all(client) == b"hello"
    finally:
        os.killpg(shell.pid, signal.SIGTERM)
        shell.communicate()
