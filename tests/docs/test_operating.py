"""docs/operating.rst: everything in it that can be checked without systemd.

An ``sh`` block has commands, an ``ini`` block a drop-in whose first line is its path, a ``yaml``
block the configuration of Prometheus, a ``json`` block lines of the log, a ``text`` block the
status page. A definition list has lines of the log: words in capitals are variables, and the
classifier is the priority. ``tests/systemd/test_units.py`` runs the installation.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.request import Request, urlopen

import pytest
from docutils import nodes

from echod.daemon import logs
from echod.daemon.command import Command
from echod.daemon.listeners.kinds import ON_LOOPBACK
from echod.daemon.options import PORT, Options
from echod.events import Ending, Reason
from tests import ROOT, TIMEOUT
from tests.docs.test_all import blocks, literals, section, tree
from tests.programs.activation import socket_activation
from tests.programs.daemon import Daemon
from tests.programs.sockets import receive_all

# The client has no log.
SOURCES = sorted(set((ROOT / "echod").rglob("*.py")) - set((ROOT / "echod").glob("client/*.py")))

DOCUMENT = tree(ROOT / "docs" / "operating.rst")
TEXT = " ".join((ROOT / "docs" / "operating.rst").read_text().split())
ALERTS = ROOT / "docs" / "alerts.yml"

UNITS = {path.name: path for path in (ROOT / "systemd").iterdir()}

SHELL = blocks(DOCUMENT, "sh")
DROP_INS = blocks(DOCUMENT, "ini")

JOURNAL = (sys.executable, "-m", "echod", "--logger", "echod.daemon.logs.journal")
JSON = (*JOURNAL, "--logger", "echod.daemon.logs.json_lines")


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"needs {program}, from the Debian package {package}",
    )


def run(*words: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command, and return its output and status."""
    return subprocess.run(
        words, capture_output=True, text=True, timeout=TIMEOUT, check=False, **options
    )


def unit(name: str, text: str | None = None) -> dict[str, list[str]]:
    """Return all values of each setting of a unit, or of ``text``."""
    settings: dict[str, list[str]] = {}
    for line in (text or UNITS[name].read_text()).splitlines():
        key, equals, value = line.partition("=")
        if equals and not line.startswith(("#", ";")):
            settings.setdefault(key, []).append(value)
    return settings


def settings() -> dict[str, list[str]]:
    """Return all values of each setting of all units."""
    merged: dict[str, list[str]] = {}
    for name in UNITS:
        for key, values in unit(name).items():
            merged.setdefault(key, []).extend(values)
    return merged


def cells(title: str) -> list[list[Any]]:
    """Return the cells of each row of the table in the section ``title``."""
    [body] = section(DOCUMENT, title).findall(nodes.tbody)
    return [list(row.children) for row in body.findall(nodes.row)]


def rows(title: str) -> list[list[str]]:
    """Return the texts of these cells."""
    return [[cell.astext() for cell in row] for row in cells(title)]


def options_in(text: str) -> list[str]:
    """Return the options in a drop-in's, or in a unit comment's, OPTIONS."""
    return [word for found in re.findall(r'"OPTIONS=([^"]*)"', text) for word in shlex.split(found)]


def options(*more: str) -> Command:
    """Return the options of the unit's command, with ``more`` in place of $OPTIONS."""
    [command] = unit("echod.service")["ExecStart"]
    _, *words, last = shlex.split(command)
    assert last == "$OPTIONS", "$OPTIONS cannot override what follows it"
    parsed = Command()
    parsed.parseOptions([*words, *more])
    return parsed


# Commands.


def test_every_block_is_tested() -> None:
    """Every literal block is of a kind that is tested here."""
    kinds = {block["classes"][-1] for block in DOCUMENT.findall(nodes.literal_block)}
    assert kinds == {"sh", "ini", "json", "text", "yaml"}


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("block", SHELL)
def test_commands(block: str, shell: str) -> None:
    """The commands are valid for sh and bash, need no sudo, and name existing files and units."""
    parsed = run(shell, "-n", input=block)
    assert (parsed.returncode, parsed.stderr) == (0, "")
    assert "sudo" not in block
    for path in re.findall(r"(?<!\S)systemd/\S+", block):
        assert list(ROOT.glob(path)), path
    for name in re.findall(r"\bechod(?:-\w+)?\.(?:service|socket)\b", block):
        assert name in UNITS


def test_the_installation() -> None:
    """The first block installs every unit, and starts the socket, which starts the service.

    An upgrade does the same in the existing environment, and restarts the service.
    """
    install = SHELL[0].splitlines()
    [upgrade] = [block.splitlines() for block in SHELL if "--upgrade" in block]
    [copy] = [line for line in install if line.startswith("cp ")]
    pattern, where = copy.split()[1:]
    assert {path.name for path in ROOT.glob(pattern)} == set(UNITS)
    assert where == "/etc/systemd/system/"
    assert install[-1] == "systemctl enable --now echod.socket"
    assert upgrade[-1] == "systemctl restart echod.service"
    assert upgrade[:1] + upgrade[2:-1] == install[:1] + install[3:-1]
    [command] = unit("echod.service")["ExecStart"]
    assert install[1] == "python3 -m venv /opt/echod"
    assert command.startswith("/opt/echod/bin/echod ")
    assert install[3].startswith("/opt/echod/bin/twistd --help")


@needs("ss", "iproute2")
def test_count_connections() -> None:
    """The command of «When connections are refused» counts the connections of each client."""
    [command] = [block for block in SHELL if block.startswith("ss ")]
    with Daemon("--port", "0") as daemon:
        port, clients = daemon.port, [daemon.connect() for _ in range(3)]
        with daemon.connect("::1"):
            counted = run("sh", "-c", command.replace(str(PORT), str(port))).stdout
        for client in clients:
            client.close()
    assert [line.split() for line in counted.splitlines()] == [["1", "[::1]"], ["3", "127.0.0.1"]]


# Units.


@needs("systemd-analyze", "systemd")
@pytest.mark.parametrize("block", ["", *DROP_INS])
def test_drop_ins(block: str, tmp_path: Path) -> None:
    """The units pass systemd-analyze with each drop-in."""
    assert verified(block, tmp_path) == (0, [])


def verified(block: str, directory: Path) -> tuple[int, list[str]]:
    """Return the status and the lines of systemd-analyze for the units with a drop-in."""
    for name, path in UNITS.items():
        # The tests need no installation in /opt.
        content = path.read_text().replace("/opt/echod/bin/echod", "/bin/true")
        (directory / name).write_text(content)
    if block:
        match = re.match(r"# /etc/systemd/system/(\S+)\.d/override\.conf\n\[\w+\]\n", block)
        assert match, "the first line is not a path"
        assert match[1] in UNITS
        drop_in = directory / f"{match[1]}.d"
        drop_in.mkdir()
        (drop_in / "override.conf").write_text(block)
    verified = run(
        "systemd-analyze",
        "verify",
        *(directory / name for name in UNITS),
        env={**os.environ, "SYSTEMD_UNIT_PATH": f"{directory}:"},
    )
    # Other units of this machine may have warnings.
    lines = [line for line in verified.stderr.splitlines() if "echod" in line]
    return verified.returncode, lines


@pytest.mark.parametrize(
    "block", [*filter(options_in, DROP_INS), UNITS["echod.service"].read_text()]
)
def test_options_of_drop_ins(block: str) -> None:
    """The options in drop-ins, and in the unit's comment, are valid.

    They listen only on sockets from systemd, and the drain is shorter than TimeoutStopSec=.
    """
    given = options(*options_in(block))
    assert all(re.match("(haproxy|ssl):systemd:", each) for each in given["listen"])
    assert (given["port"], given["interface"]) == (options()["port"], [])
    assert given["metrics"] is None
    stop = unit("echod.service", block).get(
        "TimeoutStopSec", unit("echod.service")["TimeoutStopSec"]
    )
    assert given["drain-timeout"] < float(stop[-1])


def test_json_drop_in() -> None:
    """The drop-in for JSON replaces the unit's log observer."""
    [block] = [block for block in DROP_INS if "--logger" in block]
    assert options()["logger"] == "echod.daemon.logs.journal"
    assert options(*options_in(block))["logger"] == "echod.daemon.logs.json_lines"
    # The unit's SyslogLevel=err is for lines without a priority, and JSON lines have none.
    assert unit("echod.service", block)["SyslogLevel"] == ["info"]


def test_limits() -> None:
    """The table of limits has the values of the units and the defaults of the command line."""
    given = options()
    words = {"never": None, "no limit": None, "what LimitNOFILE=\nleaves": None}
    table = rows("Options")
    assert table
    for name, default, _ in table:
        if name.startswith("--"):
            value = given[name.removeprefix("--")]
            assert (words[default] if default in words else float(default)) == value, name
        else:
            assert {*settings()[name.removesuffix("=")]} == {default}, name
    limits = {row[0] for row in table}
    assert limits >= {f"--{option.name}" for option in Options.topics["Limits and timeouts"]}
    assert limits >= {"TimeoutStopSec=", "WatchdogSec=", "TimeoutAbortSec=", "LimitNOFILE="}
    [refused] = section(DOCUMENT, "Options").findall(nodes.bullet_list)
    assert literals(refused) >= {reason.value for reason in Reason}


def test_each_option_is_named() -> None:
    """The document names each option of the command line."""
    names = {option.name for topic in Options.topics.values() for option in topic}
    for name in names - {"version", "help"}:
        assert f"``--{name}" in TEXT, name


def test_settings_are_there() -> None:
    """Each setting in the text, ``Name=``, is in a unit or in a drop-in."""
    known = set(settings()).union(*(unit("", block) for block in DROP_INS))
    # Settings that the units leave at their defaults, and one of journald.
    known |= {"Accept", "AcceptFileDescriptors", "RateLimitBurst"}
    for name in re.findall(r"``([A-Z][a-z]\w+)=", TEXT):
        assert name in known, name


def test_metrics_socket() -> None:
    """The socket unit of the metrics listens on the default address of --metrics."""
    [metrics] = unit("echod-metrics.socket")["ListenStream"]
    assert metrics.partition(":")[0] == ON_LOOPBACK["tcp"]


# The journal.


class Line(NamedTuple):
    """A line of the log in the document."""

    term: str
    priority: str
    meaning: str

    def fits(self, line: str) -> bool:
        """Return whether ``line`` has the form of this one."""
        parts = re.split(r"\b([A-Z]{3,})\b", self.term)
        parts[1::2] = [word if word in KEPT else None for word in parts[1::2]]
        return bool(
            re.fullmatch("".join(re.escape(p) if p is not None else ".+" for p in parts), line)
        )


KEPT = {"FAULTY", "PROXY", "UDP", "SIGTERM"}
"""Words in capitals that are not variables."""


def log_lines() -> list[Line]:
    found = []
    for title in ("Lines that need attention", "Lines of normal operation"):
        for item in section(DOCUMENT, title).findall(nodes.definition_list_item):
            [term, classifier, meaning] = item.children
            found.append(Line(term.astext(), classifier.astext(), meaning.astext()))
    return found


LINES = log_lines()

PRIORITIES = {"7": "debug", "6": "info", "4": "warning", "3": "error", "2": "critical"}
"""The priorities of journalctl, by number."""


class Call(NamedTuple):
    """A call of a logger in the source."""

    level: str
    texts: list[str]
    fields: dict[str, ast.expr]


def calls() -> Iterator[Call]:
    """Yield each call of a logger in the core and the daemon."""
    for path in SOURCES:
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Attribute)
                and isinstance(node.func.value, ast.Name)
                and node.func.value.id.endswith("log")
            ):
                text = node.args[0]
                either = [text.body, text.orelse] if isinstance(text, ast.IfExp) else [text]
                module = vars(importlib.import_module(name))
                yield Call(
                    node.func.attr,
                    [eval(ast.unparse(each), module) for each in either],  # constants
                    {str(word.arg): word.value for word in node.keywords},
                )


PORTS = ("listening", "metrics", "control")
"""The events of ports that are opened."""


def names_of_event(call: Call) -> list[str]:
    """Return the possible values of ``event`` in a call; a variable has the name of a port."""
    event = call.fields.get("event", ast.Constant("message"))
    return [str(event.value)] if isinstance(event, ast.Constant) else [*PORTS]


def test_each_line_of_echod_is_explained() -> None:
    """The document explains exactly the lines that the source logs, with their priorities."""
    levels = {"warn": "warning", "failure": "critical"}
    explained = set()
    for call in calls():
        for text in call.texts:
            for event in names_of_event(call):
                filled = re.sub("{.*?}", "1", text.replace("{event}", event))
                fitting = [line for line in LINES if line.fits(filled)]
                assert len(fitting) == 1, (filled, fitting)
                assert levels.get(call.level, call.level) in fitting[0].priority, fitting
                explained.add(fitting[0].term)
    last = "echod: WHY"  # printed, not logged: see test_line_of_a_failed_start
    assert {line.term for line in LINES} == explained | TWISTEDS | {last}
    assert len(LINES) == len({line.term for line in LINES})
    # calls() has found every call of a logger.
    source = "".join(path.read_text() for path in SOURCES)
    assert len(re.findall(r"\blog\.\w+\(", source)) == len(list(calls())) > 10


TWISTEDS = {
    "Unhandled Error",
    "twistd VERSION (PYTHON PYTHONVERSION) starting up.",
    "reactor class: REACTOR.",
    "FACTORY starting on PORT",
    "(TYPE Port PORT Closed)",
    "Main loop terminated.",
    "Server Shut Down.",
}
"""The lines that Twisted logs."""


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        yield sock


def client(sock: socket.socket) -> socket.socket:
    return socket.create_connection(sock.getsockname(), TIMEOUT)


def exchange(sock: socket.socket) -> None:
    with client(sock) as connection:
        connection.sendall(b"hello")
        connection.shutdown(socket.SHUT_WR)
        assert receive_all(connection) == b"hello"


@contextlib.contextmanager
def used(daemon: Daemon, sock: socket.socket) -> Iterator[socket.socket]:
    """Serve one client to its end, hold the second, and refuse the third."""
    exchange(sock)
    daemon.wait_for("finished")
    with client(sock) as served:
        served.sendall(b"x")
        assert served.recv(1) == b"x"
        with pytest.raises(ConnectionResetError), client(sock) as refused:
            refused.recv(1)
        yield served


def test_each_line_of_a_run_is_explained(listening: socket.socket) -> None:
    """The document explains each line that a daemon logs from start to stop."""
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
        socket.create_server(("127.0.0.1", 0)) as metrics,
        Daemon(
            *("--max-connections", "1"),
            command=JOURNAL,
            env={**os.environ, "NOTIFY_SOCKET": "/nowhere/notify"},
            **socket_activation(listening, datagram, metrics, names="echod.socket:metrics:metrics"),
        ) as daemon,
    ):
        with used(daemon, listening) as served:
            daemon.terminate()
            assert receive_all(served) == b""
        daemon.wait()
    logged = []
    for line in daemon.lines:
        match = re.fullmatch(r"<(\d)>(.*)", line)
        assert match, line
        fitting = [each for each in LINES if each.fits(match[2])]
        assert fitting, line
        assert PRIORITIES[match[1]] in {each.priority for each in fitting}, line
        logged += fitting
    for term in ("NOTIFY_SOCKET", "PASSED is a datagram", "refused 1", "draining", "metrics on"):
        assert any(line.term.startswith(term) for line in logged), term
    assert {line.term for line in logged} >= TWISTEDS - {"Unhandled Error"}


def test_line_of_a_failed_start(listening: socket.socket) -> None:
    """A failed start prints one line without a priority, and exits with status 2."""
    daemon = Daemon(
        "--no-such", command=JOURNAL, **socket_activation(listening, names="echod.socket")
    )
    assert daemon.wait() == 2
    daemon.directory.cleanup()
    [line] = daemon.lines
    [explained] = [each for each in LINES if each.fits(line)]
    # systemd gives a line without a priority that of SyslogLevel= (systemd.exec(5)).
    assert unit("echod.service")["SyslogLevel"] == ["err"]
    assert "error" in explained.priority


def test_endings() -> None:
    """The document explains each ending of a connection."""
    [closed] = [line for line in LINES if line.fits("closed 1: 1, 1 bytes in 1 s")]
    assert all(ending.value in closed.meaning for ending in Ending)


# JSON.


def test_json_fields() -> None:
    """The table has each event with the fields that the source gives it."""
    logged = {"message": {"message"}}
    for call in calls():
        for event in names_of_event(call):
            if event != "message":
                logged.setdefault(event, set()).update(set(call.fields) - {"event"})
    documented = {name.astext(): literals(fields) for name, fields in cells("As JSON")}
    documented["dropped"] = documented["refused"]  # the table says «the same»
    assert documented == logged
    named = literals(section(DOCUMENT, "As JSON"))
    assert named >= {level.name for level in logs.PRIORITIES}


@pytest.fixture
def json_lines(listening: socket.socket) -> list[str]:
    """Run a daemon through the events of the example, and return its JSON log."""
    options = ("--max-connections", "1")
    daemon = Daemon(*options, command=JSON, **socket_activation(listening, names="echod.socket"))
    with contextlib.closing(daemon), used(daemon, listening):
        daemon.wait_for('"refused"')
    return daemon.lines


def test_json_example(json_lines: list[str]) -> None:
    """The example is the daemon's log, apart from times, ports and durations."""

    def normal(line: str) -> str:
        line = re.sub(r'("time": )"\d{4}(-\d\d){2}T(\d\d:){2}\d\d\.\d{6}\+00:00"', r"\1TIME", line)
        line = re.sub(r'("seconds": )\d\.\d{1,6}', r"\1SECONDS", line)
        return re.sub(r"(127\.0\.0\.1:)\d+", r"\1PORT", line)

    [example] = blocks(DOCUMENT, "json")
    written = [line for line in json_lines if '"bytes": 5' in line or '"refused"' in line]
    assert [normal(line) for line in written] == [normal(line) for line in example.splitlines()]


@needs("jq", "jq")
def test_json_command(json_lines: list[str]) -> None:
    """``jq`` finds the lines that the command selects, and skips other lines."""
    [command] = [block for block in SHELL if " jq " in block]
    journal = "\n".join(["Started echod.service.", *json_lines, "Fatal Python error: Aborted"])
    found = run("sh", "-c", command.partition(" | ")[2], input=journal)
    assert (found.returncode, found.stderr) == (0, "")
    assert [json.loads(line)["event"] for line in found.stdout.splitlines()] == ["refused"]


# Metrics.


@pytest.fixture
def page() -> Iterator[str]:
    """Run a daemon through the events of the status page; return the address of its metrics."""
    options = ("--max-connections", "100", "--max-connections-per-peer", "1")
    with Daemon("--port", "0", "--metrics", "tcp:0", *options) as daemon:
        for _ in range(2):
            with daemon.connect() as connection:
                connection.sendall(b"hello")
                connection.shutdown(socket.SHUT_WR)
                assert receive_all(connection) == b"hello"
        daemon.wait_for("finished", 2)
        with daemon.connect() as one, daemon.connect("::1") as other:
            for each in (one, other):
                each.sendall(b"x")
                assert each.recv(1) == b"x"
            with pytest.raises(ConnectionResetError), daemon.connect() as refused:
                refused.recv(1)
            yield "http://" + daemon.wait_for("metrics on tcp")[0].rpartition(" ")[2]


def fetch(url: str, **headers: str) -> str:
    with urlopen(Request(url, headers=headers), timeout=TIMEOUT) as reply:
        body: bytes = reply.read()
    return body.decode()


def test_status_page(page: str) -> None:
    """The status page is the daemon's, apart from version, ports and times."""
    [example] = [block for block in blocks(DOCUMENT, "text") if block.startswith("echod ")]

    def normal(text: str) -> list[str]:
        text = re.sub(r"^echod \S+", "echod VERSION", text.strip())
        text = re.sub(r":\d{4,5}\n", ":PORT\n", text)
        return re.sub(r"(since|up for) +\S+", r"\1", text).splitlines()

    assert normal(fetch(f"{page}/")) == normal(example)
    assert fetch(f"{page}/", Accept="text/html").startswith("<!DOCTYPE html>")


def test_metrics(page: str) -> None:
    """The table has exactly the daemon's metrics, with their types and labels."""
    exposed: dict[str, tuple[str, set[str]]] = {}
    for line in fetch(f"{page}/metrics").splitlines():
        if line.startswith("# TYPE "):
            name, kind = line.split()[2:]
            exposed[name] = (kind, set())
        elif not line.startswith("#"):
            exposed[name][1].update(re.findall(r'(\w+)="', line))
    documented = {
        name.astext(): (kind.astext(), literals(meaning))
        for name, kind, meaning in cells("Metrics")
    }
    assert {name: kind for name, (kind, *_) in documented.items()} == {
        name: kind for name, (kind, _) in exposed.items()
    }
    for name, (_, labels) in exposed.items():
        assert documented[name][1] >= labels, name
    assert documented["echod_connections_closed_total"][1] == {"ending", *map(value, Ending)}
    assert documented["echod_connections_refused_total"][1] == {"reason", *map(value, Reason)}


def value(member: Ending | Reason) -> str:
    return str(member.value)


@needs("promtool", "prometheus")
def test_prometheus_configuration(tmp_path: Path) -> None:
    """The configuration and the alerts pass promtool."""
    [configuration] = blocks(DOCUMENT, "yaml")
    (tmp_path / "prometheus.yml").write_text(configuration)
    shutil.copy(ALERTS, tmp_path)
    checked = run("promtool", "check", "config", "prometheus.yml", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "3 rules found" in checked.stdout
    assert f'targets: ["{unit("echod-metrics.socket")["ListenStream"][0]}"]' in configuration


# Alerts.


def test_alerts(page: str) -> None:
    """The table has each alert and its severity; the metrics that they use exist."""
    text = ALERTS.read_text()
    alerts = re.findall(r"- alert: (\w+)\n(?:.*\n)*?.* severity: (\w+)\n", text)
    assert [(name, severity) for name, severity, _ in rows("Alerts")] == alerts
    assert len(alerts) == 3
    exposed = fetch(f"{page}/metrics")
    metrics = set(re.findall(r"\b(?:echod|process)_\w+", text))
    assert len(metrics) == 4
    for name in metrics:
        assert f"\n{name}" in exposed, name
    [configuration] = blocks(DOCUMENT, "yaml")
    [job] = re.findall(r"job_name: (\w+)", configuration)
    assert set(re.findall(r'job="(\w+)"', text)) == {job}
    assert set(re.findall(r'reason!?="([\w-]+)"', text)) <= {reason.value for reason in Reason}


def promtool_test(directory: Path, rules: str) -> subprocess.CompletedProcess[str]:
    """Run the tests of the alerts over ``rules``."""
    (directory / "docs").mkdir()
    (directory / "tests").mkdir()
    (directory / "docs" / "alerts.yml").write_text(rules)
    shutil.copy(ROOT / "tests" / "alerts_test.yml", directory / "tests")
    return run("promtool", "test", "rules", "tests/alerts_test.yml", cwd=directory)


@needs("promtool", "prometheus")
def test_alerts_fire(tmp_path: Path) -> None:
    """Each alert fires exactly when it should, by promtool's tests."""
    checked = run("promtool", "check", "rules", ALERTS)
    assert (checked.returncode, checked.stderr) == (0, "")
    tested = promtool_test(tmp_path, ALERTS.read_text())
    assert tested.returncode == 0, tested.stdout + tested.stderr


@needs("promtool", "prometheus")
@pytest.mark.parametrize(
    ("original", "changed"),
    [
        ("for: 2m", "for: 30s"),
        ("for: 2m", "for: 10m"),
        ("for: 1m", "for: 15s"),
        (' or absent(up{job="echod"})', ""),
        ('up{job="echod"} == 0', "up == 0"),
        ('{reason!~"draining|fault"}', ""),
        ('{reason!~"draining|fault"}', '{reason!="max-connections"}'),
        ("[10m]", "[1h]"),
        ("> 0.9", "> 0.95"),
        ("> 0.9", "> 0.8"),
        ("> 2", "> 3"),
        ("> 2", "> 1"),
        ("[1h]", "[2h]"),
        ('process_start_time_seconds{job="echod"}', "process_start_time_seconds"),
    ],
)
def test_changed_alerts(original: str, changed: str, tmp_path: Path) -> None:
    """With another threshold or duration, promtool's tests fail."""
    rules = ALERTS.read_text()
    assert original in rules
    tested = promtool_test(tmp_path, rules.replace(original, changed, 1))
    assert "FAILED" in tested.stderr, tested.stdout + tested.stderr
