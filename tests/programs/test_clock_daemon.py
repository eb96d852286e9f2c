"""Real processes while the time of day is set: nothing but time stamps follows it.

libfaketime (Debian's package ``libfaketime``) sets the time of one process, and leaves its
CLOCK_MONOTONIC alone.
"""

from __future__ import annotations

import os
import re
import select
import socket
import subprocess
import sys
import time
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from tests import TIMEOUT
from tests.programs.daemon import Daemon

LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)

# It sets the time of day when a connection is open, and leaves when that is over.
APPLICATION = """
import os, socket, sys
from twisted.internet import reactor
from twisted.internet.endpoints import TCP4ServerEndpoint
from echod import EchoFactory

def observe(event):
    os.replace(sys.argv[1], os.environ["FAKETIME_TIMESTAMP_FILE"])
    factory.observer = closed

def closed(event):
    print(event.ending.value, event.seconds)
    reactor.stop()

factory = EchoFactory(idle_timeout=1, observer=observe)
client = socket.socket()
endpoint = TCP4ServerEndpoint(reactor, 0, interface="127.0.0.1")
endpoint.listen(factory).addCallback(lambda port: client.connect(port.socket.getsockname()))
reactor.run()
"""

pytestmark = pytest.mark.skipif(LIBRARY is None, reason="needs libfaketime; .ci/run installs it")


class TimeOfDay:
    """The time of day of one daemon, which can be set while it runs."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "faketime"
        self.set(0)
        self.environ = {
            **os.environ,
            "LD_PRELOAD": str(LIBRARY),
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_TIMESTAMP_FILE": str(self._file),
        }

    def set(self, ahead: float) -> None:
        """Set it so many seconds ahead of the real one."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+}\n")
        new.replace(self._file)  # at once: the daemon reads the file whenever it asks for the time


def stamp(line: str) -> datetime:
    """Return the time stamp of a line of the log."""
    return datetime.strptime(line.split(maxsplit=1)[0], "%Y-%m-%dT%H:%M:%S%z")


def seconds(line: str) -> float:
    """Return the duration in the line about a closed connection."""
    found = re.search(r" bytes in (\S+) s", line)
    assert found is not None, line
    return float(found[1])


def stalled(daemon: Daemon) -> socket.socket:
    """Return a client that reads nothing, and has sent more than the kernels can hold."""
    client = daemon.connect()
    client.setblocking(False)
    while select.select((), (client,), (), 0.5)[1]:
        client.send(b"x" * 65536)
    return client


def test_set_back(tmp_path: Path) -> None:
    """Set back by half a minute, no timer is late, and no duration is below 0."""
    clock = TimeOfDay(tmp_path)
    path = str(tmp_path / "notify")
    clock.environ |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"}
    listen = ("tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1")
    options = ("--handshake-timeout", "1", "--idle-timeout", "1", "--drain-timeout", "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(TIMEOUT)  # less than the time of day is set back by
        where = [word for each in listen for word in ("--listen", each)]
        with Daemon(*where, *options, env=clock.environ) as daemon:
            proxied = int(daemon.wait_for("listening on tcp", 2)[1].rpartition(":")[2])
            began = time.monotonic()
            with (
                socket.create_connection(("127.0.0.1", proxied), TIMEOUT) as without_header,
                daemon.connect() as idle,
                stalled(daemon),
            ):
                clock.set(-30)
                alive = 0
                while alive < 4:  # the first may have been sent before
                    alive += b"WATCHDOG=1" in systemd.recv(4096)
                with pytest.raises(ConnectionResetError):
                    without_header.recv(1)
                assert idle.recv(1) == b""
                daemon.terminate()
                daemon.wait()  # for TIMEOUT at most
            lasted = time.monotonic() - began
            daemon.wait_for("handshake-timeout 1")
            [closed] = daemon.wait_for(": idle, 0 bytes in")
            [aborted] = daemon.wait_for(": aborted, ")
            assert stamp(closed) < stamp(daemon.lines[0])  # as it has been set
            assert 1 <= seconds(closed) <= lasted
            assert 1 <= seconds(aborted) <= lasted
            assert "Traceback" not in daemon.log


def test_set_forward(tmp_path: Path) -> None:
    """Set forward by an hour, no peer is idle or stalled before its timeout."""
    clock = TimeOfDay(tmp_path)
    timeout = 1.5
    options = ("--port", "0", "--idle-timeout", str(timeout), "--stall-timeout", str(timeout))
    with Daemon(*options, env=clock.environ) as daemon:
        began = time.monotonic()
        with stalled(daemon), daemon.connect() as idle:
            clock.set(3600)
            assert idle.recv(1) == b""
            [closed] = daemon.wait_for(": idle, 0 bytes in")
            [reset] = daemon.wait_for(": stalled, ")
        lasted = time.monotonic() - began
        assert stamp(closed) - stamp(daemon.lines[0]) > timedelta(minutes=59)
        assert timeout <= seconds(closed) <= lasted
        assert timeout <= seconds(reset) <= lasted


@pytest.mark.parametrize("ahead", [-30, 3600])
def test_embedded(ahead: float, tmp_path: Path) -> None:
    """In an application whose reactor is as Twisted makes it, no timeout is late or early."""
    clock = TimeOfDay(tmp_path)
    new = tmp_path / "new"
    new.write_text(f"{ahead:+}\n")
    began = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", APPLICATION, str(new)],
        env=clock.environ,
        stdout=subprocess.PIPE,
        text=True,
        timeout=TIMEOUT,
        check=True,
    )
    ending, lasted = ended.stdout.split()
    assert ending == "idle"
    assert 1 <= float(lasted) <= time.monotonic() - began
