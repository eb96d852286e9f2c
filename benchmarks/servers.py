"""The servers of ``speed.py``: commands, requirements, and processes with their CPU time."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Final, NamedTuple

from counting import cpu_clock
from losses import HOST

HERE: Final = Path(__file__).resolve().parent
BACKLOG: Final = 4096  # as in echoes.py
LISTENS: Final = re.compile(rf"listening on .*{re.escape(HOST)}:(\d+)")  # every server prints this
CORES: Final = sorted(os.sched_getaffinity(0))
SERVER_CORE: Final = CORES[-1:]
LOAD_CORE: Final = CORES[:1]

TWISTD: Final = (str(Path(sys.executable).with_name("twistd")), "-n", "--pidfile=")
ECHOD: Final = (*TWISTD, "echod", "--port", "0")
ECHOD_FAULTY: Final = (*ECHOD, "--faulty", f"tcp:0:interface={HOST}", "every message of 64: damage")
ECHOES: Final = (sys.executable, str(HERE / "echoes.py"))
# The rates of UDP are above the load, and all rules apply.
ECHOD_UDP: Final = (
    *(*TWISTD, "echod", "--listen", f"udp:0:interface={HOST}"),
    *("--udp-rate", "1e9", "--udp-total-rate", "1e9"),
)
ECHOD_TLS: Final = (
    *(*TWISTD, "echod", "--listen", f"tcp:0:interface={HOST}", "--listen"),
    f"ssl:0:privateKey={{tools}}/key.pem:certKey={{tools}}/certificate.pem:interface={HOST}",
)
# socat prints its port only with -d -d. With blocks above a page (pipe(7)), it deadlocks in its own
# pipe when a peer sends more than the pipe holds.
SOCAT: Final = (
    *("socat", "-d", "-d", "-b4096"),
    *(f"TCP-LISTEN:0,bind={HOST},backlog={BACKLOG},fork,nodelay", "PIPE"),
)


class Peer(NamedTuple):
    """A server to measure."""

    title: str
    command: tuple[str, ...]  # {tools} is the directory of compiled programs
    needs: str = ""  # a Python package, or the name of a command with a slash before it
    source: str = ""  # the source file to compile
    only: str = ""  # its only scenario; empty: all, except as FEW says
    forks: bool = False  # a process for each connection


PEERS: Final = {
    "echod": Peer("echod", ECHOD),
    "echod-log": Peer("echod, with its log", ECHOD, only="short"),
    "echod-faulty": Peer("echod, beside a faulty port", ECHOD_FAULTY),
    "echod-slow": Peer("echod, no fast path", (*ECHOES, "echod-slow")),
    "twisted": Peer("Twisted wire.Echo", (*ECHOES, "twisted")),
    "asyncio": Peer("asyncio Protocol", (*ECHOES, "asyncio")),
    "asyncio-buffered": Peer("asyncio BufferedProtocol", (*ECHOES, "asyncio-buffered")),
    "uvloop": Peer("uvloop Protocol", (*ECHOES, "uvloop"), "uvloop"),
    "gevent": Peer("gevent StreamServer", (*ECHOES, "gevent"), "gevent"),
    "c": Peer("C, epoll", ("{tools}/echo-c",), "/cc", "echo.c"),
    "c-splice": Peer("C, splice", ("{tools}/echo-c-splice",), "/cc", "echo-splice.c"),
    "go": Peer("Go, io.Copy", ("{tools}/echo-go",), "/go", "echo.go"),
    "socat": Peer("socat, fork", SOCAT, "/socat", forks=True),
    "echod-udp": Peer("echod, UDP", ECHOD_UDP, only="udp"),
    "asyncio-udp": Peer("asyncio, UDP", (*ECHOES, "asyncio-udp"), only="udp"),
    "c-udp": Peer("C, UDP", ("{tools}/echo-c-udp",), "/cc", "echo-udp.c", only="udp"),
    "echod-tls": Peer("echod, TCP and TLS", ECHOD_TLS, "OpenSSL", only="tls"),
    "liar": Peer("one that changes a byte", (*ECHOES, "liar")),
}
USUAL: Final = [name for name in PEERS if name not in ("echod-faulty", "liar")]
# The scenarios of one connection with blocks, and the size of a block in KiB.
BLOCKS: Final = {f"block-{kib}": kib for kib in (1, 16, 64, 256, 1024)}
# Scenarios in which only a few servers take part.
FEW: Final = {
    "udp": ("echod-udp", "asyncio-udp", "c-udp"),
    "tls": ("echod-tls",),
    **dict.fromkeys(BLOCKS, ("echod", "uvloop", "c", "c-splice")),
}


def missing(name: str) -> str:
    """Return why a server cannot run here, or an empty string."""
    needs = PEERS[name].needs
    if needs.startswith("/"):
        return "" if shutil.which(needs[1:]) else f"no {needs[1:]} is installed"
    if needs and not find_spec(needs):
        return f"Python has no {needs}"
    return ""


def takes_part(name: str, scenario: str) -> bool:
    return name in FEW.get(scenario, (name,)) and PEERS[name].only in ("", scenario)


def build(source: str, target: str) -> None:
    """Compile a file of this directory."""
    if source.endswith(".c"):
        command = ["cc", "-O2", "-o", target, str(HERE / source)]
    else:
        command = ["go", "build", "-o", target, str(HERE / source)]
    # Go needs a home directory for its cache.
    environment = {"HOME": str(Path(target).parent), **os.environ}
    ended = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if ended.returncode:
        raise RuntimeError(f"{source} does not compile: {complaint(ended.stderr)}")


def complaint(errors: str) -> str:
    """Return the line of a compiler's output with the error."""
    # Before the error, cc prints the name of the function, and go "#" and the package.
    lines = [line.strip() for line in errors.splitlines() if line.strip() and line[0] != "#"]
    wrong = [line for line in lines if "error" in line]
    return (wrong or lines or ["no error message"])[0]


def lack_of(name: str, tools: str) -> str:
    """Compile a server, if needed; return why it cannot run, or an empty string."""
    lack, source = missing(name), PEERS[name].source
    if not lack and source:
        try:
            build(source, f"{tools}/echo-{name}")
        except RuntimeError as error:
            return str(error)
    return lack


def version_of(name: str) -> str:
    """Return the name and version of a server's library or compiler, or an empty string."""

    def first(pattern: str, *command: str) -> str:
        output = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found = re.search(pattern, output)
        return found[1] if found else "of unknown version"

    if name in ("uvloop", "gevent"):
        return f"{name} {version(name)}"
    if name == "c":
        return f"cc {first('([0-9]+[.][0-9.]+)', 'cc', '--version')}"
    if name == "go":
        return f"Go {first('go([0-9.]+)', 'go', 'version')}"
    if name == "socat":
        return f"socat {first('socat version ([0-9.]+)', 'socat', '-V')}"
    return ""


class Server:
    """A server process on its own core. :meth:`close` ends it."""

    def __init__(self, name: str, tools: str, *options: str) -> None:
        self.name = name
        self.forks = PEERS[name].forks
        # Before the start, because the server may count its cores and start threads.
        os.sched_setaffinity(0, SERVER_CORE)
        try:
            self.process = subprocess.Popen(
                [*(part.format(tools=tools) for part in PEERS[name].command), *options],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,  # the session identifies its children
            )
        finally:
            os.sched_setaffinity(0, LOAD_CORE)
        # Read its log, because a full pipe would stop it.
        self._reader = threading.Thread(target=self._read)
        self._listens = threading.Event()
        self._line = "no output"
        self._listeners = max(1, PEERS[name].command.count("--listen"))
        self.ports: list[int] = []
        self.port = 0

    def ready(self) -> None:
        """Wait until it listens."""
        self._clock = cpu_clock(self.process.pid)
        self._reader.start()
        self._listens.wait()
        if len(self.ports) < self._listeners:
            raise RuntimeError(f"{self.name} does not listen: {self._line.rstrip()}")
        self.port = self.ports[0]

    def close(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        if self._reader.ident:
            self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.process.wait()

    def cpu(self) -> int:
        """Return the CPU time so far in nanoseconds, including its children's."""
        if not self.forks:
            return time.clock_gettime_ns(self._clock)
        spent = 0
        for pid in self._members():
            with suppress(OSError):  # it has ended; its time is in cutime and cstime
                spent += time.clock_gettime_ns(cpu_clock(pid))
        fields = status_of(self.process.pid)
        ended = int(fields[13]) + int(fields[14])  # cutime and cstime, in ticks
        return spent + ended * 10**9 // os.sysconf("SC_CLK_TCK")

    def waited(self) -> int:
        """Return the nanoseconds in which it waited for its core; 0 for a server that forks.

        The children of such a server share one core, and wait for each other.
        """
        return 0 if self.forks else waited(self.process.pid)

    def memory(self) -> int:
        """Return the resident memory in bytes; shared pages of a server that forks count once.

        ``smaps_rollup`` counts pages; the counters of ``status`` are not precise.
        """
        field = "Pss:" if self.forks else "Rss:"
        kib = 0
        for pid in self._members():
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            kib += next(int(line.split()[1]) for line in rollup.splitlines() if field in line)
        return kib * 1024

    def _members(self) -> list[int]:
        """Return the server's process and its children."""
        if not self.forks:
            return [self.process.pid]
        return [pid for pid in processes() if status_of(pid)[3] == str(self.process.pid)]

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if not self._listens.is_set():
                self._line = line
                if found := LISTENS.search(line):
                    self.ports.append(int(found[1]))
                if len(self.ports) == self._listeners:
                    self._listens.set()
        self._listens.set()


def waited(pid: int) -> int:
    """Return the nanoseconds in which a process's threads waited for a core (proc(5)).

    Threads that have ended are not included.
    """
    total = 0
    for path in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has just ended
            total += int(path.read_text().split()[1])
    return total


def processes() -> list[int]:
    return [int(path.name) for path in Path("/proc").glob("[0-9]*")]


def end_children() -> None:
    """Kill the child processes of this process.

    An interrupt during the start of a server leaves a process that no object knows.
    """
    for pid in processes():
        if status_of(pid)[1] == str(os.getpid()):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def status_of(pid: int) -> list[str]:
    """Return the fields of ``/proc/PID/stat`` from the state on (proc(5)); "" if it has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return [""] * 50
