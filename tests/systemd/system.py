"""Inside the booted system: systemd, the journal, and connections to the service."""

from __future__ import annotations

import json
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
UNITS = Path("/etc/systemd/system")
UNIT = "echod.service"
HOST, PORT = "127.0.0.1", 65432
METRICS = "http://127.0.0.1:9862/metrics"
SOCKETS = ("echod.socket", "echod-metrics.socket", "echod-tls.socket")
TLS_PORT = 65433
LIMIT = 60  # seconds for one scenario
PATIENCE = 15.0  # seconds for anything that should take less than one

Facts = dict[str, Any]
SCENARIOS: dict[str, Callable[[], Facts]] = {}


def scenario(function: Callable[[], Facts]) -> Callable[[], Facts]:
    SCENARIOS[function.__name__] = function
    return function


def run(*command: str, check: bool = True) -> str:
    """Return the output of ``command``; the exception has its error output."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
    if check and done.returncode != 0:
        raise RuntimeError(f"{command}: {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def systemctl(*words: str) -> str:
    return run("systemctl", *words)


def show(name: str, unit: str = UNIT) -> str:
    return systemctl("show", "--value", f"--property={name}", unit).strip()


def main_pid() -> int:
    pid = int(show("MainPID"))
    if pid == 0:  # a signal to process 0 would go to this program
        raise RuntimeError(f"{UNIT} is {show('ActiveState')}, with no process")
    return pid


def until(condition: Callable[[], Any], patience: float = PATIENCE) -> Any:
    """Poll ``condition`` until its value is true, and return the value."""
    deadline = time.monotonic() + patience
    while not (answer := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {patience} s")
        time.sleep(0.01)
    return answer


def until_status(text: str) -> str:
    until(lambda: show("StatusText") == text)
    return show("StatusText")


def connect(host: str = HOST, port: int = PORT) -> socket.socket:
    return socket.create_connection((host, port), PATIENCE)


def connect_unix(path: str) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(PATIENCE)
    sock.connect(path)
    return sock


def receive_all(sock: socket.socket) -> bytes:
    received = bytearray()
    while part := sock.recv(1 << 16):
        received += part
    return bytes(received)


def echoes(sock: socket.socket, data: bytes = b"hello") -> bool:
    """Return whether ``data`` comes back on ``sock``, which is closed."""
    with sock:
        sock.sendall(data)
        sock.shutdown(socket.SHUT_WR)
        return receive_all(sock) == data


def shell(name: str) -> None:
    """Run each command of a block of the document."""
    for command in (HERE / name).read_text(encoding="utf-8").splitlines():
        run("/bin/bash", "-euc", command)


def first_echo() -> float:
    """Return the seconds from connect to the first byte of the reply."""
    began = time.monotonic()
    with connect() as client:
        client.sendall(b"?")
        assert client.recv(1) == b"?"
        return time.monotonic() - began


def now() -> str:
    """Return the time of day in the format of ``journalctl --since``."""
    return f"@{time.time():.6f}"


def journal(*words: str, since: str = "@0") -> list[Facts]:
    """Return entries of the journal, oldest first."""
    run("journalctl", "--sync")
    lines = run("journalctl", "--quiet", "--output=json", "--all", f"--since={since}", *words)
    return [json.loads(line) for line in lines.splitlines()]


def messages(entries: list[Facts]) -> list[str]:
    return [f"<{entry['PRIORITY']}>{entry['MESSAGE']}" for entry in entries]


@contextmanager
def drop_in(text: str, unit: str = UNIT) -> Iterator[None]:
    """Apply a drop-in inside the block, as ``systemctl edit`` would."""
    directory = UNITS / f"{unit}.d"
    directory.mkdir()
    (directory / "override.conf").write_text(text, encoding="utf-8")
    restart = ("restart", "echod.socket" if unit.endswith(".socket") else UNIT)
    try:
        systemctl("daemon-reload")
        systemctl(*restart)
        yield
    finally:
        (directory / "override.conf").unlink()
        directory.rmdir()
        systemctl("daemon-reload")
        systemctl(*restart)


def scrape() -> dict[str, float]:
    with urllib.request.urlopen(METRICS, timeout=PATIENCE) as answer:
        lines = answer.read().decode().splitlines()
    samples = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in samples}
