"""Processes while the time of day is set: time stamps alone follow it.

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

# Sets the time of day once a connection is open, and stops when that is closed.
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
    """The time of day of one process, which can be set while the process runs."""

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
        """Set the time of day ``ahead`` seconds ahead of the real one."""
        new = self._file.with_suffix(".new")
        new.write_text(f"{ahead:+}\n")
        new.replace(self._file)  # atomically: it is read at any time


def stamp(line: str) -> datetime:
    """Return the time stamp of a log line."""
    return datetime.strptime(line.split(maxsplit=1)[0], "%Y-%m-%dT%H:%M:%S%z")


def seconds(line: str) -> float:
    """Return the duration in the line of a closed connection."""
    found = re.search(r" bytes in (\S+) s", line)
    assert found is not None, line
    return float(found[1])


def stalled(daemon: Daemon) -> socket.socket:
    """Return a client that reads nothing, and has filled all buffers."""
    client = daemon.connect()
    client.setblocking(False)
    while select.select((), (client,), (), 0.5)[1]:
        client.send(b"x" * 65536)
    return client


def test_set_back(tmp_path: Path) -> None:
    """When the time is set back by half a minute, no timer is late, and no duration is negative."""
    clock = TimeOfDay(tmp_path)
    path = str(tmp_path / "notify")
    clock.environ |= {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "600000"}
    listen = ("tcp:0:interface=127.0.0.1", "haproxy:tcp:0:interface=127.0.0.1")
    options = ("--handshake-timeout", "1", "--idle-timeout", "1", "--drain-timeout", "1")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(path)
        systemd.settimeout(TIMEOUT)  # shorter than the time of day is set back
        words = [word for each in listen for word in ("--listen", each)]
        with Daemon(*words, *options, env=clock.environ) as daemon:
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
            assert stamp(closed) < stamp(daemon.lines[0])  # time stamps follow the time of day
            assert 1 <= seconds(closed) <= lasted
            assert 1 <= seconds(aborted) <= lasted
            assert "Traceback" not in daemon.log


def test_set_forward(tmp_path: Path) -> None:
    """When the time is set forward by an hour, no timeout is early."""
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
    """In an application on one of Twisted's reactors, no timeout is late or early."""
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
