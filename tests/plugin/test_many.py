"""Many tests with peers, on two workers of pytest-xdist: no port collides, and nothing is left."""

from __future__ import annotations

import pytest

from tests import ROOT

pytest_plugins = ["pytester"]

TESTS = """
import pytest
from tests.plugin.clients import TRANSPORTS, connect, resources


@pytest.fixture(autouse=True)
def nothing_left():
    before = resources()
    yield
    assert resources() == before


@pytest.mark.parametrize("number", range(COUNT))
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_many(nothing_left, request, number, transport):
    suffix = "" if transport == "tcp" else f"_{transport}"
    peer = request.getfixturevalue("echo_peer" + suffix)
    peer.first(1).truncate(3)
    with connect(peer, transport) as sock:
        sock.sendall(b"hello")
        assert sock.recv(100) == b"hel"
    peer.wait_for("truncate")  # the bytes before the fault may arrive before it is counted
    assert peer.counts["truncate"] == 1
"""


@pytest.mark.parametrize("count", [10, pytest.param(1000, marks=pytest.mark.soak)])
def test_many(count: int, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tests pass, each with a peer of its own; a quarter of them is for each transport."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # for tests.plugin.clients
    pytester.makepyfile(TESTS.replace("COUNT", str(count // 4)))
    result = pytester.runpytest_subprocess("-n", "2", "-p", "no:twisted", "-W", "error")
    result.assert_outcomes(passed=count // 4 * 4)
