"""docs/faults.rst: the commands and the log lines of faulty ports."""

from __future__ import annotations

import re
import shlex
import socket
from contextlib import closing
from pathlib import Path

import pytest

from echod.daemon.command import Command
from echod.faultgrammar import parse_plan
from tests import ROOT
from tests.docs.test_all import blocks, section, tree
from tests.docs.test_plans import columns
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all
from tests.programs.test_command import ECHOD

DOCUMENT = tree(ROOT / "docs" / "faults.rst")
COMMAND_LINE = section(DOCUMENT, "On the command line")


def test_common_plans() -> None:
    """Each common plan is valid."""
    for _, plan in columns(section(DOCUMENT, "Common plans")):
        assert parse_plan(plan).rules


def test_application(capsys: pytest.CaptureFixture[str]) -> None:
    """The example of an application runs, and its observer gets the firing."""
    [example] = blocks(section(DOCUMENT, "In your own application"), "python")
    exec(example, {})
    assert "Fired(rule='first 2: refuse', connection=1" in capsys.readouterr().out


def test_command() -> None:
    """The command opens a faulty port, whose log lines are those of the document."""
    [command] = blocks(COMMAND_LINE, "sh")
    _, *words = shlex.split(re.sub("6543[23]", "0", command))
    [lines] = blocks(section(DOCUMENT, "Find out what fired"), "text")
    with Daemon(*words, command=ECHOD) as daemon:
        port = int(daemon.wait_for("FAULTY")[0].split(": ")[0].rpartition(":")[2])
        for _ in range(2):
            try:
                with socket.create_connection(("127.0.0.1", port)) as client:
                    assert receive_all(client) == b""
            except ConnectionError:
                pass
        daemon.terminate()
        daemon.wait()
        logged = [line.partition("] ")[2] for line in daemon.lines]
    normal = [re.sub(r"(?<=seed )\d+|(?<=127.0.0.1:)\d+", "N", line) for line in logged]
    for line in re.sub(r"(?<=seed )\d+|(?<=127.0.0.1:)\d+", "N", lines).splitlines():
        assert line in normal


def test_file(tmp_path: Path) -> None:
    """The example of a file has plans that the command reads."""
    [example] = blocks(COMMAND_LINE, "toml")
    path = tmp_path / "plans.toml"
    path.write_text(example)
    command = Command()
    command.parseOptions(["--faults", str(path)])
    assert [str(plan).count(":") for _, plan in command["faults"]] == [2, 1]


def test_mistake() -> None:
    """The example of a mistake is the line that it gets."""
    [line] = blocks(COMMAND_LINE, "text")
    wrong = ("--faulty", "tcp:65433", "first 2: refsue")
    with closing(Daemon(*wrong, command=ECHOD)) as daemon:
        assert daemon.wait() == 2
        assert daemon.lines == [line.strip()]


def test_drop_in() -> None:
    """The options of the drop-in are valid."""
    [drop_in] = blocks(COMMAND_LINE, "ini")
    [options] = re.findall('"OPTIONS=(.*)"', drop_in)
    command = Command()
    command.parseOptions(shlex.split(options))
    assert [endpoint for endpoint, _ in command["faulty"]] == ["systemd:name=faulty"]
