"""docs/udp.rst: its tables agree with the code, and its examples run.

An ``sh`` block has a command, the ``ini`` block a drop-in whose first line is its path, and the
``python`` block an application without its ``reactor.run()``.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from docutils import nodes
from twisted.internet.task import Clock

from echod.daemon.options import PORT, Options
from echod.events import Drop
from echod.faultplan import OF_DATAGRAMS
from echod.udp import DatagramEcho, DatagramPort, EchoDatagrams
from echod.udprules import LONGEST_FLOW, RATE, TOTAL_RATE
from tests import ROOT, TIMEOUT
from tests.docs.test_all import blocks, literals, run_application, section, tree
from tests.docs.test_operating import needs, verified
from tests.programs.daemon import Daemon

PATH = ROOT / "docs" / "udp.rst"
DOCUMENT = tree(PATH)

SERVE, TRY = blocks(DOCUMENT, "sh")


def rows(title: str) -> list[list[str]]:
    """Return the texts of the table in the section ``title``."""
    [body] = section(DOCUMENT, title).findall(nodes.tbody)
    return [[cell.astext() for cell in row] for row in body.findall(nodes.row)]


def test_every_block_is_tested() -> None:
    """Every literal block is of a kind that is tested here."""
    kinds = {block["classes"][-1] for block in DOCUMENT.findall(nodes.literal_block)}
    assert kinds == {"sh", "ini", "python"}


def test_reasons() -> None:
    """The table has exactly the reasons for dropping a datagram."""
    found = [reason for reason, _ in rows("Datagrams without an answer")]
    assert sorted(found) == sorted(drop.value for drop in Drop)


def test_rates() -> None:
    """The table has each UDP option with its default, which is also that of the class."""
    options = Options()
    options.parseOptions([])
    found = {name.removeprefix("--"): float(default) for name, default, _ in rows("The rates")}
    assert found == {name: options[name] for name in options if name.startswith("udp-")}
    assert found == {"udp-rate": RATE, "udp-total-rate": TOTAL_RATE, "udp-longest": LONGEST_FLOW}


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("block", [SERVE, TRY])
def test_commands(block: str, shell: str) -> None:
    """The commands are valid for sh and for bash."""
    parsed = subprocess.run(
        [shell, "-n"], input=block, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


def served() -> Daemon:
    """Return a daemon with the options of the document, on a free port."""
    twistd, foreground, echod, *options = shlex.split(SERVE)
    assert (twistd, foreground, echod) == ("twistd", "-n", "echod")
    assert any(str(PORT) in option for option in options)
    return Daemon(*(option.replace(str(PORT), "0") for option in options))


def test_serves() -> None:
    """The first command serves UDP on both loopback addresses, and TCP."""
    with served() as daemon:
        for where in ("udp 127.0.0.1:", "udp [::1]:", "tcp 127.0.0.1:"):
            daemon.wait_for(f"listening on {where}")


@pytest.mark.skipif(not shutil.which("socat"), reason="needs socat; .ci/run installs it")
def test_try_it() -> None:
    """The second command prints the bytes that it sends."""
    assert str(PORT) in TRY
    with served() as daemon:
        port = daemon.wait_for("listening on udp 127.0.0.1")[0].rpartition(":")[2]
        ended = subprocess.run(
            ["sh", "-c", TRY.replace(str(PORT), port)],
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            check=False,
        )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("hello", "", 0)


@pytest.mark.parametrize("description", [r"udp:0:interface=127.0.0.1", r"udp:0:interface=\:\:1"])
def test_interface(description: str) -> None:
    """``interface=`` accepts an address, with its colons escaped."""
    with Daemon("--listen", description) as daemon:
        address = "[::1]" if "\\" in description else "127.0.0.1"
        [line] = daemon.wait_for("listening on")
        assert f"listening on udp {address}:" in line


@needs("systemd-analyze", "systemd")
def test_drop_in(tmp_path: Path) -> None:
    """The units pass systemd-analyze with the drop-in."""
    [block] = blocks(DOCUMENT, "ini")
    assert verified(block, tmp_path) == (0, [])


ASK = """
import socket
from twisted.internet.threads import deferToThread

[number] = datagrams.rules.own_ports

def ask():
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as last,
    ):
        last.bind(("127.0.0.2", 0))
        for sock in [client] * 15 + [last]:
            sock.connect(("127.0.0.1", number))
            sock.send(b"hello")
        last.recv(99)  # the earlier datagrams have been answered or dropped

def done(result):
    print(result, datagrams.answered, datagrams.bytes)
    reactor.stop()

reactor.callWhenRunning(lambda: deferToThread(ask).addBoth(done))
reactor.run()
"""


def test_embedding_example(tmp_path: Path) -> None:
    """The application replies at its rate, and its observer gets an event for each drop."""
    block, _ = blocks(DOCUMENT, "python")
    ended = run_application(f"{block}\n{ASK}", tmp_path)
    assert (ended.stderr, ended.returncode) == ("", 0)
    *dropped, last = ended.stdout.splitlines()
    counted = re.fullmatch(r"None (\d+) (\d+)", last)
    assert counted
    answered = int(counted[1]) - 1
    assert 10 <= answered < 15  # more than 10 if the machine is slow
    assert int(counted[2]) == 5 * (answered + 1)
    assert len(dropped) == 15 - answered
    assert all(re.match(r"Dropped\(drop=<Drop\.SOURCE_RATE: .*'127\.0\.0\.1'", x) for x in dropped)


def test_embedding_parts() -> None:
    """The parts of the classes that the document names exist."""
    named = literals(section(DOCUMENT, "In your own application"))
    assert {"EchoDatagrams", "answered", "bytes", "Dropped(drop, peer)"} <= named
    assert {"DatagramPort(reactor, sock, datagrams)", "startListening()"} <= named
    assert DatagramPort.startListening
    assert DatagramEcho.__name__ in blocks(DOCUMENT, "python")[0]
    assert {"answered", "bytes"} <= vars(EchoDatagrams(Clock())).keys()


ASK_FAULTY = """
from twisted.internet.protocol import DatagramProtocol

class Client(DatagramProtocol):
    received = []

    def startProtocol(self):
        for number in range(1, 5):
            self.transport.write(b"%d" % number, ("127.0.0.1", port.getHost().port))

    def datagramReceived(self, datagram, addr):
        self.received.append(datagram)
        if len(self.received) == 3:
            print(*self.received, dict(faults.counts))
            reactor.stop()

reactor.listenUDP(0, Client(), interface="127.0.0.1")
reactor.run()
"""


def test_faulty_example(tmp_path: Path) -> None:
    """The application drops the first two datagrams, duplicates the third, and counts both."""
    first, second = blocks(DOCUMENT, "python")
    second = second.replace("reactor.listenUDP", "port = reactor.listenUDP")
    ended = run_application(f"{first}\n{second}\n{ASK_FAULTY}", tmp_path)
    assert (ended.stderr, ended.returncode) == ("", 0)
    lines = ended.stdout.splitlines()
    assert lines[-1] == "b'3' b'3' b'4' {'drop': 2, 'duplicate': 1}"
    assert [line.partition("(")[0] for line in lines[:-1]].count("Fired") == 3


def test_faults() -> None:
    """The table has each fault of a datagram."""
    found = [name for name, _ in rows("A UDP port with faults")]
    assert sorted(found) == sorted(OF_DATAGRAMS)
