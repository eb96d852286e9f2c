"""docs/faults.rst, «Change it while it runs»: its commands run, and their output is right."""

from __future__ import annotations

import json
import shlex
import subprocess
from pathlib import Path
from typing import Any

from tests import ROOT, TIMEOUT
from tests.daemon.test_control import DOCUMENT, documented
from tests.docs.test_all import blocks, section, tree
from tests.programs.daemon import Daemon

SECTION: Any = section(tree(ROOT / "docs" / "faults.rst"), "Change it while it runs")
SERVE, READ, REPLACE, RESET, FIRINGS, MISTAKE, SERVE_UNIX, READ_UNIX = blocks(SECTION, "sh")
[PRINTED] = blocks(SECTION, "json")


def serve(block: str) -> Daemon:
    """Return the daemon of a block, on free ports."""
    words = shlex.split(block)
    assert words[:3] == ["twistd", "-n", "echod"]
    free = {"tcp:65433": "tcp:0:interface=127.0.0.1", "tcp:9863": "tcp:0"}
    return Daemon(*(free.get(word, word) for word in words[3:]))


def curl(block: str, daemon: Daemon) -> list[str]:
    """Return what each command of a block prints."""
    address = daemon.wait_for("control on")[0].rpartition(" ")[2]
    printed = []
    for command in block.replace("\\\n", "").splitlines():
        words = shlex.split(command.replace("127.0.0.1:9863", address))
        assert words[0] == "curl"
        ended = subprocess.run(
            [*words, "--silent", "--show-error"],
            cwd=daemon.directory.name,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=True,
        )
        printed.append(ended.stdout)
    return printed


def test_commands() -> None:
    """Each command does what the text before it says."""
    with serve(SERVE) as daemon:
        refused, echoed = [], b""
        while not echoed:  # a client that tries again
            try:
                with daemon.connect() as sock:
                    sock.sendall(b"hello")
                    echoed = sock.recv(5)
            except OSError as error:  # from connect(2), too, if the RST comes first
                refused.append(error)
        assert len(refused) == 2
        [ports] = curl(READ, daemon)
        [port] = json.loads(ports)["ports"]
        assert [(rule["rule"], rule["fired"]) for rule in port["rules"]] == [("first 2: refuse", 2)]
        [firings] = curl(FIRINGS, daemon)
        assert [each["connection"] for each in json.loads(firings)["firings"]] == [1, 2]
        [state] = curl(RESET, daemon)
        assert [rule["fired"] for rule in json.loads(state)["rules"]] == [0]
        replaced, ended = map(json.loads, curl(REPLACE, daemon))
        assert (replaced["seed"], [rule["fault"] for rule in replaced["rules"]]) == (7, ["reset"])
        assert ended["rules"] == []
        [mistake] = curl(MISTAKE, daemon)
        assert mistake == PRINTED + "\n"


def test_unix() -> None:
    """The endpoint can be a UNIX socket, for its owner alone."""
    with serve(SERVE_UNIX) as daemon:
        [ports] = curl(READ_UNIX, daemon)
        assert len(json.loads(ports)["ports"]) == 1
        assert Path(daemon.directory.name, "control").stat().st_mode & 0o777 == 0o600


def test_paths() -> None:
    """The commands use each path that has another response than the first one."""
    words = " ".join(blocks(SECTION, "sh")).split()
    used = {documented(word.partition(":9863")[2]) for word in words if ":9863/" in word}
    assert used == {*DOCUMENT["paths"]} - {"/", "/openapi.json"}
