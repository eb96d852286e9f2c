"""Invalid command lines of ``echod-client``: one line of error, and an exit status."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from echod.client.endpoint import BadTarget
from echod.client.main import main
from echod.client.target import parse_target
from tests import TIMEOUT
from tests.authority import Authority

Capture = pytest.CaptureFixture[str]

PYTHON = re.compile(
    r"Traceback|[A-Za-z]+(Error|Exception|Warning)\b|__|\bself\b|\w\(\)|[ (]b'|"
    r"positional|keyword|invalid literal|codec|NoneType|errno|\[\("
)
"""What the message of an unhandled Python exception may contain."""


@pytest.fixture(autouse=True)
def process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Provide a directory with some files, and no reactor; restore the handler of SIGINT."""
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr("echod.client.runner.installReactor", lambda _: None)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.json").touch()
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "ping.json").write_text(json.dumps({"command": "ping"}))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe{")
    (tmp_path / "a:b.svg").mkdir()
    (tmp_path / "keys").mkdir()
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def answer(capsys: Capture) -> Callable[..., tuple[int, str]]:
    """Return a function that runs a command line, and returns its exit status and its only line."""

    def run(*arguments: str) -> tuple[int, str]:
        try:
            status: Any = main(list(arguments))
        except SystemExit as ended:
            status = ended.code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.count("\n") == 1
        assert err.endswith("\n")
        line = err[:-1]
        assert line.isprintable()
        assert line.startswith("echod-client")
        assert not PYTHON.search(line), line
        return status, line

    return run


WRONG = [
    # commands and options
    ("pong h:7", "'pong'"),
    ("Ping h:7", "'Ping'"),
    ("h:7", "'h:7'"),
    ("-4 ping h:7", "no option -4"),
    ("-x", "no option -x"),
    ("--versio", "no option --versio"),
    ("ping", "TARGET"),
    ("ping -c 3", "TARGET"),
    ("ping -j", "no option -j"),
    ("ping -j h:7", "no option -j"),
    ("ping -6 127.0.0.1", "-4 or -6 and 127.0.0.1 are of different IP versions"),
    ("ping -I \udcff h", "-I \\udcff: no such device"),
    ("ping -Xc 3 h:7", "no option -Xc"),
    ("ping --coun 3 h:7", "no option --coun"),
    ("ping --no-dont-fragment h:7", "no option --no-dont-fragment"),
    ("pipe --count 3 h:7", "no option --count"),
    ("load -i 3 h:7", "no option -i"),
    ("ping h:7 -c", "-c/--count: expected one argument"),
    ("ping h:7 -W -c 3", "-W/--timeout: expected one argument"),
    ("ping h:7 --json=yes", "--json"),
    ("load h:7 g:7", "takes one TARGET; leave out 'g:7'"),
    ("pipe h:7 file", "leave out 'file'"),
    # values
    ("ping h:7 -c 0", "a whole number from 1"),
    ("ping h:7 -c -1", "-c/--count: takes a whole number from 1 to"),
    ("ping h:7 -c three", "not 'three'"),
    ("ping h:7 -c 1e3", "not '1e3'"),
    ("ping h:7 -i 0", "a duration from 1ms"),
    ("ping h:7 -i 1us", "not '1us'"),
    ("ping h:7 -i 1,5", "not '1,5'"),
    ("ping h:7 -W 1day", "not '1day'"),
    ("ping h:7 -W inf", "not 'inf'"),
    ("ping h:7 -W nan", "not 'nan'"),
    ("pipe h:7 -W 1e-320", "not '1e-320'"),
    ("ping h:7 -s 0", "a whole number from 1"),
    ("ping h:7 -s 64q", "not '64q'"),
    ("ping udp:h:7 -s 15", "--size takes 16 to 65507"),
    ("load udp:h:7 -s 65508", "--size takes 16 to 65507"),
    ("ping h:7 --dont-fragment", "--dont-fragment is for udp"),
    ("load h:7 -C 0", "a whole number from 1"),
    ("load h:7 -C 1048577", "not '1048577'"),
    ("load h:7 -C 1000000", "more than RLIMIT_NOFILE allows"),
    ("load h:7 -d 0h", "not '0h'"),
    ("load h:7 -r 0", "a number of messages a second"),
    ("load h:7 -r 10/s", "not '10/s'"),
    # files
    ("load h:7 --plot a.pdf", "ends in .svg or .png"),
    ("load h:7 --plot none/a.svg", "--plot none/a.svg: no file can be written there"),
    ("load h:7 --plot a:b.svg", "--plot a:b.svg: no file can be written there"),
    ("load h:7 --compare a.json", "--compare is for --plot"),
    ("load h:7 --plot a.svg --compare a.json", "--compare a.json: no such file or directory"),
    ("load h:7 --plot a.svg --compare .", "--compare .: is a directory"),
    (
        "load h:7 --plot a.svg --compare empty.json",
        "--compare empty.json: not the output of load --json",
    ),
    (
        "load h:7 --plot a.svg --compare list.json",
        "--compare list.json: not the output of load --json",
    ),
    (
        "load h:7 --plot a.svg --compare ping.json",
        "--compare ping.json: not the output of load --json",
    ),
    (
        "load h:7 --plot a.svg --compare bytes.json",
        "--compare bytes.json: not the output of load --json",
    ),
    # targets
    ("pipe udp:h:7", "use TCP"),
    ("ping h:", "has to be host, host:port"),
    ("ping :7", "has to be host, host:port"),
    ("ping 7", "has to be host, host:port"),
    ("ping //h", "has to be host, host:port"),
    ("ping h:7 8", "has a port: leave out '8'"),
    ("ping h 7 8", "TARGET '8' has to be"),
    ("ping h:0", "a port is from 1 to 65535, not '0'"),
    ("ping h:65536", "a port is from 1 to 65535, not '65536'"),
    ("ping h:nosuch", "'h'; a port is a number"),
    ("ping h:7:", "'h'; a port is a number"),
    ("ping http://h:7", "use tcp://, udp:// or tls://"),
    ("ping ::1:7", "is ambiguous: type [::1]:7 or [::1:7]"),
    ("ping [::1:7", "has to be host, host:port"),
    ("ping [::z]:7", "'::z' is not an IPv6 address"),
    ("ping [fe80::1]:7", "a link-local address needs its interface"),
    ("ping tcp:", "has to be host, host:port"),
    ("ping tcp:h:70000", "a port is from 1 to 65535, not '70000'"),
    ("ping tcp:h:7:timeout=soon", "has to be tcp:HOST:PORT"),
    ("ping tcp6:h:7", "'tcp6'; a port is a number"),
    ("ping unix:", "has to be unix:PATH"),
    ("ping unix:a:b", "has to be unix:PATH"),
    ("ping unix:a=b", "has to be unix:PATH"),
    ("ping unix:" + "x" * 108, "a path has 107 bytes at most"),
    ("ping tls:h", "has to be tls:HOST:PORT"),
    ("ping tls:h:7:trustRoot=keys", "has to be tls:HOST:PORT"),
    ("ping tls:h:7:trustRoots=none", "/none': no such file or directory"),
    ("ping tls:h:7:trustRoots=empty.json", "empty.json': not a directory"),
    ("ping tls:h:7:certificate=keys:privateKey=keys", "keys': is a directory"),
    ("ping tls:h:7:certificate=empty.json:privateKey=empty.json", "each in PEM"),
    ("ping ssl:h", "has to be ssl:HOST:PORT"),
    ("ping fd:3:4", "'fd'; a port is a number"),
    ("ping systemd:domain=INET:index=0", "'systemd'; a port is a number"),
]


@pytest.mark.parametrize(("arguments", "text"), WRONG)
def test_wrong(answer: Any, arguments: str, text: str) -> None:
    """The error says what is wrong and what to do; the status is 2."""
    status, line = answer(*arguments.split())
    assert status == 2
    assert text in line


@pytest.mark.parametrize(
    ("target", "text"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: connection refused"),
        ("tls:127.0.0.1:1:trustRoots=keys", "tls:127.0.0.1:1: connection refused"),
        ("unix:none", "unix:none: no such file or directory"),
        ("unix:keys", "unix:keys: connection refused"),
        (f"{'a' * 70}:7", "no such name: each part of a name has 1 to 63 characters"),
        ("a..b:7", "no such name: each part of a name has 1 to 63 characters"),
        ("[::1%none]:7", "there is no interface none"),
        ("[::1%lo]:7", "an interface after the address is for link-local addresses only"),
    ],
)
def test_not_reached(answer: Any, target: str, text: str) -> None:
    """An error that shows only on connection is one line, with status 1."""
    status, line = answer("ping", target, "-c", "1", "-W", "5s")
    assert status == 1
    assert text in line


def test_key_among_certificates(answer: Any, tmp_path: Path) -> None:
    """A private key among the certificates is reported."""
    key, _ = Authority(tmp_path).issue("server")
    os.rename(key, "keys/key.pem")
    status, line = answer("ping", "tls:h:7:trustRoots=keys")
    assert status == 2
    assert "keys/key.pem' is not a certificate" in line


KINDS = st.sampled_from(["", "udp:", "tcp:", "tls:", "ssl:", "unix:", "UDP:", "tcp6:", "odd:", "["])
PLACES = st.sampled_from(
    ["h", "h:7", "::1", "::1]:7", "/run/x", "a=b", "h:port=", "\udcff", "a\\", ""]
)
OTHERS = st.sampled_from(["", ":", ":7", ":x", ":timeout=x", ":trustRoots=/none", ":=", "\\", "\n"])


@settings(max_examples=150)
@given(st.builds("".join, st.tuples(KINDS, PLACES, OTHERS)) | st.text())
@example("udp:/run/x\n")
@example("udp:fe80::1%\n:7")
def test_any_target(text: str) -> None:
    """Any TARGET is either valid, or reported in one line."""
    with suppress(BadTarget):
        target = parse_target(text)
        if target.host is None:
            target.endpoint(Clock())
        return
    with pytest.raises(BadTarget) as raised:
        parse_target(text).endpoint(Clock())
    line = str(raised.value)
    assert line.startswith(f"TARGET {text!r}")
    assert line.isprintable()
    assert not PYTHON.search(line.removeprefix(f"TARGET {text!r}").partition(", not ")[0])


NAMES = st.sampled_from(
    ["-c", "-i", "-W", "-s", "--count", "--size", "-4", "--json", "-", "--", "-x"]
)

# An error message quotes an argument, which may itself look like Python: "KeyError", "f()", " b'".
# With -h there is no error, but the help.
TEXTS = st.text().filter(lambda text: not PYTHON.search(f"{text!r} {text}") and "h" not in text)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(NAMES | st.sampled_from(["h:0", "3", "1s", "x", ""]) | TEXTS, max_size=5))
def test_any_arguments(answer: Any, arguments: list[str]) -> None:
    """Any arguments besides an invalid TARGET are reported in one line."""
    assert answer("ping", *arguments, "h:0")[0] == 2


@pytest.mark.parametrize("argument", [b"h\xff:x", b"-\xff", b"--\xff=\xff", b"unix:\xff:\xff"])
def test_bytes(argument: bytes) -> None:
    """Arguments that are not valid UTF-8 are escaped in ASCII."""
    client = Path(sys.executable).with_name("echod-client")
    run = subprocess.run(
        [bytes(client), b"ping", argument],
        capture_output=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (run.returncode, run.stdout) == (2, b"")
    assert run.stderr.count(b"\n") == 1
    assert b"\\udcff" in run.stderr
    assert not PYTHON.search(run.stderr.decode())
