"""The command line of ``echod-client``, and its error messages of one line."""

from __future__ import annotations

from datetime import datetime
from math import inf
from pathlib import Path
from socket import AF_INET, AF_INET6
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from echod.client.options import parse
from echod.client.sockets import SocketOptions
from echod.client.target import Target

Capture = pytest.CaptureFixture[str]

HERE = Target("h:7", False, "h", 7)

ALWAYS = {
    "target": HERE,
    "targets": [HERE],
    "socket_options": SocketOptions(),
    "family": 0,
    "interface": None,
    "tos": None,
    "dscp": None,
    "ttl": None,
    "v": False,
}

DEFAULTS: dict[str, dict[str, Any]] = {
    "pipe": {"timeout": 10.0, "json": False},
    "ping": {
        "timeout": 10.0,
        "json": False,
        "count": None,
        "interval": 1.0,
        "size": 64,
        "deadline": None,
        "payload": b"",
        "outstanding": False,
        "timestamps": False,
        "quiet": False,
        "n": False,
        "dont_fragment": False,
        "clock": True,
    },
    "load": {
        "timeout": 10.0,
        "json": False,
        "connections": 1,
        "payload": b"",
        "size": 64,
        "duration": 10.0,
        "rate": None,
        "plot": None,
        "hdr": None,
        "csv": None,
        "compare": [],
        "count": None,
        "ramp": None,
        "per_connection": None,
        "start_at": None,
        "warm_up": 0.0,
        "find_rate": False,
        "latency": None,
        "clock": True,
    },
}


@pytest.mark.parametrize("command", DEFAULTS)
def test_defaults(command: str) -> None:
    """By default a ping does not end, and a load is a closed loop of 10 s."""
    options = vars(parse([command, "h:7"]))
    assert options == {**ALWAYS, "command": command, **DEFAULTS[command]}


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        ("pipe -W 2.5", "timeout", 2.5),
        ("pipe --timeout=1e3", "timeout", 1000.0),
        ("pipe -W 1500ms", "timeout", 1.5),
        ("load -W 2M", "timeout", 120.0),
        ("ping --json", "json", True),
        ("ping -v", "v", True),
        ("ping -n", "n", True),
        ("ping -c 3", "count", 3),
        (r"ping -e ping\r\n", "payload", b"ping\r\n"),
        (r"load --payload \x00\x7f\\\t\q", "payload", b"\x00\x7f\\\t\\q"),
        ("ping --count 4611686018427387904", "count", 1 << 62),
        ("ping -i 0.001", "interval", 0.001),
        ("ping --interval 60", "interval", 60.0),
        ("ping -i 1ms", "interval", 0.001),
        ("ping -i .5s", "interval", 0.5),
        ("ping -s 1", "size", 1),
        ("ping --size 0001400", "size", 1400),
        ("load -C 1048576", "connections", 1 << 20),
        ("load --connections 2", "connections", 2),
        ("load -s 134217728", "size", 1 << 27),
        ("load -d 0.5", "duration", 0.5),
        ("load --duration 3600", "duration", 3600.0),
        ("load -d 2h", "duration", 7200.0),
        ("load --start-at 2050-01-01T00:00:00Z", "start_at", 2524608000.0),
        ("load --start-at 2050-01-01T01:00+01:00", "start_at", 2524608000.0),
        ("load --ramp 100:10k", "ramp", (100.0, 10_000.0)),
        ("load -d 250000h", "duration", 9e8),
        ("load -r 0.5", "rate", 0.5),
        ("load -r 1k", "rate", 1000.0),
        ("load -r 0.0015K", "rate", 1.5),
        ("ping -s 64k", "size", 64_000),
        ("ping -s 64Ki", "size", 65_536),
        ("ping -c 2.5M", "count", 2_500_000),
        ("load -s 128Mi", "size", 1 << 27),
        ("load --rate 1e6", "rate", 1_000_000.0),
        ("load --plot a.SVG", "plot", "a.SVG"),
        ("load --plot /a.b/c", "plot", "/a.b/c.svg"),
        ("load --plot .png", "plot", ".png"),
        ("load --hdr a.hlog", "hdr", "a.hlog"),
        ("load --csv a.csv", "csv", "a.csv"),
        ("load --plot /tmp/a.png", "plot", "/tmp/a.png"),
    ],
)
def test_values(arguments: str, name: str, value: object) -> None:
    """Each option is parsed to the type of its value; the others have their defaults."""
    command, *others = arguments.split()
    options = vars(parse([command, *others, "h:7"]))
    assert options == {**ALWAYS, "command": command, **DEFAULTS[command], name: value}
    assert type(options[name]) is type(value)


@pytest.mark.parametrize("words", ["h 7", "-c 3 h 7", "h -c 3 7", "-- h 7", "h -- 7"])
def test_port_after_the_host(words: str) -> None:
    """A number after a TARGET is its port, also after options."""
    options = parse(["ping", *words.split()])
    assert options.targets == [options.target] == [Target("h 7", False, "h", 7)]


def test_compare() -> None:
    """``--compare`` may be repeated; command lines do not share its list."""
    arguments = ["load", "h:7", "--plot", "a.svg", "--compare", "b", "--compare", "c"]
    for _ in range(2):
        assert parse(arguments).compare == ["b", "c"]
    assert parse(["load", "h:7"]).compare == []


@pytest.mark.parametrize("command", ["ping", "load"])
def test_clock(command: str) -> None:
    """The times are the kernel's, unless ``--clock user`` is given."""
    for clock, is_kernel in (("kernel", True), ("user", False)):
        options = parse([command, "h:7", "--clock", clock])
        assert options.socket_options == SocketOptions(kernel_clock=is_kernel)


def test_dont_fragment() -> None:
    """``--dont-fragment`` is valid over UDP."""
    options = parse(["ping", "udp:h:7", "--dont-fragment"])
    assert options.socket_options == SocketOptions(dont_fragment=True)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ("", SocketOptions()),
        ("-4", SocketOptions(family=AF_INET)),
        ("-6", SocketOptions(family=AF_INET6)),
        ("-I 127.0.0.1", SocketOptions(family=AF_INET, source="127.0.0.1")),
        ("-6 -I ::1", SocketOptions(family=AF_INET6, source="::1")),
        ("-I lo -4", SocketOptions(family=AF_INET, interface="lo")),
        ("-Q 0xB8", SocketOptions(tos=184)),
        ("--tos 255", SocketOptions(tos=255)),
        ("--dscp EF", SocketOptions(tos=184)),
        ("--dscp af42", SocketOptions(tos=36 << 2)),
        ("--dscp 0", SocketOptions(tos=0)),
        ("--ttl 64", SocketOptions(ttl=64)),
    ],
)
@pytest.mark.parametrize("command", ["pipe", "ping", "load"])
def test_socket_options(command: str, arguments: str, expected: SocketOptions) -> None:
    """Each command has the options of the sockets."""
    assert parse([command, "h:7", *arguments.split()]).socket_options == expected


def test_clock_of_a_unix_socket() -> None:
    """``--clock`` is accepted for a UNIX socket, too."""
    assert not parse(["ping", "unix:/x", "--clock", "user"]).socket_options.kernel_clock


@given(st.integers(1, 999), st.sampled_from(["k", "K", "M", "Ki", "Mi"]))
def test_units(number: int, unit: str) -> None:
    """The units are powers of 1,000, or of 1,024."""
    factor = (1024 if "i" in unit else 1000) ** ("kM".index(unit[0].replace("K", "k")) + 1)
    assert parse(["ping", "h", "-c", f"{number}{unit}"]).count == number * factor
    assert parse(["load", "h", "-r", f"{number / 8}{unit}"]).rate == number / 8 * factor


@pytest.mark.parametrize("words", ["a b --json", "a --json b", "--json a b", "a --json -- b"])
def test_files_to_merge(words: str) -> None:
    """The files of ``merge`` may precede and follow its option."""
    assert parse(["merge", *words.split()]).files == ["a", "b"]


def test_ttl_as_in_ping() -> None:
    """``-t`` is the TTL, as in ping(8); ``load`` refuses it, because other tools mean a time."""
    assert parse(["ping", "h:7", "-t", "3"]).socket_options == SocketOptions(ttl=3)


@pytest.mark.parametrize("size", ["16", "65507"])
def test_sizes_over_udp(size: str) -> None:
    """A datagram is at least as long as its two tokens, and at most as long as IPv4 allows."""
    assert parse(["load", "udp:h:7", "-s", size]).size == int(size)


def refused(capsys: Capture, *arguments: str) -> str:
    """Return the error message of a command line."""
    with pytest.raises(SystemExit) as raised:
        parse(arguments)
    assert raised.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\n")
    line = err[:-1]
    assert line.isprintable()
    assert line.startswith("echod-client")
    return line


@pytest.mark.parametrize(
    ("arguments", "count", "duration"),
    [("", None, 10.0), ("-n 10k", 10_000, inf), ("-n 1 -d 5", 1, 5.0), ("-d 0", None, inf)],
)
def test_ends_of_a_load(arguments: str, count: int | None, duration: float) -> None:
    """By default a load lasts 10 s; with ``-n``, until that number of messages is sent."""
    options = parse(["load", "h:7", *arguments.split()])
    assert (options.count, options.duration) == (count, duration)


def test_time_of_day() -> None:
    """A time without a date is one of today, in the local time zone."""
    now = datetime.now().astimezone()
    end = now.replace(hour=23, minute=59, second=59, microsecond=0)
    assert parse(["load", "h:7", "--start-at", "23:59:59"]).start_at == end.timestamp()


WHOLE = (
    "0",
    "-1",
    "1.5",
    "many",
    "",
    " 1",
    "1_0",
    "1e3",
    "1.0005k",
    "10m",
    "1ki",
    "9G9",
    "kM",
    "٣",
    "9" * 5000,
    "0" * 19 + "9" * 20,
)
TIME = "a duration from 1ms to 250000h, such as 250ms, 30s, 10m or 2h"
TIMES = ("0", "-1", "nan", "soon", "", "1,5", "0.0009", "1e-320", "inf", "1e308", "250001h", "5d")
RATE = "a number of messages a second from 0.001 to 1000000000"
RATES = (
    "0",
    "-1",
    "nan",
    "soon",
    "",
    "1,5",
    "1e-320",
    "inf",
    "1e308",
    "1000000001",
    "1.1G",
    "10/s",
)


@pytest.mark.parametrize(
    ("command", "name", "takes", "bad"),
    [
        ("ping", "-c/--count", "a whole number from 1 to 4611686018427387904", WHOLE),
        ("ping", "-s/--size", "a whole number from 1 to 134217728", (*WHOLE, "134217729")),
        ("load", "-s/--size", "a whole number from 1 to 134217728", (*WHOLE, "134217729")),
        ("load", "-C/--connections", "a whole number from 1 to 1048576", (*WHOLE, "1048577")),
        ("ping", "-i/--interval", TIME, TIMES),
        ("pipe", "-W/--timeout", TIME, TIMES),
        ("ping", "-W/--timeout", TIME, TIMES),
        ("load", "-d/--duration", TIME, TIMES[1:]),
        ("load", "-r/--rate", RATE, RATES),
        ("ping", "-Q/--tos", "a whole number from 0 to 255", ("256", "0x", "0x100", "ef", "")),
        ("ping", "--dscp", "a whole number from 0 to 63", ("64", "0x10", "af44", "cs8", "")),
        ("ping", "-t/--ttl", "a whole number from 1 to 255", ("0", "256", "10s")),
        (
            "load",
            "--plot",
            "a file that ends in .svg or .png",
            ("", "a.pdf", "a.svg.gz", "/", "/tmp/"),
        ),
    ],
)
def test_bad_values(
    capsys: Capture, command: str, name: str, takes: str, bad: tuple[str, ...]
) -> None:
    """The message for an invalid value has the option, the values it takes, and the value."""
    for value in bad:
        long = name.rpartition("/")[2]
        line = refused(capsys, command, "h:7", f"{long}={value}")
        assert line == (
            f"echod-client {command}: argument {name}: takes {takes}, not {value!r}; "
            f"see echod-client {command} --help"
        )


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ("load udp:h:7 -s 15", "load: --size takes 16 to 65507 over UDP, not 15"),
        ("ping udp:h:7 -s 65508", "ping: --size takes 16 to 65507 over UDP, not 65508"),
        ("pipe udp:h:7", "pipe: a pipe needs every byte, in order, which UDP does not guarantee"),
        ("ping h:7 --dont-fragment", "ping: --dont-fragment is for udp: targets"),
        ("ping unix:/x --dont-fragment", "ping: --dont-fragment is for udp: targets"),
        ("load h:7 --compare a", "load: --compare is for --plot FILE"),
        ("ping h:7 --clock sun", "ping: argument --clock: takes kernel or user, not 'sun'"),
        ("load h:7 --latency p99=1s", "load: --latency is for --find-rate"),
        ("load h:7 --find-rate", "load: --find-rate needs a --latency, such as"),
        (
            "load h:7 --find-rate --latency p95=1s",
            "load: argument --latency: takes one of p50, p90, p99, p99.9, p99.99, max and a time",
        ),
        (
            "load h:7 --find-rate --latency p99",
            "load: argument --latency: takes one of p50, p90, p99, p99.9, p99.99, max and a time",
        ),
        (
            "load h:7 --find-rate --latency p99=soon",
            "load: argument --latency: takes a duration from 0.001ms to",
        ),
        ("load h:7 --find-rate --latency p99=1s -n 5", "load: --find-rate ends each step"),
        ("load h:7 --find-rate --latency p99=1s -d 0", "load: --find-rate needs a --duration"),
        ("ping unix:/x -4", "ping: -4, -6, -I, -Q, --dscp and --ttl are for targets with a host"),
        ("ping ::1 -4", "ping: -4 or -6 and ::1 are of different IP versions: change one"),
        ("ping 127.0.0.1 -I ::1", "ping: -I ::1 and 127.0.0.1 are of different IP versions"),
        ("ping h -4 -6", "ping: argument -6: not allowed with argument -4"),
        ("ping h -4 -I ::1", "ping: -I ::1: address family for hostname not supported: use one"),
        ("ping h -I nosuch", "ping: -I nosuch: no such device: use one that this machine has"),
        ("ping h -I 192.0.2.9", "ping: -I 192.0.2.9: cannot assign requested address: use one"),
        ("load h:7 --ramp 1:2 -r 1", "load: --ramp takes the place of --rate: leave one out"),
        ("load h:7 --ramp 1:2 -n 1", "load: --ramp ends after --duration: leave out --count"),
        ("load h:7 --ramp 1:2 -d 0", "load: --ramp needs a --duration above 0"),
        ("load h:7 --ramp 1", "load: argument --ramp: takes two rates, such as 100:10k, not '1'"),
        ("ping h:7 \u2014c 3", "ping: there is no option \u2014c (type -c); see"),
        ("ping h:7 \u2014count=3", "ping: there is no option \u2014count (type --count); see"),
        ("ping h:7 \u2212x", "ping: there is no option \u2212x (type -x); see"),
        ("load h:7 --csv x --hdr ./x", "load: --plot, --hdr and --csv write to different files"),
        ("load h:7 --csv=", "load: argument --csv: takes a value that is not empty"),
        ("load h:7 --ramp 1:2:3", "load: argument --ramp: takes a number of messages a second"),
        ("load udp:h:7 --per-connection 1", "load: --per-connection is for connections"),
        ("load h:7 --start-at soon", "load: argument --start-at: takes a time such as 14:30"),
        ("load h:7 --start-at 25:00", "load: argument --start-at: takes a time such as 14:30"),
        ("load h:7 --start-at 9999-12-31", "load: argument --start-at: takes a time such as"),
        ("load h:7 --start-at 0001-01-01", "load: argument --start-at: takes a time"),
        (
            "load h:7 --start-at 2020-01-01",
            "load: argument --start-at: takes a time to come",
        ),
        (
            "load h:7 --start-at 2050-01-01T00:00Z --find-rate --latency p99=1s",
            "load: --start-at is for one load",
        ),
        ("ping h:0", "ping: TARGET 'h:0': a port is from 1 to 65535, not '0'"),
        ("load ::1:7", "load: TARGET '::1:7' is ambiguous: type [::1]:7 or [::1:7]"),
    ],
)
def test_incompatible(capsys: Capture, arguments: str, why: str) -> None:
    """Options that exclude each other, and an invalid TARGET, are reported."""
    assert refused(capsys, *arguments.split()).startswith(f"echod-client {why}")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("pong h:7", "'pong'"),
        ("ping", "TARGET"),
        ("ping h:7 -c", "--count"),
        ("ping h:7 --prot 7", "--prot"),
        ("ping h:7 --time 7", "--time"),
        ("load h:7 stray things", "takes one TARGET; leave out 'stray'"),
        ("ping h 7 8", "'8'"),
        ("pipe h:7 --count 5", "--count"),
        ("load h:7 --interval 5", "--interval"),
        ("-4 ping h:7", "there is no option -4"),
        ("ping h:7 -j", "there is no option -j"),
        ("ping -j", "there is no option -j"),
        ("ping -x", "there is no option -x"),
        ("ping -vx h:7", "there is no option -x;"),
        ("ping -nvJ h:7", "there is no option -J (type --json);"),
        ("ping -verbose h:7", "there is no option -verbose (type -v);"),
        ("ping -xc 3 h:7", "there is no option -xc"),
        ("ping -c 3 --flood 5 h:7", "there is no option --flood"),
        ("ping --flood=5 h:7", "there is no option --flood;"),
        ("ping -c3 --json -W2 -X h:7", "there is no option -X"),
        ("--quiet ping h:7", "there is no option --quiet"),
        ("ping -- -4", "TARGET '-4' has to be host, host:port"),
        ("ping -", "TARGET '-' has to be host, host:port"),
        ("ping -c -5 h:7", "-c/--count: takes a whole number from 1 to"),
        ("ping --count -5 h:7", "not '-5'"),
        ("load -r -.5 h:7", "not '-.5'"),
        ("ping h:7 -I=", "-I/--interface: takes a value that is not empty"),
        ("ping h:7 --json=5", "--json"),
    ],
)
def test_unknown(capsys: Capture, arguments: str, named: str) -> None:
    """The message for an unknown, abbreviated, missing or extra argument names it."""
    assert named in refused(capsys, *arguments.split())


@pytest.mark.parametrize("stray", ["--foo\nbar", "x\x1b[2J", "\udcff"])
def test_unprintable(capsys: Capture, stray: str) -> None:
    """An unprintable argument is escaped, on one line."""
    for arguments in (["ping", "h:7", stray], ["ping", stray], [stray]):
        refused(capsys, *arguments)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(), st.sampled_from(["count", "interval", "size", "timeout", "dont-fragment"]))
def test_any_text(capsys: Capture, value: str, name: str) -> None:
    """Any value is either valid, or reported on one printable line."""
    arguments = ["ping", "h:7", f"--{name}={value}"]
    try:
        parse(arguments)
    except SystemExit:
        capsys.readouterr()
        refused(capsys, *arguments)


@pytest.mark.parametrize("command", [[], ["pipe"], ["ping"], ["load"]])
def test_help(capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: list[str]) -> None:
    """``--help`` explains TARGET, the exit statuses and each option, in 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as raised:
        parse([*command, "--help"])
    assert not raised.value.code
    out, err = capsys.readouterr()
    assert err == ""
    result = " ".join(out.split())
    assert "TARGET is host, host:port, [IPv6 address]:port, udp:host:port, or" in result
    assert "Exit status: 0, everything came back right; 1, something was" in result
    assert "2, the command line was wrong" in result
    for name in DEFAULTS.get("".join(command), {}):
        assert f"-{'-' * (len(name) > 1)}{name.replace('_', '-')}" in out
    assert all(len(line) <= 80 for line in out.splitlines())


def test_version(capsys: Capture) -> None:
    """``--version`` prints the version of echod."""
    with pytest.raises(SystemExit) as raised:
        parse(["--version"])
    assert not raised.value.code
    name, _, number = capsys.readouterr().out.partition(" ")
    assert name == "echod-client"
    assert number[0].isdecimal()


def test_help_that_cannot_be_written(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where ``--help`` cannot be written, one line says why, and the status is 1."""
    with open("/dev/full", "w") as full, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", full)
        with pytest.raises(SystemExit) as raised:
            parse(["ping", "--help"])
    assert raised.value.code == 1
    expected = "echod-client ping: standard output: no space left on device\n"
    assert capsys.readouterr().err == expected


def test_no_output_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard error cannot be written either, there is no traceback."""
    with open("/dev/full", "w") as full, open("/dev/full", "w") as error:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", error)
        with pytest.raises(SystemExit) as raised:
            parse(["--version"])
    assert raised.value.code == 1


def test_arguments_of_the_process(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without arguments, those of the process are parsed."""
    monkeypatch.setattr("sys.argv", ["x", "ping", "h:7", "-c", "3"])
    assert parse(None).count == 3


def test_several_targets() -> None:
    """``ping`` takes several targets; a number after one is its port."""
    targets = parse(["ping", "h:7", "g", "-c", "3", "i", "9"]).targets
    assert [(each.host, each.port) for each in targets] == [("h", 7), ("g", 7), ("i", 9)]


def test_payload_of_a_file(tmp_path: Path) -> None:
    """The bytes of a file are taken as they are."""
    file = tmp_path / "payload"
    file.write_bytes(b"\\n\0")
    assert parse(["ping", "h:7", "-e", f"@{file}"]).payload == b"\\n\0"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("@/nonexistent", "@/nonexistent: no such file or directory"),
        ("@/", "@/: is a directory"),
        ("@/dev/null", "takes 1 to 134,217,728 bytes, not '@/dev/null'"),
        ("", "takes 1 to 134,217,728 bytes, not ''"),
    ],
)
def test_wrong_payload(capsys: Capture, text: str, error: str) -> None:
    """A payload that cannot be read, or has no byte, is refused."""
    assert error in refused(capsys, "ping", "h:7", "-e", text)


def test_payload_over_udp(capsys: Capture) -> None:
    """Over UDP, ``-e`` is refused: the reply would not be recognised."""
    assert "--payload is for TCP" in refused(capsys, "load", "udp:h:7", "-e", "hello")
