"""The commands of ``echod-client`` in this process, from their options to their output."""

from __future__ import annotations

import errno
import io
import json
import os
import re
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import pytest
from twisted.internet.defer import Deferred, succeed
from twisted.logger import capturedLogs

from echod.client import main
from echod.client.measurement import Measurement
from echod.client.runner import PreciseReactor
from echod.client.terminal import Console
from echod.peer import EchoPeer
from tests import TIMEOUT
from tests.client.memory import (
    FEW,
    MS,
    ROUND_TRIP,
    Terminal,
    echod_client,
    lines,
    matches,
    silent_port,
    target_of,
    tls_target,
)
from tests.programs.daemon import Daemon


@pytest.fixture(scope="module")
def target() -> Iterator[str]:
    with EchoPeer() as peer:
        yield target_of(peer)


@pytest.fixture(scope="module")
def tls() -> Iterator[str]:
    with tls_target() as target:
        yield target


# A busy machine sends less than the rate in so short a time.
ALL_RECEIVED = r"([1-9]\d*) sent, \1 received, 0 lost, 0 late, 0 damaged"

AtReply = Callable[[int, Callable[[Any], object]], None]


@pytest.fixture
def at_reply(monkeypatch: pytest.MonkeyPatch) -> AtReply:
    """Return a function that calls ``act(reactor)`` once, when ``number`` replies have come."""

    def arrange(number: int, act: Callable[[Any], object]) -> None:
        count, actions = Measurement.replied, [act]

        def replied(run: Measurement, *reply: Any) -> None:
            count(run, *reply)
            if run.answered == number and actions:
                reactor = run.connector.reactor
                reactor.callLater(0, actions.pop(), reactor)

        monkeypatch.setattr(Measurement, "replied", replied)

    return arrange


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have intervals of 0.1 s, and searches that end after a step that fails."""
    monkeypatch.setattr("echod.client.search.LEAST", 1e9)
    monkeypatch.setattr("echod.client.load.SECOND", 0.1)
    monkeypatch.setattr("echod.client.statistics.SECOND", 0.1)


def test_udp_ping(echo_peer_udp: EchoPeer) -> None:
    """Over UDP, ``ping`` prints no connection, and its summary has the outcomes of UDP."""
    printed = lines("ping", target_of(echo_peer_udp), "-c", 1)
    matches(
        printed,
        r"echo of udp:\S+ \(\S+\) over UDP, 64 bytes a message",
        rf"seq=0 {MS} ms",
        "",
        r"--- udp:\S+ ---",
        "1 sent, 1 received, 0 lost, 0 late, 0 damaged, 0 duplicated, 0 reordered",
        rf"round trip: {ROUND_TRIP}; kernel clock",
    )


def test_ping(target: str) -> None:
    """``ping`` prints the address, the time to connect, a line for each reply, and the summary."""
    matches(
        lines("ping", target, "-c", 2, "-i", 0.01),
        rf"echo of {target} \({target}\) over TCP, 64 bytes a message",
        rf"connected in {MS} ms",
        rf"seq=0 {MS} ms",
        rf"seq=1 {MS} ms",
        "",
        f"--- {target} ---",
        "2 sent, 2 received, 0 lost, 0 late, 0 damaged",
        rf"round trip: {ROUND_TRIP[:-3]}, jitter {MS} ms; kernel clock",
    )


@pytest.mark.parametrize(("options", "count"), [((), 0), (("-O",), 2), (("-O", "-q"), 0)])
def test_outstanding(options: tuple[str, ...], count: int, echo_peer_udp: EchoPeer) -> None:
    """With ``-O``, there is a line for each message that has no reply when the next one is due."""
    echo_peer_udp.drop()
    command = ("ping", target_of(echo_peer_udp), "-c", 2, "-i", 0.01, "-W", 0.05)
    printed = echod_client(*command, *options).out.splitlines()
    expected = ["seq=0 no answer yet", "seq=1 lost"][:count]
    assert [line for line in printed if line.startswith("seq=")] == expected


def test_quiet(target: str) -> None:
    """With ``-q``, only the first lines and the summary are printed."""
    printed = lines("ping", target, "-c", 2, "-i", 0.01, "-q")
    assert printed[1].startswith("connected in ")
    assert printed[2:4] == ["", f"--- {target} ---"]


def test_timestamps(target: str) -> None:
    """With ``-D``, the lines before the summary begin with the UNIX time."""
    before = time.time()
    printed = lines("ping", target, "-c", 2, "-i", 0.01, "-D")
    stamps = [float(re.findall(r"^\[(\d+\.\d{6})\] \w", line)[0]) for line in printed[:4]]
    assert before - 1 < stamps[0] <= stamps[-1] < time.time() + 1
    assert printed[4] == ""


@pytest.mark.parametrize(("fault", "word"), [("close", "closed"), ("reset", "reset")])
def test_connected_again(fault: str, word: str, at_reply: AtReply, echo_peer: EchoPeer) -> None:
    """A ping whose connection is lost connects again, and its other messages come back."""
    at_reply(4, lambda reactor: reactor.stop())
    echo_peer.plan(f"after 192 bytes: {fault}")
    status, out, _ = echod_client("ping", target_of(echo_peer), "-i", 0.02, "--json")
    result = json.loads(out)
    assert status == 1
    assert {each["error"] for each in result["outages"]} == set(result["errors"]) == {word}
    assert result["outages"][0]["ended"]
    assert result["received"] >= 4


def test_several_targets(target: str) -> None:
    """Each line of a ping with several targets names its target; the summaries are the last."""
    other = target.replace("127.0.0.1", "localhost")
    printed = lines("ping", target, other, "-c", 2, "-i", 0.01, "-4")
    for each in (target, other):
        assert f"echo of {each} ({target}) over TCP, 64 bytes a message" in printed
        found = [line.removeprefix(f"{each}: ")[:5] for line in printed if f"{each}: " in line]
        assert found == ["conne", "seq=0", "seq=1"]
    assert printed[8:10] == ["", f"--- {target} ---"]
    assert printed[12:14] == ["", f"--- {other} ---"]


def test_several_results(target: str) -> None:
    """Each target has a result; the exit status is 1 if one of them failed."""
    outcome = echod_client("ping", target, "unix:/nonexistent", "-c", 1, "--json")
    assert outcome.status == 1
    results = [json.loads(line) for line in outcome.out.splitlines()]
    assert [each["ok"] for each in results] == [True, False]
    assert outcome.err.startswith("echod-client ping: unix:/nonexistent: ")


@pytest.mark.parametrize("command", [("ping", "-c", 2, "-i", 0.01), ("load", "-d", 0.1)])
def test_payload(target: str, command: Any) -> None:
    """With ``-e``, each message has these bytes."""
    outcome = echod_client(*command, target, "-e", r"hello\n", "--json")
    assert (outcome.status, outcome.result["size_bytes"]) == (0, 6)


def events(*arguments: object) -> list[dict[str, Any]]:
    """Return the events of a successful command."""
    return [json.loads(line) for line in lines(*arguments, "--json-lines")]


def test_events_of_ping(target: str) -> None:
    """With ``--json-lines``, each event is a line, and the result is the last."""
    found = events("ping", target, "-c", 2, "-i", 0.01)
    kinds = [each["event"] for each in found]
    assert kinds == ["connected", "reply", "reply", "summary"]
    assert {each["target"] for each in found} == {target}
    assert abs(found[0]["time"] - time.time()) < 60
    assert found[0]["address"] == target
    assert [each["number"] for each in found[1:3]] == [0, 1]
    assert found[-1]["received"] == 2


def test_events_of_load(target: str) -> None:
    """``load`` has an event for each interval."""
    *intervals, summary = events("load", target, "-d", 0.2, "-r", 50)
    assert [each.pop("event") for each in intervals] == ["interval"]
    # A message is lost at the end of the run at the earliest.
    expected = [{**each, "target": target, "lost": None} for each in summary["intervals"]]
    assert [each["lost"] for each in summary["intervals"]] == [0]
    assert [{**each, "time": None} for each in intervals] == [
        {**each, "time": None} for each in expected
    ]


def test_load(target: str) -> None:
    """``load`` prints the options of the run, the counts, and the kind of loop."""
    printed = lines("load", target, "-C", 2, "-d", 0.2, "-r", 50)
    assert printed[0] == f"load on {target} ({target}) over TCP, 64 bytes a message, 2 connections"
    assert re.fullmatch(rf"connected: 2 of 2: {FEW}", printed[1])
    assert re.fullmatch(ALL_RECEIVED, printed[2])
    assert printed[3].startswith("throughput: ")
    assert printed[4].startswith("open loop: ")
    assert re.fullmatch(
        rf"latency: .*, p99.9 {MS}, p99.99 {MS}, max {MS} ms; kernel clock", printed[5]
    )


def test_without_matplotlib(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``--plot`` without matplotlib names the extra to install, before the run."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.delitem(sys.modules, "echod.client.plot", raising=False)
    status, out, err = echod_client("load", target, "--plot", "x.svg")
    assert (status, out) == (2, "")
    assert err == (
        "echod-client load: --plot needs matplotlib, which is not installed: "
        "install echod with its extra plot\n"
    )


@pytest.mark.parametrize("name", ["echod.client.plot", "echod.client.runner"])
def test_broken_installation(name: str, target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that is missing for another reason is reported as it is."""
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(sys, "argv", ["echod-client", "load", target, "--plot", "x.svg"])
    run = main.main if name == "echod.client.runner" else with_plot
    with pytest.raises(ModuleNotFoundError):
        run()


def with_plot() -> None:
    echod_client(*sys.argv[1:])


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Restore this process's handler of SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


def test_main(target: str, capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    """main() runs a command in this process, where no reactor is installed."""
    monkeypatch.setattr("echod.client.runner.installReactor", lambda _: None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main.main(["ping", target, "-c", "1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["received"] == 1


def test_main_without_output(target: str, capsys: Any, monkeypatch: Any) -> None:
    """Without standard output, the command ends with status 2."""
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main.main(["ping", target, "-c", "1"]) == 2
    assert capsys.readouterr().err == "echod-client ping: standard output is closed\n"


def test_main_without_errors(target: str, capsys: Any, monkeypatch: Any) -> None:
    """Where standard error is closed, standard output has nothing but the result."""
    monkeypatch.setattr("echod.client.runner.installReactor", lambda _: None)
    monkeypatch.setattr("sys.stderr", None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main.main(["load", target, "-d", "0.1", "-r", "10", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["received"] == 1
    sys.stderr.close()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ("--plot", "{}/x.svg", "--compare", "{}/none"),
            "--compare {}/none: no such file or directory",
        ),
        (("--plot", "{}/x.svg", "--compare", "{}/bad"), "--compare {}/bad: "),
        (("--plot", "{}/none/x.svg"), "--plot {}/none/x.svg: no file can be written there"),
        (("-C", "1000000"), "--connections 1000000 is more than RLIMIT_NOFILE allows here: "),
    ],
)
def test_unusable(target: str, tmp_path: Path, arguments: tuple[str, ...], expected: str) -> None:
    """Options that cannot be carried out are reported in one line before the run, with status 2."""
    (tmp_path / "bad").write_text("{}")
    given = [each.format(tmp_path) for each in arguments]
    status, out, err = echod_client("load", target, *given)
    assert (status, out) == (2, "")
    assert err.startswith(f"echod-client load: {expected.format(tmp_path)}")
    assert err.count("\n") == 1


def test_plot_that_is_not_writable(target: str, tmp_path: Path, monkeypatch: Any) -> None:
    """A plot that exists, and is not writable, is reported before the run."""
    plot = tmp_path / "x.svg"
    plot.touch()
    monkeypatch.setattr("os.access", lambda path, _: path != str(plot))
    outcome = echod_client("load", target, "--plot", plot)
    expected = f"echod-client load: --plot {plot}: no file can be written there\n"
    assert outcome == (2, "", expected)


def test_plot(target: str, tmp_path: Path) -> None:
    """A run is drawn over an earlier one that ``--json`` has written."""
    earlier = tmp_path / "earlier.json"
    earlier.write_text(echod_client("load", target, "-d", 0.1, "--json").out)
    for name in ("both.svg", "both.png"):
        plot = tmp_path / name
        lines("load", target, "-d", 0.1, "-r", 100, "--plot", plot, "--compare", earlier)
        assert plot.stat().st_size > 10_000


def test_plot_that_fails(target: str, tmp_path: Path) -> None:
    """Where the plot cannot be written after all, the summary is printed."""
    plot = tmp_path / "x.svg"
    plot.symlink_to("/dev/full")
    status, out, err = echod_client("load", target, "-d", 0.1, "-r", 100, "--plot", plot)
    assert status == 1
    assert re.search(ALL_RECEIVED, out)
    assert err == f"echod-client load: --plot {plot}: no space left on device\n"


def test_in_a_terminal(target: str) -> None:
    """In a terminal, ``ping`` draws a histogram with block characters."""
    out = Terminal()
    echod_client("ping", target, "-c", 2, "-i", 0.01, out=out)
    assert "█" in out.getvalue()


def test_unix() -> None:
    """A UNIX socket is a TARGET."""
    with Daemon("--listen", "unix:echo.socket", "--quiet") as daemon:
        path = Path(daemon.directory.name) / "echo.socket"
        printed = lines("ping", f"unix:{path}", "-c", 1)
        load = echod_client("load", f"unix:{path}", "-d", 0.1, "-C", 2, "--json")
    assert printed[0] == f"echo of unix:{path} ({path}) over a UNIX socket, 64 bytes a message"
    assert load.result["ok"]


@pytest.mark.parametrize("command", [("ping", "-c", 2, "-i", 0.01), ("load", "-d", 0.1, "-C", 2)])
def test_tls(tls: str, command: Any) -> None:
    """A TLS connection is measured with its handshake."""
    status, out, err = echod_client(*command, tls)
    assert (status, err) == (0, "")
    assert "TLS handshake" in out
    name = tls.partition(":trustRoots")[0]
    assert f"on {name} (" in out if command[0] == "load" else f"--- {name} ---" in out
    assert "trustRoots" not in out


def test_service_without_tls(target: str) -> None:
    """A service without TLS ends the handshake."""
    outcome = echod_client("ping", f"tls:{target}", "-c", 1)
    assert outcome.status == 1
    assert outcome.err.startswith(f"echod-client ping: {target}: TLS fails: ")


def test_handshake_in_time(target: str, echo_peer: EchoPeer) -> None:
    """A handshake that is given up ends quietly, also while other targets are measured."""
    echo_peer.silent()
    silent = target_of(echo_peer)
    options = ("-c", 2, "-i", 0.3, "-W", 0.1)
    with capturedLogs() as events:
        status, out, err = echod_client("ping", f"tls:{silent}", target, *options)
    assert (status, err) == (1, f"echod-client ping: {silent}: no answer in time\n")
    assert "2 sent, 2 received" in out
    assert not [event for event in events if "log_failure" in event]


@pytest.mark.parametrize(
    ("plan", "timeout", "expected"),
    [("", 10, "TLS fails: "), ("silent", 0.3, "no answer in time\n")],
)
def test_empty_pipe_without_tls(
    plan: str, timeout: float, expected: str, echo_peer: EchoPeer
) -> None:
    """A pipe with empty input reports that there is no TLS."""
    if plan:
        echo_peer.plan(plan)
    target = target_of(echo_peer)
    with standard(b""):
        outcome = echod_client("pipe", f"tls:{target}", "-W", timeout)
    assert outcome.status == 1
    assert outcome.err.startswith(f"echod-client pipe: {target}: {expected}")


@pytest.mark.parametrize("source", [b"", b"hello" * 100_000])
def test_tls_pipe(tls: str, source: bytes) -> None:
    """A pipe over TLS passes all bytes; its input may be empty."""
    with standard(source) as out:
        assert echod_client("pipe", tls) == (0, "", "")
        out.seek(0)
        assert out.read() == source


def test_interrupted(target: str, at_reply: AtReply) -> None:
    """When the reactor is stopped, the command prints its summary first."""
    at_reply(2, lambda reactor: reactor.stop())
    status, out, _ = echod_client("ping", target, "-i", 0.01)
    assert status == 0
    assert re.search(r"\d+ sent, \d+ received, 0 lost", out)


def test_rate_above_capacity(target: str, at_reply: AtReply) -> None:
    """Where the rate is higher than this client can send, it sends as much as it can."""
    at_reply(1000, lambda reactor: reactor.stop())
    status, out, err = echod_client("load", target, "-r", 1e9, "-d", "250000h", "--json")
    assert (status, err) == (0, "")
    assert json.loads(out)["client_was_bottleneck"]


def test_interrupted_while_connecting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An interrupt before there is a connection prints nothing, and ends the run at once."""
    monkeypatch.setattr("echod.client.connector.resolve", lambda *_: Deferred())
    outcome = echod_client(
        *("ping", "127.0.0.1:7"), prepare=lambda reactor: reactor.callLater(0.05, reactor.stop)
    )
    assert outcome == (1, "", "")


def test_no_reader(target: str) -> None:
    """Where standard output is closed by its reader, the command ends."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out:
        status, _, err = echod_client("ping", target, "-i", 0.01, out=out)
    assert (status, err) == (1, "echod-client ping: standard output: broken pipe\n")


def test_output_that_fails() -> None:
    """After standard output has failed, nothing more is printed, and the error once."""
    err = io.StringIO()
    with open("/dev/full", "w") as out:
        console = Console("ping", out, err)
        console.print("one")
        console.print("two")
    assert err.getvalue() == "echod-client ping: standard output: no space left on device\n"
    assert console.is_broken


def test_no_reader_at_all(target: str) -> None:
    """Where the reader of both outputs is gone, the command ends silently."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as out, open(os.dup(writing), "w") as err:
        status, _, _ = echod_client("ping", target, "-i", 0.01, out=out, err=err)
    assert status == 1


@pytest.mark.parametrize("kind", ["", "tcp:", "tls:"])
def test_no_answer(kind: str) -> None:
    """After one timeout, no more connections are begun."""
    with silent_port() as target:
        began = time.monotonic()
        outcome = echod_client("load", f"{kind}{target}", "-C", 1000, "-W", 0.5)
    assert time.monotonic() - began < TIMEOUT
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.endswith("1,000 connections could not be made: no answer in time\n")


def test_end_before_messages_count(echo_peer: EchoPeer) -> None:
    """A load whose connections end in the warm-up says so; no connection is missing."""
    echo_peer.from_byte(64).close()
    target = target_of(echo_peer)
    outcome = echod_client("load", target, "-r", 20, "--warm-up", 30, "-W", 1)
    assert (outcome.status, outcome.out) == (1, "")
    why = "all connections ended before messages counted"
    assert outcome.err == f"echod-client load: {target}: {why}\n"


def test_second_address_for_all(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the first address times out, all connections go to the second."""
    with silent_port() as silent:
        ports = [int(each.partition(":")[2]) for each in (silent, target)]
        found = [(socket.AF_INET, ("127.0.0.1", port)) for port in ports]
        monkeypatch.setattr("echod.client.connector.resolve", lambda *_: succeed(found))
        outcome = echod_client("load", target, "-C", 20, "-d", 0.1, "-W", 1, "--json")
    assert (outcome.status, outcome.result["errors"]) == (0, {})
    assert outcome.result["connections_made"] == 20


def test_lost_in_a_closed_loop(echo_peer_udp: EchoPeer) -> None:
    """The summary of a closed loop says how long a lost datagram stopped its socket."""
    echo_peer_udp.drop()
    _, out, _ = echod_client("load", target_of(echo_peer_udp), "-d", 0.15, "-W", 0.1)
    assert "each lost datagram stopped its socket for 0.1 s" in out


@contextmanager
def default_action(number: int) -> Iterator[None]:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        yield
    finally:
        assert signal.signal(number, before) == signal.SIG_DFL


@pytest.mark.parametrize("err", [Terminal, io.StringIO])
@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (("ping", "-i", 0.01, "-c", 50), ("round trip: ", "50 sent, ")),
        (("load", "-r", 100, "-d", 0.5), ("throughput: ", "throughput: ")),
        (
            ("load", "-r", 100, "-d", 0.5, "--find-rate", "--latency", "max=0.001ms"),
            ("throughput: ", "no rate holds"),
        ),
    ],
)
@pytest.mark.usefixtures("short")
def test_sigquit(
    target: str, command: Any, expected: tuple[str, str], err: Any, at_reply: AtReply
) -> None:
    """SIGQUIT prints the summary so far to standard error, and the run goes on."""
    so_far, end = expected
    at_reply(15, lambda _: os.kill(os.getpid(), signal.SIGQUIT))
    with default_action(signal.SIGQUIT):
        outcome = echod_client(*command, target, err=err())
    assert so_far in outcome.err
    sent = int(re.findall(r"^(\d+) sent", outcome.err, re.MULTILINE)[0])
    assert 15 <= sent <= 50
    assert end in outcome.out


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal(target: str, number: int, at_reply: AtReply) -> None:
    """A signal ends a run with its summary; a second one does no harm."""

    def twice(_: object) -> None:
        for _ in range(2):
            os.kill(os.getpid(), number)

    at_reply(2, twice)
    with default_action(number):
        status, out, err = echod_client("ping", target, "-i", 0.01, "-c", 1000)
    assert (status, err) == (0, "")
    assert " sent, " in out
    assert "1,000 sent" not in out


def no_descriptor(*_: object) -> NoReturn:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))


def no_memory(*_: object) -> NoReturn:
    raise MemoryError


@pytest.mark.parametrize(
    ("name", "fail", "why"),
    [
        ("runner.PreciseReactor", no_descriptor, "too many open files: raise the limit"),
        ("epoll.select.epoll", no_descriptor, "too many open files: raise the limit (ulimit -n)"),
        ("measurement.contents", no_memory, "out of memory: use a smaller --size, or raise"),
    ],
)
def test_no_resources(
    name: str, fail: Any, why: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where no file descriptor or memory is left, one line says which limit to raise."""
    reactor = PreciseReactor()
    monkeypatch.setattr("echod.client.runner.PreciseReactor", lambda: reactor)
    monkeypatch.setattr("echod.client.runner.installReactor", lambda _: None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.setattr(f"echod.client.{name}", fail)
    assert main.main(["ping", "127.0.0.1:7"]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"echod-client ping: {why}")
    assert err.count("\n") == 1


def test_second_stop(target: str, at_reply: AtReply) -> None:
    """A second stop of the reactor does no harm."""

    def twice(reactor: Any) -> None:
        reactor.callLater(0, reactor.stop)
        reactor.callLater(0, reactor.stop)

    at_reply(1, twice)
    status, _, err = echod_client("ping", target, "-i", 0.01)
    assert (status, err) == (0, "")


def test_no_such_name(capsys: pytest.CaptureFixture[str]) -> None:
    """A name with a label that is too long is reported in one line."""
    for command in ("ping", "load"):
        status, out, err = echod_client(command, f"{'a' * 70}:7")
        assert (status, out) == (1, "")
        assert err.count("\n") == 1
        assert f"{'a' * 70}:7: " in err


@pytest.mark.usefixtures("short")
def test_rate_line(target: str) -> None:
    """In a terminal, a line shows the rate while a load runs."""
    err = Terminal()
    echod_client("load", target, "-d", 0.25, "-r", 200, err=err)
    assert re.search(rf"\d+/s, p99 {MS} ms", err.getvalue())


@contextmanager
def standard(source: bytes) -> Iterator[Any]:
    """Have files as standard input and output of this process."""
    before = os.dup(0), os.dup(1)
    with tempfile.TemporaryFile() as reading, tempfile.TemporaryFile() as writing:
        reading.write(source)
        reading.seek(0)
        os.dup2(reading.fileno(), 0)
        os.dup2(writing.fileno(), 1)
        try:
            yield writing
        finally:
            for number, descriptor in enumerate(before):
                os.dup2(descriptor, number)
                os.close(descriptor)


@pytest.mark.parametrize("options", [(), ("--json",)])
@pytest.mark.parametrize("err", [Terminal, io.StringIO])
def test_pipe(target: str, options: tuple[str, ...], err: Any) -> None:
    """A pipe draws a progress bar in a terminal, and prints JSON to standard error."""
    with standard(b"hello" * 100_000) as out:
        outcome = echod_client("pipe", target, *options, err=err())
        out.seek(0)
        assert out.read() == b"hello" * 100_000
    assert outcome.status == 0
    assert ("100%" in outcome.err) == (err is Terminal and not options)
    assert ('"ok": true' in outcome.err) == bool(options)


def test_pipe_that_fails(echo_peer: EchoPeer) -> None:
    """A pipe that fails reports how many bytes it has written."""
    echo_peer.from_byte(100).close()
    with standard(bytes(1000)):
        outcome = echod_client("pipe", target_of(echo_peer))
    assert outcome.status == 1
    assert "wrote 0 of 1,000 bytes" in outcome.err


def test_more_descriptors(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The soft limit of file descriptors is raised where the hard limit allows it."""
    limits: list[Any] = []
    monkeypatch.setattr("resource.getrlimit", lambda _: (10, 1000))
    monkeypatch.setattr("resource.setrlimit", lambda _, limit: limits.append(limit))
    assert echod_client("load", target, "-d", 0.05, "-r", 100).status == 0
    assert limits == [(1000, 1000)]


def test_unexpected_exception(target: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An unexpected exception is logged, and the status is 1."""

    async def fail(_: object) -> None:
        raise RuntimeError("unexpected")

    result: list[str] = []
    monkeypatch.setattr("echod.client.ping.Ping.run", fail)
    monkeypatch.setattr("echod.client.runner.log.failure", result.append)
    assert echod_client("ping", target).status == 1
    assert result == ["echod-client fails"]


@pytest.mark.parametrize("over", ["tcp", "udp", "tls"])
def test_socket_options(over: str, tls: str, target: str, echo_peer_udp: EchoPeer) -> None:
    """The IP version, the source, the type of service and the TTL apply to each kind of target."""
    place = {"tcp": target, "udp": target_of(echo_peer_udp), "tls": tls}[over]
    for options in ("-4 -I 127.0.0.1", "-I lo -4", "-4 -Q 0xb8 -t 1", "-4 --dscp af11"):
        status, out, err = echod_client("ping", place, "-c", 1, *options.split())
        assert (status, err) == (0, "")
        assert "1 sent, 1 received" in out


def test_time_includes_name_lookup(target: str) -> None:
    """If Twisted resolves the name, the line says that the time to connect includes it."""
    host, port = target.split(":")
    printed = lines("ping", f"tcp:host={host}:port={port}", "-c", 1)
    assert re.fullmatch(rf"connected in {MS} ms with the name lookup", printed[1])


def test_wrong_source() -> None:
    """An error that the source address causes names it."""
    outcome = echod_client("ping", "255.255.255.254", "-c", 1, "-I", "127.0.0.1")
    assert outcome.status == 1
    assert outcome.err == "echod-client ping: 255.255.255.254 from 127.0.0.1: invalid argument\n"
