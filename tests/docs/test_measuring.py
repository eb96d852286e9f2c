"""docs/measuring.rst and measuring-json.rst: the commands run, and the tables agree with the code.

An ``sh`` block has commands that have to succeed, or the plugin, whose first line is ``#!``. A
``console`` block has commands, after ``$``, and their output. The tests run them on loopback, with
a tenth of the durations.
"""

from __future__ import annotations

import configparser
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from math import ceil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import pytest
from docutils import nodes

from echod.client import errors as failures
from echod.client.events import Disconnected, Event, Reconnected
from echod.client.histogram import Histogram
from echod.client.options import parse, parser
from echod.client.report import is_ok
from echod.client.target import parse_target
from echod.client.text import EVENT_LINES
from echod.durations import format_duration
from echod.peer import EchoPeer
from tests import ROOT, TIMEOUT
from tests.authority import Authority
from tests.client.memory import echod_client, target_of
from tests.client.test_load import exact, frozen
from tests.docs.test_all import blocks, literals, section, tree
from tests.docs.test_operating import needs
from tests.programs.daemon import Daemon

DOCUMENT = tree(ROOT / "docs" / "measuring.rst")
JSON = tree(ROOT / "docs" / "measuring-json.rst")

INSTALL, *SHELL = blocks(DOCUMENT, "sh")
PLUGIN = SHELL.pop()
SHELL += blocks(JSON, "sh")
CONSOLE = blocks(DOCUMENT, "console")
FREEZES = [block for block in CONSOLE if "freeze" in block]
README = blocks(tree(ROOT / "README.rst"), "sh")[-1]

LIMIT = 3 * TIMEOUT
"""Seconds for one block of commands, which runs beside the others."""


def cells(title: str, document: nodes.document = DOCUMENT) -> list[list[Any]]:
    """Return the cells of each row of the tables in the section ``title``."""
    bodies = section(document, title).findall(nodes.tbody)
    return [list(row.children) for body in bodies for row in body.findall(nodes.row)]


def rows(title: str) -> list[list[str]]:
    """Return the texts of these cells."""
    return [[cell.astext() for cell in row] for row in cells(title)]


# Commands.


class Place:
    """A directory with the files that the commands name, and a daemon for them."""

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.directory = directory
        key, certificate = Authority(directory).issue("server")
        (directory / "ca").mkdir()
        shutil.copy(directory / "authority.pem", directory / "ca")
        (directory / "directory").mkdir()
        (directory / "directory" / "one").write_bytes(bytes(100_000))
        (directory / "file").write_bytes(os.urandom(10_000_000))
        (directory / "bin").mkdir()
        command = directory / "bin" / "echod-client"
        command.write_text(
            f"#!{sys.executable}\nimport sys\n"
            "from echod.client.main import main\nsys.exit(main())\n"
        )
        command.chmod(0o755)
        path = os.pathsep.join([str(command.parent), os.environ["PATH"]])
        self.environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)}
        daemon = stack.enter_context(
            Daemon(
                *("--listen", "tcp:0:interface=127.0.0.1", "--listen", "udp:0:interface=127.0.0.1"),
                *("--listen", f"ssl:0:interface=127.0.0.1:privateKey={key}:certKey={certificate}"),
                *("--udp-rate", "100000", "--quiet"),
            )
        )
        self.ports = {
            kind: daemon.wait_for(f"listening on {kind}")[0].rpartition(":")[2]
            for kind in ("tcp", "udp", "tls")
        }

    def here(self, text: str) -> str:
        """Return commands, or their output, with loopback addresses in place of hosts."""
        tls = f"tls:127.0.0.1:{self.ports['tls']}:trustRoots=ca"
        text = re.sub(r"tls:[\w.]+:\d+:trustRoots=\S*", tls, text)
        host = r"(?:\w+\.example\.net:7|localhost:65432)\b"
        text = re.sub(f"udp:{host}", f"udp:127.0.0.1:{self.ports['udp']}", text)
        return re.sub(host, f"127.0.0.1:{self.ports['tcp']}", text)

    def run(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run shell commands up to the first that fails."""
        options = {"stderr": subprocess.PIPE, **options}
        return subprocess.run(
            ["sh", "-ec", command],
            cwd=self.directory,
            env=self.environment,
            stdout=subprocess.PIPE,
            text=True,
            timeout=LIMIT,
            check=False,
            **options,
        )

    def output(self, block: str) -> str:
        """Run the commands of a ``console`` block, and return it with their output."""
        with ExitStack() as stack:
            lines = []
            for line in block.splitlines():
                command = line.removeprefix("$ ")
                if command == line:
                    continue
                lines.append(line)
                if "--faulty" in command:
                    *_, plan, _ = shlex.split(shorter(command))
                    peer = stack.enter_context(EchoPeer())
                    peer.plan(plan)
                else:
                    if "127.0.0.1" in command:
                        command = re.sub(r"127.0.0.1:\d+", target_of(peer), command)
                    done = self.run(shorter(self.here(command)), stderr=subprocess.STDOUT)
                    assert done.returncode == 0, done.stdout
                    lines += done.stdout.splitlines()
            return "\n".join(lines)


def shorter(command: str) -> str:
    """Return a command of the document with shorter durations and smaller counts."""
    command = command.replace("-d 11", "-d 1.1")
    command = command.replace("freeze 1s", "freeze 100ms").replace("after 10s", "after 1s")
    command = re.sub(r"-d \d+(?![.\d])", "-d 0.1", command)
    command = re.sub(r"(echod-client load \S+)(?!.* -d )", r"\1 -d 0.1", command)
    # Of an echod on the same machine, the client is the limit, which makes its exit status 1.
    command = re.sub(r"(.*--find-rate.*)", r"\1 || test $? = 1", command)
    command = re.sub(r"-i [\d.]+", "", command)
    command = re.sub(r"(echod-client ping \S+)(?!.* -c )", r"\1 -c 3", command)
    return command.replace("echod-client ping", "echod-client ping -i 0.01")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("measuring"), stack)


@pytest.fixture(scope="module", autouse=True)
def results(place: Place) -> Iterator[Mapping[str, Future[Any]]]:
    """Run all blocks at the same time, because they mostly wait; return their results."""
    with ThreadPoolExecutor(3) as pool:
        started: dict[str, Future[Any]] = {}
        for block in CONSOLE:
            started[block] = pool.submit(place.output, block)
        for block in SHELL:
            started[block] = pool.submit(place.run, shorter(place.here(block)))
        yield started


def test_every_block_is_tested() -> None:
    """Every literal block is of a kind that is tested here."""
    for document, expected in ((DOCUMENT, {"sh", "console", "text"}), (JSON, {"sh"})):
        kinds = {block["classes"][-1] for block in document.findall(nodes.literal_block)}
        assert kinds == expected
    assert len(FREEZES) == 2
    assert PLUGIN.startswith("#!")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("block", [INSTALL, *SHELL, PLUGIN])
def test_commands(block: str, shell: str) -> None:
    """The commands are valid for sh and for bash."""
    parsed = subprocess.run(
        [shell, "-n"], input=block, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_readme() -> None:
    """The command lines of README.rst are valid."""
    found = re.findall(r"echod-client ([^|\n]+)", README)
    assert [parse(shlex.split(each)).command for each in found] == ["pipe", "ping", "load", "load"]


def test_install() -> None:
    """The extras to install exist."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {name for some in re.findall(r"\.\[(.*)\]", INSTALL) for name in some.split(",")}
    assert named == {"client", "tls", "plot"}
    assert named < set(setup["options.extras_require"])


# Tables.


def test_targets() -> None:
    """Each target of the table is valid."""
    for target, _ in rows("Targets"):
        parsed = parse_target(*re.sub(r"\bport\b", "7", target).split())
        assert parsed.udp == target.startswith("udp:")
        assert (parsed.host is None) == target.startswith("unix:")


def test_options() -> None:
    """The table has each option with its default and its commands."""
    [commands] = [each for each in parser()._actions if each.choices]
    taken: dict[tuple[str, ...], tuple[str, set[str]]] = {}
    choices: Any = {name: each for name, each in commands.choices.items() if name != "merge"}
    for name, each in choices.items():
        for action in each._actions:
            if action.option_strings and action.dest != "help":
                default = action.default
                shows = (
                    format_duration(default) if isinstance(default, float) else str(default or "")
                )
                shows = "" if isinstance(default, list) else shows
                taken.setdefault(tuple(action.option_strings), (shows, set()))[1].add(name)
    found = {
        tuple(option.split(", ")): (default, set(of.split(", ")) if of != "all" else set(choices))
        for option, default, of, _ in rows("The options")
    }
    assert found == taken


def test_freeze_on_paper() -> None:
    """The table has the figures that a stall of one second in eleven yields."""
    waits = [(frozen(number / 1000) - number / 1000) * 1000 for number in range(11_000)]
    table = rows("Open loop and closed loop")
    assert len(table) == 5
    for name, rank, waiting, paper in table:
        percent = 100.0 if name == "max" else float(name[1:])
        number = ceil(round(percent * 11_000 / 100, 6))
        assert int(rank.replace(",", "")) == number
        assert waiting == (f"{number - 9000:,}" if number > 9000 else "none")
        assert float(paper.removesuffix(" ms").replace(",", "")) == round(exact(waits, percent))


def test_percentiles() -> None:
    """Percentiles are nearest-rank, and within 0.1 % or half a step of the exact ones."""
    ten = Histogram()
    ten.record([each / 10 for each in range(1, 11)])
    for percent, rank in ((50, 5), (90, 9), (99, 10)):
        assert ten.percentile(percent) == pytest.approx(rank / 10, rel=0.001)
    values = [1e-6 * 1.01**each for each in range(1500)]
    many = Histogram()
    many.record(values)
    for percent in range(1, 101):
        real, found = exact(values, percent), many.percentile(percent)
        assert real - 0.05e-6 <= found <= max(real * 1.001, real + 0.05e-6) + 1e-12


def test_outcomes(echo_peer_udp: EchoPeer) -> None:
    """The table has each outcome of a message, and whether it makes the exit status 1."""
    outcomes = rows("What became of a message")[:9]
    found = {
        word.replace("in flight", "under_way").replace(" ", "_"): wrong
        for word, wrong, _ in outcomes
    }
    result = echod_client("ping", target_of(echo_peer_udp), "-c", 1, "--json").result
    names = list(result)
    counts = names[names.index("sent") + 1 : names.index("under_way") + 1]
    assert sorted(found) == sorted(set(counts) - {"damaged_bytes"})
    for word, wrong in found.items():
        tally = SimpleNamespace(**{**dict.fromkeys(counts, 0), "sent": 2, "received": 1, word: 1})
        run: Any = SimpleNamespace(tally=tally, errors={})
        assert is_ok(run) == (wrong == "no"), word


ERRORS = {word for word, *_ in rows("What became of a message")[9:]}


def test_errors() -> None:
    """The table of errors has each error word, and no other."""
    values = [value for name, value in vars(failures).items() if name.isupper()]
    words = {value for value in values if isinstance(value, str)}
    assert words == ERRORS


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has each exit status."""
    assert [status for status, _ in rows("Exit status and timeouts")] == ["0", "1", "2"]
    assert echod_client("ping", "unix:/nonexistent", "-c", 1).status == 1
    with pytest.raises(SystemExit, match="2"):
        parse(["ping", "//nowhere"])
    assert "TARGET '//nowhere' has to be" in capsys.readouterr().err
    assert echod_client("ping", "nosuch:endpoint").status == 2


def test_ctrl_c(place: Place) -> None:
    """Ctrl-C ends a ping with its summary, and with status 0 if nothing was lost."""
    with subprocess.Popen(
        ["echod-client", "ping", f"127.0.0.1:{place.ports['tcp']}", "-i", "0.05"],
        stdout=subprocess.PIPE,
        text=True,
        env=place.environment,
        executable=place.directory / "bin" / "echod-client",
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("seq=2 "):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stdout.read()
    assert process.returncode == 0
    assert "0 lost, 0 late, 0 damaged" in rest
    assert "round trip: " in rest


def test_closed_output(place: Place) -> None:
    """When its standard output is closed, ping ends at the next line with status 1."""
    target = place.here("localhost:65432")
    done = place.run(f"{{ echod-client ping {target} -i 0.01 || echo $? >&2; }} | head -n 1")
    assert done.stdout.startswith("echo of ")
    assert done.stderr == "echod-client ping: standard output: broken pipe\n1\n"


# JSON.

KINDS: dict[str, Any] = {
    "string": str,
    "integer": int,
    "number": (int, float),
    "boolean": bool,
    "object": dict,
    "array": list,
    "null": type(None),
}

TABLES = {
    "pipe": ("Names of all", "Names of pipe"),
    "ping": ("Names of all", "Names of ping and load", "Names of ping"),
    "load": ("Names of all", "Names of ping and load", "Names of load"),
    "find-rate": ("Names of all", "Names of load --find-rate"),
}


def fits(value: object, types: str) -> bool:
    kinds = [KINDS[kind] for kind in types.split(" or ")]
    return any(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for kind in kinds
    )


def check_json(result: dict[str, Any]) -> None:
    """Assert that ``result`` has the names of the tables, with values of their types."""
    documented = {
        name.astext(): (kind.astext(), meaning)
        for title in TABLES[result["command"]]
        for name, kind, meaning in cells(title, JSON)
    }
    assert set(result) == set(documented)
    for name, value in result.items():
        kind, meaning = documented[name]
        assert fits(value, kind), (name, value)
        if name == "errors":
            assert set(value) <= ERRORS
            assert all(type(count) is int for count in value.values())
        elif kind == "object":
            assert set(value) == literals(meaning)
            assert "number or null" in " ".join(meaning.astext().split())
            assert all(fits(each, "number or null") for each in value.values())
        elif name == "latency_histogram":
            assert all(map(fits, pair, ("number", "integer")) for pair in value)
        elif kind == "array":
            for each in value:
                assert set(each) == literals(meaning)
                assert fits(each.get("messages", 0), "integer")
        elif name.endswith("_seconds"):
            assert "number" in kind


RUNS = [("ping", "-c", 2, "-i", 0.001), ("load", "-d", 0.1, "-r", 100), ("load", "-d", 0.1)]


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("command", RUNS, ids=lambda command: " ".join(map(str, command)))
def test_json(place: Place, command: tuple[Any, ...], udp: bool) -> None:
    """The tables agree with the output of ping and load, over TCP and UDP."""
    target = f"udp:127.0.0.1:{place.ports['udp']}" if udp else f"127.0.0.1:{place.ports['tcp']}"
    outcome = echod_client(*command, target, "--json")
    assert outcome.status == 0
    assert outcome.result["protocol"] == ("udp" if udp else "tcp")
    check_json(outcome.result)


def test_json_of_tls(place: Place) -> None:
    """The tables agree with the output over TLS; Twisted's TLS needs a process of its own."""
    target = place.here("tls:localhost:7:trustRoots=")
    done = place.run(f"echod-client load {target} -d 0.1 --json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["protocol"] == "tls"
    check_json(result)


def test_json_of_a_search(place: Place) -> None:
    """The table agrees with the output of --find-rate, with a bound that no rate meets."""
    options = ("--find-rate", "--latency", "max=0.001ms", "-d", 0.6, "-r", 2, "--json")
    outcome = echod_client("load", f"127.0.0.1:{place.ports['tcp']}", *options)
    assert outcome.status == 1
    assert outcome.result["steps"]
    check_json(outcome.result)


@pytest.mark.parametrize("command", ["ping", "load", "pipe"])
def test_json_of_failures(command: str) -> None:
    """The tables agree with the output of a failed run; pipe writes it to standard error."""
    outcome = echod_client(command, "unix:/nonexistent", "--json")
    text = outcome.err.splitlines()[0] if command == "pipe" else outcome.out
    check_json(json.loads(text))


# The plugin.


def test_plugin(place: Place, echo_peer: EchoPeer) -> None:
    """The plugin prints one line with performance data, and exits with the matching status."""
    script = place.directory / "check_echo"
    script.write_text(PLUGIN.replace("-i 0.2", "-i 0.01"))
    script.chmod(0o755)
    damaging = echo_peer()
    echo_peer.delay(0.05)
    damaging.every(100, "byte").damage()
    tcp, late, wrong = place.ports["tcp"], echo_peer.port, damaging.port
    with ThreadPoolExecutor(3) as pool:
        cases = [
            (f"127.0.0.1:{tcp} 1000 2000", 0, r"5 of 5 came .* rta=[\d.]+ms;1000;2000;0 wrong=0%;"),
            (f"127.0.0.1:{late} 10 2000", 1, "5 of 5 came back right"),
            (f"127.0.0.1:{late} 10 20", 2, "5 of 5 came back right"),
            (f"127.0.0.1:{wrong} 1000 2000", 2, "2 of 5 came back right .*;0 wrong=60%;"),
            ("127.0.0.1:1 1000 2000", 2, "connection refused .* rta=U;.* wrong=100%;"),
            (f"127.0.0.1:{tcp} soon", 3, "have to be milliseconds"),
            ("", 3, "TARGET '' has to be"),
        ]
        ran = [pool.submit(place.run, f"./check_echo {arguments}") for arguments, *_ in cases]
        for (_, status, expected), each in zip(cases, ran, strict=True):
            done = each.result(LIMIT)
            word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[status]
            assert (done.returncode, done.stderr) == (status, ""), done.stdout
            assert re.fullmatch(
                f"ECHO {word} - .*{expected}.*\n", done.stdout.replace(", in", " in")
            )
    missing = subprocess.run(
        ["/bin/sh", script, "127.0.0.1:1", "1", "2"],
        env={"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT,
    )
    assert missing.returncode == 3
    assert "not found" in missing.stdout


# Events.


def test_lines_of_an_outage() -> None:
    """The manual shows the lines that ping prints about an outage."""
    events = Disconnected("closed"), Reconnected(3.417, 3)
    printed = "\n".join(EVENT_LINES[type(each)](each) for each in events)
    assert blocks(DOCUMENT, "text") == [printed]


def test_events_of_json_lines() -> None:
    """The table has the events of ping with their names."""
    found = {}
    for event, of, meaning in cells("Events", JSON):
        if of.astext() == "ping":
            found[event.astext()] = literals(meaning)
    states = {"pending", "lost", "not_sent"}
    for each in get_args(Event):
        names = found.pop(each.__name__.lower())
        assert names - states == set(each._fields) - states
    assert not found


# Failures that the recipes describe.


UDP_PEER = """
import sys
from echod.peer import EchoPeer
with EchoPeer("udp") as peer:
    print(peer.port, flush=True)
    sys.stdin.read()
"""


@needs("ip", "iproute2")
def test_mtu(place: Place) -> None:
    """At an MTU of 1,500, datagrams of 1,472 bytes come back, and 1,473 are too long."""
    inside = ["unshare", "--net", "--map-root-user", "sh", "-c"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs permission to create a network namespace")
    peer = shlex.join([sys.executable, "-c", UDP_PEER])
    [command] = [block for block in SHELL if "--dont-fragment" in block]
    command = re.sub(r"-c \d+", "-c 2", shorter(command)).replace("-W 3", "-W 0.2")
    script = f"""
        ip link set lo mtu 1500 up
        mkfifo input output
        {peer} < input > output & exec 3> input
        read port < output
        {command.replace("echo.example.net:7", '127.0.0.1:"$port"')}
        {command.replace("echo.example.net:7", '127.0.0.1:"$port"').replace("1472", "1473")}
        echo $?
    """
    done = place.run(shlex.join([*inside, script]))
    assert "2 sent, 2 received, 0 lost" in done.stdout, done
    assert "2 sent, 0 received, 2 lost" in done.stdout
    assert done.stdout.endswith("errors: too long 2\n1\n")


def test_silent_and_refused(echo_peer: EchoPeer) -> None:
    """A refused connection differs from one whose messages are lost."""
    err = io.StringIO()
    assert echod_client("ping", "127.0.0.1:1", "-c", 1, err=err).status == 1
    assert "connection refused" in err.getvalue()
    echo_peer.silent()
    outcome = echod_client("ping", target_of(echo_peer), "-c", 1, "-W", 0.1)
    assert "connected in" in outcome.out
    assert "1 sent, 0 received, 1 lost" in outcome.out


def test_time_wait(echo_peer: EchoPeer) -> None:
    """The client closes first: its end is in TIME-WAIT."""
    assert echod_client("ping", target_of(echo_peer), "-c", 1).status == 0
    service = f"0100007F:{echo_peer.port:04X}"
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    assert [line[3] for line in lines if line[2] == service] == ["06"]  # TIME-WAIT: the client's
    assert [line[3] for line in lines if line[1] == service] == ["0A"]  # LISTEN: the service's


# The output of the commands, which have run since the first test of this module.


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block[:60])
def test_recipes(results: Mapping[str, Future[Any]], block: str) -> None:
    """The commands succeed against a correct service."""
    if "jq " in block and shutil.which("jq") is None:
        pytest.skip("needs jq; .ci/run installs it")
    done = results[block].result(LIMIT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_what_recipes_write(place: Place, results: Mapping[str, Future[Any]]) -> None:
    """The recipes write equal checksums, a plot, and a list of names."""
    [block] = [block for block in SHELL if "sha256sum" in block]
    before, after = results[block].result(LIMIT).stdout.splitlines()
    assert before == after
    assert (place.directory / "list").read_text().split() == ["directory/", "directory/one"]
    [block] = [block for block in SHELL if "--compare" in block]
    results[block].result(LIMIT)
    assert "<svg" in (place.directory / "both.svg").read_text()


def normal(text: str, *, counts: bool) -> list[str]:
    """Return the lines with placeholders for addresses and figures."""
    text = re.sub(r"(127\.0\.0\.1|localhost):\d+", "HOST", text)
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+", "DATE", text)
    text = re.sub(r"\d[\d,]*\.\d+", "N", text)
    if counts:
        text = re.sub(r"\b([\d,]+) sent, \1 received", "N sent, N received", text)
    return [line for line in text.splitlines() if not line.startswith("limited by")]


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block[:60])
def test_examples(results: Mapping[str, Future[Any]], block: str) -> None:
    """The shown output is the real one, apart from times and counts of messages."""
    counts = " load " in block
    printed = results[block].result(LIMIT)
    assert normal(printed, counts=counts) == normal(block, counts=counts)


def shown(text: str, name: str) -> float:
    """Return a figure of the latency line, in milliseconds."""
    [line] = [line for line in text.splitlines() if line.startswith("latency: ")]
    return float(re.findall(rf"{re.escape(name)} ([\d.]+)", line)[0])


def test_freeze(results: Mapping[str, Future[Any]]) -> None:
    """The open loop shows the calculated latencies of a stall, and the closed loop hides them."""
    # A busy machine adds to the latencies of a run; tests/client/test_load.py has exact ones.
    ran = [results[block].result(LIMIT) for block in FREEZES]
    for (opened, closed), part, within in ((FREEZES, 1.0, 10), (ran, 0.1, 20)):
        for name, *_, paper in rows("Open loop and closed loop"):
            wanted = float(paper.removesuffix(" ms").replace(",", "")) * part
            assert shown(opened, name) >= wanted - within
            assert shown(opened, name) <= wanted + within or opened in ran
        assert shown(closed, "p99" if closed in FREEZES else "p50") < 50
        assert shown(closed, "max") > 1000 * part * 0.9


def test_json_of_pipe(results: Mapping[str, Future[Any]]) -> None:
    """The tables agree with the output of a successful pipe."""
    [block] = [block for block in CONSOLE if "pipe" in block]
    check_json(json.loads(results[block].result(LIMIT).splitlines()[-1]))
