"""The command ``echod-client`` in a process: in a terminal, in a pipe, interrupted."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests import TIMEOUT
from tests.client.memory import MS, tls_target
from tests.programs.daemon import Daemon

CLIENT = str(Path(sys.executable).with_name("echod-client"))
COLUMNS = 40


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with Daemon("--port", "0", "--quiet") as daemon:
        yield f"127.0.0.1:{daemon.port}"


def client(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run ``echod-client`` in a process of its own."""
    options = {"capture_output": True, "text": True, **options}
    return subprocess.run([CLIENT, *map(str, arguments)], timeout=TIMEOUT, check=False, **options)


def shell(script: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=TIMEOUT, check=False
    )


def test_pipe_writes_only_the_bytes(target: str) -> None:
    """Without a terminal, ``pipe`` writes nothing but the bytes."""
    data = os.urandom(300_000)
    run = client("pipe", target, input=data, text=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == data


def test_json_of_pipe(target: str) -> None:
    """``pipe --json`` writes its result to standard error."""
    run = client("pipe", target, "--json", input="hello")
    assert run.stdout == "hello"
    result = json.loads(run.stderr)
    assert (result["sent_bytes"], result["received_bytes"], result["ok"]) == (5, 5, True)


def test_tar(target: str) -> None:
    """An archive of tar(1) passes unchanged."""
    with tempfile.TemporaryDirectory() as directory:
        for number in range(20):
            (Path(directory) / f"file-{number}").write_bytes(os.urandom(number * 1000))
        there = f"-C {directory}"
        script = f"set -o pipefail; tar c {there} . | {CLIENT} pipe {target} | tar d {there}"
        run = shell(script)
    assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("command", [("ping", "-i", "0.01"), ("load", "-d", "100")])
def test_interrupted(command: tuple[str, ...], number: int) -> None:
    """Ctrl-C prints a complete summary; the exit status is that of the replies so far."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        listening.settimeout(TIMEOUT)
        with subprocess.Popen(
            [CLIENT, *command, f"127.0.0.1:{listening.getsockname()[1]}"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            assert process.stdout is not None
            peer, _ = listening.accept()
            with peer:
                peer.settimeout(TIMEOUT)
                for _ in range(3):
                    peer.sendall(peer.recv(1 << 16))
                if command[0] == "ping":  # its next message may be sent before the last reply came
                    while not process.stdout.readline().startswith("seq=0"):
                        pass
                process.send_signal(number)
                while peer.recv(1 << 16):  # messages in flight, until the client closes
                    pass
            out, err = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, err) == (0, "")
    assert re.search(r"^\d+ sent, \d+ received, 0 lost, 0 late, 0 damaged", out, re.MULTILINE)


def test_interrupted_pipe(target: str) -> None:
    """An interrupted pipe prints one line, with status 1."""
    reading, writing = os.pipe()
    with subprocess.Popen(
        [CLIENT, "pipe", target], stdin=reading, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        os.write(writing, b"hello")
        assert process.stdout.read(5) == b"hello"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=TIMEOUT)
    os.close(reading)
    os.close(writing)
    assert process.returncode == 1
    expected = f"echod-client pipe: {target}: interrupted; wrote 5 of 5 bytes\n"
    assert err.decode() == expected


def test_reader_ends(target: str) -> None:
    """When the reader of standard output is gone, the command prints one line, with status 1."""
    script = f"{CLIENT} ping {target} -i 0.01 | head -n 3; echo ${{PIPESTATUS[0]}}"
    run = shell(script)
    assert run.stdout.splitlines()[-1] == "1"
    assert run.stderr == "echod-client ping: standard output: broken pipe\n"


def test_reader_of_both_outputs_ends(target: str) -> None:
    """The command ends too where standard error has the same reader."""
    script = f"{CLIENT} ping {target} -i 0.01 2>&1 | head -n 3; echo ${{PIPESTATUS[0]}}"
    run = shell(script)
    assert (run.stdout.splitlines()[-1], run.stderr) == ("1", "")


@pytest.mark.parametrize("command", ["ping -c 1", "load -d 0.1 -r 100", "pipe", "pipe --json"])
@pytest.mark.parametrize("redirected", ["2>&-", "2>/dev/full"])
def test_no_standard_error(target: str, command: str, redirected: str) -> None:
    """Without standard error the command runs, and no message gets into standard output."""
    run = shell(f"{CLIENT} {command} {target} < /dev/null {redirected}")
    assert run.returncode == ("--json" in command and "full" in redirected)
    assert "{" not in run.stdout
    run = shell(f"{CLIENT} {command} unix:/nonexistent < /dev/null {redirected}")
    assert (run.returncode, run.stdout) == (1, "")


@pytest.mark.parametrize(
    ("redirected", "expected"),
    [("<&-", "standard input is closed"), (">&-", "standard output is closed")],
)
def test_closed(target: str, redirected: str, expected: str) -> None:
    """Without standard input or output the command ends: a socket would get its descriptor."""
    script = f"{CLIENT} ping {target} -c 1 {redirected}"
    run = shell(script)
    assert (run.returncode, run.stdout, run.stderr) == (2, "", f"echod-client ping: {expected}\n")


class Screen:
    """A terminal of 40 columns, which keeps what is written to it."""

    def __init__(self) -> None:
        self.leader, self.follower = pty.openpty()
        fcntl.ioctl(self.follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.written = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.leader, 1 << 16):
                self.written += part
        except OSError:  # EIO: no process has the terminal open
            pass

    def close(self) -> str:
        os.close(self.follower)
        self._reader.join()
        os.close(self.leader)
        return self.written.decode()


def environment() -> dict[str, str]:
    """Return an environment with a UTF-8 locale, and without the size of the terminal."""
    kept = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "LINES")}
    return {**kept, "LC_ALL": "C.UTF-8"}


def test_narrow_terminal(target: str) -> None:
    """In a terminal of 40 columns, a line shows the rate, and no line is longer."""
    screen = Screen()
    run = client(
        *("load", target, "-d", 1.3, "-C", 2, "-r", 100),
        capture_output=False,
        stdout=screen.follower,
        stderr=screen.follower,
        stdin=screen.follower,
        env=environment(),
    )
    shown = screen.close()
    assert run.returncode == 0
    assert "100/s, p99 " in shown
    for line in re.split("[\r\n]+", re.sub("\x1b\\[[A-Z0-9;]*", "", shown)):
        assert len(line) <= COLUMNS, line
    assert "█" in shown
    assert "130 sent, 130 received, 0 lost," in shown


def test_progress(target: str) -> None:
    """A pipe draws its progress in the terminal of standard error."""
    screen = Screen()
    with tempfile.TemporaryFile() as file, tempfile.TemporaryFile() as sink:
        file.truncate(20_000_000)
        run = client(
            *("pipe", target),
            capture_output=False,
            stdin=file,
            stdout=sink,
            stderr=screen.follower,
            env=environment(),
        )
        assert os.fstat(sink.fileno()).st_size == 20_000_000
    shown = screen.close()
    assert run.returncode == 0
    assert "100%" in shown
    assert "20.0M/20.0M" in shown


def test_no_progress_in_the_output(target: str) -> None:
    """A pipe draws no progress where standard output is a terminal."""
    screen = Screen()
    run = client(
        *("pipe", target),
        capture_output=False,
        input="hello\n",
        stdout=screen.follower,
        stderr=screen.follower,
    )
    assert screen.close() == "hello\r\n"
    assert run.returncode == 0


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_any_target(encoding: str) -> None:
    """A TARGET is printed, whatever its bytes are, and whatever the output can encode."""
    with Daemon("--listen", "unix:echo.socket", "--quiet") as daemon:
        place = os.fsencode(daemon.directory.name)
        os.symlink(place + b"/echo.socket", place + b"/\xc3\xa9\xff")
        run = client(
            *("ping", os.fsdecode(b"unix:" + place + b"/\xc3\xa9\xff"), "-c", "1"),
            env={**os.environ, "PYTHONIOENCODING": encoding},
        )
    assert (run.returncode, run.stderr) == (0, "")
    shown = r"/\xe9\udcff (" if encoding == "ascii" else "/é\\udcff ("
    assert shown in run.stdout


def test_more_connections_than_usual(target: str) -> None:
    """The soft limit of file descriptors does not limit the connections."""
    script = f"ulimit -S -n 256; {CLIENT} load {target} -C 300 -d 0.1 --json"
    run = shell(script)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["connections_made"] == 300


@pytest.fixture(scope="module")
def tls() -> Iterator[str]:
    with tls_target() as target:
        yield target


@pytest.mark.parametrize(
    "command", [("ping", "-c", "3", "-i", "0.01"), ("load", "-d", "0.3", "-C", "3")]
)
def test_tls(tls: str, command: tuple[str, ...]) -> None:
    """JSON has the time of the TLS handshake."""
    run = client(*command, tls, "--json")
    result = json.loads(run.stdout)
    assert (run.returncode, run.stderr, result["ok"], result["protocol"]) == (0, "", True, "tls")
    assert result["tls_handshake_seconds"]


def test_tls_lines(tls: str) -> None:
    """The summary has the time of the TLS handshake."""
    run = client("ping", tls, "-c", "1")
    assert re.search(rf"connected in {MS} ms, TLS handshake {MS} ms", run.stdout)
    assert "TLS handshakes: min" in client("load", tls, "-d", "0.1").stdout


def test_tls_pipe(tls: str) -> None:
    """A pipe over TLS passes all bytes."""
    data = os.urandom(1_000_000)
    run = client("pipe", tls, input=data, text=False)
    assert (run.returncode, run.stderr) == (0, b"")
    assert run.stdout == data


def test_tls_not_trusted(tls: str) -> None:
    """A certificate that is not trusted is reported in one line."""
    run = client("ping", tls.partition(":trustRoots")[0], "-c", "1")
    assert (run.returncode, run.stdout) == (1, "")
    assert re.fullmatch(
        r"echod-client ping: 127.0.0.1:\d+: TLS fails: certificate verify failed\n", run.stderr
    )


SIGNALLED = """
import os, signal
change = signal.signal

def notify(number, handler):
    before = change(number, handler)
    os.write(int(os.environ["TELL"]), b".")
    return before

signal.signal = notify
from echod.client.main import main
raise SystemExit(main())
"""
"""Writes a byte to a pipe when a signal handler is installed: first in the first line of main."""


@pytest.mark.parametrize(
    ("command", "number"),
    [
        ("ping", signal.SIGINT),
        ("load", signal.SIGINT),
        ("pipe", signal.SIGINT),
        ("ping", signal.SIGTERM),
    ],
)
def test_signal_at_any_time(target: str, command: str, number: signal.Signals) -> None:
    """At any time of a run, a signal either kills the process silently, or prints the summary."""
    endings = set()
    for delay in (0.0, 0.1, 0.2, 0.3, 0.45):  # how far the start gets depends on the machine
        reading, writing = os.pipe()
        with subprocess.Popen(
            [sys.executable, "-c", SIGNALLED, command, target],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            env={**os.environ, "TELL": str(writing)},
            text=True,
        ) as process:
            os.close(writing)
            assert os.read(reading, 1) == b"."
            if delay:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(delay)
            process.send_signal(number)
            out, err = process.communicate(timeout=TIMEOUT)
            os.close(reading)
        endings.add(process.returncode)
        assert err == ""
        if process.returncode == -number or command == "pipe":  # no byte was sent
            assert (process.returncode, out) == (-number, "")
        else:
            found = re.search(r"^[0-9,]+ sent, ([0-9,]+) received, 0 lost", out, re.MULTILINE)
            assert found
            assert process.returncode == (found[1] == "0")
    assert -number in endings


@pytest.mark.parametrize("command", ["ping", "load"])
def test_signal_after_the_end(target: str, command: str) -> None:
    """A signal during the exit of Python kills the process silently, after the summary."""
    program = (
        "import atexit, os, signal, sys\n"
        "atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n"
        "from echod.client.main import main\n"
        "raise SystemExit(main())"
    )
    options = {"ping": ("-c", "1"), "load": ("-d", "0.1")}[command]
    run = subprocess.run(
        [sys.executable, "-c", program, command, target, *options],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (run.returncode, run.stderr) == (-signal.SIGINT, "")
    assert " 0 lost" in run.stdout


def test_stopped_and_continued(target: str) -> None:
    """After Ctrl-Z and fg, the next message is sent at its time, and no message is skipped."""
    with subprocess.Popen(
        [CLIENT, "ping", target, "-i", "2", "-c", "2", "--json"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        with suppress(subprocess.TimeoutExpired):
            process.wait(1)  # the first message is sent, unless the machine is very busy
        process.send_signal(signal.SIGSTOP)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.7)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate(timeout=TIMEOUT)
    result = json.loads(out)
    assert (process.returncode, result["sent"], result["skipped"]) == (0, 2, 0)
    assert result["scheduling_error_seconds"]["max"] < 0.5


@pytest.mark.parametrize(
    ("locale", "command"), [("LC_ALL", "ping -c 2 -i 10ms"), ("", "load -d 1.1s")]
)
def test_ascii(target: str, locale: str, command: str) -> None:
    """In the C locale, or without any, the histogram and the rate line are ASCII."""
    names = ("LC_ALL", "LC_CTYPE", "LANG", "PYTHONIOENCODING", "PYTHONUTF8")
    cleared = {k: v for k, v in environment().items() if k not in names}
    cleared.update({locale: "C"} if locale else {})
    screen = Screen()
    run = client(
        *command.split(),
        target,
        capture_output=False,
        stdout=screen.follower,
        stderr=screen.follower,
        stdin=screen.follower,
        env=cleared,
    )
    assert run.returncode == 0
    shown = screen.close()
    assert shown.isascii()
    assert " #####" in shown
