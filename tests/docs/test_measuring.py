"""docs/measuring.rst tells the truth: its commands run, and its tables are those of the code.

How the document is read: an ``sh`` block is commands, all of which have to succeed, or the plugin,
whose first line is ``#!``. A ``console`` block has commands, after ``$``, and what they print. Both
run here on loopback, and shorter; the service that stands still does so for a tenth of the time.
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
from typing import Any

import pytest
from docutils import nodes

from echod.client import errors as failures
from echod.client.histogram import Histogram
from echod.client.options import parse, parser
from echod.client.report import is_ok
from echod.client.target import parse_target
from echod.durations import format_duration
from tests import ROOT, TIMEOUT
from tests.authority import Authority
from tests.client.memory import echod_client
from tests.client.test_load import exact, frozen
from tests.docs.test_all import blocks, literals, section, tree
from tests.docs.test_operating import needs
from tests.programs.daemon import Daemon
from tests.programs.mirrors import Mirror

DOCUMENT = tree(ROOT / "docs" / "measuring.rst")

INSTALL, *SHELL = blocks(DOCUMENT, "sh")
PLUGIN = SHELL.pop()
CONSOLE = blocks(DOCUMENT, "console")
FREEZES = [block for block in CONSOLE if "freeze" in block]
README = blocks(tree(ROOT / "README.rst"), "sh")[-1]

LIMIT = 3 * TIMEOUT
"""Seconds for one block: several commands, beside all other blocks."""


def cells(title: str) -> list[list[Any]]:
    """Return the cells of each row of the tables in the section of that title."""
    bodies = section(DOCUMENT, title).findall(nodes.tbody)
    return [list(row.children) for body in bodies for row in body.findall(nodes.row)]


def rows(title: str) -> list[list[str]]:
    """Return their texts."""
    return [[cell.astext() for cell in row] for row in cells(title)]


# Commands.


class Place:
    """A directory with all that the commands name, and services for them."""

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
        """Return commands, or what they print, with this machine for the others."""
        tls = f"tls:127.0.0.1:{self.ports['tls']}:trustRoots=ca"
        text = re.sub(r"tls:[\w.]+:\d+:trustRoots=\S*", tls, text)
        host = r"(?:\w+\.example\.net:7|localhost:65432)\b"
        text = re.sub(f"udp:{host}", f"udp:127.0.0.1:{self.ports['udp']}", text)
        return re.sub(host, f"127.0.0.1:{self.ports['tcp']}", text)

    def run(self, command: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run a command of the shell, which ends at the first of them that fails."""
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
        """Return a ``console`` block with what its commands print here."""
        with ExitStack() as stack:
            lines = []
            for line in block.splitlines():
                command = line.removeprefix("$ ")
                if command == line:
                    continue
                lines.append(line)
                if "mirrors.py" in command:
                    mirror = stack.enter_context(Mirror(*shlex.split(shorter(command))[2:]))
                    lines.append(f"listening on 127.0.0.1:{mirror.port}")
                else:
                    if "127.0.0.1" in command:
                        command = re.sub(r"127.0.0.1:\d+", f"127.0.0.1:{mirror.port}", command)
                    done = self.run(shorter(self.here(command)), stderr=subprocess.STDOUT)
                    assert done.returncode == 0, done.stdout
                    lines += done.stdout.splitlines()
            return "\n".join(lines)


def shorter(command: str) -> str:
    """Return a command of the document with smaller numbers."""
    command = command.replace("-d 11", "-d 1.1")
    command = command.replace("--every 10 --seconds 1", "--every 1 --seconds 0.1")
    command = re.sub(r"-d \d+(?![.\d])", "-d 0.1", command)
    command = re.sub(r"(echod-client load \S+)(?!.* -d )", r"\1 -d 0.1", command)
    command = re.sub(r"-i [\d.]+", "", command)
    command = re.sub(r"(echod-client ping \S+)(?!.* -c )", r"\1 -c 3", command)
    return command.replace("echod-client ping", "echod-client ping -i 0.01")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(tmp_path_factory.mktemp("measuring"), stack)


@pytest.fixture(scope="module", autouse=True)
def results(place: Place) -> Iterator[Mapping[str, Future[Any]]]:
    """What comes of each block: all run at once, since most of their time is waiting."""
    with ThreadPoolExecutor(3) as pool:
        started: dict[str, Future[Any]] = {}
        for block in CONSOLE:
            started[block] = pool.submit(place.output, block)
        for block in SHELL:
            started[block] = pool.submit(place.run, shorter(place.here(block)))
        yield started


def test_every_block_is_tested() -> None:
    """There is no literal block of another kind than those that are tested here."""
    kinds = {block["classes"][-1] for block in DOCUMENT.findall(nodes.literal_block)}
    assert kinds == {"sh", "console"}
    assert len(FREEZES) == 2
    assert PLUGIN.startswith("#!")


@pytest.mark.parametrize("shell", ["sh", "bash"])
@pytest.mark.parametrize("block", [INSTALL, *SHELL, PLUGIN])
def test_commands(block: str, shell: str) -> None:
    """The commands are such, for sh and bash."""
    parsed = subprocess.run(
        [shell, "-n"], input=block, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    assert (parsed.returncode, parsed.stderr) == (0, "")


def test_readme() -> None:
    """The commands of README.rst are such."""
    found = re.findall(r"echod-client ([^|\n]+)", README)
    assert [parse(shlex.split(each)).command for each in found] == ["pipe", "ping", "load"]


def test_install() -> None:
    """What is to be installed is there to be."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    named = {name for some in re.findall(r"\.\[(.*)\]", INSTALL) for name in some.split(",")}
    assert named == {"client", "tls", "plot"}
    assert named < set(setup["options.extras_require"])


# Tables.


def test_targets() -> None:
    """Each target of the table is one."""
    for said, _ in rows("Targets"):
        parsed = parse_target(re.sub(r"\bport\b", "7", said))
        assert parsed.udp == said.startswith("udp:")
        assert (parsed.host is None) == said.startswith(("unix:", "tls:"))


def test_options() -> None:
    """The table has each option, its default, and which commands take it."""
    [commands] = [each for each in parser()._actions if each.choices]
    taken: dict[tuple[str, ...], tuple[str, set[str]]] = {}
    choices: Any = commands.choices
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
    """The table has the figures of the example, by the sums of tests/client/test_load.py."""
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
        real, told = exact(values, percent), many.percentile(percent)
        assert real - 0.05e-6 <= told <= max(real * 1.001, real + 0.05e-6) + 1e-12


def test_words() -> None:
    """The table has each word for what became of a message, and which make the status 1."""
    outcomes = rows("What became of a message")[:8]
    found = {word.replace("in flight", "under_way"): wrong for word, wrong, _ in outcomes}
    with Mirror("plain", "--udp") as mirror:
        told = echod_client("ping", f"udp:127.0.0.1:{mirror.port}", "-c", 1, "--json").result
    names = list(told)
    counts = names[names.index("sent") + 1 : names.index("under_way") + 1]
    assert sorted(found) == sorted(set(counts) - {"damaged_bytes"})
    for word, wrong in found.items():
        tally = SimpleNamespace(**{**dict.fromkeys(counts, 0), "sent": 2, "received": 1, word: 1})
        run: Any = SimpleNamespace(tally=tally, errors={})
        assert is_ok(run) == (wrong == "no"), word


ERRORS = {word for word, *_ in rows("What became of a message")[8:]}


def test_errors() -> None:
    """The other table there has each word for what went wrong, and no other."""
    values = [value for name, value in vars(failures).items() if name.isupper()]
    words = {value for value in values if isinstance(value, str)}
    assert words == ERRORS


def test_exit_statuses(capsys: pytest.CaptureFixture[str]) -> None:
    """The statuses are those that there are."""
    assert [status for status, _ in rows("Exit status and timeouts")] == ["0", "1", "2"]
    assert echod_client("ping", "unix:/nonexistent", "-c", 1).status == 1
    with pytest.raises(SystemExit, match="2"):
        parse(["ping", "nowhere"])
    assert "TARGET 'nowhere' has to be" in capsys.readouterr().err
    assert echod_client("ping", "nosuch:endpoint").status == 2


def test_ctrl_c(place: Place) -> None:
    """Ctrl-C ends a ping with its summary, and status 0 where all was right."""
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
    """When who reads the output has gone, it ends with the next line, and status 1."""
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
}


def fits(value: object, said: str) -> bool:
    kinds = [KINDS[kind] for kind in said.split(" or ")]
    return any(
        isinstance(value, kind) and (kind is bool or not isinstance(value, bool)) for kind in kinds
    )


def check_json(told: dict[str, Any]) -> None:
    """Assert that each name is in the tables, each of these is there, and their types are so."""
    documented = {
        name.astext(): (kind.astext(), meaning)
        for title in TABLES[told["command"]]
        for name, kind, meaning in cells(title)
    }
    assert set(told) == set(documented)
    for name, value in told.items():
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
                assert fits(each["messages"], "integer")
        elif name.endswith("_seconds"):
            assert "number" in kind


RUNS = [("ping", "-c", 2, "-i", 0.001), ("load", "-d", 0.1, "-r", 100), ("load", "-d", 0.1)]


@pytest.mark.parametrize("udp", [False, True])
@pytest.mark.parametrize("command", RUNS, ids=lambda command: " ".join(map(str, command)))
def test_json(place: Place, command: tuple[Any, ...], udp: bool) -> None:
    """The tables' names, types and units are those of real output."""
    target = f"udp:127.0.0.1:{place.ports['udp']}" if udp else f"127.0.0.1:{place.ports['tcp']}"
    outcome = echod_client(*command, target, "--json")
    assert outcome.status == 0
    assert outcome.result["protocol"] == ("udp" if udp else "tcp")
    check_json(outcome.result)


def test_json_of_tls(place: Place) -> None:
    """So they are with TLS, for which Twisted asks for the reactor of the process."""
    target = place.here("tls:localhost:7:trustRoots=")
    done = place.run(f"echod-client load {target} -d 0.1 --json")
    assert (done.returncode, done.stderr) == (0, "")
    told = json.loads(done.stdout)
    assert told["protocol"] == "tls"
    check_json(told)


@pytest.mark.parametrize("command", ["ping", "load", "pipe"])
def test_json_of_failures(command: str) -> None:
    """So they are where nothing was measured; and of pipe they are on standard error."""
    outcome = echod_client(command, "unix:/nonexistent", "--json")
    told = outcome.err.splitlines()[0] if command == "pipe" else outcome.out
    check_json(json.loads(told))


# The plugin.


def test_plugin(place: Place) -> None:
    """Each status is what happened, the performance data is there, and one line is printed."""
    script = place.directory / "check_echo"
    script.write_text(PLUGIN.replace("-i 0.2", "-i 0.01"))
    script.chmod(0o755)
    with ExitStack() as stack, ThreadPoolExecutor(3) as pool:
        delaying = stack.enter_context(Mirror("delay", "--seconds", 0.05)).port
        damaging = stack.enter_context(Mirror("damage", "--every", 100)).port
        tcp = place.ports["tcp"]
        cases = [
            (f"127.0.0.1:{tcp} 1000 2000", 0, r"5 of 5 came .* rta=[\d.]+ms;1000;2000;0 wrong=0%;"),
            (f"127.0.0.1:{delaying} 10 2000", 1, "5 of 5 came back right"),
            (f"127.0.0.1:{delaying} 10 20", 2, "5 of 5 came back right"),
            (f"127.0.0.1:{damaging} 1000 2000", 2, "2 of 5 came back right .*;0 wrong=60%;"),
            ("127.0.0.1:1 1000 2000", 2, "connection refused .* rta=U;.* wrong=100%;"),
            (f"127.0.0.1:{tcp} soon", 3, "have to be milliseconds"),
            ("", 3, "TARGET '' has to be"),
        ]
        ran = [pool.submit(place.run, f"./check_echo {arguments}") for arguments, *_ in cases]
        for (_, status, said), each in zip(cases, ran, strict=True):
            done = each.result(LIMIT)
            word = ("OK", "WARNING", "CRITICAL", "UNKNOWN")[status]
            assert (done.returncode, done.stderr) == (status, ""), done.stdout
            assert re.fullmatch(f"ECHO {word} - .*{said}.*\n", done.stdout.replace(", in", " in"))
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


# What the recipes say of what goes wrong.


@needs("ip", "iproute2")
def test_mtu(place: Place) -> None:
    """At an MTU of 1,500, datagrams of 1,472 bytes come back, and of one more are too long."""
    inside = ["unshare", "--net", "--map-root-user", "sh", "-c"]
    if subprocess.run([*inside, "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs leave to make a network namespace")
    mirror = shlex.join([sys.executable, "-IS", str(ROOT / "tests" / "programs" / "mirrors.py")])
    [command] = [block for block in SHELL if "--dont-fragment" in block]
    told = re.sub(r"-c \d+", "-c 2", shorter(command)).replace("-W 3", "-W 0.2")
    script = f"""
        ip link set lo mtu 1500 up
        mkfifo input said
        {mirror} plain --udp < input > said & exec 3> input
        read said < said
        port=${{said##*:}}
        {told.replace("echo.example.net:7", '127.0.0.1:"$port"')}
        {told.replace("echo.example.net:7", '127.0.0.1:"$port"').replace("1472", "1473")}
        echo $?
    """
    done = place.run(shlex.join([*inside, script]))
    assert "2 sent, 2 received, 0 lost" in done.stdout, done
    assert "2 sent, 0 received, 2 lost" in done.stdout
    assert done.stdout.endswith("errors: too long 2\n1\n")


def test_silent_and_refused() -> None:
    """Refused, and connected with everything lost, look as the first recipe says."""
    err = io.StringIO()
    assert echod_client("ping", "127.0.0.1:1", "-c", 1, err=err).status == 1
    assert "connection refused" in err.getvalue()
    with Mirror("silent") as mirror:
        outcome = echod_client("ping", f"127.0.0.1:{mirror.port}", "-c", 1, "-W", 0.1)
    assert "connected in" in outcome.out
    assert "1 sent, 0 received, 1 lost" in outcome.out


def test_time_wait() -> None:
    """The last state of a connection is TIME-WAIT, on this side."""
    with Mirror("plain") as mirror:
        assert echod_client("ping", f"127.0.0.1:{mirror.port}", "-c", 1).status == 0
        service = f"0100007F:{mirror.port:04X}"
        lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
    assert [line[3] for line in lines if line[2] == service] == ["06"]  # ours
    assert [line[3] for line in lines if line[1] == service] == ["0A"]  # it listens


# What the commands print: last, since they run meanwhile.


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block[:60])
def test_recipes(results: Mapping[str, Future[Any]], block: str) -> None:
    """The commands succeed, against a service that does what it is to do."""
    if "jq " in block and shutil.which("jq") is None:
        pytest.skip("there is no jq: the Debian package jq has it")
    done = results[block].result(LIMIT)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout


def test_what_recipes_write(place: Place, results: Mapping[str, Future[Any]]) -> None:
    """The sums of what went in and came out are the same; a plot is a picture; a list has names."""
    [block] = [block for block in SHELL if "sha256sum" in block]
    before, after = results[block].result(LIMIT).stdout.splitlines()
    assert before == after
    assert (place.directory / "list").read_text().split() == ["directory/", "directory/one"]
    [block] = [block for block in SHELL if "--compare" in block]
    results[block].result(LIMIT)
    assert "<svg" in (place.directory / "both.svg").read_text()


def normal(text: str, *, counts: bool) -> list[str]:
    """Return lines without what differs from one run to the next."""
    text = re.sub(r"(127\.0\.0\.1|localhost):\d+", "HOST", text)
    text = re.sub(r"\d[\d,]*\.\d+", "N", text)
    if counts:
        text = re.sub(r"\b([\d,]+) sent, \1 received", "N sent, N received", text)
    return [line for line in text.splitlines() if not line.startswith("the client itself")]


@pytest.mark.parametrize("block", CONSOLE, ids=lambda block: block[:60])
def test_examples(results: Mapping[str, Future[Any]], block: str) -> None:
    """What is shown is what is printed, but for times, and how many messages there is time for."""
    counts = " load " in block
    printed = results[block].result(LIMIT)
    assert normal(printed, counts=counts) == normal(block, counts=counts)


def shown(text: str, name: str) -> float:
    """Return a figure of the line of latencies, in milliseconds."""
    [line] = [line for line in text.splitlines() if line.startswith("latency: ")]
    return float(re.findall(rf"{re.escape(name)} ([\d.]+)", line)[0])


def test_freeze(results: Mapping[str, Future[Any]]) -> None:
    """Both loops show what the document says that they do: the open one what is on paper."""
    for at, part, tolerance in ((str, 1.0, 10), (None, 0.1, 20)):
        opened, closed = (at(b) if at else results[b].result(LIMIT) for b in FREEZES)
        for name, *_, paper in rows("Open loop and closed loop"):
            wanted = float(paper.removesuffix(" ms").replace(",", "")) * part
            assert shown(opened, name) == pytest.approx(wanted, abs=tolerance)
        assert shown(closed, "p99") < 20
        assert shown(closed, "max") > 1000 * part * 0.9


def test_json_of_pipe(results: Mapping[str, Future[Any]]) -> None:
    """So they are of a pipe that was right."""
    [block] = [block for block in CONSOLE if "pipe" in block]
    check_json(json.loads(results[block].result(LIMIT).splitlines()[-1]))
