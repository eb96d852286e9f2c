"""JSON Schema: the files agree with the tables of measuring-json.rst, and with the output."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator, ValidationError

from echod.peer import EchoPeer
from tests import ROOT
from tests.client.memory import echod_client, target_of

DIRECTORY = ROOT / "docs" / "schemas"
SCRIPT = ROOT / ".ci" / "schemas.py"
FILES = sorted(DIRECTORY.iterdir())


def validate(name: str, value: Any) -> None:
    schema = json.loads((DIRECTORY / f"{name}.json").read_text())
    Draft202012Validator(schema).validate(value)


def test_files() -> None:
    """The files are those that the script writes: run it after a change to a table."""
    spec: Any = importlib.util.spec_from_file_location("schemas", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = {file.name: json.loads(file.read_text()) for file in FILES}
    assert written == module.schemas(), "run python .ci/schemas.py"


def test_script(tmp_path: Path) -> None:
    """The script writes the same files to another directory."""
    subprocess.run([sys.executable, SCRIPT, tmp_path], check=True)
    for file in FILES:
        assert (tmp_path / file.name).read_text() == file.read_text()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_valid_schemas(file: Path) -> None:
    """Each file is a JSON Schema."""
    Draft202012Validator.check_schema(json.loads(file.read_text()))


@pytest.fixture(params=["tcp", "udp"])
def target(request: pytest.FixtureRequest, echo_peer: EchoPeer) -> str:
    return target_of(echo_peer(request.param))


COMMANDS = [
    ("ping", "-c", 3, "-i", 0.01),
    ("load", "-d", 0.1),
    ("load", "-d", 0.1, "-r", 100),
    ("load", "-d", 0.2, "--ramp", "10:100"),
    ("load", "-d", 0.2, "-r", 20, "--find-rate", "--latency", "max=0.001ms"),
]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: " ".join(map(str, command)))
def test_output(target: str, command: tuple[Any, ...]) -> None:
    """The output of each command is valid by its schema."""
    name, *options = command
    result = echod_client(name, target, *options, "--json").result
    validate(result["command"], result)


@pytest.mark.parametrize("command", COMMANDS[:2], ids=lambda command: command[0])
def test_events(target: str, command: tuple[Any, ...]) -> None:
    """Each line of --json-lines is an event, and the last is the output of --json."""
    name, *options = command
    out = echod_client(name, target, *options, "--json-lines").out
    *events, summary = map(json.loads, out.splitlines())
    assert events
    for event in events:
        validate("event", event)
    assert summary.pop("event") == "summary"
    assert isinstance(summary.pop("time"), float)
    validate(name, summary)


@pytest.mark.parametrize("command", ["ping", "load", "pipe"])
def test_failures(command: str) -> None:
    """The output of a run without a connection is valid, too."""
    outcome = echod_client(command, "unix:/nonexistent", "--json")
    text = outcome.err.splitlines()[0] if command == "pipe" else outcome.out
    validate(command, json.loads(text))


@pytest.mark.parametrize("command", COMMANDS[:3], ids=lambda command: " ".join(map(str, command)))
def test_merge(
    target: str, command: tuple[Any, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output of merge is valid by its schema."""
    from echod.client.main import main  # noqa: PLC0415 - as the console script does

    name, *options = command
    files = [str(tmp_path / each) for each in ("one", "two")]
    # One clock for both: on a busy machine, a run may get no stamp from the kernel.
    options += ["--clock", "user"]
    for file in files:
        Path(file).write_text(echod_client(name, target, *options, "--json").out)
    main(["merge", *files, "--json"])
    validate("merge", json.loads(capsys.readouterr().out))


def test_wrong_output(target: str) -> None:
    """A missing name, another name and another type are not valid."""
    result = echod_client("ping", target, "-c", 1, "--json").result
    for wrong in (
        {name: value for name, value in result.items() if name != "lost"},
        {**result, "other": 1},
        {**result, "lost": "0"},
        {**result, "round_trip_seconds": {}},
    ):
        with pytest.raises(ValidationError):
            validate("ping", wrong)
