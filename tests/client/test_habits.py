"""Command lines of other tools, typed from habit: they work, or the error says what to type."""

from __future__ import annotations

import re
from typing import Any

import pytest

from echod.client.options import parse, parser
from echod.client.parser import ALL, HABITS, OUT, habit

Capture = pytest.CaptureFixture[str]

LINES = [
    # ping(8)
    ("ping h", ""),
    ("ping -c 5 h", ""),
    ("ping -c 3 -i 0.2 h", ""),
    ("ping -4 h", ""),
    ("ping -6 h", ""),
    ("ping -q -c10 h", ""),
    ("ping -D -O h", ""),
    ("ping -w 10 -W 1 h", ""),
    ("ping -t 5 h", ""),
    ("ping -Q 0x10 h", ""),
    ("ping -I lo h", ""),
    ("ping -nv h", ""),
    ("ping -M do -s 1472 udp:h", "-M (type --dont-fragment)"),
    ("ping -f h", "-f (type -i 1ms, or use load)"),
    ("ping -A h", "-A (type -i 1ms, or use load)"),
    ("ping -R -b h", "-R (leave it out), -b (leave it out)"),
    ("ping -V", "-V (type echod-client --version)"),
    # irtt(1)
    ("client h", "'client' is not a command: type pipe | ping | load | merge before TARGET"),
    ("ping -i 10ms -d 1m -l 160 udp:h", "-d (type -w for a time), -l (type -s for a size,"),
    ("ping --dscp=46 --ttl=5 udp:h", ""),
    ("ping --df=true udp:h", "--df (type --dont-fragment)"),
    ("ping --local=127.0.0.1 udp:h", "--local (type -I)"),
    ("ping -o out.json udp:h", "-o (type --json > FILE)"),
    ("ping h:2112 --wait=3x4s", "--wait (type -W)"),
    # fortio
    (
        "load -c 8 -qps 1000 -t 10s tcp://h:8078",
        "-c (type -C for connections, -n for messages), -qps (type -r for messages a second), "
        "-t (type -d for a time",
    ),
    ("load tcp://h:8078", ""),
    ("load udp://h:8078/ -n 1000", ""),
    ("load -json out.json h", "-json (type --json)"),
    ("load -payload-size 1024 h", "-payload-size (type -s)"),
    (
        "load -timeout 3s -keepalive=false h",
        "-timeout (type --timeout), -keepalive (type --per-connection 1)",
    ),
    ("load -uniform -nocatchup h", "-uniform (leave it out), -nocatchup (leave it out)"),
    # wrk
    ("load -t12 -c400 -d30s h", "-t12 (type -d for a time, -C for threads), -c400 (type -C"),
    ("load --threads 12 --connections 400 h", "--threads (type -C for connections)"),
    ("load --connections 400 --duration 30s --timeout 2s h", ""),
    ("load -R 2000 h", "-R (type -r for a rate"),
    ("load http://127.0.0.1:8080/index.html", "use tcp://, udp:// or tls://"),
    # iperf3(1)
    ("-c h", "-c (type it after the command)"),
    ("load -c h -u -b 10M", "-u (type udp:HOST:PORT), -b (type -r for messages a second)"),
    ("load -P 4 -t 30 h", "-P (type -C for connections), -t (type -d"),
    ("load -J -p 5201 h", "-J (type --json), -p (type HOST:PORT)"),
    ("load -s 128K -n 10M h", ""),
    ("load -i 1 -O 3 h", "-i (type --json-lines for each second), -O (type --warm-up)"),
    ("load -n 10M -l 1k h", "-l (type -s)"),
    ("load -B 127.0.0.1 -S 0x10 h", "-B (type -I), -S (type -Q)"),
    ("load h -4 -V", "-V (type echod-client --version)"),
    ("load h --bidir --reverse", "--bidir (leave it out), --reverse (leave it out)"),
]


def test_count() -> None:
    """The table has 46 command lines, each once."""
    assert len({line for line, _ in LINES}) == len(LINES) == 46


@pytest.mark.parametrize(("line", "instead"), LINES)
def test_line(capsys: Capture, line: str, instead: str) -> None:
    """A command line is accepted, or refused in one line that says what to type instead."""
    if not instead:
        assert parse(line.split()).target.host == "h"
        return
    with pytest.raises(SystemExit) as raised:
        parse(line.split())
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert instead in error
    assert error.count("\n") == 1
    program = " ".join(error.split(":")[0].split()[:2])
    assert line.startswith(("client", "-c", program.removeprefix("echod-client ")))
    assert "TARGET 'h" not in error or "http" in line


OPTION = re.compile(r"(?<![\w-])--?[a-zA-Z][\w-]*")


@pytest.mark.parametrize("command", HABITS)
def test_what_to_type_exists(command: str) -> None:
    """A hint names an option that the command has, in place of one that it does not have."""
    commands: Any = parser()
    options = commands.commands[command]._option_string_actions
    for table in (HABITS[command], ALL):
        for names, hint in table.items():
            unknown = [name for name in names.split() if name not in options]
            assert table is ALL or unknown == names.split()
            if table is ALL or "echod-client" in hint or hint == OUT:
                continue
            assert all(option in options for option in OPTION.findall(hint)), hint


def test_own_row_first() -> None:
    """The hint of a command is preferred to the hint for all commands."""
    assert habit("ping", "-l") == "type -s for a size, or use load"
    assert habit("load", "-l") == "type -s"
    assert habit("ping", "--size") == ""


def test_without_arguments(capsys: Capture) -> None:
    """Without arguments, three examples are printed, and each is valid."""
    with pytest.raises(SystemExit) as raised:
        parse([])
    assert raised.value.code == 2
    first, *examples = capsys.readouterr().err.splitlines()
    assert first == "echod-client: type a command, as in these examples; see echod-client --help"
    assert len(examples) == 3
    for example in examples:
        parse(re.split("[<|]", example)[0].split()[1:])
