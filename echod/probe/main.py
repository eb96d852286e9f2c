"""The command ``echod-client``."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

EXTRA: Final = {"hdrh": "hdrhistogram", "tqdm": "tqdm"}
"""The modules that echod-client imports of its extra, and the distributions that they come from."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line, and return the exit status."""
    try:
        from echod.probe.commands import run  # noqa: PLC0415 - needs an extra
    except ModuleNotFoundError as error:
        missing = str(error.name).partition(".")[0]
        if missing not in EXTRA:
            raise
        print(
            f"echod-client needs {EXTRA[missing]}, which is not installed: "
            "install echod with its extra client",
            file=sys.stderr,
        )
        return 2
    return run(arguments)
