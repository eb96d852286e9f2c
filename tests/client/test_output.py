"""Standard output and error: encoding by locale, escaping, and a failed flush."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from echod.client.output import discard, initial_environment, is_plain, prepare, printable


@pytest.mark.parametrize(
    ("environment", "plain"),
    [
        ({}, True),
        ({"LANG": "C"}, True),
        ({"LANG": "POSIX"}, True),
        ({"LC_ALL": "C", "LANG": "de_DE.UTF-8"}, True),
        ({"LC_CTYPE": "C", "LANG": "de_DE.UTF-8"}, True),
        ({"LC_ALL": "", "LC_CTYPE": "", "LANG": "de_DE.UTF-8"}, False),
        ({"LC_CTYPE": "de_DE.UTF-8", "LANG": "C"}, False),
        ({"LC_ALL": "C.UTF-8", "LANG": "C"}, False),
        ({"LC_ALL": "C", "PYTHONIOENCODING": "utf-8"}, False),
        ({"LC_ALL": "C", "PYTHONUTF8": "1"}, False),
    ],
)
def test_is_plain(environment: dict[str, str], plain: bool) -> None:
    """The first of LC_ALL, LC_CTYPE and LANG that is set decides, unless Python overrides it."""
    assert is_plain(environment) is plain


def test_initial_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment is that of the start of the process, if /proc is mounted."""
    file = tmp_path / "environ"
    file.write_bytes(b"LC_CTYPE=C\0ODD=a=\xff\0junk\0")
    monkeypatch.setattr("echod.client.output.INITIAL", str(file))
    assert initial_environment() == {"LC_CTYPE": "C", "ODD": "a=\udcff"}
    monkeypatch.setattr("echod.client.output.INITIAL", str(tmp_path / "none"))
    assert initial_environment() is os.environ


@pytest.mark.parametrize(
    ("plain", "shown"), [(True, b"\\u2588\\udcff"), (False, b"\xe2\x96\x88\\udcff")]
)
def test_prepare(plain: bool, shown: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The locale C escapes all but ASCII; others escape what they cannot encode."""
    monkeypatch.setattr("echod.client.output.is_plain", lambda _: plain)
    written = io.BytesIO()
    file = io.TextIOWrapper(written, encoding="utf-8")
    prepare(file, None, io.StringIO())
    print("█\udcff", end="", file=file, flush=True)
    assert written.getvalue() == shown


def test_printable() -> None:
    """Characters that would move the cursor, or cannot be encoded, are escaped."""
    assert printable("é \n\x1b[2J\udcff") == r"é \n\x1b[2J\udcff"


def test_discard() -> None:
    """After discard(), closing a file does not fail on its unwritten buffer."""
    with open("/dev/full", "w") as file:
        file.write("lost")
        discard(file)
    assert not sys.stdout.closed
