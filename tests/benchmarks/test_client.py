"""``benchmarks/client.py`` runs, and its sentences agree with its figures, whatever these are."""

from __future__ import annotations

import re
import shutil
from types import ModuleType

import pytest

from tests.benchmarks.running import benchmark, needs_cc, short_run

client = benchmark("client")


@needs_cc
@pytest.mark.skipif(not shutil.which("socat"), reason="needs socat")
def test_output() -> None:
    """The output has a row for each client, then the ratios, and whether each aim is met."""
    table, _, rest = short_run("client.py").partition("\n\n")
    rows = [line.split("  ")[0] for line in table.splitlines()[3:-1]]
    assert rows == ["echod-client load", "load.c", "echod-client pipe", "socat"]
    ratio = r"\d+\.\d{3} \(\d+\.\d{3}\.\.\d+\.\d{3}\); aim: at least 0\.5: (not )?met\."
    load, pipe, rate, late, *_ = rest.splitlines()
    assert re.fullmatch(f"Messages a second, echod-client / load.c: {ratio}", load)
    assert re.fullmatch(f"MB/s, echod-client / socat: {ratio}", pipe)
    assert re.fullmatch(
        r"Of 1,000 messages a second, [\d.,]+ were sent; aim: within 1 %: (not )?met\.", rate
    )
    assert re.fullmatch(
        r"One in a hundred of these was sent \d+\.\d{3} ms late or more; "
        r"aim: below 1 ms: (not )?met\.",
        late,
    )


def test_aims(client: ModuleType) -> None:
    """The median of the rounds decides whether an aim is met."""
    good = client.Round((50, 100), (500, 1000), 990, 0.0009)
    bad = client.Round((49, 100), (499, 1000), 989, 0.001)
    assert client.report([bad, good, good]).count(": met.") == 4
    assert client.report([bad, bad, good]).count("not met.") == 4
