"""Files of plans: what they mean, and one line for each mistake."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from echod.daemon.errors import WrongOption
from echod.daemon.faultfile import MAX_BYTES, read_faults
from echod.faultgrammar import parse_plan

GOOD = """
[[port]]  # comments are allowed
listen = "tcp:65433"
seed = 7
rules = [
    "first 2: refuse",
    'every 7th message of 64: delay 200ms',
]

[[port]]
listen = "udp:65433"
rules = ["10%: drop"]
"""


@pytest.fixture(name="path")
def file_of_plans(tmp_path: Path) -> Path:
    return tmp_path / "faults.toml"


def test_ports(path: Path) -> None:
    """Each table is one port, and its rules have the grammar of the command line."""
    path.write_text(GOOD)
    (tcp, plan), (udp, random) = read_faults(str(path))
    assert (tcp, udp) == ("tcp:65433", "udp:65433")
    assert plan == parse_plan("first 2: refuse; every 7th message of 64: delay 200ms; seed 7")
    assert str(random.rules[0]) == "10%: drop"
    assert read_faults(str(path))[1][1].seed != random.seed


WRONG = [
    (b"", "takes tables [[port]]"),
    (b"port = 1", "takes tables [[port]]"),
    (b"port = []", "takes tables [[port]]"),
    (b"plan = 1\n[[port]]", "takes tables [[port]] with the keys listen, rules, seed, not plan"),
    (b"port = [1]", "port 1 takes a table, not 1"),
    (b"[[port]]\nlisten = 'tcp:1'\n=", "is not TOML: Invalid statement (at line 3, column 1)"),
    (b"# \xff", "is not UTF-8: invalid start byte (at byte 3)"),
    (b"x = " + b"[" * 100_000, "is not TOML"),
    (b"x = " + b"9" * 10_000, "is not TOML"),
    (b"#" * (MAX_BYTES + 1), "has more than 1048576 bytes"),
    (b"[[port]]\nlisten = 'tcp:1'\nrule = []", "port 1: there is no key 'rule'; the keys are"),
    (b"[[port]]\nrules = []", "port 1: there is no key 'listen'; a port needs"),
    (b"[[port]]\nlisten = 1\nrules = []", "port 1: listen takes an endpoint"),
    (b"[[port]]\nlisten = 'tcp:1'", "port 1: there is no key 'rules'; a port needs"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = 'refuse'", "port 1: rules takes a list"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = []", "port 1: rules takes at least one rule"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = [2]", "port 1, rule 1 takes text"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = ['refuse', '']", "port 1, rule 2: '^'"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = ['refsue']", "port 1, rule 1: '^refsue'"),
    (b"[[port]]\nlisten = 'tcp:1'\nrules = ['seed 7']", "port 1, rule 1: '^seed 7'"),
    (
        b"[[port]]\nlisten = 'tcp:1'\nrules = ['refuse']\nseed = true",
        "port 1: seed takes a whole number",
    ),
    (
        b"[[port]]\nlisten = 'tcp:1'\nrules = ['refuse']\nseed = -1",
        "port 1: seed takes a whole number",
    ),
    (b"[[port]]\nlisten = 'a'\nrules = ['refuse']\n[[port]]\nlisten = 2", "port 2: there is"),
]


@pytest.mark.parametrize(("content", "why"), WRONG, ids=[why for _, why in WRONG])
def test_mistakes(path: Path, content: bytes, why: str) -> None:
    """Each mistake is one line, which names the port and the rule."""
    path.write_bytes(content)
    with pytest.raises(WrongOption) as caught:
        read_faults(str(path))
    assert caught.value.why.startswith(f"--faults={path}: {why}")
    assert caught.value.why.isprintable()


@pytest.mark.parametrize(
    ("name", "why"),
    [("none", "No such file or directory"), (".", "Is a directory"), ("\0", "embedded null byte")],
)
def test_unreadable(tmp_path: Path, name: str, why: str) -> None:
    """A file that cannot be read is one line, too."""
    with pytest.raises(WrongOption, match=why):
        read_faults(str(tmp_path / name))


def test_without_toml(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a parser of TOML, the line names the extra."""
    path.write_text(GOOD)
    monkeypatch.setitem(sys.modules, "tomllib", None)
    monkeypatch.setitem(sys.modules, "tomli", None)
    with pytest.raises(WrongOption, match="extra faults"):
        read_faults(str(path))
