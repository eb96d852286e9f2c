"""docs/sockets.rst: the code is where the document says, and a real run yields its output.

A ``python`` block follows a paragraph that ends in «In ``echod/….py``:» or «In Twisted's
``twisted.….method``:». A ``console`` block has commands, after ``$``, and their output; the one
with ``twistd`` begins a run. A ``text`` block has lines of that run's log or of its trace.
"""

from __future__ import annotations

import inspect
import os
import pkgutil
import re
import shlex
import shutil
import signal
import socket
import subprocess
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree

from echod.daemon.options import PORT
from tests import ROOT, TIMEOUT
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

TEXT = (ROOT / "docs" / "sockets.rst").read_text()

LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d{4} \[")
TRACE_LINE = re.compile(
    r"(?P<name>[a-z]\w*)\((?P<arguments>.*)\) += (?P<result>-?\d+)(?P<error> E\w+)?"
)


@dataclass
class Block:
    """A literal block of the document, and the paragraph before it."""

    language: str
    lines: list[str]
    before: str


@dataclass
class Run:
    """A daemon of the document: its options, and the quoted lines of its log and trace."""

    strace: list[str]
    options: list[str]
    log: list[str] = field(default_factory=list)
    trace: list[str] = field(default_factory=list)


def parse() -> tuple[nodes.document, list[Block]]:
    document = publish_doctree(
        TEXT, settings_overrides={"halt_level": 2, "syntax_highlight": "none"}
    )
    blocks = []
    for node in document.findall(nodes.literal_block):
        before = node.parent[node.parent.index(node) - 1].astext()
        lines = node.astext().splitlines()
        blocks.append(Block(node["classes"][-1], lines, " ".join(before.split())))
    return document, blocks


DOCUMENT, BLOCKS = parse()


def read_commands() -> list[tuple[str, list[str]]]:
    """Return each command of the document with its output lines."""
    commands: list[tuple[str, list[str]]] = []
    for block in BLOCKS:
        if block.language == "console":
            for line in block.lines:
                if line.startswith("$ "):
                    commands.append((line.removeprefix("$ "), []))
                else:
                    commands[-1][1].append(line)
    return commands


def read_runs() -> list[Run]:
    runs: list[Run] = []
    for block in BLOCKS:
        for line in block.lines:
            if block.language == "console" and " twistd -n echod " in line:
                words = shlex.split(line.removeprefix("$ "))
                at = words.index("twistd")
                runs.append(Run(words[:at], words[at + 3 :]))
            elif block.language == "text":
                (runs[-1].log if LOG_LINE.match(line) else runs[-1].trace).append(line)
    return runs


COMMANDS, RUNS = read_commands(), read_runs()
PRINTED = [(command, rows) for command, rows in COMMANDS if command.startswith("ss ")]
CODE = [block for block in BLOCKS if block.language == "python"]


def assert_in_order(wanted: Sequence[Any], found: Sequence[Any]) -> None:
    """Assert that ``found`` has all of ``wanted``, in this order, with others between."""
    rest, before = iter(found), "the start"
    for item in wanted:
        assert item in rest, f"after {before}, this does not come: {item}"
        before = item


# The steps of the document, on sockets.


@contextmanager
def stopped(daemon: Daemon) -> Iterator[None]:
    """Stop the daemon inside the block, so that only the kernel acts."""
    pid = daemon.process.pid
    daemon.terminate(signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    try:
        yield
    finally:
        daemon.terminate(signal.SIGCONT)


def flood(sock: socket.socket) -> None:
    """Send without reading until the connection is reset."""
    with suppress(ConnectionResetError, BrokenPipeError):
        while True:
            sock.sendall(bytes(1 << 16))


def ask(daemon: Daemon) -> bytes:
    """Connect, send five bytes, and return the reply."""
    with daemon.connect() as sock:
        sock.sendall(b"hello")
        return sock.recv(5, socket.MSG_WAITALL)


def serve_clients(daemon: Daemon) -> None:
    """Perform steps 3 to 9, and reset the connection of step 10."""
    with daemon.connect() as patient:
        patient.sendall(b"hello")
        assert patient.recv(5, socket.MSG_WAITALL) == b"hello"
        with daemon.connect() as greedy:
            flood(greedy)
        daemon.wait_for(": stalled")
        patient.shutdown(socket.SHUT_WR)
        assert receive_all(patient) == b""
    daemon.wait_for(": finished")
    with stopped(daemon):  # the bytes and EOF are both there when the daemon reads
        hasty = daemon.connect()
        hasty.sendall(b"hello")
        hasty.shutdown(socket.SHUT_WR)
    with hasty:
        assert receive_all(hasty) == b"hello"
    daemon.wait_for(": finished", 2)
    with daemon.connect() as rude:
        rude.sendall(b"hello")
        assert rude.recv(1) == b"h"
    daemon.wait_for(": lost")
    daemon.terminate()


def refuse_and_abort(daemon: Daemon) -> None:
    """Perform the second run, of step 10."""
    with daemon.connect() as greedy:
        flooding = threading.Thread(target=flood, args=(greedy,))
        flooding.start()
        with pytest.raises(ConnectionResetError):
            ask(daemon)
        daemon.wait_for("refused")
        daemon.terminate()
        flooding.join()


SCENARIOS = [serve_clients, refuse_and_abort]
BOTH_RUNS = pytest.mark.parametrize(("run", "scenario"), list(zip(RUNS, SCENARIOS, strict=True)))


def lines_of(run: Run, scenario: Callable[[Daemon], None], *, traced: bool = False) -> list[str]:
    """Return the output of a daemon with the run's options and shorter timeouts."""
    options = list(run.options)
    for at, option in enumerate(options):
        if option.endswith("-timeout"):
            options[at + 1] = (
                "0.1"  # of a drain: shorter than the pause that ends an idle connection
            )
    # With -D strace is the child, and the daemon gets the signals. Without -o the trace is in
    # the log.
    prefix = (run.strace[0], "-D", *run.strace[run.strace.index("-e") :]) if traced else ()
    with Daemon("--port", "0", *options, prefix=prefix) as daemon:
        scenario(daemon)
        daemon.wait()
        return daemon.lines


def log_form(line: str) -> str:
    """Return a line of the log with placeholders for what differs from run to run."""
    line = LOG_LINE.sub("TIME [", line)
    line = re.sub(r"127\.0\.0\.1:\d+", "ADDRESS", line)
    line = re.sub(r"\d+\.\d{3} s", "SECONDS", line)
    # The bytes received and unsent at an abort depend on timing.
    line = re.sub(r"(: aborted.*), \d+ of them not sent back", r"\1", line)
    return re.sub(r"(?<!\d)(?!5 bytes)\d+ (bytes|of them)", r"MANY \1", line)


def calls_of(lines: Sequence[str], *, unknown: str) -> list[tuple[str, ...]]:
    """Return the system calls of a trace, without what differs from run to run.

    A descriptor is replaced by its kind: the listening socket, a connection, or else ``unknown``.
    Of the other arguments, only names and strings remain.
    """
    calls: list[tuple[str, ...]] = []
    sockets: dict[str, str] = {}
    for line in lines:
        match = TRACE_LINE.match(line)
        if match is None:
            continue
        name, arguments, result, error = match.groups(default="")
        descriptor = re.match(r"\d+, EPOLL_CTL_\w+, (\d+)|(\d+)", arguments)
        number = (descriptor[1] or descriptor[2]) if descriptor else ""
        if name == "socket":
            sockets[result], result = "listening", ""
        elif name == "accept4":
            sockets[number] = "listening"
            if not error:
                sockets[result], result = "connection", ""
        elif '"...' in arguments or name == "splice":
            result = "MANY"
        what = sockets.get(number, unknown) if number and name != "splice" else ""
        kept = re.findall(r'"[^"]*"|\b[A-Z][A-Z_]+\b', arguments)
        calls.append((name, what, *kept, result + error))
        if name == "close":
            sockets.pop(number, None)
    return calls


def row_form(row: str, port: int) -> str:
    """Return a row of ss with placeholders for what differs from run to run."""
    row = re.sub(rf"127\.0\.0\.1:{port}\b", "DAEMON", " ".join(row.split()))
    row = re.sub(r"127\.0\.0\.1:\d+", "CLIENT", row)
    return re.sub(r"\d{5,}", "MANY", row)


def assert_prints(command: str, rows: Sequence[str], port: int) -> None:
    """Run ``command`` until it prints ``rows``: no event reports the content of a queue."""
    # More rows are allowed: an earlier connection may still be in TIME-WAIT.
    wanted = Counter(row_form(row, PORT) for row in rows)
    words = shlex.split(command.replace(str(PORT), str(port)))
    deadline = time.monotonic() + TIMEOUT
    found: Counter[str] = Counter()
    while not wanted <= found and time.monotonic() < deadline:
        ran = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT, check=True)
        found = Counter(row_form(row, port) for row in ran.stdout.splitlines())
    assert wanted <= found


def why_no_trace() -> str | None:
    """Return the reason why system calls cannot be traced here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    tried = subprocess.run(
        ["strace", "-e", "trace=none", "true"],
        check=False,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    return None if tried.returncode == 0 else f"strace is not permitted: {tried.stderr.strip()}"


@pytest.mark.parametrize("block", CODE, ids=lambda block: block.before.rpartition(" ")[2])
def test_the_code_stands_where_the_document_says(block: Block) -> None:
    """A block from echod is in its file, line for line; one from Twisted is in its method."""
    if match := re.search(r"In (echod/\S+\.py):$", block.before):
        source = (ROOT / match[1]).read_text().splitlines()
        quoted = textwrap.dedent("\n".join(block.lines))
        length = len(block.lines)
        assert quoted in [
            textwrap.dedent("\n".join(source[at : at + length])) for at in range(len(source))
        ]
    else:
        match = re.search(r"In Twisted's (twisted\.\S+):$", block.before)
        assert match, f"nothing says where this is from: {block}"
        source = inspect.getsource(pkgutil.resolve_name(match[1])).splitlines()
        assert_in_order([line.strip() for line in block.lines], [line.strip() for line in source])


def test_what_the_document_names_exists() -> None:
    """Each dotted name of Twisted or echod can be imported."""
    names = [node.astext() for node in DOCUMENT.findall(nodes.literal)]
    dotted = [name for name in names if re.fullmatch(r"(twisted|echod)(\.\w+)+", name)]
    assert dotted
    for name in dotted:
        pkgutil.resolve_name(name)


def test_each_line_has_a_known_form() -> None:
    """Each quoted line is compared with a log, a trace, or code."""
    assert {block.language for block in BLOCKS} == {"console", "python", "text"}
    for run in RUNS:
        assert run.log
        assert run.trace
        for line in run.trace:
            assert TRACE_LINE.match(line), line


def test_the_sum_of_the_full_buffers() -> None:
    """The bytes of the stalled client add up: in both kernel buffers, and unsent."""
    stalled = next(line for run in RUNS for line in run.log if ": stalled" in line)
    received, unsent = re.findall(r"(\d+) (?:bytes|of them)", stalled)
    full = [row.split() for _, rows in PRINTED for row in rows if re.search(r"\d{5,} +\d{5,}", row)]
    to_client = next(int(row[2]) for row in full if row[3].endswith(f":{PORT}"))
    at_client = next(int(row[1]) for row in full if row[4].endswith(f":{PORT}"))
    assert int(received) == int(unsent) + to_client + at_client
    text = " ".join(TEXT.partition("The sum is right")[2].split())
    assert re.findall(r"\d{5,}", text)[:4] == [received, str(at_client), str(to_client), unsent]


@BOTH_RUNS
def test_the_log_has_these_lines(run: Run, scenario: Callable[[Daemon], None]) -> None:
    """A daemon with the same clients logs the lines of the document, in this order."""
    lines = [log_form(line) for line in lines_of(run, scenario)]
    assert_in_order([log_form(line) for line in run.log], lines)


@BOTH_RUNS
def test_the_trace_has_these_calls(run: Run, scenario: Callable[[Daemon], None]) -> None:
    """A daemon with the same clients makes the system calls of the document, in this order."""
    if reason := why_no_trace():
        pytest.skip(reason)
    found = calls_of(lines_of(run, scenario, traced=True), unknown="something else")
    # The document does not quote every accept.
    assert_in_order(calls_of(run.trace, unknown="connection"), found)


def test_ss_prints_these_rows() -> None:
    """At each point of the run, ss prints the rows of the document."""
    if shutil.which("ss") is None:
        pytest.skip("needs ss; .ci/run installs it")
    established, full, half_closed, over = PRINTED
    patience = ("--stall-timeout", "3600")  # the last value wins
    with Daemon("--port", "0", *RUNS[0].options, *patience) as daemon:
        port = daemon.port
        with stopped(daemon):
            patient = daemon.connect()
            patient.sendall(b"hello")
            assert_prints(*established, port)
        with patient:
            assert patient.recv(5, socket.MSG_WAITALL) == b"hello"
            with daemon.connect() as greedy:
                flooding = threading.Thread(target=flood, args=(greedy,))
                flooding.start()
                assert_prints(*full, port)
                greedy.shutdown(socket.SHUT_RDWR)
                flooding.join()
            daemon.wait_for("closed tcp")
            with stopped(daemon):
                patient.shutdown(socket.SHUT_WR)
                assert_prints(*half_closed, port)
            assert receive_all(patient) == b""
        assert_prints(*over, port)
